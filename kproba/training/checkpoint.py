"""The state of an unfinished training: saved completely or not at all."""

import logging
import shutil
import signal
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType

import torch
from torch import nn

from kproba.runtime.distributed import Process
from kproba.runtime.files import FullDiskError, atomic_path
from kproba.training.saved_state import DamagedStateError, check_state, read_state

log = logging.getLogger("kproba")


@dataclass
class Progress:
    """Progress of a run.

    Attributes:
        iteration: Iterations done.
        rows: Rows of metrics.csv so far.
        sums: Every loss term of this process, summed over the iterations since the
            last row.
        seconds: Time spent, over all restarts.
        validations: Results of the validation checks so far, for the curves.
    """

    iteration: int = 0
    rows: list[dict[str, float]] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    validations: list[dict[str, float]] = field(default_factory=list)

    def add_row(self, rates: dict[str, float], process: Process) -> None:
        """Add a row: the mean of every term per iteration since the last row."""
        since = self.iteration - (self.rows[-1]["iteration"] if self.rows else 0)
        summed = process.sum(list(self.sums.values()))
        totals = dict(zip(self.sums, summed, strict=True))
        terms = {name: total / since for name, total in totals.items()}
        row = {"iteration": self.iteration, "loss": sum(terms.values()), **terms}
        self.rows.append({**row, **rates})
        self.sums = {}

    def recent(self, processes: int) -> dict[str, float]:
        """The mean terms since the last row, or of the last row if it is new.

        These are the values of this process only, for the log, because no data is
        exchanged with the others.
        """
        last = self.rows[-1] if self.rows else {"iteration": 0}
        since = self.iteration - int(last["iteration"])
        if not since:
            return {
                name: value
                for name, value in last.items()
                if name != "iteration" and not name.startswith("lr_")
            }
        terms = {n: processes * total / since for n, total in self.sums.items()}
        return {"loss": sum(terms.values()), **terms}


@dataclass
class StopFlag:
    """Whether a stop of the training was requested."""

    requested: bool = False

    @classmethod
    def of_signals(cls) -> "StopFlag":
        """Set by SIGTERM (pre-emption, scancel) and SIGINT (Ctrl-C) from now on."""
        flag = cls()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, flag._set)
        return flag

    def _set(self, number: int, frame: FrameType | None) -> None:
        self.requested = True


@dataclass
class Checkpoint:
    """Everything that a resumed training needs, in one file beside the outputs.

    Order, augmentation and dropout depend only on keys, so the state of no random
    generator has to be saved.

    Attributes:
        path: The file.
        mark: Fingerprint of settings and inputs; a state with another one is refused.
        network, optimizer, scaler: The trained parts.
        refused: Whether the last attempt to save found the disk full.
    """

    path: Path
    mark: str
    network: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    refused: bool = False

    def save(self, progress: Progress, process: Process) -> bool:
        """Save the state; all processes call this, and the first one writes.

        The file takes its name only when it is whole on disk. On a full disk the last
        good state is kept, the log reports it, and training continues.

        Returns:
            Whether it was written.
        """
        sums = process.gather(progress.sums)
        if process.first:
            self._write(progress, sums)
        [refused] = process.sum([float(self.refused)])
        return not refused

    def _write(self, progress: Progress, sums: list[dict[str, float]]) -> None:
        content = {
            "mark": self.mark,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "progress": {**asdict(progress), "sums": sums},
        }
        try:
            with atomic_path(self.path) as temporary:
                torch.save(content, temporary)
        except FullDiskError as error:
            if not self.refused:
                log.warning("%s. Training continues, but saves no new state", error)
            self.refused = True
        else:
            self.refused = False
            log.info("saved the state after %d iterations", progress.iteration)

    def load(self, process: Process) -> Progress:
        """Restore the saved state of exactly this run, if there is one.

        A file that is damaged or has another content is renamed, and the step starts
        from its beginning.

        Raises:
            RuntimeError: The processes read different files.
            OSError: The file must not be read.
        """
        restored, fault = None, ""
        try:
            restored = self._read(process)
        except DamagedStateError as error:
            fault = str(error)
        progress = restored or Progress()
        found = process.gather(progress.iteration)
        if len(set(found)) > 1:
            raise RuntimeError(
                f"Expected all processes to read the same state from {self.path}, but "
                f"their states were saved after {', '.join(map(str, found))} "
                f"iterations. The file system gives them different files. Run the same "
                f"command again."
            )
        if fault and process.first:
            self._put_aside(fault)
        if restored:
            log.info("resumed after %d iterations", progress.iteration)
        return progress

    def _put_aside(self, fault: str) -> None:
        """Rename a file or folder that cannot be used."""
        aside = self.path.with_name(f"{self.path.name}.damaged")
        shutil.rmtree(aside, ignore_errors=True)
        aside.unlink(missing_ok=True)
        self.path.replace(aside)
        log.warning(
            "Expected the state of this training in %s, but it %s. The step starts "
            "from its beginning. The old file was renamed to %s; you may delete it",
            self.path,
            fault,
            aside.name,
        )

    def _read(self, process: Process) -> Progress | None:
        """Restore the saved state; nothing changes if it cannot be used.

        Raises:
            DamagedStateError: The file is damaged or something else.
            OSError: It must not be read.
        """
        if not self.path.exists() and not self.path.is_symlink():
            return None
        state = read_state(self.path, process.device)
        if state.get("mark") != self.mark:
            log.warning(
                "%s: not used, because it was saved with other settings or inputs",
                self.path,
            )
            return None
        check_state(state, self.network, self.optimizer, self.scaler)
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        parts = state["progress"].pop("sums")
        if len(parts) != process.world_size:  # other processes than before
            total = {name: sum(part[name] for part in parts) for name in parts[0]}
            parts = [total] + [dict.fromkeys(total, 0.0)] * (process.world_size - 1)
        return Progress(**state["progress"], sums=dict(parts[process.rank]))

    def remove(self) -> None:
        """Remove the file: the run is finished."""
        self.path.unlink(missing_ok=True)
