"""Where scripts write what they have to say."""

import contextlib
import logging
import os
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

# Set by `kproba-launch`: where a job's progress is told beside its log, and of whom.
TERMINAL, JOB = "KPROBA_TERMINAL", "KPROBA_JOB"


PROGRESS = {"progress": True}  # `extra` of a log line that tells how far a job is


@contextlib.contextmanager
def log_to(path: str | Path, *, terminal: bool = False) -> Iterator[None]:
    """Send log lines, warnings and the error of a block to a file.

    An error ends the process as in `told_errors`; whoever started it shows the file.

    Args:
        path: The log file, replaced.
        terminal: Show log lines on the terminal as well.
    """
    with Path(path).open("w", buffering=1, encoding="utf-8") as file:
        streams = [file, sys.__stderr__] if terminal else [file]
        logging.basicConfig(
            level=logging.INFO,
            format="%(asctime)s %(message)s",
            datefmt="%H:%M:%S",
            handlers=[logging.StreamHandler(stream) for stream in streams],
            force=True,
        )
        with contextlib.redirect_stderr(file), told_errors():
            yield


def log_to_stderr(*, first: bool) -> None:
    """Log lines of the first of several processes, warnings of all, to stderr."""
    logging.basicConfig(
        level=logging.INFO if first else logging.WARNING,
        format="%(asctime)s %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
    )
    if first and TERMINAL in os.environ:
        # Another node, or a terminal that was closed: the log has it all anyway.
        with contextlib.suppress(OSError):
            logging.getLogger().addHandler(Terminal(os.environ[TERMINAL]))


class Terminal(logging.Handler):
    """Tells on a terminal how far a job is, with its name before each line.

    Args:
        path: Of the terminal, or of another stream.
        seconds: Between two lines at least; later on a twentieth of the time so far, so
            that a job of many hours tells a hundred times and not thousands.

    Raises:
        OSError: It cannot be written to.
    """

    def __init__(self, path: str, seconds: float = 15.0):
        super().__init__()
        self.stream = Path(path).open("a", buffering=1, encoding="utf-8")  # noqa: SIM115
        self.start = self.last = time.monotonic()
        self.seconds = seconds

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a line is of progress and due."""
        now = time.monotonic()
        wait = max(self.seconds, (now - self.start) / 20)
        if not getattr(record, "progress", False) or now - self.last < wait:
            return False
        self.last = now
        return True

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line; once that fails, no more."""
        try:
            self.stream.write(f"{os.environ.get(JOB, '')}: {record.getMessage()}\n")
        except OSError:
            logging.getLogger().removeHandler(self)


FULL_GPU = (
    "Expected this job to fit into the memory of the GPU, but it did not. In training "
    "raise compute.accumulation (2: half the images at a time) or compute.gpus; in "
    "bank, pseudo labels and test lower compute.batch_size (of predict: --batch-size); "
    "or lower augmentation.crop_size or evaluation.crop, which changes results, as "
    "accumulation does at step 0. PyTorch says:"
)


@contextlib.contextmanager
def told_errors() -> Iterator[None]:
    """End the process with status 1 on an error of a block, told on standard error.

    One that this package raises on purpose speaks for itself, and a full GPU tells the
    mend; others come with a traceback. Of several processes each says which it is: the
    first to fail makes the others fail.
    """
    try:
        yield
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":  # PyTorch's: not imported here
            told = f"Error: {FULL_GPU}\n{error}"
        elif _on_purpose(error):
            told = f"Error: {error}"
        else:
            told = traceback.format_exc().rstrip()
        if "WORLD_SIZE" in os.environ:
            rank, count = os.environ["RANK"], os.environ["WORLD_SIZE"]
            told = f"Process {rank} of {count} failed:\n{told}"
        sys.stderr.write(f"{told}\n")  # at once, or processes would mix their lines
        raise SystemExit(1) from None


def _on_purpose(error: Exception) -> bool:
    """Whether an error was raised by a statement of this package, with a message."""
    *_, innermost = traceback.extract_tb(error.__traceback__)
    own = Path(innermost.filename).is_relative_to(Path(__file__).parents[1])
    return own and isinstance(
        error, ValueError | OSError | RuntimeError | ArithmeticError
    )
