"""All curves of an experiment in TensorBoard, in order."""

import contextlib
import hashlib
import logging
import os
import signal
import socket
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from kproba.bank.description import PREDICTOR
from kproba.runtime.files import read_json
from kproba.runtime.run_file import (
    RUN_FILE,
    SETTINGS,
    TrainedStep,
    has_names,
    read_run,
)

log = logging.getLogger("kproba")

MOST_PORT = 2**16 - 1
LONGEST_NAME = 240  # bytes of a part of a run's name, which is a name in a file system

EVENTS = "tensorboard"  # name of the folder of event files in that of a step


@dataclass(frozen=True)
class _Run:
    """A training as TensorBoard lists it.

    Attributes:
        dataset: Of the experiment that uses the training.
        task: Likewise.
        setting: Likewise.
        place: 0 for a step 0, 1 for a later step, 2 for one training of all classes.
        method: Its name.
        seed: Of the training.
        step: Whose network it is.
    """

    dataset: str
    task: str
    setting: str
    place: int
    method: str
    seed: int
    step: int


class _Listing:
    """Folders of event files by training; in an experiment, each folder once."""

    def __init__(self) -> None:
        self.folders: dict[_Run, Path] = {}
        self._listed: set[tuple[tuple[str, str, str], Path]] = set()

    def add(self, step: TrainedStep, events: Path, user: TrainedStep) -> None:
        """List the events of a step under the experiment of the step that uses it."""
        if (user.experiment, events) in self._listed:
            return
        self._listed.add((user.experiment, events))
        place = 1 if step.step else 0
        if place:
            trained = _read_run(events)
            # A training of all classes is evaluated as the last step.
            at_once = trained is not None and (trained.joint or trained.step == 0)
            place = 2 if at_once else 1
        run = _Run(*user.experiment, place, step.method, step.seed, step.step)
        self.folders[run] = events

    def named(self) -> dict[str, Path]:
        """The folders by names that hold only what differs between them, sorted."""
        runs = list(self.folders)
        shown = {
            name
            for name in ("dataset", "task", "setting", "seed")
            if len({getattr(run, name) for run in runs}) > 1
        }
        width = max((len(str(run.step)) for run in runs), default=1)
        names = {_name(run, shown, width): run for run in runs}
        return {name: self.folders[run] for name, run in sorted(names.items())}


def _name(run: _Run, shown: Collection[str], width: int) -> str:
    """The name of a run, such as "kproba step 1".

    TensorBoard lists runs in the order of their names. An empty space in front puts
    step 0 before all letters, and a non-breaking one puts `joint` behind them.

    Args:
        run: The run.
        shown: Which of dataset, task, setting and seed the name holds.
        width: Digits of a step.
    """
    task = [getattr(run, name) for name in ("task", "setting") if name in shown]
    dataset = [run.dataset] if "dataset" in shown else []
    experiment = " ".join([*dataset, *(["-".join(task)] if task else [])])
    seed = f" seed {run.seed}" if "seed" in shown else ""
    front = (" ", "", "\u00a0")[run.place]
    name = f"{front}{run.method}{seed} step {run.step:0{width}d}"
    return f"{experiment}/{name}" if experiment else name


def find_curves(folder: str | Path) -> dict[str, Path]:
    """Folders of event files below a folder of results, by names that sort in order.

    A name holds what differs between the runs: inside one experiment with one seed,
    method and step, such as "kproba step 1". Step 0 comes first, and `joint` last.

    The step 0 that a later step started from, what methods share and what `joint`
    trained are among them, wherever they are, under the experiment that uses them.

    Args:
        folder: results/, or the folder of a dataset, an experiment, a method or a step.

    Raises:
        ValueError: There are none.
        OSError: The folder does not exist, is a file, or must not be read.
    """
    given, folder = folder, Path(os.path.realpath(folder))
    try:
        os.listdir(folder)  # noqa: PTH208  # the error is what matters
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OSError(
            f"Expected a folder of trained steps, but got {given}: {reason}. Name "
            f"results/ or a folder below it."
        ) from error
    events, tests = _find_files(folder)
    users: list[tuple[TrainedStep, Path]] = []
    for path in events:
        step = _read_run(path)
        if step is not None:
            users.append((step, path))
    for path in tests:
        with _skip_damaged(path):
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
    return listing.named()


