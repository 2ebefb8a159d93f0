"""Steps that commands are given: a folder, a file in it, or a packed archive."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kproba.bank.description import find_description

ARCHIVE = ".zip"  # ending of what `kproba pack` writes


@contextmanager
def opened_step(path: str | Path) -> Iterator[Path]:
    """A step as a path for `kproba.bank.description.find_description`.

    Args:
        path: Folder of a step, a file in it, or an archive that `kproba pack` wrote,
            which is unpacked for the time of the block.

    Raises:
        ValueError: The archive is damaged.
        OSError: It cannot be read or unpacked.
    """
    check_path(path)
    if Path(path).suffix.lower() != ARCHIVE or Path(path).is_dir():
        yield Path(path)
        return
    from kproba.predict.pack import opened  # rarely needed

    with opened(path) as folder:
        yield Path(folder)


def check_path(path: str | Path) -> None:
    """Check that the path of a step names something.

    Raises:
        FileNotFoundError: There is nothing.
        OSError: It cannot be looked at.
    """
    try:
        os.stat(path)  # noqa: PTH116
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"Expected a tested step, a folder with predictor.json, but {path} does "
            f"not exist. Name results/<dataset>/<task>-<setting>/<method>/seed<n>/"
            f"step<t>, or an archive by kproba pack."
        ) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OSError(
            f"Expected a tested step, but got {str(path)[:200]}: {reason}. Name the "
            f"folder of a step."
        ) from error


def check_step(step: str | Path) -> None:
    """Check that there is a step, before the seconds that loading it takes.

    Raises:
        FileNotFoundError: The step has not been tested, or there is no such archive.
        OSError: Its folder must not be read.
    """
    check_path(step)
    if Path(step).suffix.lower() != ARCHIVE:
        find_description(step)
