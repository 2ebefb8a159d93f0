"""The index of a dataset: reads every image and mask once, and names every fault.

index.csv has one row per image: id, image, mask, width, height, subset, and `classes`,
the raw labels in the mask, such as "0 3 255". If the masks of the dataset need a label
offset, it is in the column `label_offset`, and `classes` has the labels with it.
integrity.json lists problems and warnings.
"""

import hashlib
import io
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from PIL import ExifTags, Image

from kproba.data.kinds import KINDS
from kproba.data.kinds.pairs import SUBSETS, VAL_SHARE, Pair, Problem
from kproba.data.label_images import (
    LabelRangeError,
    WrongModeError,
    label_values,
)
from kproba.data.labels import IGNORE
from kproba.runtime.files import atomic_path, write_json
from kproba.runtime.progress import Stage

log = logging.getLogger("kproba")

LISTED = 20  # problems in an error message
BATCH = 64  # pairs that a worker process gets at once

# What Pillow raises for files that it cannot read.
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)

# First letters of Pillow's modes of 16 and 32 bits. Converted to RGB, such images would
# be white.
DEEP_MODES = ("I", "F")
UPRIGHT = (0, 1)  # EXIF orientations of images that are not turned


@dataclass(frozen=True)
class ImageRecord:
    """The facts about an image and its mask.

    Attributes:
        pair: The two files.
        width, height: Size in pixels, as stored.
        labels: Number of pixels of each raw label in the mask.
        label_offset: Offset that was added to the values of the mask.
        image_digest: SHA-256 of the image file.
        labels_digest: SHA-256 of size and labels of the mask.
        warnings: Unusual facts that do not prevent the use of the image.
    """

    pair: Pair
    width: int
    height: int
    labels: dict[int, int]
    label_offset: int
    image_digest: str
    labels_digest: str
    warnings: tuple[Problem, ...]


def index_dataset(
    index: str | Path,
    report: str | Path,
    *,
    kind: str,
    folder: str | Path,
    class_count: int,
    val_share: float = VAL_SHARE,
    on_error: Literal["stop", "skip"] = "stop",
    workers: int = 2,
) -> None:
    """Check a dataset and write its index and integrity report.

    Args:
        index: Output CSV, index.csv.
        report: Output JSON, integrity.json. If the check fails, problems.csv beside it
            lists every problem instead.
        kind: Kind of dataset, a key of `kproba.data.kinds.KINDS`.
        folder: Folder of the dataset.
        class_count: Largest label besides 255.
        val_share: Share of the images that is held out for validation, if a folder
            dataset has no validation images.
        on_error: "stop" at any problem, or "skip" the images that have one.
        workers: Number of processes.

    Raises:
        MissingDatasetError: The dataset is not there.
        ValueError: There are problems; the message lists the first 20 and the total.
            Or there are no images to train or to test on.
    """
    dataset_kind = KINDS[kind]
    pairs, problems = dataset_kind.find_pairs(Path(folder), val_share)
    records: list[ImageRecord] = []
    results = _read_all(pairs, class_count, dataset_kind.label_offset, workers)
    for result in Stage(results, "checking", len(pairs)):
        if isinstance(result, ImageRecord):
            records.append(result)
        else:
            problems.append(result)
    records.sort(key=lambda record: (record.pair.subset, record.pair.id))
    problems.sort()
    problems_file = Path(report).with_name("problems.csv")
    problems_file.unlink(missing_ok=True)
    content = _make_report(kind, folder, records, problems, on_error)
    if problems and on_error == "stop":
        with atomic_path(problems_file) as temporary:
            pd.DataFrame(problems).to_csv(temporary, index=False)
        raise ValueError(_problems_message(folder, problems, problems_file))
    _check_subsets(content["images"], folder, len(problems), val_share)
    warnings = [Problem(**entry) for entry in content["warnings"]]
    for adjective, entries in (("skipped", problems), ("unusual", warnings)):
        if entries:
            log.warning("%d %s, all in %s:", len(entries), adjective, report)
        for entry in entries[:LISTED]:
            log.warning("  %s", entry)
    write_json(report, content)
    with atomic_path(index) as temporary:
        rows = [_index_row(record) for record in records]
        pd.DataFrame(rows).to_csv(temporary, index=False)
    log.info("%s", {**content["images"], "problems": len(problems)})


