"""Unpacks an archive that `kproba pack` wrote, whole and checked, or not at all."""

import errno
import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from kproba.predict.packed import PACK_AGAIN, STEP_FILE, is_archive, open_archive
from kproba.runtime.files import atomic_directory
from kproba.runtime.records import ArtifactError

CHUNK = 2**20  # bytes


@contextmanager
def opened(path: str | Path) -> Iterator[Path]:
    """Open a step for a block; a packed step is unpacked to a temporary folder.

    Args:
        path: An archive that `kproba pack` wrote, which is unpacked into a temporary
            folder; or the folder of a step or a file in it, which is given back.

    Raises:
        FileNotFoundError: There is no such archive.
        ArtifactError: It is damaged, or something else. It is a ValueError.
        OSError: It cannot be read or unpacked.
    """
    if not is_archive(path):
        yield Path(path)
        return
    try:
        folder = tempfile.TemporaryDirectory(prefix="kproba-step-")
    except OSError as error:
        raise OSError(
            f"Expected a folder for temporary files to unpack {path}, but: "
            f"{error.strerror}. Set TMPDIR to a writable folder."
        ) from error
    with folder as name:
        _unpack(Path(path), Path(name))
        yield Path(name)


def unpack_step(path: str | Path, folder: str | Path) -> None:
    """Write all files of a step into one folder, which can be used as a step.

    Args:
        path: An archive that `kproba pack` wrote, or the folder of an evaluated step.
        folder: Output; it is replaced if it exists.

    Raises:
        FileNotFoundError, ArtifactError, OSError: As `opened` and `pack_step`.
    """
    if is_archive(path):
        with atomic_directory(folder) as temporary:
            _unpack(Path(path), temporary)
        return
    from kproba.predict.pack import collect, to_text  # imports this module

    record, sources = collect(path)
    with atomic_directory(folder) as temporary:
        for name, source in {**sources, STEP_FILE: to_text(record)}.items():
            place = temporary / name
            place.parent.mkdir(exist_ok=True)
            if isinstance(source, str):
                place.write_text(source, encoding="utf-8")
            else:
                shutil.copyfile(source, place)


def _unpack(path: Path, folder: Path) -> None:
    """Unpack an archive into an empty folder; every member has its recorded digest."""
    with open_archive(path) as (archive, record):
        members = record["members"]
        size = sum(entry["bytes"] for entry in members.values())
        free = shutil.disk_usage(folder).free
        if size > free:
            raise OSError(
                f"Expected room for the {size} bytes of {path} in {folder}, but {free} "
                f"are free. Free some space, or set TMPDIR to another folder."
            )
        for name, entry in members.items():
            place = folder / name
            place.parent.mkdir(exist_ok=True)
            with archive.open(name) as content:
                found = _copy(content, place)
            if found != entry["sha256"]:
                raise ArtifactError(
                    f"Expected {name} in {path} with its recorded content, but the "
                    f"content is different. The archive is damaged. {PACK_AGAIN}"
                )
        (folder / STEP_FILE).write_bytes(archive.read(STEP_FILE))


def _copy(content: IO[bytes], place: Path) -> str:
    """Write a new file; returns its SHA-256."""
    digest = hashlib.sha256()
    try:
        with place.open("xb") as file:
            while chunk := content.read(CHUNK):
                digest.update(chunk)
                file.write(chunk)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            f"Expected to unpack to {place}, but the disk is full. Free some space, or "
            f"set TMPDIR to another folder."
        ) from error
    return digest.hexdigest()
