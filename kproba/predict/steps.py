"""The argument STEP of commands: a folder, a file in it, or a packed archive."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kproba.bank.description import find_description

ARCHIVE = ".zip"  # ending of what `kproba pack` writes


@contextmanager
def opened_step(path: str | Path) -> Iterator[Path]:
    """Open a step: yields a path for `kproba.bank.description.find_description`.

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
    """Check that the path of a step exists.

    Raises:
        FileNotFoundError: The path does not exist.
        OSError: It cannot be read.
    """
    try:
        os.stat(path)  # noqa: PTH116
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"Expected an evaluated step, which is a folder with predictor.json, but "
            f"{path} does not exist. Name a folder such as "
            f"results/<dataset>/<task>-<setting>/<method>/seed<n>/step<t>, or an "
            f"archive written by kproba pack."
        ) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OSError(
            f"Expected an evaluated step, but got {str(path)[:200]}: {reason}. Name "
            f"the folder of a step."
        ) from error


def check_step(step: str | Path) -> None:
    """Check that a step exists, before the slow loading.

    Raises:
        FileNotFoundError: The step has not been evaluated, or there is no such archive.
        OSError: Its folder must not be read.
    """
    check_path(step)
    if Path(step).suffix.lower() != ARCHIVE:
        find_description(step)
