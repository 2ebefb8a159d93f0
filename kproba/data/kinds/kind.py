"""Kinds of dataset: where images, masks and class names are."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kproba.data.download import Archive
from kproba.data.kinds.pairs import (
    IMAGE_SUFFIXES,
    MissingDatasetError,
    Pair,
    Problem,
)

Orders = Mapping[str, tuple[int, ...]]


def _no_orders() -> Orders:
    return {}


@dataclass(frozen=True)
class DatasetKind:
    """One kind of dataset, an entry of `kproba.data.kinds.KINDS`.

    Attributes:
        name: Value of `kind` in the configuration.
        title: The dataset in words, for messages.
        layout: The folders that are expected, for messages.
        find_pairs: Gets the folder and the share to hold out for validation. Returns
            the images with their masks, and problems with other files. Raises
            `MissingDatasetError`.
        find_folders: Gets the folder. Returns the folders with the dataset's files; an
            empty list if the dataset is not there.
        class_names: Gets the folder (None if a rule makes the dataset) and the names
            in the configuration (None if there are none). Returns the names of the
            classes 1..N.
        settings: Schema of each further key of the configuration, by key.
        required: Those of these keys that users have to give.
        archives: What `download: true` fetches, by name.
        class_orders: Returns the published class orders by their letter, each a tuple
            of raw labels.
        label_offset: Added to every mask value but 255. It is 1 for masks whose first
            class is 0 (such as Cityscapes' train ids), so that labels start at 1.
        published_images: Images per subset of the complete dataset.
        published_labels: `labels_sha256` of the integrity report of the complete
            dataset, where the masks in use are always the same.
        drawn: Whether a rule of the workflow makes the images.
    """

    name: str
    title: str
    layout: str
    find_pairs: Callable[[Path, float], tuple[list[Pair], list[Problem]]]
    find_folders: Callable[[Path], list[Path]]
    class_names: Callable[[Path | None, Sequence[str] | None], list[str]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    archives: Mapping[str, Archive] = field(default_factory=dict)
    class_orders: Callable[[], Orders] = _no_orders
    label_offset: int = 0
    published_images: Mapping[str, int] | None = None
    published_labels: str | None = None
    drawn: bool = False

    def is_there(self, folder: str | Path) -> bool:
        """Whether a folder has the layout of this kind."""
        return bool(self.find_folders(Path(folder)))

    def digest_files(self, folder: str | Path) -> str:
        """A digest of names, sizes and times of a dataset's files; "" without any.

        It changes if an image, mask or list is added, removed or edited, and the index
        is then made anew. Other files do not change it. No file is read.
        """
        folders = self.find_folders(Path(folder))
        digest = hashlib.sha256()
        for part in folders:
            for entry in sorted(os.scandir(part), key=lambda entry: entry.name):
                hidden = entry.name.startswith(".")
                suffix = Path(entry.name).suffix.lower()
                if suffix in (*IMAGE_SUFFIXES, ".txt") and not hidden:
                    status = entry.stat()
                    line = f"{part}/{entry.name} {status.st_size} {status.st_mtime_ns}"
                    digest.update(os.fsencode(line + "\n"))
        return digest.hexdigest() if folders else ""


def missing_dataset(
    folder: Path, title: str, layout: str, archives: Mapping[str, Archive]
) -> MissingDatasetError:
    """The error for a dataset that is not there.

    Its message says what to fetch and where to put it.

    Args:
        folder: Where the dataset was expected.
        title: The dataset in words.
        layout: The folders that were expected.
        archives: Archives of the dataset, empty if it is not public.
    """
    where = folder.absolute()
    lines = [f"Expected {title} in {where} with {layout}."]
    if not where.is_dir():
        lines.append("There is no such folder.")
    else:
        entries = sorted(path.name for path in where.iterdir())[:8]
        lines.append(f"Found there: {', '.join(entries) or 'nothing'}.")
    for archive in archives.values():
        lines.append(f"Fetch {archive.name} from {archive.mirrors[0]}")
    if archives:
        lines.append(
            f"if it is missing, and unpack it into {where}; or name the folder of the "
            f"dataset as its `path`; or set `download: true`."
        )
    else:
        lines.append("Name the folder of the dataset as its `path`.")
    return MissingDatasetError("\n".join(lines))