def _check_subsets(
    images: dict[str, int], folder: str | Path, skipped: int, val_share: float
) -> None:
    """Raise a ValueError if there are no images to train or to test on."""
    for subset, count in images.items():
        if not count:
            besides = f" besides the {skipped} skipped" if skipped else ""
            raise ValueError(
                f"Expected {subset} images in {folder}, but there are none{besides}. "
                f"Add some. (In a folder dataset without val folders, images are held "
                f"out by name: a share of {val_share:g}, set by `val_share`.)"
            )


def _problems_message(folder: str | Path, problems: list[Problem], file: Path) -> str:
    """The error message about problems, which are all listed in `file`."""
    lines = "".join(f"\n  {problem}" for problem in problems[:LISTED])
    more = len(problems) - LISTED
    return (
        f"Expected a complete dataset in {folder}, but found {len(problems)} "
        f"problem(s):{lines}"
        + (f"\n  and {more} more, all in {file}" if more > 0 else "")
        + "\nCorrect or remove these files and run again, or set `on_error: skip` of "
        "the dataset to go on without them."
    )


def _index_row(record: ImageRecord) -> dict[str, object]:
    """The cells of a row of index.csv by column."""
    row: dict[str, object] = {
        "id": record.pair.id,
        "image": str(record.pair.image),
        "mask": str(record.pair.mask),
        "width": record.width,
        "height": record.height,
        "subset": record.pair.subset,
        "classes": " ".join(map(str, record.labels)),
    }
    if record.label_offset:
        row["label_offset"] = record.label_offset
    return row


def _make_report(
    kind: str,
    folder: str | Path,
    records: list[ImageRecord],
    problems: list[Problem],
    on_error: str,
) -> dict[str, Any]:
    """The content of integrity.json."""
    images_of_label: Counter[int] = Counter()
    for record in records:
        images_of_label.update(record.labels.keys())
    digest = labels_digest(records)
    subsets = Counter(record.pair.subset for record in records)
    images = {subset: subsets[subset] for subset in SUBSETS}
    warnings = [warning for record in records for warning in record.warnings]
    warnings += _find_equal_images(records)
    warnings += _compare_with_published(kind, folder, images, digest)
    warnings += _find_no_background(folder, images_of_label)
    return {
        "kind": kind,
        "folder": str(folder),
        "images": images,
        "images_with_label": {
            str(label): images_of_label[label] for label in sorted(images_of_label)
        },
        "labels_sha256": digest,
        "on_error": on_error,
        "problems_by_kind": dict(Counter(problem.kind for problem in problems)),
        "problems": [asdict(problem) for problem in problems],
        "warnings_by_kind": dict(Counter(warning.kind for warning in warnings)),
        "warnings": [asdict(warning) for warning in sorted(warnings)],
    }


def labels_digest(records: Iterable[ImageRecord]) -> str:
    """SHA-256 over ids and labels of all masks, whatever their file format."""
    digest = hashlib.sha256()
    for record in sorted(records, key=lambda record: record.pair.id):
        digest.update(f"{record.pair.id} {record.labels_digest}\n".encode())
    return digest.hexdigest()


def _compare_with_published(
    kind: str, folder: str | Path, images: dict[str, int], digest: str
) -> list[Problem]:
    """Warnings if a public dataset is incomplete or has unusual masks."""
    complete = KINDS[kind].published_images or images
    if images != complete:
        text = f"has {images} images, the published dataset {complete}"
        return [Problem("incomplete dataset", str(folder), text)]
    published = KINDS[kind].published_labels or digest
    if published != digest:
        text = f"labels_sha256 is {digest}, but that of the usual copies is {published}"
        return [Problem("unusual masks", str(folder), text)]
    return []


def _find_no_background(
    folder: str | Path, images_of_label: Mapping[int, int]
) -> list[Problem]:
    """A warning if no mask has pixels of the background."""
    if images_of_label.get(0) or not images_of_label:
        return []
    text = (
        "label 0 occurs in no mask, so the background's IoU would count as 0; set "
        "evaluation.policy to mib"
    )
    return [Problem("no background", str(folder), text)]


def _find_equal_images(records: list[ImageRecord]) -> list[Problem]:
    """Warnings about images that are the same file under two names."""
    first: dict[str, Pair] = {}
    warnings = []
    for record in records:
        other = first.setdefault(record.image_digest, record.pair)
        if other is not record.pair:
            leaks = other.subset != record.pair.subset
            kind = "same image in train and val" if leaks else "same image twice"
            text = f"the same bytes as {other.image}"
            warnings.append(Problem(kind, str(record.pair.image), text))
    return warnings


