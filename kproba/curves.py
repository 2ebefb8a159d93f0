"""What TensorBoard shows of a step: curves, and now and then what the network sees.

kproba tensorboard results/digits/6-2-overlap    # all steps and methods, in order

Everything here watches a training and changes nothing of it: a full disk ends the
curves and not the run, and the validation images choose no checkpoint.
"""

import contextlib
import logging
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from kproba.artifacts import read_json
from kproba.data import whole_image_loader
from kproba.distributed import Process
from kproba.drawing import overlay
from kproba.evaluation import (
    EvaluationSettings,
    evaluate,
    means_of,
    select_rows,
    step_of_class,
)
from kproba.methods import Method, base_of
from kproba.model import SegmentationNetwork
from kproba.segmenter import PREDICTOR
from kproba.splits import (
    IGNORE,
    Groups,
    LabelMap,
    canonical_task,
    evenly_spaced,
    read_indices,
)

log = logging.getLogger("kproba")

PICTURES = 4  # of the images that are looked at
SETTINGS, TESTED = "step*/settings.json", f"step*/{PREDICTOR}"
PROTOCOL = EvaluationSettings(policy="ssul", ignore_background=False, crop=None)


class Curves:
    """Event files of TensorBoard; a full disk ends them, not the run.

    Args:
        folder: Of the event files.
        start: Iteration that a resumed run goes on from; what came after is hidden.
        rows: Of metrics.csv up to there: written again where nothing is left of them,
            as Snakemake removes the files of a job that stopped.
        looks: What was seen of the validation images up to there, likewise.
    """

    def __init__(
        self,
        folder: Path,
        start: int,
        rows: Sequence[dict[str, float]],
        looks: Sequence[dict[str, float]] = (),
    ):
        # TensorBoard writes in a thread of its own, whose errors would be tracebacks.
        threading.excepthook = self._on_error
        self.writer: SummaryWriter | None = None
        lost = not any(folder.glob("events*"))
        with self._tolerant():
            self.writer = SummaryWriter(str(folder), purge_step=start + 1)
        if lost:
            for row in rows:
                self.add(row)
            for look in looks:
                self.add_look(look)

    def add(self, row: dict[str, float], speed: float | None = None) -> None:
        """Write a row of metrics.csv, and the speed in images a second."""
        iteration = int(row["iteration"])
        for name, value in row.items():
            if name != "iteration":
                group = "learning_rate" if name.startswith("lr_") else "loss"
                self.scalar(f"{group}/{name}", value, iteration)
        if speed is not None:
            self.scalar("speed/images_per_second", speed, iteration)

    def add_look(self, look: dict[str, float]) -> None:
        """Write what a look at the validation images found."""
        for name, value in look.items():
            if name != "iteration":
                self.scalar(f"validation/{name}", value, int(look["iteration"]))

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

    def _on_error(self, given: threading.ExceptHookArgs) -> None:
        if isinstance(given.exc_value, OSError):
            self._give_up(given.exc_value)
        else:
            threading.__excepthook__(given)

    def _give_up(self, error: OSError) -> None:
        if self.writer is not None:
            log.warning("No more TensorBoard curves: %s", error)
        self.writer = None


