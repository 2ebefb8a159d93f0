"""All curves of an experiment in TensorBoard, in order."""

import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from kproba.bank.description import PREDICTOR
from kproba.runtime.files import read_json
from kproba.runtime.run_file import (
    RUN_FILE,
    SETTINGS,
    TrainedStep,
    has_names,
    read_run,
)

EVENTS = "tensorboard"  # name of the folder of event files in that of a step


class _Listing:
    """Folders of event files by name; in an experiment, each folder once."""

    def __init__(self) -> None:
        self.folders: dict[str, Path] = {}
        self._listed: set[tuple[tuple[str, str, str], Path]] = set()

    def add(self, step: TrainedStep, events: Path, user: TrainedStep) -> None:
        """List the events of a step under the experiment of the step that uses it."""
        if (user.experiment, events) in self._listed:
            return
        self._listed.add((user.experiment, events))
        dataset, task, setting = user.experiment
        run = f"{dataset} {task}-{setting}/{step.method} seed{step.seed}"
        self.folders[f"{run} step{step.step:02d}"] = events


def find_curves(folder: str | Path) -> dict[str, Path]:
    """Folders of event files below a folder of results, by names that sort in order.

    The step 0 that a later step started from, what methods share and what `joint`
    trained are among them, wherever they are, under the experiment that uses them.

    Args:
        folder: results/, or the folder of a dataset, an experiment, a method or a step.

    Raises:
        ValueError: There are none.
    """
    folder = Path(folder).resolve()
    events, tests = _find_files(folder)
    users: list[tuple[TrainedStep, Path]] = []
    for path in events:
        step = read_run(path)
        if step is not None:
            users.append((step, path))
    for path in tests:
        content = read_json(path)
        network = (path.parent / content["network"]).resolve()
        if has_names(content["about"]) and (network.parent / EVENTS).is_dir():
            step = TrainedStep.from_names(content["about"])
            users.append((step, network.parent / EVENTS))
    listing = _Listing()
    for user, path in users:
        listing.add(user, path, user)
    # Last, as a step that is shared is better called by its name in this experiment.
    for user, path in users:
        for earlier, earlier_path in _earlier_steps(path):
            owner = (*earlier.experiment, earlier.method)
            if earlier.step == 0 or owner != (*user.experiment, user.method):
                listing.add(earlier, earlier_path, user)
    if not listing.folders:
        raise ValueError(
            f"Expected trained steps below {folder}, with a folder tensorboard each, "
            f"but found none. Name results/ or an experiment below it."
        )
    return dict(sorted(listing.folders.items()))


def _find_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """Folders of event files, and files predictor.json, at or below a folder."""
    events, tests = set(), set()
    for name, folders, files in os.walk(folder):
        here = Path(name)
        if RUN_FILE in files:
            events.add(here)
        if SETTINGS in files and EVENTS in folders:  # of kproba 0.1.0: no run.json
            events.add(here / EVENTS)
        if PREDICTOR in files:
            tests.add(here / PREDICTOR)
    return sorted(events), sorted(tests)


def _earlier_steps(events: Path) -> Iterator[tuple[TrainedStep, Path]]:
    """The steps that a training continued, the latest first, as far as they exist."""
    step = read_run(events)
    while step is not None and step.previous is not None:
        events = step.previous.resolve()
        step = read_run(events)
        if step is not None:
            yield step, events


def show_curves(folder: str | Path, *, port: int, host: str) -> int:
    """Run TensorBoard on all steps of an experiment until it is stopped.

    Args:
        folder: As for `find_curves`.
        port: Port to serve.
        host: Address to serve.

    Returns:
        TensorBoard's exit status.
    """
    # Slow to import, and training does not need them.
    from tensorboard import default, program  # type: ignore[import-untyped]

    for talkative in ("tensorboard", "werkzeug"):
        logging.getLogger(talkative).setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="kproba-curves-") as links:
        for name, events in find_curves(folder).items():
            link = Path(links, name)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(events)
        board = program.TensorBoard(default.get_plugins())
        words = ["tensorboard", "--logdir", links, "--port", str(port), "--host", host]
        # All pictures; TensorBoard would keep ten of a training.
        board.configure([*words, "--samples_per_plugin", "images=100"])
        return int(board.main())