def _read_all(
    pairs: list[Pair], class_count: int, label_offset: int, workers: int
) -> Iterator[ImageRecord | Problem]:
    """Results in the order of `pairs`; the number of pending batches is bounded."""
    batches = [pairs[start : start + BATCH] for start in range(0, len(pairs), BATCH)]
    parallel = Parallel(min(workers, len(batches)) or 1, return_as="generator")
    for results in parallel(
        delayed(_read_batch)(batch, class_count, label_offset) for batch in batches
    ):
        yield from results


def _read_batch(
    pairs: list[Pair], class_count: int, label_offset: int
) -> list[ImageRecord | Problem]:
    return [read_pair(pair, class_count, label_offset) for pair in pairs]


def read_pair(
    pair: Pair, class_count: int, label_offset: int = 0
) -> ImageRecord | Problem:
    """Read an image and its mask.

    Args:
        pair: The files.
        class_count: Largest label besides 255, the offset included.
        label_offset: Added to every value of the mask but 255.

    Returns:
        The facts about them, or the problem that prevents their use.
    """
    try:
        content = pair.image.read_bytes()
        size, orientation = _decode(content)
    except UNREADABLE as error:
        return Problem("unreadable image", str(pair.image), _reason(error))
    try:
        with _open(pair.mask.read_bytes()) as mask:
            mask_size = mask.size
            values = label_values(mask, pair.mask, label_offset)
    except WrongModeError as error:
        return Problem("no label image", str(pair.mask), _reason(error))
    except LabelRangeError as error:
        return Problem("label out of range", str(pair.mask), _reason(error))
    except UNREADABLE as error:
        return Problem("unreadable mask", str(pair.mask), _reason(error))
    if mask_size != size:
        return _describe_mismatch(pair, size, mask_size, orientation)
    counts = np.bincount(values.ravel(), minlength=256)
    labels = {int(label): int(counts[label]) for label in np.flatnonzero(counts)}
    wrong = [label for label in labels if class_count < label < IGNORE]
    if wrong:
        return Problem(
            "label out of range",
            str(pair.mask),
            f"holds the labels {_first_five(wrong)}, but the classes end at "
            f"{class_count}; name these classes or correct the mask",
        )
    return ImageRecord(
        pair=pair,
        width=size[0],
        height=size[1],
        labels=labels,
        label_offset=label_offset,
        image_digest=hashlib.sha256(content).hexdigest(),
        labels_digest=hashlib.sha256(
            str(values.shape).encode() + values.tobytes()
        ).hexdigest(),
        warnings=tuple(_find_warnings(pair, labels, orientation)),
    )


def _describe_mismatch(
    pair: Pair, size: tuple[int, int], mask_size: tuple[int, int], orientation: int
) -> Problem:
    """The problem of a mask that does not have the size of its image."""
    text = (
        f"{_format_size(mask_size)} pixels, but {pair.image} has {_format_size(size)}"
    )
    if orientation not in UPRIGHT and mask_size == size[::-1]:
        text += (
            f"; the image is stored turned (EXIF orientation {orientation}) and the "
            f"mask is upright: save the image upright"
        )
    return Problem("size mismatch", str(pair.mask), text)


def _find_warnings(
    pair: Pair, labels: dict[int, int], orientation: int
) -> Iterator[Problem]:
    if not set(labels) - {0, IGNORE}:
        yield Problem("empty mask", str(pair.mask), "holds no class")
    if orientation not in UPRIGHT:
        yield Problem(
            "turned image",
            str(pair.image),
            f"has EXIF orientation {orientation}, which is not applied: image and mask "
            f"are used as stored",
        )


def _open(content: bytes) -> Image.Image:
    if not content:
        raise OSError("the file is empty")
    return Image.open(io.BytesIO(content))


def _decode(content: bytes) -> tuple[tuple[int, int], int]:
    """Size as stored and EXIF orientation of an image, which is read to its end.

    Raises:
        OSError, ValueError, SyntaxError, DecompressionBombError: It cannot be read.
    """
    with _open(content) as image:
        size = image.size
        orientation = int(image.getexif().get(ExifTags.Base.Orientation, 1))
        if image.mode.startswith(DEEP_MODES):
            raise OSError(f"has mode {image.mode}; save it with 8 bits per channel")
        image.draft("L", (1, 1))  # decodes a whole JPEG, but at an eighth of its size
        image.load()
        if image.format == "TIFF":  # Pillow has turned it already
            return image.size, UPRIGHT[0]
    return size, orientation


def _reason(error: BaseException) -> str:
    text = str(error)
    return "no known image format" if "cannot identify" in text else text


def _format_size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _first_five(values: list[int]) -> str:
    text = ", ".join(map(str, values[:5]))
    return text + (", .." if len(values) > 5 else "")
