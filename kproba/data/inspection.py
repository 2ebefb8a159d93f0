"""Reads an image and its mask once for the index, and returns facts or a problem."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed

from kproba.data.kinds.pairs import Pair, Problem
from kproba.data.label_images import (
    LabelRangeError,
    WrongModeError,
    add_offset,
    count_values,
    write_label_image,
)
from kproba.data.labels import IGNORE
from kproba.data.masks import (
    MaskForm,
    UnknownValueError,
    read_mask,
    scale_labels,
    turn_labels,
)
from kproba.data.pictures import (
    DEEP_MODES,
    UnreadableError,
    open_image,
    orientation,
    read_file,
    scaled_size,
    unreadable_on_error,
    upright_size,
)

BATCH = 64  # pairs that a worker process gets at once
UPRIGHT = 1  # EXIF orientation of images that are not turned
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height
DIGITS = 16  # hexadecimal digits of a SHA-256 in the index


@dataclass(frozen=True)
class Reading:
    """Settings for reading the pairs of a dataset.

    Attributes:
        class_count: Largest label besides 255, the offset included.
        label_offset: Added to every value of the masks but 255.
        form: Meaning of the values in the masks.
        long_side: Longer side of pictures that are longer; None for their own size.
        masks: Folder for masks that are converted; None writes none.
    """

    class_count: int
    label_offset: int = 0
    form: MaskForm = field(default_factory=MaskForm)
    long_side: int | None = None
    masks: Path | None = None


@dataclass(frozen=True)
class ImageRecord:
    """The facts about an image and its mask.

    Attributes:
        pair: The two files.
        size: Width and height in pixels of the upright image.
        used: Width and height at which image and mask are used.
        labels: Number of pixels of each raw label in the mask, as it is used.
        label_offset: Offset that was added to the values of the mask.
        image_digest: SHA-256 of the image file.
        source_digest: SHA-256 of the mask file of the dataset.
        mask_digest: SHA-256 of the mask file that is used.
        labels_digest: SHA-256 of size and labels of the mask.
        made: File name of the converted mask; None if the mask of the dataset is used
            unchanged.
        warnings: Unusual facts that do not prevent the use of the image.
    """

    pair: Pair
    size: tuple[int, int]
    used: tuple[int, int]
    labels: Mapping[int, int]
    label_offset: int
    image_digest: str
    source_digest: str
    mask_digest: str
    labels_digest: str
    made: str | None = None
    warnings: tuple[Problem, ...] = ()


def read_all(
    pairs: list[Pair], reading: Reading, workers: int
) -> Iterator[ImageRecord | Problem]:
    """Results in the order of `pairs`; the number of pending batches is bounded."""
    batches = [pairs[start : start + BATCH] for start in range(0, len(pairs), BATCH)]
    parallel = Parallel(min(workers, len(batches)) or 1, return_as="generator")
    for results in parallel(delayed(_read_batch)(batch, reading) for batch in batches):
        yield from results


def _read_batch(pairs: list[Pair], reading: Reading) -> list[ImageRecord | Problem]:
    return [read_pair(pair, reading) for pair in pairs]


def read_pair(pair: Pair, reading: Reading) -> ImageRecord | Problem:
    """Read an image and its mask, and write the mask if it has to be converted.

    Args:
        pair: The files.
        reading: Settings for reading them.

    Returns:
        The facts about them, or the problem that prevents their use.
    """
    try:
        content = read_file(pair.image)
        size, how = _decode(content)
    except UnreadableError as error:
        return Problem("unreadable image", str(pair.image), str(error))
    try:
        stored = read_file(pair.mask)
        mask = read_mask(stored, reading.form)
    except WrongModeError as error:
        return Problem("no label image", str(pair.mask), str(error))
    except UnknownValueError as error:
        return Problem("unknown label", str(pair.mask), str(error))
    except UnreadableError as error:
        return Problem("unreadable mask", str(pair.mask), str(error))
    values, made = mask.values, mask.made
    mask_size = (values.shape[1], values.shape[0])
    warnings = []
    if mask_size != size:
        if how not in SIDEWAYS or mask_size != size[::-1]:
            return _describe_mismatch(pair, size, mask_size, how)
        values, made = turn_labels(values, how), True
        warnings.append(_turned(pair, how))
    elif how != UPRIGHT and (how not in SIDEWAYS or size[0] == size[1]):
        warnings.append(_doubtful(pair, how))
    try:
        labels = add_offset(values, reading.label_offset, pair.mask)
    except LabelRangeError as error:
        return Problem("label out of range", str(pair.mask), str(error))
    wrong = _beyond(labels, reading.class_count)
    if wrong:
        text = (
            f"holds the labels {wrong}, but the largest label of a class is "
            f"{reading.class_count}; add the names of these classes or correct the "
            f"mask. (In a folder dataset, the key `labels` maps other values to "
            f"classes.)"
        )
        return Problem("label out of range", str(pair.mask), text)
    record = _make_record(pair, reading, size, labels, (content, stored))
    if not set(record.labels) - {0, IGNORE}:
        warnings.append(Problem("empty mask", str(pair.mask), "contains no class"))
    record = replace(record, warnings=tuple(warnings))
    return _write_mask(record, reading, values) if made else record


def _make_record(
    pair: Pair,
    reading: Reading,
    size: tuple[int, int],
    labels: np.ndarray,
    contents: tuple[bytes, bytes],
) -> ImageRecord:
    """The facts, without warnings."""
    used = scaled_size(size, reading.long_side)
    counts = count_values(scale_labels(labels, used))
    image_digest, source_digest = (
        hashlib.sha256(content).hexdigest() for content in contents
    )
    digest = hashlib.sha256(str(labels.shape).encode())
    digest.update(np.ascontiguousarray(labels).data)
    return ImageRecord(
        pair=pair,
        size=size,
        used=used,
        labels={int(label): int(counts[label]) for label in np.flatnonzero(counts)},
        label_offset=reading.label_offset,
        image_digest=image_digest,
        source_digest=source_digest,
        mask_digest=source_digest,
        labels_digest=digest.hexdigest(),
    )


def _write_mask(
    record: ImageRecord, reading: Reading, values: np.ndarray
) -> ImageRecord:
    """Write the converted mask; returns the record that names it."""
    if reading.masks is None:
        raise RuntimeError(
            f"Expected a folder for converted masks, because {record.pair.mask} has to "
            f"be converted, but got none. Pass a folder."
        )
    name = f"{record.pair.id}.png"
    path = reading.masks / name
    write_label_image(path, values)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return replace(record, made=name, mask_digest=digest)


def _beyond(labels: np.ndarray, class_count: int) -> str:
    """The first labels without a class, as text for a message; "" if there are none."""
    counts = count_values(labels)
    wrong = [int(label) for label in np.flatnonzero(counts)]
    wrong = [label for label in wrong if class_count < label < IGNORE]
    return ", ".join(map(str, wrong[:5])) + (", .." if len(wrong) > 5 else "")


def _decode(content: bytes) -> tuple[tuple[int, int], int]:
    """Upright size and EXIF orientation of an image; this decodes the whole image.

    Raises:
        UnreadableError: It cannot be used.
    """
    image = open_image(content)
    if image.mode.startswith(DEEP_MODES):
        raise UnreadableError(f"has mode {image.mode}; save it with 8 bits per channel")
    with unreadable_on_error():
        size, how = upright_size(image), orientation(image)
        image.draft("L", (1, 1))  # decodes a whole JPEG, but at an eighth of its size
        image.load()
        if image.format == "TIFF":  # Pillow has turned it
            size = image.size
    return size, how


def _describe_mismatch(
    pair: Pair, size: tuple[int, int], mask_size: tuple[int, int], how: int
) -> Problem:
    """The problem of a mask that does not have the size of its image."""
    text = (
        f"{_format_size(mask_size)} pixels, but {pair.image} has {_format_size(size)}"
    )
    if how != UPRIGHT:
        text += f" when it is shown upright (its EXIF orientation is {how})"
    return Problem("size mismatch", str(pair.mask), text)


def _turned(pair: Pair, how: int) -> Problem:
    text = (
        f"has the stored size of {pair.image}, not its size when shown upright (EXIF "
        f"orientation {how}), so the mask is turned like the picture. If the mask does "
        f"not fit then, save the picture upright"
    )
    return Problem("turned mask", str(pair.mask), text)


def _doubtful(pair: Pair, how: int) -> Problem:
    text = (
        f"is shown turned (EXIF orientation {how}), and the size of its mask fits both "
        f"ways. The mask is treated as upright. If it was drawn on the stored picture, "
        f"save picture and mask upright"
    )
    return Problem("turned image", str(pair.image), text)


def _format_size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
