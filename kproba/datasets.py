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
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

from kproba import digits
from kproba.download import Archive

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
SUBSETS = ("train", "val")
VAL_SHARE = 0.2  # of a folder without validation images
MOST_CLASSES = 253  # labels are bytes: 0 background, 254 unsure, 255 ignored

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

# Images, and `labels_sha256` of the integrity report, of complete datasets.
PUBLISHED_IMAGES = {
    "voc": {"train": 10582, "val": 1449},
    "ade20k": {"train": 20210, "val": 2000},
}
PUBLISHED_LABELS = {
    "voc": "db11442560741fdc7515ccbe543196ddde8e6605b22f0b7f116792f53f8cf97b",
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
        ValueError: A list or a file name cannot be read.
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


def state_of(kind: str, folder: str | Path) -> str:
    """A digest of names, sizes and times of a dataset's files, "" if it is not there.

    A file that is added, removed or edited makes the index old; other files that lie
    about do not. Reads no file.
    """
    folders = parts(kind, folder)
    digest = hashlib.sha256()
    for part in folders:
        for entry in sorted(os.scandir(part), key=lambda entry: entry.name):
            hidden = entry.name.startswith(".")
            suffix = Path(entry.name).suffix.lower()
            if suffix in (*IMAGE_SUFFIXES, ".txt") and not hidden:
                found = entry.stat()
                line = f"{part}/{entry.name} {found.st_size} {found.st_mtime_ns}\n"
                digest.update(os.fsencode(line))
    return digest.hexdigest() if folders else ""


def parts(kind: str, folder: str | Path) -> list[Path]:
    """The folders that a dataset's files are in; none if it is not there."""
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
    return [path for path in found if path.is_dir()]


# --- folder --------------------------------------------------------------------------


def _folder_pairs(folder: Path, val_share: float) -> tuple[list[Pair], list[Problem]]:
    images, masks = folder / "images", folder / "masks"
    train = (images / "train", masks / "train")
    val = (images / "val", masks / "val")
    if not all(path.is_dir() for path in train):
        raise _missing("folder", folder, "a dataset")
    if any(path.is_dir() for path in val):
        if not all(path.is_dir() for path in val):
            raise MissingDatasetError(
                f"Expected validation images and masks in {val[0]} and {val[1]}, but "
                f"one of the two folders is not there. Make both, or none to hold out "
                f"a share of the training images."
            )
        return _both(train, val)
    pairs, problems = _pairs_of(*train, "train")
    shared = [
        replace(pair, subset="val") if held_out(pair.id, val_share) else pair
        for pair in pairs
    ]
    return shared, problems


def held_out(name: str, share: float) -> bool:
    """Whether an image belongs to the share that is kept for validation.

    Depends on the name alone: images that are added or removed move no other.
    """
    digest = hashlib.sha256(name.encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def _both(
    train: tuple[Path, Path], val: tuple[Path, Path]
) -> tuple[list[Pair], list[Problem]]:
    """Pairs of two subsets, each a folder of images and a folder of masks."""
    pairs, problems = _pairs_of(*train, "train")
    more_pairs, more_problems = _pairs_of(*val, "val")
    return _without_overlap(pairs + more_pairs, problems + more_problems)


def _pairs_of(
    images: Path, masks: Path, subset: str
) -> tuple[list[Pair], list[Problem]]:
    """Pairs by equal names, but for the ending."""
    images_of = _by_name(images, IMAGE_SUFFIXES)
    masks_of = _by_name(masks, (".png",))
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


def _by_name(folder: Path, suffixes: Sequence[str]) -> dict[str, list[Path]]:
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


def _without_overlap(
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


# --- Pascal VOC 2012 with SBD's masks ------------------------------------------------


def _voc_pairs(folder: Path) -> tuple[list[Pair], list[Problem]]:
    root, masks = _voc_folders(folder)
    if root is None or masks is None:
        raise _missing("voc", folder, "Pascal VOC 2012")
    pairs: list[Pair] = []
    problems: list[Problem] = []
    for subset, ids in voc_ids(root).items():
        for name, count in Counter(ids).items():
            if count > 1:
                text = f"{count} times in the list of {subset}"
                problems.append(Problem("duplicate id", name, text))
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


def _read_ids(path: Path) -> list[str]:
    ids = path.read_text(encoding="utf-8-sig").split()
    wrong = [name for name in ids if "/" in name]
    if wrong:
        raise ValueError(
            f"Expected one id a line in {path}, such as 2007_000032, but got a path, "
            f"'{wrong[0]}'. Write ids without folder and ending."
        )
    return ids


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
        return {subset: _read_ids(path) for subset, path in own.items()}
    return {"train": _list("voc_train_aug"), "val": _list("voc_val")}


def _first(folders: Sequence[Path], child: str) -> Path | None:
    return next((path for path in folders if (path / child).is_dir()), None)


# --- ADE20K --------------------------------------------------------------------------


def _ade20k_pairs(folder: Path) -> tuple[list[Pair], list[Problem]]:
    root = _ade20k_folder(folder)
    if root is None:
        raise _missing("ade20k", folder, "ADE20K (ADEChallengeData2016)")
    images_train, images_val, masks_train, masks_val = _ade20k_parts(root)
    return _both((images_train, masks_train), (images_val, masks_val))


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
    where = folder.absolute()
    lines = [f"Expected {name} in {where} with {LAYOUTS[kind]}."]
    if not where.is_dir():
        lines.append("There is no such folder.")
    else:
        found = sorted(path.name for path in where.iterdir())[:8]
        lines.append(f"Found there: {', '.join(found) or 'nothing'}.")
    for archive in ARCHIVES.get(kind, {}).values():
        lines.append(f"Fetch {archive.name} from {archive.mirrors[0]}")
    if kind in ARCHIVES:
        lines.append(
            f"as far as it is missing, and unpack into {where}; or name the folder "
            f"that has it as `path` of the dataset; or set `download: true`."
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
    if not Path(folder).is_dir():
        raise _missing(kind, Path(folder), "a dataset")
    path = Path(folder) / "classes.txt"
    if not path.is_file():
        raise ValueError(
            f"Expected the class names in {path}, one a line, the first "
            f"'background', but there is no such file. Write it, or list them as "
            f"`classes` of the dataset."
        )
    return _checked(_names_of(path), str(path))


def _names_of(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"Expected UTF-8 in {path}, but got {error}. Save it as UTF-8."
        ) from error
    names = [line.strip() for line in text.rstrip().splitlines()]
    if "" in names:
        raise ValueError(
            f"Expected a name in every line of {path}, because the line tells the "
            f"label, but line {names.index('') + 1} is empty. Remove it."
        )
    return names


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
