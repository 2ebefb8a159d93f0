"""Reads the masks of a dataset: class numbers, other numbers, or colours.

Training and evaluation read only palette and grey PNGs of 8 bits. The index job
converts every other mask that can be read without loss.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from kproba.data.label_images import (
    LABEL_MODES,
    WrongModeError,
    stored_values,
)
from kproba.data.labels import IGNORE
from kproba.data.pictures import (
    open_image,
    orientation,
    turn,
    turn_upright,
    unreadable_on_error,
)

MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")
LOSSLESS = ("PNG", "BMP", "TIFF")  # Pillow's names of these formats
LOSSY_TIFF = ("jpeg", "tiff_jpeg", "webp")  # compressions
DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")
STRIP = 1 << 22  # pixels that are looked up at once
DEEPEST = 2**16 - 1  # largest value of a mask
UNKNOWN = 256  # in tables: no label
LISTED = 5  # values or colours in a message

Colour = tuple[int, int, int]


class UnknownValueError(ValueError):
    """A mask contains a value or a colour that belongs to no class."""


@dataclass(frozen=True)
class MaskForm:
    """The meaning of the values or colours in the masks of a dataset.

    Attributes:
        numbers: Label of each value in the masks. Other values are errors, except for 0
            (background) and 255 (ignored). Empty: the values are the labels.
        colours: Label of each colour of the masks; empty if they have no colours.
        source: Name of their source, for messages.
    """

    numbers: Mapping[int, int] = field(default_factory=dict)
    colours: Mapping[Colour, int] = field(default_factory=dict)
    source: str = ""


@dataclass(frozen=True)
class Mask:
    """A mask after reading.

    Attributes:
        values: (H, W) uint8, upright. The label offset of the dataset is not added.
        made: Whether the values differ from those in the file, so that a converted mask
            has to be written.
    """

    values: np.ndarray
    made: bool


def read_mask(content: bytes, form: MaskForm) -> Mask:
    """Read a mask.

    Args:
        content: The content of the file.
        form: Meaning of the values or colours.

    Raises:
        UnreadableError: It is not an image, is damaged, or has too many pixels.
        WrongModeError: It is of a format that changes labels, or has colours or values
            above 255 that no form explains.
        UnknownValueError: A value or colour belongs to no class.
    """
    image = open_image(content)
    _check_format(image)
    if image.mode in LABEL_MODES and not (image.mode == "P" and form.colours):
        with unreadable_on_error():
            values = stored_values(image)  # first: asking for EXIF data decodes a PNG
        # A mask with its own EXIF orientation is turned like in an image viewer.
        turned = image.format != "TIFF" and orientation(image) != 1
        if turned:
            values = turn_labels(values, orientation(image))
        if form.numbers:
            return Mask(_by_number(values, form), made=True)
        return Mask(values, made=turned or image.format != "PNG")
    upright = turn_upright(image)
    if image.mode in DEEP_MODES:
        with unreadable_on_error():
            deep = np.array(upright)
        return Mask(_by_number(deep, form), made=True)
    if image.mode in ("P", "RGB", "RGBA"):
        with unreadable_on_error():
            colours = np.array(upright.convert("RGB"))
        if form.colours:
            return Mask(_by_colour(colours, form), made=True)
        raise WrongModeError(_describe_colours(image.mode, colours))
    raise WrongModeError(f"has mode {image.mode}; save class numbers, not colours")


def decode_map(content: bytes) -> np.ndarray:
    """The salient pixels, (H, W) bool, of the content of a saliency map.

    Raises:
        UnreadableError: It is not an image, or damaged.
        WrongModeError: It has colours, more than 8 bits, or a format with loss.
    """
    try:
        return read_mask(content, MaskForm()).values > 0
    except WrongModeError as error:
        raise WrongModeError(
            "is no grey picture of at most 8 bits in a format without loss; save it as "
            "a grey PNG with 0 where no object is"
        ) from error


def turn_labels(values: np.ndarray, how: int) -> np.ndarray:
    """Turn an array (H, W) uint8 by an EXIF orientation, 1 to 8."""
    return np.array(turn(Image.fromarray(values), how))


def scale_labels(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """An array (H, W) uint8 at another width and height: the nearest values."""
    if size == values.shape[::-1]:
        return values
    return np.array(Image.fromarray(values).resize(size, Image.Resampling.NEAREST))


def _check_format(image: Image.Image) -> None:
    """Refuse lossy formats.

    Raises:
        WrongModeError: The message explains how to save the mask.
    """
    known = str(image.format)
    if known == "TIFF" and image.info.get("compression") in LOSSY_TIFF:
        known = f"TIFF with {image.info['compression']} compression"
    if known not in LOSSLESS:
        raise WrongModeError(
            f"is a {known} image, and this format may change labels; save the mask as "
            f"PNG"
        )


def _by_number(values: np.ndarray, form: MaskForm) -> np.ndarray:
    """Labels (H, W) uint8 of the numbers in a mask."""
    least, most = (int(values.min()), int(values.max()))
    if not form.numbers:
        if least < 0 or most > IGNORE:
            raise WrongModeError(
                f"has mode {_mode_of(values)} and values up to {most}; save class "
                f"numbers below {IGNORE}, or map the values to classes with the key "
                f"`labels` of a folder dataset"
            )
        return values.astype(np.uint8)
    table = np.full(DEEPEST + 1, UNKNOWN, np.uint16)
    table[0], table[IGNORE] = 0, IGNORE
    for value, label in form.numbers.items():
        table[value] = label
    outside = (values < 0) | (values > DEEPEST) if least < 0 or most > DEEPEST else None
    labels = table[values if outside is None else np.where(outside, DEEPEST, values)]
    unknown = labels == UNKNOWN
    if outside is not None:
        unknown |= outside
    if unknown.any():
        found = [str(value) for value in np.unique(values[unknown])]
        raise UnknownValueError(
            f"holds the values {_first(found)}, which are not in {form.source}; add "
            f"them there, or correct the mask"
        )
    return labels.astype(np.uint8)


def _mode_of(values: np.ndarray) -> str:
    return "I;16" if values.dtype.itemsize == 2 else "I"


def _by_colour(colours: np.ndarray, form: MaskForm) -> np.ndarray:
    """Labels (H, W) uint8 of colours (H, W, 3) uint8."""
    table = _colour_table(tuple(sorted(form.colours.items())))
    labels = np.empty(colours.shape[:2], np.uint8)
    strange: dict[int, int] = {}
    step = max(1, STRIP // colours.shape[1])
    for top in range(0, len(colours), step):
        codes = _codes(colours[top : top + step])
        found = table[codes]
        labels[top : top + step] = found.astype(np.uint8)
        unknown = codes[found == UNKNOWN]
        for code, count in zip(*np.unique(unknown, return_counts=True), strict=True):
            strange[int(code)] = strange.get(int(code), 0) + int(count)
    if strange:
        raise UnknownValueError(
            f"holds the colours {_shares(strange, labels.size)}, which are not in "
            f"{form.source}; add them there, or correct the mask"
        )
    return labels


@functools.lru_cache(maxsize=1)
def _colour_table(colours: tuple[tuple[Colour, int], ...]) -> np.ndarray:
    """Label (2**24,) uint16 of every colour, `UNKNOWN` for those without one."""
    table = np.full(1 << 24, UNKNOWN, np.uint16)
    for (red, green, blue), label in colours:
        table[red << 16 | green << 8 | blue] = label
    return table


def _codes(colours: np.ndarray) -> np.ndarray:
    """Colours (H, W, 3) uint8 as numbers (H, W) int32."""
    red, green, blue = (colours[..., channel].astype(np.int32) for channel in range(3))
    return red << 16 | green << 8 | blue


def _describe_colours(mode: str, colours: np.ndarray) -> str:
    """The message for a mask with unknown colours, with a remedy."""
    counts: dict[int, int] = {}
    step = max(1, STRIP // colours.shape[1])
    for top in range(0, len(colours), step):
        codes, numbers = np.unique(
            _codes(colours[top : top + step]), return_counts=True
        )
        for code, number in zip(codes, numbers, strict=True):
            counts[int(code)] = counts.get(int(code), 0) + int(number)
    pixels = colours.shape[0] * colours.shape[1]
    return (
        f"has mode {mode}, that is, colours instead of class numbers: "
        f"{_shares(counts, pixels)}; save class numbers, or (kind folder) list the "
        f"colours in a file labelmap.txt beside images/, with lines such as "
        f"'cat:48,112,32::'"
    )


def _shares(counts: Mapping[int, int], pixels: int) -> str:
    """The most frequent colours with their shares, such as "0,0,0 (62 %), ..."."""
    frequent = sorted(counts, key=lambda code: (-counts[code], code))
    texts = [
        f"{code >> 16},{code >> 8 & 255},{code & 255} "
        f"({100 * counts[code] / pixels:.3g} %)"
        for code in frequent[:LISTED]
    ]
    more = len(frequent) - LISTED
    return ", ".join(texts) + (f" and {more} more" if more > 0 else "")


def _first(texts: list[str]) -> str:
    return ", ".join(texts[:LISTED]) + (", .." if len(texts) > LISTED else "")
