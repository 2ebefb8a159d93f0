"""Pairs of an image and its mask, and problems with them."""

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kproba.data.files import IMAGE_SUFFIXES, find_files, is_folder
from kproba.data.masks import MASK_SUFFIXES

SUBSETS = ("train", "val")
VAL_SHARE = 0.2  # share held out if a folder dataset has no validation images
LONGEST_ID = 200  # bytes in UTF-8: ids become file names, with more around them

# Endings of pictures that are not read; they are named where a picture is missing.
OTHER_SUFFIXES = (".gif", ".heic", ".heif", ".avif", ".jp2", ".jxl", ".svg", ".npy")

# Unicode categories that no file name here may have: control characters (also line
# breaks), bytes that are not UTF-8, and separators of lines and paragraphs.
UNUSABLE = ("Cc", "Cs", "Zl", "Zp")


def printable(text: str) -> str:
    """Return a text with escapes for all characters that cannot be printed."""
    return "".join(
        character
        if unicodedata.category(character) not in UNUSABLE
        else character.encode("unicode_escape").decode()
        for character in text
    )


def is_usable(name: str) -> bool:
    """Whether a name is UTF-8 without line breaks and control characters."""
    return not any(unicodedata.category(character) in UNUSABLE for character in name)


@dataclass(frozen=True)
class Pair:
    """An image and its mask.

    Attributes:
        id: Name of the image without folder and ending. It is unique in a dataset, and
            becomes a file name.
        subset: "train" or "val".
        image: Image file.
        mask: Mask file.
    """

    id: str
    subset: str
    image: Path
    mask: Path


@dataclass(frozen=True, order=True)
class Problem:
    """A problem of a file of a dataset, or a warning about it.

    Attributes:
        kind: Short name of the problem, such as "missing mask".
        path: The file. Characters that cannot be printed are written as escapes.
        text: The problem in words.
    """

    kind: str
    path: str
    text: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", printable(self.path))
        object.__setattr__(self, "text", printable(self.text))

    def __str__(self) -> str:
        return f"{self.path}: {self.text}"


class MissingDatasetError(FileNotFoundError):
    """A dataset is missing; the message explains how to get it."""


def pair_subsets(
    train: tuple[Path, Path], val: tuple[Path, Path], mask_suffix: str = ""
) -> tuple[list[Pair], list[Problem]]:
    """Pair the images and masks of two subsets, and drop images that are in both.

    Args:
        train: Folders of the training images and masks.
        val: Folders of the validation images and masks.
        mask_suffix: As for `pair_by_name`.
    """
    pairs, problems = pair_by_name(*train, "train", mask_suffix)
    more_pairs, more_problems = pair_by_name(*val, "val", mask_suffix)
    return remove_overlap(pairs + more_pairs, problems + more_problems)


def pair_by_name(
    images: Path, masks: Path, subset: str, mask_suffix: str = ""
) -> tuple[list[Pair], list[Problem]]:
    """Pair images and masks whose paths differ only in the ending.

    Names are compared in their composed Unicode form (NFC), because some systems write
    "é" as two characters. An image in a subfolder has the id that `make_ids` describes.

    Args:
        images: Folder of the images; its subfolders are read too.
        masks: Folder of the masks, likewise.
        subset: "train" or "val".
        mask_suffix: What masks have between the name of their image and the ending,
            such as "_mask". Masks without it are left out.
    """
    problems: list[Problem] = []
    image_files = files_by_name(images, IMAGE_SUFFIXES, problems)
    mask_files = files_by_name(masks, MASK_SUFFIXES, problems, mask_suffix)
    names = sorted(image_files | mask_files)
    suffix = _common_suffix(image_files, mask_files)
    if suffix and not mask_suffix:
        text = (
            f"the name of every mask is the name of its image plus '{suffix}': set "
            f"`mask_suffix: {suffix}` for the dataset (kind folder), or rename the "
            f"masks"
        )
        return [], [*problems, Problem("other mask names", str(masks), text)]
    ids = make_ids(names)
    pairs: list[Pair] = []
    for name in names:
        image, mask = image_files.get(name, []), mask_files.get(name, [])
        for what, paths in (("image", image), ("mask", mask)):
            text = f"another {what} has the id '{ids[name]}'"
            if len(paths) > 1:
                problems += [Problem("duplicate id", str(path), text) for path in paths]
        if not mask:
            text = f"no mask {masks / (name + mask_suffix)}.png"
            text += _near_miss(masks, name + mask_suffix)
            problems += [Problem("missing mask", str(path), text) for path in image]
        if not image:
            text = f"no image {images / name} with an ending of {_listed()}"
            text += _near_miss(images, name)
            problems += [Problem("missing image", str(path), text) for path in mask]
        if len(image) == len(mask) == 1:
            pairs.append(Pair(ids[name], subset, image[0], mask[0]))
    return pairs, problems


