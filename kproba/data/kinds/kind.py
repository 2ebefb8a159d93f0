"""Kinds of dataset: how to find images, masks and class names."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from kproba.data.download import Archive
from kproba.data.files import IMAGE_SUFFIXES, find_files, is_folder
from kproba.data.kinds.pairs import (
    MissingDatasetError,
    Pair,
    Problem,
    printable,
)
from kproba.data.masks import MaskForm

Orders = Mapping[str, tuple[int, ...]]
COUNTED = (*IMAGE_SUFFIXES, ".txt")  # endings of the files that an index depends on


def _no_orders() -> Orders:
    return {}


def _class_numbers(folder: Path) -> MaskForm:
    return MaskForm()


def _no_values() -> Mapping[int, int]:
    return {}


def _nothing(folder: Path) -> list[Any]:
    return []


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
        required: The keys among them that users have to set.
        archives: Archives that `download: true` downloads, by name.
        class_orders: Returns the published class orders by their letter, each a tuple
            of raw labels.
        label_offset: Added to every mask value but 255. It is 1 for masks whose first
            class is 0 (such as Cityscapes' train ids), so that labels start at 1.
        published_images: Images per subset of the complete dataset.
        published_labels: `labels_sha256` in the integrity report of the complete
            dataset, if all copies have the same masks.
        drawn: Whether a rule of the workflow makes the images.
        validation_only: Whether all images are validation images.
        mask_form: Gets the folder. Returns the meaning of the values in the masks.
        mask_values: Returns the value in the masks of each raw label, the background
            included; empty if the values are the labels.
        find_more: Gets the folder. Returns files outside of `find_folders` that the
            index depends on.
        find_unread: Gets the folder. Returns warnings about pictures that are not read.
        find_saliency: Gets the folder. Returns folders of pictures, each with the
            folder of their saliency maps; empty if the kind has no maps.
        configure: Gets this kind and the settings of a dataset in the configuration.
            Returns the kind with these settings applied. None: the settings have no
            effect.
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
    validation_only: bool = False
    mask_form: Callable[[Path], MaskForm] = _class_numbers
    mask_values: Callable[[], Mapping[int, int]] = _no_values
    find_more: Callable[[Path], list[Path]] = _nothing
    find_unread: Callable[[Path], list[Problem]] = _nothing
    find_saliency: Callable[[Path], list[tuple[Path, Path]]] = _nothing
    configure: Optional["Callable[[DatasetKind, Mapping[str, Any]], DatasetKind]"] = (
        None
    )

    def with_settings(self, settings: Mapping[str, Any]) -> "DatasetKind":
        """Return this kind with the settings of a dataset applied.

        Args:
            settings: Keys of the dataset in the configuration; those that are missing
                have their defaults.
        """
        return self if self.configure is None else self.configure(self, settings)

    def is_there(self, folder: str | Path) -> bool:
        """Whether a folder has the layout of this kind."""
        return bool(self.find_folders(Path(folder)))

    def list_files(self, folder: str | Path) -> dict[str, Path]:
        """The images, masks and lists of a dataset by their path in the folder.

        The list includes folders that cannot be read. This raises no OSError.
        """
        folder = Path(folder)
        files: dict[str, Path] = {}
        try:
            for part in self.find_folders(folder):
                found = find_files(part, COUNTED)
                for path in (*found.files, *(path for path, _ in found.unreadable)):
                    files[relative_name(path, folder)] = path
            for path in self.find_more(folder):
                files[relative_name(path, folder)] = path
        except OSError:  # a function of an extension; the index job reports the error
            return files
        return files

    def digest_files(self, folder: str | Path) -> str:
        """Digest of names, sizes and times of a dataset's files; "" if it has none.

        It changes if an image, mask or list is added, removed or edited. The index is
        written again then. Other files and the path of the folder have no effect. No
        file is opened, and no OSError is raised.
        """
        return digest_of_files(self.list_files(folder))


def digest_of_files(files: Mapping[str, Path]) -> str:
    """Digest of the names, sizes and times of files; "" if there are none.

    No file is opened, and no OSError is raised.
    """
    digest = hashlib.sha256()
    for name, path in sorted(files.items()):
        try:
            status = os.stat(path)  # noqa: PTH116  # for thousands of files
            state = f"{status.st_size} {status.st_mtime_ns}"
        except (OSError, ValueError) as error:
            state = f"unreadable {type(error).__name__}"
        digest.update(os.fsencode(f"{name} {state}\n"))
    return digest.hexdigest() if files else ""


def relative_name(path: Path, folder: Path) -> str:
    """The POSIX path of a file in a folder; the whole path if it is elsewhere."""
    try:
        return path.relative_to(folder).as_posix()
    except ValueError:
        return path.absolute().as_posix()


def missing_dataset(
    folder: Path, title: str, layout: str, archives: Mapping[str, Archive]
) -> MissingDatasetError:
    """The error for a dataset that is not there.

    Its message names the archives to download and the folder to put them in.

    Args:
        folder: Where the dataset was expected.
        title: The dataset in words.
        layout: The folders that were expected.
        archives: Archives of the dataset, empty if it is not public.
    """
    where = folder.absolute()
    lines = [f"Expected {title} in {where} with {layout}."]
    if not is_folder(where):
        lines.append("There is no such folder.")
    else:
        lines.append(f"Found instead: {_list_entries(where)}.")
    for archive in archives.values():
        lines.append(f"Download {archive.name} from {archive.mirrors[0]}")
    if archives:
        lines.append(
            f"and unpack it into {where}. Or set `path` to the folder of the dataset. "
            f"Or set `download: true`."
        )
    else:
        lines.append("Set `path` to the folder of the dataset.")
    return MissingDatasetError("\n".join(lines))


def _list_entries(folder: Path) -> str:
    """The first entries of a folder, for a message."""
    try:
        entries = sorted(printable(path.name) for path in folder.iterdir())[:8]
    except OSError as error:
        return f"nothing that can be read ({error.strerror})"
    return ", ".join(entries) or "nothing"
