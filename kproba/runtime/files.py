"""Writes and reads artifacts: complete or not at all, and without pickle."""

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kproba.runtime.records import read_json

if TYPE_CHECKING:
    from kproba.runtime.distributed import Process


__all__ = [
    "FullDiskError",
    "atomic_directory",
    "atomic_path",
    "read_json",
    "write_json",
]


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Name of a temporary file beside `path`, which replaces `path` after the block.

    `path` is never incomplete: the content is flushed to disk before the file is
    renamed. On an error the temporary file is removed. If a killed process left one,
    the next process overwrites it.

    Raises:
        FullDiskError: The disk is full; the message names the file.
        OSError: The file cannot be written; the message gives the reason.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    _check_writable(path, temporary)
    try:
        with _report_full_disk(path):
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o666 & ~_umask())  # some libraries create private files
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(
    path: str | Path, process: "Process | None" = None
) -> Iterator[Path]:
    """A temporary folder beside `path`, which replaces `path` after the block.

    Args:
        path: The folder, which is replaced if it exists.
        process: This process, if several fill the folder together: the first creates
            it, and renames it when all are done. None if there is only one.

    Raises:
        FullDiskError: The disk is full; the message names the folder.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    first = process is None or process.first
    if first:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
    if process is not None:
        process.wait()
    try:
        with _report_full_disk(path):
            yield temporary
        if process is not None:
            process.wait()
        if first:
            shutil.rmtree(path, ignore_errors=True)
            temporary.replace(path)
    finally:
        if first:
            shutil.rmtree(temporary, ignore_errors=True)


def _check_writable(path: Path, temporary: Path) -> None:
    """Make the folder of a file and check that a file can be written there.

    If the temporary file is a link, the link is removed and not followed.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        temporary.touch(exist_ok=False)
        temporary.unlink()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _full_disk(path) from error
        reason = getattr(error, "strerror", None) or error
        raise OSError(
            f"Expected to write {path}, but this failed: {reason}. Choose another "
            f"folder, or correct the permissions."
        ) from error


def _umask() -> int:
    """The permissions that the system removes from new files (umask)."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


@contextmanager
def _report_full_disk(path: Path) -> Iterator[None]:
    """Turn the various errors of libraries on a full disk into a `FullDiskError`."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError):
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        else:  # torch and safetensors raise other errors, sometimes without a reason
            full = "No space left" in str(error)
            full = full or shutil.disk_usage(path.parent).free < 2**20
        if not full or isinstance(error, FullDiskError):
            raise
        raise _full_disk(path) from error


def _full_disk(path: Path) -> "FullDiskError":
    return FullDiskError(
        errno.ENOSPC,
        f"The disk is full: {path} could not be written. Its previous content, if "
        f"any, is kept. Free some space or raise the quota, and run again",
    )


class FullDiskError(OSError):
    """The disk has no space left for an artifact."""

    def __str__(self) -> str:
        return str(self.strerror)


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write JSON with a stable layout; NaN becomes null.

    Raises:
        ValueError: A value is infinite.
        OSError: The file cannot be written.
    """
    try:
        text = json.dumps(
            _plain(content), indent=2, ensure_ascii=False, allow_nan=False
        )
    except ValueError as error:
        raise ValueError(
            f"Expected finite numbers to write to {path}, but one number is infinite, "
            f"and JSON has no infinity. An earlier computation returned it."
        ) from error
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(item) for item in value]
    if isinstance(value, float | np.floating):
        return None if np.isnan(value) else float(value)
    if isinstance(value, np.integer):
        return int(value)
    return value
