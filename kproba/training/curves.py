"""The event files that TensorBoard shows."""

import contextlib
import logging
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

log = logging.getLogger("kproba")


class Curves:
    """Event files of TensorBoard; a full disk ends them, not the run.

    Args:
        folder: Folder of the event files.
        start: Iteration that a resumed run goes on from; what came after is hidden.
        rows: Rows of metrics.csv up to there: written again where nothing is left of
            them, as Snakemake removes the files of a job that stopped.
        validations: Results on validation images up to there, likewise.
    """

    def __init__(
        self,
        folder: Path,
        start: int,
        rows: Sequence[dict[str, float]],
        validations: Sequence[dict[str, float]] = (),
    ):
        # Late: of several processes, only the first writes curves.
        from torch.utils.tensorboard import SummaryWriter

        # TensorBoard writes in a thread of its own, whose errors would be tracebacks.
        threading.excepthook = self._on_error
        self.writer: SummaryWriter | None = None
        lost = not any(folder.glob("events*"))
        with self._tolerant():
            self.writer = SummaryWriter(str(folder), purge_step=start + 1)
        if lost:
            for row in rows:
                self.add(row)
            for validation in validations:
                self.add_validation(validation)

    def add(self, row: dict[str, float], speed: float | None = None) -> None:
        """Write a row of metrics.csv, and the speed in images a second."""
        iteration = int(row["iteration"])
        for name, value in row.items():
            if name != "iteration":
                self.scalar(_tag(name), value, iteration)
        if speed is not None:
            self.scalar("speed/images_per_second", speed, iteration)

    def add_validation(self, validation: dict[str, float]) -> None:
        """Write the result of a test on validation images."""
        for name, value in validation.items():
            if name != "iteration":
                self.scalar(f"validation/{name}", value, int(validation["iteration"]))

    def scalar(self, name: str, value: float, iteration: int) -> None:
        """Write one number."""
        if self.writer is not None:
            with self._tolerant():
                self.writer.add_scalar(name, value, iteration)

    def picture(self, name: str, picture: Image.Image, iteration: int) -> None:
        """Write one RGB picture."""
        if self.writer is not None:
            with self._tolerant():
                values = np.asarray(picture)
                self.writer.add_image(name, values, iteration, dataformats="HWC")

    def close(self) -> None:
        """Finish the file."""
        if self.writer is not None:
            with self._tolerant():
                self.writer.close()

    @contextlib.contextmanager
    def _tolerant(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._give_up(error)

    def _on_error(self, raised: threading.ExceptHookArgs) -> None:
        if isinstance(raised.exc_value, OSError):
            self._give_up(raised.exc_value)
        else:
            threading.__excepthook__(raised)

    def _give_up(self, error: OSError) -> None:
        if self.writer is not None:
            log.warning("No more TensorBoard curves: %s", error)
        self.writer = None


def _tag(column: str) -> str:
    """The name of a curve, from a column of metrics.csv."""
    if column.startswith("lr_"):
        return f"learning_rate/{column.removeprefix('lr_')}"
    return "loss/total" if column == "loss" else f"loss/{column}"
