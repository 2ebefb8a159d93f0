"""TODO results.tensorboard."""

import logging
import tempfile
from pathlib import Path
from typing import Any

from kproba.bank.description import PREDICTOR
from kproba.data.tasks import canonical_task
from kproba.methods.builtin import base_of
from kproba.methods.method import Method
from kproba.runtime.files import read_json

SETTINGS, TESTED = "step*/settings.json", f"step*/{PREDICTOR}"


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
