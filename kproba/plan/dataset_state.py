"""Checks whether the files of a dataset have changed since they were indexed.

Sizes and times are compared first, which opens no file. If they differ, for example
after a copy, the contents are compared with files.json, which the index job wrote. So a
moved or copied dataset is still the same dataset.
"""

import csv
import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from kproba.runtime import records
from kproba.runtime.files import write_json

log = logging.getLogger("kproba")

FILES = records.record(
    {
        "state": records.text(),
        "files": records.mapping_of(
            records.list_of(records.anything, least=3, most=3), most=10**8
        ),
    },
    {"known": records.list_of(records.text())},
)
MOST_BYTES = 2**30  # of files.json; a million pictures have some hundred MiB
# Lines around the entry `files`. Names in JSON contain no line breaks.
_FILES_BEGIN, _FILES_END = b'\n  "files": {', b"\n  }"
KNOWN = 20  # digests of sizes and times for the same contents


class Listing(Protocol):
    """What knows the files of a dataset: its kind, or the folders of its maps."""

    def list_files(self, folder: str | Path) -> dict[str, Path]:
        """The files by their path in the folder."""

    def digest_files(self, folder: str | Path) -> str:
        """Digest of their names, sizes and times."""


def state_of_files(kind: Listing, folder: str | Path, recorded: str | Path) -> str:
    """A text that changes when files of a dataset are added, removed or edited.

    Args:
        kind: Kind of the dataset, or another listing of files.
        folder: Its folder.
        recorded: files.json beside its index; it may be missing. It gets the digest of
            the new sizes and times where the contents are the same.
    """
    current = kind.digest_files(folder)
    content = _read(recorded, files=False)
    if content is None:
        return current
    state: str = content["state"]
    known = content.get("known", [])
    if current == state or current in known:
        return state
    content = _read(recorded)
    if content is None or not _same_contents(kind.list_files(folder), content["files"]):
        return current
    content["known"] = [*known, current][-KNOWN:]
    try:
        write_json(recorded, content)
    except OSError as error:  # then the contents are compared again next time
        log.warning("%s", error)
    return state


def recorded_state(recorded: str | Path) -> str | None:
    """The state of the files when the index was made; None if it is not known."""
    content = _read(recorded, files=False)
    return None if content is None else str(content["state"])


def training_classes(index: str | Path) -> dict[str, str] | None:
    """The column `classes` of the training images of an index, by id.

    None if it cannot be read; the jobs that read it report the error.
    """
    return _training_column(index, "classes")


def training_images(index: str | Path) -> dict[str, str] | None:
    """The column `image` of the training images, as `training_classes`."""
    return _training_column(index, "image")


def _training_column(index: str | Path, name: str) -> dict[str, str] | None:
    try:
        with Path(index).open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        train = [row for row in rows if row["subset"] == "train"]
        return {row["id"]: row[name] for row in train}
    except (OSError, ValueError, KeyError, csv.Error):
        return None


def _read(path: str | Path, *, files: bool = True) -> dict[str, Any] | None:
    """The record of an index; None if there is none that can be used.

    Args:
        path: files.json.
        files: Whether the entry `files` is read. A dataset of a million pictures has
            some hundred MiB of it, which are rarely needed.
    """
    try:
        raw = records.read_bytes(path, MOST_BYTES)
        content: dict[str, Any] = {}
        if not files:
            content = _parse_without_files(raw, path)
        content = content or records.parse_json(raw, path)
        records.check_content(content, FILES, path)
    except (OSError, ValueError):
        return None
    return content


def _parse_without_files(raw: bytes, path: str | Path) -> dict[str, Any]:
    """The record with `files` empty, from the lines before and after that entry.

    Nothing if the lines are not as `write_json` writes them.
    """
    start = raw.find(_FILES_BEGIN)
    end = raw.find(_FILES_END, start)
    if start < 0 or end < 0:
        return {}
    try:
        short = raw[: start + len(_FILES_BEGIN)] + raw[end:]
        content: dict[str, Any] = records.parse_json(short, path)
    except ValueError:
        return {}
    return content


def _same_contents(files: Mapping[str, Path], recorded: Mapping[str, Any]) -> bool:
    """Whether files have the names and contents that were recorded."""
    if files.keys() != recorded.keys():
        return False
    for name, path in files.items():
        size, mtime, digest = recorded[name]
        try:
            status = path.stat()
            if status.st_size != size:
                return False
            if status.st_mtime_ns == mtime:
                continue
            with path.open("rb") as file:
                actual = hashlib.file_digest(file, "sha256").hexdigest()
        except (OSError, ValueError):
            return False
        if not digest or not actual.startswith(str(digest)):
            return False
    return True