def make_ids(names: Iterable[str]) -> dict[str, str]:
    """The id of each image by its path in its folder, without ending.

    That is the path itself, with "__" for every "/". If another image has this id, "~"
    and eight hexadecimal digits of the SHA-256 of the path follow in that of a
    subfolder. Ids of more than `LONGEST_ID` bytes are cut, with the same digits.
    """
    plain = {name: name.replace("/", "__") for name in names}
    counts = Counter(plain.values())
    ids = {}
    for name, text in plain.items():
        encoded = text.encode()
        digits = hashlib.sha256(name.encode()).hexdigest()[:8]
        if len(encoded) > LONGEST_ID:
            ids[name] = f"{encoded[: LONGEST_ID - 9].decode(errors='ignore')}~{digits}"
        elif counts[text] > 1 and "/" in name:
            ids[name] = f"{text}~{digits}"
        else:
            ids[name] = text
    return ids


def files_by_name(
    folder: Path, suffixes: Sequence[str], problems: list[Problem], ending: str = ""
) -> dict[str, list[Path]]:
    """Files of a folder by their path without ending, "train0" or "site_a/train0".

    Args:
        folder: The folder to search.
        suffixes: Endings of the files.
        problems: Gets what cannot be read, and names that cannot be used.
        ending: Common end of the names before the suffix; it is removed.
    """
    files: dict[str, list[Path]] = {}
    ending = unicodedata.normalize("NFC", ending)
    found = find_files(folder, suffixes)
    for path, reason in found.unreadable:
        problems.append(Problem("unreadable folder", str(path), reason))
    for path in found.files:
        relative = path.relative_to(folder)
        name = unicodedata.normalize("NFC", relative.with_suffix("").as_posix())
        if not is_usable(str(relative)):
            text = "the name is not printable UTF-8; rename the file"
            problems.append(Problem("unusable name", str(path), text))
        elif name.endswith(ending):
            files.setdefault(name[: len(name) - len(ending)], []).append(path)
    return files


def _common_suffix(
    images: Mapping[str, Sequence[Path]], masks: Mapping[str, Sequence[Path]]
) -> str:
    """The common suffix of all mask names after the image names; "" if none."""
    if not images or len(images) != len(masks) or images.keys() & masks.keys():
        return ""
    first = min(images)
    for name in masks:
        suffix = name[len(first) :]
        # There are as many masks as images. So if each of these names is a mask, all
        # are.
        if name.startswith(first) and all(image + suffix in masks for image in images):
            return suffix
    return ""


def _near_miss(folder: Path, name: str) -> str:
    """Describe a file with this name that is not read, for a message."""
    for suffix in (*OTHER_SUFFIXES, *IMAGE_SUFFIXES):
        for path in (folder / f"{name}{suffix}", folder / f"{name}{suffix.upper()}"):
            if is_folder(path):
                return f"; {path.name} is a folder"
            if os.path.lexists(path):
                return f"; {path.name} exists, but is not a PNG: save it as PNG"
    return ""


def _listed() -> str:
    return ", ".join(IMAGE_SUFFIXES)


def remove_overlap(
    pairs: list[Pair], problems: list[Problem]
) -> tuple[list[Pair], list[Problem]]:
    """Remove training images with the id of a validation image; return problems."""
    validation = {pair.id for pair in pairs if pair.subset == "val"}
    kept: list[Pair] = []
    leaks: list[Problem] = []
    for pair in pairs:
        if pair.subset == "train" and pair.id in validation:
            text = f"the id '{pair.id}' exists in train and in val"
            leaks.append(Problem("train/val overlap", str(pair.image), text))
        else:
            kept.append(pair)
    return kept, problems + leaks
