"""Logs of jobs and scripts, progress on a terminal, and error messages."""

import contextlib
import logging
import os
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from kproba.runtime.package import PACKAGE

# Environment variables that `kproba-launch` sets: the stream to report progress to
# besides the log, and the name of the job in these reports.
TERMINAL, JOB = "KPROBA_TERMINAL", "KPROBA_JOB"


PROGRESS = {"progress": True}  # `extra` of a log line that reports progress


@contextlib.contextmanager
def log_to(path: str | Path, *, terminal: bool = False) -> Iterator[None]:
    """Send log lines, warnings and the error of a block to a file.

    An error ends the process as in `exit_on_error`. Snakemake, which started the
    process, then shows the file.

    Args:
        path: The log file, replaced.
        terminal: Show log lines on the terminal as well.
    """
    # File names may not be UTF-8. Their invalid bytes are written as escapes.
    with Path(path).open(
        "w", buffering=1, encoding="utf-8", errors="backslashreplace"
    ) as file:
        streams = [file, sys.__stderr__] if terminal else [file]
        logging.basicConfig(
            level=logging.INFO,
            format="%(asctime)s %(message)s",
            datefmt="%H:%M:%S",
            handlers=[logging.StreamHandler(stream) for stream in streams],
            force=True,
        )
        with contextlib.redirect_stderr(file), exit_on_error():
            yield


def log_to_stderr(*, first: bool) -> None:
    """Send log lines of the first process, and warnings of all, to standard error.

    Args:
        first: Whether this is the first of the job's processes.
    """
    logging.basicConfig(
        level=logging.INFO if first else logging.WARNING,
        format="%(asctime)s %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
    )
    if first and TERMINAL in os.environ:
        # The terminal may be on another node, or closed. The log has all lines anyway.
        with contextlib.suppress(OSError):
            logging.getLogger().addHandler(Terminal(os.environ[TERMINAL]))


class Terminal(logging.Handler):
    """Writes progress lines to a terminal, with the name of the job.

    Args:
        path: Path of the terminal, or of another stream.
        seconds: Shortest time between two lines. It grows to a twentieth of the time
            since the start, so that a job of many hours writes a hundred lines instead
            of thousands.

    Raises:
        OSError: The terminal cannot be opened.
    """

    def __init__(self, path: str, seconds: float = 15.0):
        super().__init__()
        self.stream = Path(path).open("a", buffering=1, encoding="utf-8")  # noqa: SIM115
        self.start = self.last = time.monotonic()
        self.seconds = seconds

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a line reports progress and is due."""
        now = time.monotonic()
        wait = max(self.seconds, (now - self.start) / 20)
        if not getattr(record, "progress", False) or now - self.last < wait:
            return False
        self.last = now
        return True

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line; stop writing after the first failure."""
        try:
            self.stream.write(f"{os.environ.get(JOB, '')}: {record.getMessage()}\n")
        except OSError:
            logging.getLogger().removeHandler(self)


FULL_GPU = (
    "Expected this job to fit into the memory of the GPU, but it needs more. In "
    "training, raise compute.accumulation (2 computes half the images at a time) or "
    "compute.gpus. For banks, pseudo labels and evaluation, lower compute.batch_size. "
    "For kproba predict, lower --batch-size. You can also lower augmentation.crop_size "
    "or evaluation.crop, but these two change results, and so does "
    "compute.accumulation at step 0. PyTorch reports:"
)


FULL_MEMORY = (
    "Expected this job to fit into the memory of this machine, but it needs more. "
    "Lower compute.batch_size or compute.workers, or set `long_side` for the dataset, "
    "which scales large pictures down everywhere and changes results. For kproba "
    "predict, lower --batch-size, --tile or --long-side. The system reports:"
)


INTERRUPTED = 130  # exit status of a command that Ctrl-C ended, as shells have it


@contextlib.contextmanager
def exit_on_error() -> Iterator[None]:
    """On an error in the block, write it to standard error and exit with status 1.

    An error that this package raises on purpose is written without a traceback, and so
    are a full GPU and a full memory, with a remedy. All other errors have a traceback.
    If there are several processes, a first line names the process that failed, because
    the other processes fail afterwards. Ctrl-C writes one line, and the exit status is
    130.
    """
    try:
        yield
    except KeyboardInterrupt as interrupt:
        done = f" {interrupt}" if str(interrupt) else ""
        sys.stderr.write(f"Interrupted.{done}\n")
        raise SystemExit(INTERRUPTED) from None
    except Exception as error:
        text = describe_error(error)
        if "WORLD_SIZE" in os.environ:
            rank, count = os.environ["RANK"], os.environ["WORLD_SIZE"]
            text = f"Process {rank} of {count} failed:\n{text}"
        # One call, so that lines of several processes do not mix.
        sys.stderr.write(f"{text}\n")
        raise SystemExit(1) from None


def describe_error(error: Exception) -> str:
    """The text that `exit_on_error` writes for an error."""
    if is_full_gpu(error):
        return f"Error: {FULL_GPU}\n{error}"
    if is_full_memory(error):
        return f"Error: {FULL_MEMORY}\n{str(error) or type(error).__name__}"
    if _is_on_purpose(error):
        return f"Error: {error}"
    return "".join(traceback.format_exception(error)).rstrip()


def is_full_gpu(error: BaseException) -> bool:
    """Whether an error says that a GPU has no memory left."""
    return type(error).__name__ == "OutOfMemoryError"  # PyTorch's: not imported here


def is_full_memory(error: BaseException) -> bool:
    """Whether an error says that the machine has no memory left."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        text in str(error)
        for text in ("can't allocate memory", "DefaultCPUAllocator", "bad_alloc")
    )


def _is_on_purpose(error: Exception) -> bool:
    """Whether this package raised an error on purpose, with a message for users."""
    *_, innermost = traceback.extract_tb(error.__traceback__)
    in_package = Path(innermost.filename).is_relative_to(PACKAGE)
    if isinstance(error, RecursionError | NotImplementedError):  # RuntimeErrors, too
        return False
    return in_package and isinstance(
        error, ValueError | OSError | RuntimeError | ArithmeticError
    )
