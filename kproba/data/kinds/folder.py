"""A folder of images and masks with equal names: the kind for datasets of users."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kproba.data.kinds.class_names import check_class_names, read_class_names
from kproba.data.kinds.kind import DatasetKind, missing_dataset
from kproba.data.kinds.pairs import (
    SUBSETS,
    MissingDatasetError,
    Pair,
    Problem,
    pair_by_name,
    pair_subsets,
)
from kproba.data.kinds.settings import ON_ERROR, SHARE, path_setting

LAYOUT = "images/train/ and masks/train/"


def find_pairs(folder: Path, val_share: float) -> tuple[list[Pair], list[Problem]]:
    """Pairs of images/{train,val}/ and masks/{train,val}/.

    If the two val folders are missing, a share of the training images is held out.

    Raises:
        MissingDatasetError: A folder is not there.
    """
    images, masks = folder / "images", folder / "masks"
    train = (images / "train", masks / "train")
    val = (images / "val", masks / "val")
    if not all(path.is_dir() for path in train):
        raise missing_dataset(folder, "a dataset", LAYOUT, {})
    if any(path.is_dir() for path in val):
        if not all(path.is_dir() for path in val):
            raise MissingDatasetError(
                f"Expected validation images and masks in {val[0]} and {val[1]}, but "
                f"one of the two folders is missing. Make both, or none to hold out a "
                f"share of the training images."
            )
        return pair_subsets(train, val)
    pairs, problems = pair_by_name(*train, "train")
    divided = [
        replace(pair, subset="val") if is_held_out(pair.id, val_share) else pair
        for pair in pairs
    ]
    return divided, problems


def is_held_out(name: str, share: float) -> bool:
    """Whether an image belongs to the share that is held out for validation.

    This depends only on its name, so that adding or removing images does not move
    others.

    Args:
        name: Id of the image.
        share: Share to hold out, from 0 to 1.
    """
    digest = hashlib.sha256(name.encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def find_folders(folder: Path) -> list[Path]:
    """The folders with the files of such a dataset; empty without training images."""
    folders = [folder / what / part for part in SUBSETS for what in ("images", "masks")]
    if not all(path.is_dir() for path in folders[:2]):
        return []
    return [path for path in folders if path.is_dir()]


def class_names(folder: Path | None, listed: Sequence[str] | None) -> list[str]:
    """Names of the classes, from the configuration or else from classes.txt.

    Raises:
        MissingDatasetError: There is no such folder.
        ValueError: The names are wrong, or classes.txt is missing.
    """
    if listed is not None:
        return check_class_names(listed, "`classes`")
    assert folder is not None
    if not folder.is_dir():
        raise missing_dataset(folder, "a dataset", LAYOUT, {})
    path = folder / "classes.txt"
    if not path.is_file():
        raise ValueError(
            f"Expected the class names in {path}, one a line, the first "
            f"'background', but there is no such file. Write it, or list the names as "
            f"`classes` of the dataset."
        )
    return check_class_names(read_class_names(path), str(path))


FOLDER = DatasetKind(
    name="folder",
    title="a dataset",
    layout=LAYOUT,
    find_pairs=find_pairs,
    find_folders=find_folders,
    class_names=class_names,
    required=("path",),
    settings={
        "path": path_setting(
            "Folder with images/{train,val}/, masks/{train,val}/ and classes.txt. "
            "Without the two val folders a share of the training images is held out."
        ),
        "classes": {
            "description": (
                'Class names in the order of the label values, "background" first; '
                "null reads classes.txt."
            ),
            "type": ["array", "null"],
            "minItems": 2,
            "items": {"type": "string", "minLength": 1},
            "default": None,
        },
        "val_share": SHARE,
        "on_error": ON_ERROR,
    },
)
