"""ADE20K as published for the scene parsing challenge of 2016, with 150 classes."""

from collections.abc import Sequence
from pathlib import Path

from kproba.data.download import Archive
from kproba.data.files import is_folder
from kproba.data.kinds.class_names import LISTS, read_class_names
from kproba.data.kinds.kind import DatasetKind, missing_dataset
from kproba.data.kinds.pairs import Pair, Problem, pair_subsets
from kproba.data.kinds.settings import (
    LONG_SIDE,
    ON_ERROR,
    SALIENCY_FOLDER,
    archive_settings,
    path_setting,
)

TITLE = "ADE20K (ADEChallengeData2016)"
LAYOUT = "images/{training,validation}/ and annotations/{training,validation}/"
ARCHIVES = {
    "images_and_masks": Archive(
        name="ADEChallengeData2016.zip",
        mirrors=(
            "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
        ),
        checksum="219e1696abb36c8ba3a3afe7fb2f4b4606a897c7",
    ),
}


def find_pairs(folder: Path, val_share: float) -> tuple[list[Pair], list[Problem]]:
    """Pairs of the training and validation images.

    Raises:
        MissingDatasetError: A folder is not there.
    """
    root = _find_root(folder)
    if root is None:
        raise missing_dataset(folder, TITLE, LAYOUT, ARCHIVES)
    images_train, images_val, masks_train, masks_val = _folders_below(root)
    return pair_subsets((images_train, masks_train), (images_val, masks_val))


def _find_root(folder: Path) -> Path | None:
    for root in (folder, folder / "ADEChallengeData2016"):
        if all(map(is_folder, _folders_below(root))):
            return root
    return None


def _folders_below(root: Path) -> list[Path]:
    return [
        root / what / part
        for what in ("images", "annotations")
        for part in ("training", "validation")
    ]


def find_folders(folder: Path) -> list[Path]:
    """The four folders with the dataset's files; empty if one is missing."""
    root = _find_root(folder)
    return [] if root is None else _folders_below(root)


def find_saliency(folder: Path) -> list[tuple[Path, Path]]:
    """images/training/ with saliency/training/, or saliency/ without subfolders.

    The dataset is published without maps.
    """
    root = _find_root(folder) or folder
    images, maps = root / "images", root / "saliency"
    return [(images, maps), (images / "training", maps)]


def class_names(folder: Path | None, listed: Sequence[str] | None) -> list[str]:
    """The 150 classes in the order of the challenge, the most frequent ones first."""
    return read_class_names(LISTS / "ade20k_classes.txt")[1:]


ADE20K = DatasetKind(
    name="ade20k",
    title=TITLE,
    layout=LAYOUT,
    find_pairs=find_pairs,
    find_folders=find_folders,
    class_names=class_names,
    find_saliency=find_saliency,
    archives=ARCHIVES,
    published_images={"train": 20210, "val": 2000},
    settings={
        "path": path_setting(
            "Folder with images/ and annotations/, each with training/ and "
            "validation/, or the folder above it.",
            "datasets/ADEChallengeData2016",
        ),
        "saliency_folder": SALIENCY_FOLDER,
        **archive_settings(ARCHIVES),
        "on_error": ON_ERROR,
        "long_side": LONG_SIDE,
    },
)
