"""The index of a dataset: every image and mask read once, every fault named.

index.csv has one row per image: id, image, mask, width, height, subset, and `classes`,
the raw labels present, such as "0 3 255". integrity.json has what was found wrong.
"""

import hashlib
import io
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from PIL import ExifTags, Image

from kproba.data.kinds import KINDS
from kproba.data.kinds.pairs import SUBSETS, VAL_SHARE, Pair, Problem
from kproba.data.label_images import WrongModeError, label_values
from kproba.data.labels import IGNORE
from kproba.runtime.files import atomic_path, write_json
from kproba.runtime.progress import Stage

log = logging.getLogger("kproba")

NAMED = 20  # problems in an error message


BATCH = 64  # pairs handed to a process at once


# What Pillow raises for files that it cannot read.
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


DEEP = ("I", "F")  # modes of 16 and 32 bits begin so; as RGB they would turn white


UPRIGHT = (0, 1)  # EXIF orientations that mean "as stored"


@dataclass(frozen=True)
class Row:
    """What reading an image and its mask told.

    Attributes:
        pair: The files.
        width, height: Pixels, as stored.
        labels: Pixels per raw label, only those present.
        image_digest: SHA-256 of the image file.
        labels_digest: SHA-256 of size and label values of the mask.
        warnings: What is unusual, but can be used.
    """

    pair: Pair
    width: int
    height: int
    labels: dict[int, int]
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
        index: Output: index.csv.
        report: Output: integrity.json. When the check fails, problems.csv beside it
            has every problem instead.
        kind: "digits", "folder", "voc" or "ade20k".
        folder: Where it is.
        class_count: Largest label besides 255.
        val_share: Of a folder without validation images: the share held out.
        on_error: "stop" at any problem, or "skip" the images that have one.
        workers: Processes.

    Raises:
        MissingDatasetError: The dataset is not there.
        ValueError: There are problems; the message names the first 20 and the total.
            Or nothing is left to train or to test on.
    """
    pairs, problems = KINDS[kind].find_pairs(Path(folder), val_share)
    rows: list[Row] = []
    results = _read_all(pairs, class_count, workers)
    for result in Stage(results, "checking", len(pairs)):
        if isinstance(result, Row):
            rows.append(result)
        else:
            problems.append(result)
    rows.sort(key=lambda row: (row.pair.subset, row.pair.id))
    problems.sort()
    listed = Path(report).with_name("problems.csv")
    listed.unlink(missing_ok=True)
    content = _report(kind, folder, rows, problems, on_error)
    if problems and on_error == "stop":
        with atomic_path(listed) as temporary:
            pd.DataFrame(problems).to_csv(temporary, index=False)
        raise ValueError(_explain(folder, problems, listed))
    for subset, images in content["images"].items():
        if not images:
            raise ValueError(
                f"Expected {subset} images in {folder}, but there are none"
                + (f" left without the {len(problems)} skipped" if problems else "")
                + ". Add some; of a folder without val folders, a share of "
                f"{val_share:g} is held out by name (`val_share`)."
            )
    warnings = [Problem(**entry) for entry in content["warnings"]]
    for what, told in (("skipped", problems), ("unusual", warnings)):
        if told:
            log.warning("%d %s, all in %s:", len(told), what, report)
        for entry in told[:NAMED]:
            log.warning("  %s", entry)
    write_json(report, content)
    with atomic_path(index) as temporary:
        pd.DataFrame([_cells(row) for row in rows]).to_csv(temporary, index=False)
    log.info("%s", {**content["images"], "problems": len(problems)})


def _explain(folder: str | Path, problems: list[Problem], listed: Path) -> str:
    named = "".join(f"\n  {problem}" for problem in problems[:NAMED])
    more = len(problems) - NAMED
    return (
        f"Expected a complete dataset in {folder}, but found {len(problems)} "
        f"problem(s):{named}"
        + (f"\n  and {more} more, all in {listed}" if more > 0 else "")
        + "\nMend or remove these files and run again, or set `on_error: skip` of the "
        "dataset to go on without them."
    )


def _cells(row: Row) -> dict[str, object]:
    """A row of index.csv."""
    return {
        "id": row.pair.id,
        "image": str(row.pair.image),
        "mask": str(row.pair.mask),
        "width": row.width,
        "height": row.height,
        "subset": row.pair.subset,
        "classes": " ".join(map(str, row.labels)),
    }


def _report(
    kind: str,
    folder: str | Path,
    rows: list[Row],
    problems: list[Problem],
    on_error: str,
) -> dict[str, Any]:
    images_of_label: Counter[int] = Counter()
    for row in rows:
        images_of_label.update(row.labels.keys())
    digest = labels_digest(rows)
    warnings = [warning for row in rows for warning in row.warnings]
    images = {subset: sum(r.pair.subset == subset for r in rows) for subset in SUBSETS}
    warnings += _equal_images(rows) + _not_as_published(kind, folder, images, digest)
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


def labels_digest(rows: Iterable[Row]) -> str:
    """SHA-256 over ids and label values of all masks, however the files hold them."""
    digest = hashlib.sha256()
    for row in sorted(rows, key=lambda row: row.pair.id):
        digest.update(f"{row.pair.id} {row.labels_digest}\n".encode())
    return digest.hexdigest()


def _not_as_published(
    kind: str, folder: str | Path, images: dict[str, int], digest: str
) -> list[Problem]:
    """Warnings if a public dataset is not the whole one, or has other masks."""
    whole = KINDS[kind].published_images or images
    if images != whole:
        text = f"has {images} images, the published dataset {whole}"
        return [Problem("incomplete dataset", str(folder), text)]
    published = KINDS[kind].published_labels or digest
    if published != digest:
        text = f"labels_sha256 is {digest}, of the copies that are in use {published}"
        return [Problem("unusual masks", str(folder), text)]
    return []


def _equal_images(rows: list[Row]) -> list[Problem]:
    """Warnings for images that are the same file under two names."""
    first: dict[str, Pair] = {}
    warnings = []
    for row in rows:
        other = first.setdefault(row.image_digest, row.pair)
        if other is not row.pair:
            crossed = other.subset != row.pair.subset
            kind = "same image in train and val" if crossed else "same image twice"
            text = f"the same bytes as {other.image}"
            warnings.append(Problem(kind, str(row.pair.image), text))
    return warnings


def _read_all(
    pairs: list[Pair], class_count: int, workers: int
) -> Iterator[Row | Problem]:
    """Results in the order of `pairs`, with a bounded number of batches in flight."""
    batches = [pairs[start : start + BATCH] for start in range(0, len(pairs), BATCH)]
    parallel = Parallel(min(workers, len(batches)) or 1, return_as="generator")
    for results in parallel(delayed(_read_batch)(b, class_count) for b in batches):
        yield from results


def _read_batch(pairs: list[Pair], class_count: int) -> list[Row | Problem]:
    return [read_pair(pair, class_count) for pair in pairs]


def read_pair(pair: Pair, class_count: int) -> Row | Problem:
    """Read an image and its mask.

    Args:
        pair: The files.
        class_count: Largest label besides 255.
    """
    try:
        content = pair.image.read_bytes()
        size, orientation = _decode(content)
    except UNREADABLE as error:
        return Problem("unreadable image", str(pair.image), _why(error))
    try:
        with _open(pair.mask.read_bytes()) as mask:
            mask_size = mask.size
            values = label_values(mask, pair.mask)
    except WrongModeError as error:
        return Problem("no label image", str(pair.mask), _why(error))
    except UNREADABLE as error:
        return Problem("unreadable mask", str(pair.mask), _why(error))
    if mask_size != size:
        turned = orientation not in UPRIGHT and mask_size == size[::-1]
        return Problem(
            "size mismatch",
            str(pair.mask),
            f"{_by(mask_size)} pixels, but {pair.image} has {_by(size)}"
            + (
                f"; the image is stored turned (EXIF orientation {orientation}) and "
                f"the mask is upright: save the image upright"
                if turned
                else ""
            ),
        )
    counts = np.bincount(values.ravel(), minlength=256)
    labels = {int(label): int(counts[label]) for label in np.flatnonzero(counts)}
    wrong = [label for label in labels if class_count < label < IGNORE]
    if wrong:
        return Problem(
            "label out of range",
            str(pair.mask),
            f"holds the labels {_some(wrong)}, but the classes end at {class_count}; "
            f"name these classes or mend the mask",
        )
    return Row(
        pair=pair,
        width=size[0],
        height=size[1],
        labels=labels,
        image_digest=hashlib.sha256(content).hexdigest(),
        labels_digest=hashlib.sha256(
            str(values.shape).encode() + values.tobytes()
        ).hexdigest(),
        warnings=tuple(_warnings(pair, labels, orientation)),
    )


def _warnings(
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
    """Size as stored and EXIF orientation of an image that can be read to its end."""
    with _open(content) as image:
        size = image.size
        orientation = int(image.getexif().get(ExifTags.Base.Orientation, 1))
        if image.mode.startswith(DEEP):
            raise OSError(f"has mode {image.mode}; save it with 8 bits per channel")
        image.draft("L", (1, 1))  # a JPEG is read whole, but at an eighth of its size
        image.load()
        if image.format == "TIFF":  # Pillow turns these by itself
            return image.size, UPRIGHT[0]
    return size, orientation


def _why(error: BaseException) -> str:
    text = str(error)
    return "no known image format" if "cannot identify" in text else text


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _some(values: list[int]) -> str:
    shown = ", ".join(map(str, values[:5]))
    return shown + (", .." if len(values) > 5 else "")
