"""Records of a training while it runs: rows, log lines, curves, validation."""

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kproba.data.splits import read_indices
from kproba.network.network import SegmentationNetwork
from kproba.runtime.compute import Compute
from kproba.runtime.distributed import Process
from kproba.runtime.run_file import write_run
from kproba.training.checkpoint import Progress
from kproba.training.curves import Curves
from kproba.training.files import Files
from kproba.training.iteration import Tally
from kproba.training.log import log_progress
from kproba.training.settings import StepSettings

if TYPE_CHECKING:
    from kproba.training.monitor import Monitor

log = logging.getLogger("kproba")

ROWS = 50  # of metrics.csv and TensorBoard per step


@dataclass
class Recorder:
    """Records a training after every iteration.

    Attributes:
        settings: Settings of the step.
        compute: Compute options.
        process: This process of several; the first writes and logs.
        progress: Progress of the training; it is updated.
        tally: Sums of the terms.
        iterations: Iterations of the whole training.
        curves: Event files of TensorBoard; None in all processes but the first.
        monitor: Runs the validation checks; None for no checks.
    """

    settings: StepSettings
    compute: Compute
    process: Process
    progress: Progress
    tally: Tally
    iterations: int
    curves: Curves | None = None
    monitor: "Monitor | None" = None

    def __post_init__(self) -> None:
        self.start = self.progress.iteration
        self.clock = self.last_log = self.last_state = time.monotonic()
        self.seconds_before = self.progress.seconds  # of earlier starts

    def state_is_due(self) -> bool:
        """Whether a state should be saved before the next iteration."""
        waited = time.monotonic() - self.last_state
        trained = self.progress.iteration > self.start
        due = waited > 60 * self.compute.state_minutes
        return self.process.first and trained and due

    def state_was_saved(self) -> None:
        """Start to wait for the next state."""
        self.last_state = time.monotonic()

    def record(self, rates: dict[str, float], student: SegmentationNetwork) -> None:
        """Record a finished iteration.

        Args:
            rates: Learning rates of the iteration.
            student: Validated when that is due; training continues with it.
        """
        progress, optimisation = self.progress, self.settings.optimisation
        now = time.monotonic()
        progress.iteration = done = progress.iteration + 1
        progress.seconds = self.seconds_before + now - self.clock
        speed = (done - self.start) * optimisation.batch_size / (now - self.clock)
        last = done == self.iterations
        # Rows are written at fixed iterations, so equal trainings write equal files.
        if done % max(1, self.iterations // ROWS) == 0 or last:
            self.tally.settle()
            progress.add_row(rates, self.process)
            if self.curves is not None:
                self.curves.add(progress.rows[-1], speed)
        log_due = now - self.last_log > self.compute.log_seconds or last
        if self.process.first and log_due:
            self.tally.settle()
            terms = progress.recent(self.process.world_size)
            log_progress(progress, terms, rates, optimisation, self.iterations, speed)
            self.last_log = now
        self._validate(student)

    def _validate(self, student: SegmentationNetwork) -> None:
        done, monitor = self.progress.iteration, self.monitor
        if monitor is None or self.curves is None:
            return
        if monitor.is_due(done, self.iterations):
            device = self.process.device
            result = monitor.validate(student, self.curves, done, device)
            if result is not None:
                self.progress.validations.append(result)
            student.set_training_mode(
                batch_norm=self.settings.step == 0,
                dropout=self.settings.method.dropout,
            )


def start_curves(files: Files, settings: StepSettings, progress: Progress) -> Curves:
    """Start the event files of a training, and identify it in run.json."""
    previous = files.previous and files.previous.parent / files.tensorboard.name
    curves = Curves(
        files.tensorboard, progress.iteration, progress.rows, progress.validations
    )
    try:
        joint = settings.step != settings.run.step
        write_run(files.tensorboard, {**vars(settings.run), "joint": joint}, previous)
    except OSError as error:  # missing curves must not stop a training
        log.warning("could not write run.json for TensorBoard: %s", error)
    return curves


def start_monitor(
    files: Files, settings: StepSettings, compute: Compute
) -> "Monitor | None":
    """Start validation checks during the training, if the settings have any."""
    if not files.validation or not compute.val_times or not compute.val_images:
        return None
    from kproba.training.monitor import Monitor  # late: only the first process does

    return Monitor(
        read_indices(files.validation, files.folders),
        settings.groups,
        names=files.names,
        images=compute.val_images,
        times=compute.val_times,
    )
