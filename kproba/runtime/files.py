"""Writing and reading artifacts: whole or not at all, no pickle, with provenance."""

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from kproba.runtime.distributed import Process


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary file name beside `path` that takes its place when the block ends.

    The final name never holds half a file: the content is flushed to disk first and
    renamed after. On an error the temporary file is removed; one that a killed process
    left is overwritten by the next.

    Raises:
        FullDiskError: No space is left; names the file.
        OSError: The folder cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with _full_disk_named(path):
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o666 & ~_umask())  # libraries make private files
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(
    path: str | Path, process: "Process | None" = None
) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its place when the block ends.

    Args:
        path: The folder, replaced.
        process: This one of several that fill the folder together; the first makes it
            and gives it its name when all are done. None: it is alone.

    Raises:
        FullDiskError: No space is left; names the folder.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    alone = process is None or process.first
    if alone:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
    if process is not None:
        process.wait()
    try:
        with _full_disk_named(path):
            yield temporary
        if process is not None:
            process.wait()
        if alone:
            shutil.rmtree(path, ignore_errors=True)
            temporary.replace(path)
    finally:
        if alone:
            shutil.rmtree(temporary, ignore_errors=True)


def _umask() -> int:
    """The permissions that new files do not get."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


@contextmanager
def _full_disk_named(path: Path) -> Iterator[None]:
    """Turn what libraries raise on a full disk into one message."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError):
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        else:  # torch and safetensors raise their own errors, with or without a reason
            full = "No space left" in str(error)
            full = full or shutil.disk_usage(path.parent).free < 2**20
        if not full or isinstance(error, FullDiskError):
            raise
        raise FullDiskError(
            errno.ENOSPC,
            f"The disk is full: {path} could not be written. What was there before is "
            f"kept. Free some space, or raise the quota, and run again",
        ) from error


class FullDiskError(OSError):
    """There is no space left for an artifact."""

    def __str__(self) -> str:
        return str(self.strerror)


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write JSON with a stable layout; NaN becomes null."""
    text = json.dumps(_plain(content), indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Read a JSON artifact."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


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
