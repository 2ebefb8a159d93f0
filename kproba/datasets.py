"""Where the images, masks and class names of a dataset are, for every kind of it.

- `digits`: drawn by `kproba.digits`, in the form of a folder.
- `folder`: images/{train,val}/ and masks/{train,val}/ with equal names; without val a
  share is held out by a hash of the name.
- `voc`: JPEGImages/ and SegmentationClassAug/, with the field's lists of 10,582 and
  1,449 ids.
- `ade20k`: images/{training,validation}/ and annotations/{training,validation}/.

Nothing here imports torch: the rules ask for class names at every Snakemake call.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from kproba import digits
from kproba.download import Archive

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
SUBSETS = ("train", "val")
VAL_SHARE = 0.2  # of a folder without validation images
MOST_CLASSES = 254  # labels are bytes, 0 is background and 255 is ignored

# What `download: true` fetches. Of the masks no checksum is published; their labels are
# compared with those of the well-known copies instead: `PUBLISHED_LABELS`.
ARCHIVES = {
    "voc": {
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
    },
    "ade20k": {
        "images_and_masks": Archive(
            name="ADEChallengeData2016.zip",
            mirrors=(
                "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
            ),
            checksum="219e1696abb36c8ba3a3afe7fb2f4b4606a897c7",
        ),
    },
}

# `labels_sha256` of the integrity report, by kind and number of images.
PUBLISHED_LABELS = {
    ("voc", 12031): (
        "db11442560741fdc7515ccbe543196ddde8e6605b22f0b7f116792f53f8cf97b"
    ),
}

LAYOUTS = {
    "voc": "JPEGImages/ and SegmentationClassAug/",
    "ade20k": "images/{training,validation}/ and annotations/{training,validation}/",
    "folder": "images/train/ and masks/train/",
}


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


def find_pairs(
    kind: str, folder: str | Path, *, val_share: float = VAL_SHARE
) -> tuple[list[Pair], list[Problem]]:
    """Images with their masks, and the files that make no pair.

    Args:
        kind: "digits", "folder", "voc" or "ade20k".
        folder: Where the dataset is.
        val_share: Of a folder without validation images: the share held out.

    Raises:
        MissingDatasetError: The folders that the kind expects are not there.
    """
    folder = Path(folder)
    if kind == "voc":
        return _voc_pairs(folder)
    if kind == "ade20k":
        return _ade20k_pairs(folder)
    return _folder_pairs(folder, val_share)


def is_there(kind: str, folder: str | Path) -> bool:
    """Whether a folder has the layout of a kind of dataset."""
    return bool(parts(kind, folder))


def parts(kind: str, folder: str | Path) -> list[Path]:
    """The files and folders of a dataset that its index is made from.

    A change of one of them, such as an image that is added, makes the index old.

    Returns:
        Those that exist; none if the dataset is not there.
    """
    folder = Path(folder)
    if kind == "voc":
        root, masks = _voc_folders(folder)
        if root is None or masks is None:
            return []
        found = [root / "JPEGImages", masks / "SegmentationClassAug"]
        lists = root / "ImageSets" / "Segmentation"
        return found + [path for path in (lists,) if path.is_dir()]
    if kind == "ade20k":
        root = _ade20k_folder(folder)
        return [] if root is None else _ade20k_parts(root)
    found = [
        folder / what / subset for subset in SUBSETS for what in ("images", "masks")
    ]
    if not all(path.is_dir() for path in found[:2]):
        return []
    return [path for path in (*found, folder / "classes.txt") if path.exists()]


# --- folder --------------------------------------------------------------------------


def _folder_pairs(folder: Path, val_share: float) -> tuple[list[Pair], list[Problem]]:
    images, masks = folder / "images", folder / "masks"
    train = (images / "train", masks / "train")
    val = (images / "val", masks / "val")
    if not all(path.is_dir() for path in train):
        raise _missing("folder", folder, "folder")
    if any(path.is_dir() for path in val):
        if not all(path.is_dir() for path in val):
            raise MissingDatasetError(
                f"Expected validation images and masks in {val[0]} and {val[1]}, but "
                f"one of the two folders is not there. Make both, or none to hold out "
                f"a share of the training images."
            )
        found = [_pairs_of(*train, "train"), _pairs_of(*val, "val")]
        pairs, problems = _joined(found)
        return _without_overlap(pairs, problems)
    pairs, problems = _pairs_of(*train, "train")
    return [
        Pair(pair.id, "val" if held_out(pair.id, val_share) else "train", *_files(pair))
        for pair in pairs
    ], problems


def held_out(name: str, share: float) -> bool:
    """Whether an image belongs to the share that is kept for validation.

    Depends on the name alone: images that are added or removed move no other.
    """
    digest = hashlib.sha256(name.encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def _files(pair: Pair) -> tuple[Path, Path]:
    return pair.image, pair.mask


def _pairs_of(
    images: Path, masks: Path, subset: str
) -> tuple[list[Pair], list[Problem]]:
    """Pairs by equal names, but for the ending."""
    image_of, problems = _by_name(images, IMAGE_SUFFIXES, "image")
    mask_of, others = _by_name(masks, (".png",), "mask")
    problems += others
    for name, image in image_of.items():
        if name not in mask_of:
            text = f"no mask {masks / name}.png"
            problems.append(Problem("missing mask", str(image), text))
    for name, mask in mask_of.items():
        if name not in image_of:
            text = f"no image {images / name} with an ending of {IMAGE_SUFFIXES}"
            problems.append(Problem("missing image", str(mask), text))
    pairs = [
        Pair(name, subset, image, mask_of[name])
        for name, image in image_of.items()
        if name in mask_of
    ]
    return pairs, problems


def _by_name(
    folder: Path, suffixes: Sequence[str], what: str
) -> tuple[dict[str, Path], list[Problem]]:
    """Files by name without ending; names that occur twice are left out."""
    paths = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in suffixes and not path.name.startswith(".")
    )
    count = Counter(path.stem for path in paths)
    problems = [
        Problem("duplicate id", str(path), f"another {what} has the id '{path.stem}'")
        for path in paths
        if count[path.stem] > 1
    ]
    return {path.stem: path for path in paths if count[path.stem] == 1}, problems


def _without_overlap(
    pairs: list[Pair], problems: list[Problem]
) -> tuple[list[Pair], list[Problem]]:
    """A validation image must not be trained on: such training images are a problem."""
    tested = {pair.id for pair in pairs if pair.subset == "val"}
    overlap = [p for p in pairs if p.subset == "train" and p.id in tested]
    leaks = [
        Problem(
            "train/val overlap",
            str(pair.image),
            f"the id '{pair.id}' is in train and in val",
        )
        for pair in overlap
    ]
    kept = [pair for pair in pairs if pair not in set(overlap)]
    return kept, problems + leaks


def _joined(
    found: Iterable[tuple[list[Pair], list[Problem]]],
) -> tuple[list[Pair], list[Problem]]:
    pairs: list[Pair] = []
    problems: list[Problem] = []
    for some_pairs, some_problems in found:
        pairs += some_pairs
        problems += some_problems
    return pairs, problems


# --- Pascal VOC 2012 with SBD's masks ------------------------------------------------


def _voc_pairs(folder: Path) -> tuple[list[Pair], list[Problem]]:
    root, masks = _voc_folders(folder)
    if root is None or masks is None:
        raise _missing("voc", folder, "Pascal VOC 2012")
    pairs: list[Pair] = []
    problems: list[Problem] = []
    for subset, ids in voc_ids(root).items():
        for name in ids:
            image = root / "JPEGImages" / f"{name}.jpg"
            mask = masks / "SegmentationClassAug" / f"{name}.png"
            absent = [path for path in (image, mask) if not path.is_file()]
            for path in absent:
                what = "image" if path == image else "mask"
                text = f"in the list of {subset}, but not there"
                problems.append(Problem(f"missing {what}", str(path), text))
            if not absent:
                pairs.append(Pair(name, subset, image, mask))
    return _without_overlap(pairs, problems)


def _voc_folders(folder: Path) -> tuple[Path | None, Path | None]:
    """The folders that hold JPEGImages and SegmentationClassAug."""
    nested = [folder, folder / "VOC2012", folder / "VOCdevkit" / "VOC2012"]
    root = _first(nested, "JPEGImages")
    masks = _first([*([root] if root else []), *nested], "SegmentationClassAug")
    return root, masks


def voc_ids(root: Path) -> dict[str, list[str]]:
    """Ids of train_aug and val.

    A folder with a train_aug.txt of its own is asked for both lists; otherwise, as for
    the archives that VOC publishes, the 10,582 and 1,449 of the field count.
    """
    lists = root / "ImageSets" / "Segmentation"
    if (lists / "train_aug.txt").is_file():
        own = {"train": lists / "train_aug.txt", "val": lists / "val.txt"}
        missing = [str(path) for path in own.values() if not path.is_file()]
        if missing:
            raise MissingDatasetError(
                f"Expected the validation ids in {missing[0]}, because {lists} has a "
                f"train_aug.txt of its own. Write it, or remove train_aug.txt to use "
                f"the lists of the field."
            )
        return {subset: path.read_text().split() for subset, path in own.items()}
    return {"train": _list("voc_train_aug"), "val": _list("voc_val")}


def _first(folders: Sequence[Path], child: str) -> Path | None:
    return next((path for path in folders if (path / child).is_dir()), None)


# --- ADE20K --------------------------------------------------------------------------


def _ade20k_pairs(folder: Path) -> tuple[list[Pair], list[Problem]]:
    root = _ade20k_folder(folder)
    if root is None:
        raise _missing("ade20k", folder, "ADE20K (ADEChallengeData2016)")
    images_train, images_val, masks_train, masks_val = _ade20k_parts(root)
    found = [
        _pairs_of(images_train, masks_train, "train"),
        _pairs_of(images_val, masks_val, "val"),
    ]
    return _without_overlap(*_joined(found))


def _ade20k_folder(folder: Path) -> Path | None:
    for root in (folder, folder / "ADEChallengeData2016"):
        if all(path.is_dir() for path in _ade20k_parts(root)):
            return root
    return None


def _ade20k_parts(root: Path) -> list[Path]:
    return [
        root / what / part
        for what in ("images", "annotations")
        for part in ("training", "validation")
    ]


# --- what is missing -----------------------------------------------------------------


def _missing(kind: str, folder: Path, name: str) -> MissingDatasetError:
    lines = [
        f"Expected {name} in {folder.absolute()} with {LAYOUTS[kind]}, but did not "
        f"find it there."
    ]
    for archive in ARCHIVES.get(kind, {}).values():
        lines.append(f"Fetch {archive.name} from {archive.mirrors[0]}")
    if kind in ARCHIVES:
        lines.append(
            f"and unpack into {folder.absolute()}; or name the folder that has it as "
            f"`path` of the dataset; or set `download: true`."
        )
    else:
        lines.append("Name the folder that has it as `path` of the dataset.")
    return MissingDatasetError("\n".join(lines))


# --- class names and orders ----------------------------------------------------------


def class_names(
    kind: str, folder: str | Path | None, listed: Sequence[str] | None = None
) -> list[str]:
    """Names of the classes 1..N of a dataset.

    Args:
        kind: Kind of the dataset.
        folder: Of kind `folder`: where its classes.txt is.
        listed: Of kind `folder`: names from the configuration, "background" first,
            instead of classes.txt.

    Raises:
        ValueError: Names are missing, or do not start with "background", or repeat.
    """
    if kind == "digits":
        return list(digits.CLASS_NAMES)
    if kind in ARCHIVES:
        return _names_of(LISTS / f"{kind}_classes.txt")[1:]
    if listed is not None:
        return _checked(listed, "`classes`")
    assert folder is not None
    path = Path(folder) / "classes.txt"
    if not path.is_file():
        raise ValueError(
            f"Expected the class names in {path}, one a line, the first "
            f"'background', but there is no such file. Write it, or list them as "
            f"`classes` of the dataset."
        )
    return _checked(_names_of(path), str(path))


def _names_of(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    return [line.strip() for line in lines if line.strip()]


def _checked(names: Sequence[str], where: str) -> list[str]:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if names[:1] != ["background"] or twice or len(names) < 2:
        raise ValueError(
            f"Expected {where} to start with 'background' and to name each class once, "
            f"but it starts with {list(names[:1])}, repeats {twice} and names "
            f"{len(names)}. Mend it."
        )
    if len(names) - 1 > MOST_CLASSES:
        raise ValueError(
            f"Expected at most {MOST_CLASSES} classes, because masks hold bytes, but "
            f"{where} names {len(names) - 1}. Merge or remove some."
        )
    return list(names[1:])


def class_orders(kind: str) -> Mapping[str, tuple[int, ...]]:
    """Published class orders of a dataset by their letter, raw labels in order.

    VOC has "b" to "w", the orders of the tasks 15-1_b to 15-1_w (SSUL, NeurIPS 2021).
    """
    if kind != "voc":
        return {}
    lines = (LISTS / "voc_orders.txt").read_text().splitlines()
    return {
        letter: tuple(int(label) for label in labels)
        for letter, *labels in (line.split() for line in lines)
    }


LISTS = Path(str(files("kproba") / "lists"))


def _list(name: str) -> list[str]:
    return (LISTS / f"{name}.txt").read_text().split()
