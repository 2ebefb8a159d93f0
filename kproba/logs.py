"""Where scripts write what they have to say."""

import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path


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


@contextlib.contextmanager
def told_errors() -> Iterator[None]:
    """End the process with status 1 on an error of a block, told on standard error.

    One that this package raises on purpose speaks for itself; others come with a
    traceback. Of several processes each says which it is: the first to fail makes
    the others fail.
    """
    try:
        yield
    except Exception as error:
        told = (
            f"Error: {error}" if _on_purpose(error) else traceback.format_exc().rstrip()
        )
        if "WORLD_SIZE" in os.environ:
            rank, count = os.environ["RANK"], os.environ["WORLD_SIZE"]
            told = f"Process {rank} of {count} failed:\n{told}"
        sys.stderr.write(f"{told}\n")  # at once, or processes would mix their lines
        raise SystemExit(1) from None


def _on_purpose(error: Exception) -> bool:
    """Whether an error was raised by a statement of this package, with a message."""
    *_, innermost = traceback.extract_tb(error.__traceback__)
    own = Path(innermost.filename).is_relative_to(Path(__file__).parent)
    return own and isinstance(
        error, ValueError | OSError | RuntimeError | ArithmeticError
    )
