"""Images with their masks, and what can be wrong with them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
SUBSETS = ("train", "val")
VAL_SHARE = 0.2  # of a folder without validation images


@dataclass(frozen=True)
class Pair:
    """An image with its mask."""

    id: str
    subset: str
    image: Path
    mask: Path


@dataclass(frozen=True, order=True)
class Problem:
    """Something wrong with a dataset.

    Attributes:
        kind: Such as "missing mask".
        path: The file.
        text: What was found, and what was expected.
    """

    kind: str
    path: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}: {self.text}"


class MissingDatasetError(FileNotFoundError):
    """The dataset is not there; the message says what to fetch and where to put it."""


def pairs_of_subsets(
    train: tuple[Path, Path], val: tuple[Path, Path]
) -> tuple[list[Pair], list[Problem]]:
    """Pairs of two subsets, each a folder of images and a folder of masks."""
    pairs, problems = pairs_by_name(*train, "train")
    more_pairs, more_problems = pairs_by_name(*val, "val")
    return without_overlap(pairs + more_pairs, problems + more_problems)


def pairs_by_name(
    images: Path, masks: Path, subset: str
) -> tuple[list[Pair], list[Problem]]:
    """Pairs by equal names, but for the ending."""
    images_of = files_by_name(images, IMAGE_SUFFIXES)
    masks_of = files_by_name(masks, (".png",))
    pairs: list[Pair] = []
    problems: list[Problem] = []
    for name in sorted(images_of | masks_of):
        image, mask = images_of.get(name, []), masks_of.get(name, [])
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
    """Files by name without ending.

    Raises:
        ValueError: A name is no UTF-8.
    """
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in suffixes and not path.name.startswith("."):
            if not path.name.isprintable():
                raise ValueError(
                    f"Expected names of printable UTF-8 in {folder}, but got "
                    f"{os.fsencode(path.name)!r}. Rename the file."
                )
            found.setdefault(path.stem, []).append(path)
    return found


def without_overlap(
    pairs: list[Pair], problems: list[Problem]
) -> tuple[list[Pair], list[Problem]]:
    """A validation image must not be trained on: such training images are a problem."""
    tested = {pair.id for pair in pairs if pair.subset == "val"}
    kept: list[Pair] = []
    leaks: list[Problem] = []
    for pair in pairs:
        if pair.subset == "train" and pair.id in tested:
            text = f"the id '{pair.id}' is in train and in val"
            leaks.append(Problem("train/val overlap", str(pair.image), text))
        else:
            kept.append(pair)
    return kept, problems + leaks
