"""Pascal VOC 2012 with the masks of SBD, and the lists of 10,582 and 1,449 ids."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from kproba.data.download import Archive
from kproba.data.kinds.class_names import LISTS, read_class_names, read_list
from kproba.data.kinds.kind import DatasetKind, missing_dataset
from kproba.data.kinds.pairs import (
    MissingDatasetError,
    Pair,
    Problem,
    remove_overlap,
)
from kproba.data.kinds.settings import ON_ERROR, archive_settings, path_setting

TITLE = "Pascal VOC 2012"
LAYOUT = "JPEGImages/ and SegmentationClassAug/"
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


def find_pairs(folder: Path, val_share: float) -> tuple[list[Pair], list[Problem]]:
    """Pairs of the usual lists of ids, or of those in the folder.

    Raises:
        MissingDatasetError: A folder is not there.
        ValueError: A list cannot be read.
    """
    root, masks = _find_root_and_masks(folder)
    if root is None or masks is None:
        raise missing_dataset(folder, TITLE, LAYOUT, ARCHIVES)
    pairs: list[Pair] = []
    problems: list[Problem] = []
    for subset, ids in read_voc_ids(root).items():
        for name, count in Counter(ids).items():
            if count > 1:
                text = f"{count} times in the list of {subset}"
                problems.append(Problem("duplicate id", name, text))
            image = root / "JPEGImages" / f"{name}.jpg"
            mask = masks / "SegmentationClassAug" / f"{name}.png"
            absent = [path for path in (image, mask) if not path.is_file()]
            for path in absent:
                what = "image" if path == image else "mask"
                text = f"in the list of {subset}, but missing"
                problems.append(Problem(f"missing {what}", str(path), text))
            if not absent:
                pairs.append(Pair(name, subset, image, mask))
    return remove_overlap(pairs, problems)


def _read_ids(path: Path) -> list[str]:
    """Ids of a file with one id per line."""
    ids = path.read_text(encoding="utf-8-sig").split()
    wrong = [name for name in ids if "/" in name]
    if wrong:
        raise ValueError(
            f"Expected one id per line in {path}, such as 2007_000032, but got a path, "
            f"'{wrong[0]}'. Write ids without folder and ending."
        )
    return ids


def _find_root_and_masks(folder: Path) -> tuple[Path | None, Path | None]:
    """The folders that hold JPEGImages and SegmentationClassAug."""
    nested = [folder, folder / "VOC2012", folder / "VOCdevkit" / "VOC2012"]
    root = _first(nested, "JPEGImages")
    masks = _first([*([root] if root else []), *nested], "SegmentationClassAug")
    return root, masks


def read_voc_ids(root: Path) -> dict[str, list[str]]:
    """Ids of the training and validation images, by subset.

    If the folder has a train_aug.txt, both lists are read from the folder. If not, as
    in the archives that VOC publishes, they are the usual lists of 10,582 and 1,449
    ids, which come with the package.

    Raises:
        MissingDatasetError: There is a train_aug.txt, but no val.txt.
        ValueError: A list cannot be read.
    """
    lists = root / "ImageSets" / "Segmentation"
    if (lists / "train_aug.txt").is_file():
        files = {"train": lists / "train_aug.txt", "val": lists / "val.txt"}
        missing = [str(path) for path in files.values() if not path.is_file()]
        if missing:
            raise MissingDatasetError(
                f"Expected the validation ids in {missing[0]}, because {lists} has a "
                f"train_aug.txt. Write it, or remove train_aug.txt to use the usual "
                f"lists."
            )
        return {subset: _read_ids(path) for subset, path in files.items()}
    return {"train": read_list("voc_train_aug"), "val": read_list("voc_val")}


def _first(folders: Sequence[Path], child: str) -> Path | None:
    """The first of several folders that has a certain subfolder."""
    return next((path for path in folders if (path / child).is_dir()), None)


def find_folders(folder: Path) -> list[Path]:
    """The folders with the dataset's files and lists; empty if one is missing."""
    root, masks = _find_root_and_masks(folder)
    if root is None or masks is None:
        return []
    folders = [root / "JPEGImages", masks / "SegmentationClassAug"]
    lists = root / "ImageSets" / "Segmentation"
    return folders + [path for path in (lists,) if path.is_dir()]


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
    archives=ARCHIVES,
    published_images={"train": 10582, "val": 1449},
    published_labels="db11442560741fdc7515ccbe543196ddde8e6605b22f0b7f116792f53f8cf97b",
    settings={
        "path": path_setting(
            "Folder with JPEGImages/ and SegmentationClassAug/, or the folder above "
            "it.",
            "datasets/VOC2012",
        ),
        **archive_settings(ARCHIVES),
        "on_error": ON_ERROR,
    },
)