@contextlib.contextmanager
def _skip_damaged(path: Path) -> Iterator[None]:
    """A block that reads a file; one that is damaged is named, and the others shown."""
    try:
        yield
    except (
        *(OSError, ValueError, RuntimeError),
        *(KeyError, TypeError, AttributeError),
    ) as error:
        log.warning("left out %s, which cannot be read: %s", path, error)


def _read_run(events: Path) -> TrainedStep | None:
    """As `read_run`, but None for a damaged file."""
    with _skip_damaged(events):
        return read_run(events)
    return None


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
    seen = {events}
    step = _read_run(events)
    while step is not None and step.previous is not None:
        events = step.previous.resolve()
        if events in seen:  # links in a circle
            return
        seen.add(events)
        step = _read_run(events)
        if step is not None:
            yield step, events


def show_curves(folder: str | Path, *, port: int, host: str) -> int:
    """Run TensorBoard on all steps of an experiment until it is stopped.

    Args:
        folder: As for `find_curves`.
        port: Port to serve; 0: any free one.
        host: Address to serve.

    Returns:
        TensorBoard's exit status.

    Raises:
        ValueError: The port is no port, the host is empty, or there are no steps.
        OSError: The port or the folder cannot be used.
        KeyboardInterrupt: Ctrl-C.
    """
    check_address(host, port)
    curves = find_curves(folder)
    # Slow to import, and training does not need them.
    from tensorboard import default, program  # type: ignore[import-untyped]

    for talkative in ("tensorboard", "werkzeug"):
        logging.getLogger(talkative).setLevel(logging.WARNING)
    with (
        tempfile.TemporaryDirectory(prefix="kproba-curves-") as links,
        _ctrl_c_is_kept(),
    ):
        for name, events in curves.items():
            link = Path(links, *_parts_of_link(name))
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(events)
        board = program.TensorBoard(default.get_plugins())
        words = ["tensorboard", "--logdir", links, "--port", str(port), "--host", host]
        # All pictures; TensorBoard would keep ten of a training.
        board.configure([*words, "--samples_per_plugin", "images=100"])
        status = int(board.main())
    return 1 if status else 0  # it returns -1 for errors


def check_address(host: str, port: int) -> None:
    """Check that TensorBoard can serve an address.

    Raises:
        ValueError: The port is no port, or the host is empty.
        OSError: The port is in use or must not be used, or there is no such host.
    """
    if not 0 <= port <= MOST_PORT:
        raise ValueError(
            f"Expected a --port from 0 to {MOST_PORT}, but got {port}. Name another."
        )
    if not host.strip():
        raise ValueError(
            "Expected a name or an address for --host, but it is empty. Leave it out, "
            "or name one, such as localhost or 0.0.0.0."
        )
    try:
        # The family that TensorBoard takes.
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        found = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(found[0][4])
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OSError(
            f"Expected an address that TensorBoard can serve, but {host}, port {port}, "
            f"cannot be used: {reason}. Name another --port or --host."
        ) from error


def _parts_of_link(name: str) -> list[str]:
    """The folders and the file of the link that gives a run its name in TensorBoard.

    Names come from files, so they must not lead out of the folder of links.
    """
    parts = []
    printable = name.replace("\0", "?").encode(errors="replace").decode()
    for part in printable.split("/"):
        safe = "_" if part in ("", ".", "..") else part
        raw = safe.encode()
        if len(raw) > LONGEST_NAME:
            digest = hashlib.sha256(raw).hexdigest()[:8]
            safe = f"{raw[: LONGEST_NAME - 10].decode(errors='ignore')}~{digest}"
        parts.append(safe)
    return parts


@contextlib.contextmanager
def _ctrl_c_is_kept() -> Iterator[None]:
    """A block after which Ctrl-C is raised, though TensorBoard passes it over."""
    pressed = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if pressed:
        raise KeyboardInterrupt
