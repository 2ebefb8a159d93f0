"""Find the pictures in a folder, by the same rules for datasets and predictions."""

import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")

# `kproba predict` writes this table into its output folder, which is left out of
# searches for pictures.
AREAS = "areas.csv"


class Found(NamedTuple):
    """The files found in a folder.

    Attributes:
        files: Files with one of the endings, sorted by their path in the folder.
        unreadable: Folders and links that cannot be followed, with the reason.
    """

    files: list[Path]
    unreadable: list[tuple[Path, str]]


def find_files(
    folder: str | Path,
    suffixes: Sequence[str] = IMAGE_SUFFIXES,
    *,
    leave_out: Collection[Path] = (),
) -> Found:
    """The files of a folder and its subfolders with one of some endings.

    Hidden files and folders (`.name`, such as macOS' `._photo.jpg`) and output folders
    of `kproba predict` are left out. Links are followed; a folder is visited once.

    Args:
        folder: The folder to search.
        suffixes: Endings in lower case; the case of the names does not matter.
        leave_out: Folders that are not searched.
    """
    excluded = {_identity(path) for path in leave_out} - {None}
    found = Found([], [])
    # A link to a folder above this one would find files of other folders.
    visited = {_identity(path) for path in _above(Path(folder))}
    for entry in _walk(Path(folder), excluded, visited, found.unreadable):
        if entry.suffix.lower() in suffixes:
            found.files.append(entry)
        elif not entry.suffix and _leads_nowhere(entry):
            found.unreadable.append((entry, "is a link to a file that does not exist"))
    found.files.sort(key=str)  # they begin alike
    return found


def _walk(
    folder: Path,
    excluded: Collection[tuple[int, int] | None],
    visited: set[tuple[int, int] | None],
    unreadable: list[tuple[Path, str]],
) -> Iterator[Path]:
    identity = _identity(folder)
    if identity in visited or identity in excluded:
        return
    visited.add(identity)
    try:
        with os.scandir(folder) as entries:
            plain = {entry.name: _is_plain_file(entry) for entry in entries}
    except OSError as error:
        unreadable.append((folder, error.strerror or str(error)))
        return
    for name in sorted(plain):
        if name.startswith("."):
            continue
        path = folder / name
        if plain[name] or not is_folder(path):
            yield path
        elif not _is_output(path):
            yield from _walk(path, excluded, visited, unreadable)


def _is_plain_file(entry: "os.DirEntry[str]") -> bool:
    """Whether an entry is a file and not a link; this needs no access to the disk."""
    try:
        return entry.is_file(follow_symlinks=False)
    except OSError:
        return False


def _leads_nowhere(path: Path) -> bool:
    """Whether a path is a link to a missing file; it raises no error."""
    return os.path.islink(path) and not os.path.exists(path)  # noqa: PTH110, PTH114


def _is_output(folder: Path) -> bool:
    """Whether `kproba predict` has written a folder."""
    return os.path.lexists(folder / AREAS) and is_folder(folder / "masks")


def is_folder(path: Path) -> bool:
    """As `Path.is_dir`, but without an error if the folder must not be read."""
    return os.path.isdir(path)  # noqa: PTH112


def _above(folder: Path) -> list[Path]:
    """The parent folders of a folder."""
    try:
        return list(folder.resolve().parents)
    except (OSError, RuntimeError):  # RuntimeError: a loop of links
        return []


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of a folder; None if they cannot be read."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino
