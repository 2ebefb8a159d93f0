"""Pascal VOC 2012 with the masks of SBD, and the lists of 10,582 and 1,449 ids."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from kproba.data.download import Archive
from kproba.data.files import is_folder
from kproba.data.kinds.class_names import (
    LISTS,
    read_class_names,
    read_lines,
    read_list,
)
from kproba.data.kinds.kind import DatasetKind, missing_dataset
from kproba.data.kinds.pairs import (
    LONGEST_ID,
    MissingDatasetError,
    Pair,
    Problem,
    is_usable,
    printable,
    remove_overlap,
)
from kproba.data.kinds.settings import (
    LONG_SIDE,
    ON_ERROR,
    SALIENCY_FOLDER,
    archive_settings,
    path_setting,
)

TITLE = "Pascal VOC 2012"
AUGMENTED, PLAIN = "SegmentationClassAug", "SegmentationClass"  # masks: SBD's, VOC's
LAYOUT = f"JPEGImages/ and {AUGMENTED}/"
# There is no published checksum of the masks. Their labels are compared with those of
# the copies in common use instead (`DatasetKind.published_labels`).
ARCHIVES = {
    "images": Archive(
        name="VOCtrainval_11-May-2012.tar",
        mirrors=(
            "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
            "https://data.mxnet.io/data/VOCtrainval_11-May-2012.tar",
            "https://pjreddie.com/media/files/VOCtrainval_11-May-2012.tar",
        ),
        checksum="4e443f8a2eca6b1dac8a6c57641b67dd40621a49",
    ),
    "masks": Archive(
        name="SegmentationClassAug.zip",
        mirrors=(
            "https://www.dropbox.com/s/oeu149j8qtbs1x0/SegmentationClassAug.zip?dl=1",
        ),
        checksum=None,
    ),
}


def find_pairs(
    folder: Path, val_share: float, masks: str = AUGMENTED
) -> tuple[list[Pair], list[Problem]]:
    """Pairs of the usual lists of ids, or of those in the folder.

    Args:
        folder: The dataset.
        val_share: Not used.
        masks: Folder of the masks. With `PLAIN` the lists are VOC's own.

    Raises:
        MissingDatasetError: A folder or a list is not there.
        ValueError: A list cannot be read.
    """
    root, above_masks = _find_root_and_masks(folder, masks)
    if root is None or above_masks is None:
        raise _missing(folder, root, above_masks, masks)
    pairs: list[Pair] = []
    problems: list[Problem] = []
    for subset, ids in read_voc_ids(root, masks).items():
        for name, count in Counter(ids).items():
            if count > 1:
                text = f"{count} times in the list of {subset}"
                problems.append(Problem("duplicate id", name, text))
            image = root / "JPEGImages" / f"{name}.jpg"
            mask = above_masks / masks / f"{name}.png"
            absent = [path for path in (image, mask) if not os.path.lexists(path)]
            for path in absent:
                what = "image" if path == image else "mask"
                text = f"in the list of {subset}, but missing"
                problems.append(Problem(f"missing {what}", str(path), text))
            if not absent:
                pairs.append(Pair(name, subset, image, mask))
    return remove_overlap(pairs, problems)


def _missing(
    folder: Path, root: Path | None, above_masks: Path | None, masks: str
) -> MissingDatasetError:
    """The error for a dataset that is missing or incomplete."""
    if root is None and above_masks is None:
        return missing_dataset(folder, TITLE, f"JPEGImages/ and {masks}/", ARCHIVES)
    if root is None:
        return missing_dataset(
            folder, f"the images of {TITLE}", "JPEGImages/", {"": ARCHIVES["images"]}
        )
    if masks == PLAIN:
        return missing_dataset(
            root, f"the masks of {TITLE}", f"{PLAIN}/", {"": ARCHIVES["images"]}
        )
    error = missing_dataset(
        root, f"the masks of {TITLE}", f"{masks}/", {"": ARCHIVES["masks"]}
    )
    if is_folder(root / PLAIN):
        error = MissingDatasetError(
            f"{error}\nThe folder {PLAIN}/ exists. Set `masks: {PLAIN}` for the "
            f"dataset to use it with the original VOC lists of 1,464 and 1,449 images."
        )
    return error


def _read_ids(path: Path) -> list[str]:
    """Ids of a file with one id per line."""
    ids = " ".join(read_lines(path)).split()
    wrong = [name for name in ids if "/" in name]
    if wrong:
        raise ValueError(
            f"Expected one id per line in {path}, such as 2007_000032, but got the "
            f"path '{wrong[0]}'. Write ids without folder and file ending."
        )
    unusable = [name for name in ids if not is_usable(name) or len(name) > LONGEST_ID]
    if unusable:
        raise ValueError(
            f"Expected one id per line in {path}, such as 2007_000032, but got "
            f"'{printable(unusable[0][:80])}'. Replace the list."
        )
    return ids


def _find_root_and_masks(
    folder: Path, masks: str = AUGMENTED
) -> tuple[Path | None, Path | None]:
    """The folders that hold JPEGImages and the folder of the masks."""
    nested = [folder, folder / "VOC2012", folder / "VOCdevkit" / "VOC2012"]
    root = _first(nested, "JPEGImages")
    return root, _first([*([root] if root else []), *nested], masks)


def read_voc_ids(root: Path, masks: str = AUGMENTED) -> dict[str, list[str]]:
    """Ids of the training and validation images, by subset.

    If the folder has a train_aug.txt, both lists are read from the folder. If not, as
    in the archives that VOC publishes, they are the usual lists of 10,582 and 1,449
    ids, which come with the package. With the masks `PLAIN` they are the train.txt and
    val.txt of the folder.

    Raises:
        MissingDatasetError: A list is missing.
        ValueError: A list cannot be read.
    """
    lists = root / "ImageSets" / "Segmentation"
    train = lists / ("train.txt" if masks == PLAIN else "train_aug.txt")
    files = {"train": train, "val": lists / "val.txt"}
    if masks == AUGMENTED and not os.path.lexists(train):
        return {"train": read_list("voc_train_aug"), "val": read_list("voc_val")}
    missing = [str(path) for path in files.values() if not os.path.lexists(path)]
    if missing and masks == PLAIN:
        raise MissingDatasetError(
            f"Expected the original VOC lists of ids for `masks: {PLAIN}`, but "
            f"{missing[0]} is missing. Copy it from the archive of VOC."
        )
    if missing:
        raise MissingDatasetError(
            f"Expected the validation ids in {missing[0]}, because {lists} has a "
            f"train_aug.txt. Create the missing list, or remove train_aug.txt to use "
            f"the usual lists."
        )
    return {subset: _read_ids(path) for subset, path in files.items()}


def _first(folders: Sequence[Path], child: str) -> Path | None:
    """The first of several folders that has a certain subfolder."""
    return next((path for path in folders if is_folder(path / child)), None)


def find_folders(folder: Path, masks: str = AUGMENTED) -> list[Path]:
    """The folders with the dataset's files and lists; empty if one is missing."""
    root, above_masks = _find_root_and_masks(folder, masks)
    if root is None or above_masks is None:
        return []
    folders = [root / "JPEGImages", above_masks / masks]
    lists = root / "ImageSets" / "Segmentation"
    return folders + [path for path in (lists,) if is_folder(path)]


def find_saliency(folder: Path) -> list[tuple[Path, Path]]:
    """JPEGImages/ with saliency_map/ beside it, as in the archive of SSUL."""
    root, _ = _find_root_and_masks(folder)
    root = folder if root is None else root
    return [(root / "JPEGImages", root / "saliency_map")]


def configure(kind: DatasetKind, settings: Mapping[str, Any]) -> DatasetKind:
    """The dataset with the masks that the configuration names."""
    masks = settings.get("masks") or AUGMENTED
    if masks == AUGMENTED:
        return kind
    return replace(
        kind,
        layout=f"JPEGImages/ and {masks}/",
        find_pairs=partial(find_pairs, masks=masks),
        find_folders=partial(find_folders, masks=masks),
        archives={"images": ARCHIVES["images"]},
        published_images={"train": 1464, "val": 1449},
        published_labels=None,
    )


def class_names(folder: Path | None, listed: Sequence[str] | None) -> list[str]:
    """The 20 classes in VOC's order."""
    return read_class_names(LISTS / "voc_classes.txt")[1:]


def read_class_orders() -> dict[str, tuple[int, ...]]:
    """Class orders "b" to "w", of the tasks 15-1_b to 15-1_w (SSUL, NeurIPS 2021)."""
    lines = (LISTS / "voc_orders.txt").read_text().splitlines()
    return {
        letter: tuple(int(label) for label in labels)
        for letter, *labels in (line.split() for line in lines)
    }


VOC = DatasetKind(
    name="voc",
    title=TITLE,
    layout=LAYOUT,
    find_pairs=find_pairs,
    find_folders=find_folders,
    class_names=class_names,
    class_orders=read_class_orders,
    find_saliency=find_saliency,
    configure=configure,
    archives=ARCHIVES,
    published_images={"train": 10582, "val": 1449},
    published_labels="db11442560741fdc7515ccbe543196ddde8e6605b22f0b7f116792f53f8cf97b",
    settings={
        "path": path_setting(
            "Folder with JPEGImages/ and SegmentationClassAug/, or the folder above "
            "it.",
            "datasets/VOC2012",
        ),
        "masks": {
            "description": (
                "Folder of the masks. SegmentationClassAug has SBD's masks of 10,582 "
                "training images. SegmentationClass has VOC's own of 1,464."
            ),
            "enum": [AUGMENTED, PLAIN],
            "default": AUGMENTED,
        },
        "saliency_folder": SALIENCY_FOLDER,
        **archive_settings(ARCHIVES),
        "on_error": ON_ERROR,
        "long_side": LONG_SIDE,
    },
)
