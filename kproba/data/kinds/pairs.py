"""Pairs of an image and its mask, and the problems that they can have."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
SUBSETS = ("train", "val")
VAL_SHARE = 0.2  # share held out if a folder dataset has no validation images


@dataclass(frozen=True)
class Pair:
    """An image and its mask.

    Attributes:
        id: Name of the image without folder and ending.
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
        path: The file.
        text: The problem in words.
    """

    kind: str
    path: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}: {self.text}"


class MissingDatasetError(FileNotFoundError):
    """The dataset is not there; the message says what to fetch and where to put it."""


def pair_subsets(
    train: tuple[Path, Path], val: tuple[Path, Path]
) -> tuple[list[Pair], list[Problem]]:
    """Pair the images and masks of two subsets, and drop images that are in both.

    Args:
        train: Folders of the training images and masks.
        val: Folders of the validation images and masks.
    """
    pairs, problems = pair_by_name(*train, "train")
    more_pairs, more_problems = pair_by_name(*val, "val")
    return remove_overlap(pairs + more_pairs, problems + more_problems)


def pair_by_name(
    images: Path, masks: Path, subset: str
) -> tuple[list[Pair], list[Problem]]:
    """Pair images and masks with the same name before the ending."""
    image_files = files_by_name(images, IMAGE_SUFFIXES)
    mask_files = files_by_name(masks, (".png",))
    pairs: list[Pair] = []
    problems: list[Problem] = []
    for name in sorted(image_files | mask_files):
        image, mask = image_files.get(name, []), mask_files.get(name, [])
        for what, paths in (("image", image), ("mask", mask)):
            text = f"another {what} has the id '{name}'"
            if len(paths) > 1:
                problems += [Problem("duplicate id", str(path), text) for path in paths]
        if not mask:
            text = f"no mask {masks / name}.png"
            problems += [Problem("missing mask", str(path), text) for path in image]
        if not image:
            text = f"no image {images / name} with an ending of {IMAGE_SUFFIXES}"
            problems += [Problem("missing image", str(path), text) for path in mask]
        if len(image) == len(mask) == 1:
            pairs.append(Pair(name, subset, image[0], mask[0]))
    return pairs, problems


def files_by_name(folder: Path, suffixes: Sequence[str]) -> dict[str, list[Path]]:
    """Files of a folder by their name without ending.

    Raises:
        ValueError: A name is not printable UTF-8.
    """
    files: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in suffixes and not path.name.startswith("."):
            if not path.name.isprintable():
                raise ValueError(
                    f"Expected names of printable UTF-8 in {folder}, but got "
                    f"{os.fsencode(path.name)!r}. Rename the file."
                )
            files.setdefault(path.stem, []).append(path)
    return files


def remove_overlap(
    pairs: list[Pair], problems: list[Problem]
) -> tuple[list[Pair], list[Problem]]:
    """Remove training images with the id of a validation image, which are problems."""
    validation = {pair.id for pair in pairs if pair.subset == "val"}
    kept: list[Pair] = []
    leaks: list[Problem] = []
    for pair in pairs:
        if pair.subset == "train" and pair.id in validation:
            text = f"the id '{pair.id}' is in train and in val"
            leaks.append(Problem("train/val overlap", str(pair.image), text))
        else:
            kept.append(pair)
    return kept, problems + leaks