class Monitor:
    """Looks at a few validation images while a network trains.

    They are spread evenly over those that hold a class seen so far. The network is
    asked alone, without its bank; the numbers are for watching, the test's are others.

    Args:
        indices: Index of the dataset and of the additions that have come so far.
        groups: Raw labels of the classes of the steps 0..t.
        names: Of S_t in output order.
        images: How many images.
        times: How often during the training, the last time at its end.
    """

    def __init__(
        self,
        indices: Sequence[str | Path],
        groups: Groups,
        names: Sequence[str],
        *,
        images: int,
        times: int,
    ):
        index = pd.concat(read_indices(indices), ignore_index=True)
        self.rows = evenly_spaced(select_rows(index, groups, "plop"), images)
        self.steps, self.names, self.times = step_of_class(groups), names, times
        self.table = LabelMap(groups).evaluation_table()
        self.failed = False  # once, and nobody looks again

    def due(self, done: int, iterations: int) -> bool:
        """Whether to look after `done` of all iterations."""
        if self.failed:
            return False
        return done * self.times // iterations > (done - 1) * self.times // iterations

    def look(
        self, network: SegmentationNetwork, curves: Curves, iteration: int, device: str
    ) -> dict[str, float] | None:
        """Test the network and write old, new and all, and the first pictures.

        The network is in evaluation mode afterwards. What fails here (too little
        memory, an image that cannot be read) ends the looks and not the training.

        Returns:
            The iteration and mIoU of old, new and all, as far as they exist; None if it
            failed.
        """
        network.eval()
        tuned = torch.backends.cudnn.benchmark
        # Images differ in size: nothing here is worth tuning or compiling for.
        torch.backends.cudnn.benchmark = False
        try:
            with torch.compiler.set_stance("force_eager"):
                return self._look(network, curves, iteration, device)
        except (OSError, RuntimeError, ValueError) as error:
            log.warning("No more looks at validation images: %s", error)
            self.failed = True
            if device != "cpu":
                torch.cuda.empty_cache()
            return None
        finally:
            torch.backends.cudnn.benchmark = tuned

    def _look(
        self, network: SegmentationNetwork, curves: Curves, iteration: int, device: str
    ) -> dict[str, float]:
        confusion = evaluate(
            network,
            whole_image_loader(self.rows, self.table, batch_size=1),
            PROTOCOL,
            channel_order=range(len(self.names)),
            process=Process(device=device),
        )
        for name, picture in self._pictures(network, device):
            curves.picture(name, picture, iteration)
        look: dict[str, float] = {"iteration": iteration}
        for measure, value in means_of(confusion, self.steps, PROTOCOL.policy).items():
            if measure != "hiou" and not np.isnan(value):
                look[measure] = float(value)
        curves.add_look(look)
        return look

    def _pictures(
        self, network: SegmentationNetwork, device: str
    ) -> Iterator[tuple[str, Image.Image]]:
        """Image, ground truth and prediction side by side."""
        some = self.rows.iloc[:PICTURES].reset_index(drop=True)
        for batch in whole_image_loader(some, self.table, batch_size=1):
            image = Image.fromarray(batch.images[0].permute(1, 2, 0).numpy())
            truth = batch.targets[0].numpy()
            found = network.predict(batch.images.to(device))[0].cpu().numpy()
            masks = (np.where(truth == IGNORE, 0, truth), found)
            shown = [image, *(overlay(image, mask, self.names) for mask in masks)]
            size = sum(one.width for one in shown), max(one.height for one in shown)
            sheet, left = Image.new("RGB", size, "white"), 0
            for one in shown:
                sheet.paste(one, (left, 0))
                left += one.width
            yield f"image, truth, prediction/{batch.ids[0]}", sheet


# --- all steps of an experiment ------------------------------------------------------


def curves_of(folder: str | Path) -> dict[str, Path]:
    """Folders of event files below a folder of results, by names that sort in order.

    The step 0 that a later step started from and what `joint` trained are among them,
    wherever they are.

    Args:
        folder: results/, or the folder of a dataset, an experiment, a method or a step.

    Raises:
        ValueError: There are none.
    """
    found: dict[str, Path] = {}
    folder = Path(folder).absolute()
    for settings in sorted({*folder.glob("settings.json"), *folder.rglob(SETTINGS)}):
        found |= _named(settings.parent, settings)
        told = read_json(settings)
        if told["step"] > 0:
            found |= _named(_base_folder(settings, told), settings)
    for tested in sorted({*folder.glob(PREDICTOR), *folder.rglob(TESTED)}):
        network = tested.parent / read_json(tested)["network"]
        events = network.resolve().parent / "tensorboard"
        if events.is_dir() and events not in found.values():
            dataset, experiment, method, seed, step, _ = tested.parts[-6:]
            number = int(step.removeprefix("step"))
            name = f"{dataset} {experiment}/{method} {seed} step{number:02d}"
            found[name] = events
    if not found:
        raise ValueError(
            f"Expected trained steps below {folder}, with a folder tensorboard each, "
            f"but found none. Name results/ or an experiment below it."
        )
    return dict(sorted(found.items()))


def _named(step: Path, settings: Path) -> dict[str, Path]:
    """The event files of a step, under the experiment that `settings` belong to."""
    dataset, experiment, *_ = settings.parts[-6:]
    method, seed, number = step.parts[-3:]
    name = f"{dataset} {experiment}/{method} {seed} step{int(number[4:]):02d}"
    events = step / "tensorboard"
    return {name: events} if events.is_dir() else {}


def _base_folder(settings: Path, told: dict[str, Any]) -> Path:
    """Folder of the step 0 that a chain began with."""
    seed = settings.parts[-3]
    setting = "disjoint" if told["setting"] == "sequential" else told["setting"]
    task = canonical_task(told["groups"][0])
    base = base_of(Method.from_dict(told["recipe"]))
    return settings.parents[3].with_name(f"{task}-{setting}") / base / seed / "step0"


def show_curves(folder: str | Path, *, port: int, host: str) -> int:
    """Run TensorBoard on all steps of an experiment until it is told to stop."""
    # Slow to import, and nobody needs them to train.
    from tensorboard import default, program  # type: ignore[import-untyped]

    for talkative in ("tensorboard", "werkzeug"):
        logging.getLogger(talkative).setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="kproba-curves-") as links:
        for name, events in curves_of(folder).items():
            link = Path(links, name)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(events)
        board = program.TensorBoard(default.get_plugins())
        words = ["tensorboard", "--logdir", links, "--port", str(port), "--host", host]
        # All pictures; TensorBoard would keep ten of a training.
        board.configure([*words, "--samples_per_plugin", "images=100"])
        return int(board.main())
