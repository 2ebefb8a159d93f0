"""Label images: PNGs with one label per pixel, and their palette."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from kproba.data.labels import IGNORE
from kproba.data.pictures import (
    UnreadableError,
    open_image,
    read_file,
    unreadable_on_error,
)

LABEL_MODES = ("P", "L", "1")  # Pillow's modes of one channel and at most 8 bits
STRIP = 1 << 22  # pixels that are counted at once

# Pillow stretches grey images of 2 and 4 bits to 0..255, by these factors. (The raw
# modes of TIFFs end with letters.)
STRETCHED = {"L;2": 85, "L;4": 17}


class WrongModeError(ValueError):
    """An image does not have one 8-bit channel, so it cannot hold labels."""


class LabelRangeError(ValueError):
    """A label leaves the range 0..254 when its offset is added."""


def label_palette() -> list[int]:
    """The 256-colour palette of label images: VOC's colour map, 255 is cream.

    Entry i spreads the bits of i over the high bits of red, green and blue, as VOC's
    devkit does, so neighbouring indices get clearly different colours.

    Returns:
        768 values, red, green and blue of each entry.
    """
    palette = []
    for index in range(256):
        red = green = blue = 0
        for bit in range(8):
            red |= ((index >> (3 * bit)) & 1) << (7 - bit)
            green |= ((index >> (3 * bit + 1)) & 1) << (7 - bit)
            blue |= ((index >> (3 * bit + 2)) & 1) << (7 - bit)
        palette += [red, green, blue]
    return palette


def write_label_image(
    path: str | Path, labels: np.ndarray, palette: Sequence[int] | None = None
) -> None:
    """Write labels as a palette PNG.

    Args:
        path: Output file.
        labels: (H, W) integers from 0 to 255.
        palette: 768 values as in `label_palette`, which is the default.
    """
    image = Image.fromarray(labels.astype(np.uint8, copy=False), mode=None).convert("L")
    image.putpalette(label_palette() if palette is None else palette)
    image.save(path, format="PNG")


def read_label_image(path: str | Path, offset: int = 0) -> np.ndarray:
    """Read the labels (H, W) uint8 of a palette or grey PNG.

    Args:
        path: The file.
        offset: Added to every stored value but 255 (ignored). 1 for datasets that store
            their first class as 0.

    Raises:
        UnreadableError: The file is not a readable image; the message names it.
        WrongModeError: The file is not a single-channel 8-bit image.
        LabelRangeError: A label is not in 0..254 when the offset is added.
    """
    try:
        content = read_file(path)
    except UnreadableError as error:
        raise UnreadableError(_expected(path, error)) from error
    return decode_label_image(content, path, offset)


def decode_label_image(
    content: bytes, path: str | Path = "the mask", offset: int = 0
) -> np.ndarray:
    """Decode the content of a palette or grey PNG to labels (H, W) uint8.

    Args:
        content: The content of the file.
        path: The file, for messages.
        offset: As for `read_label_image`.

    Raises:
        UnreadableError, WrongModeError, LabelRangeError: As for `read_label_image`.
    """
    try:
        image = open_image(content)
        check_mode(image, path)
        with unreadable_on_error():
            values = stored_values(image)
    except UnreadableError as error:
        raise UnreadableError(_expected(path, error)) from error
    return add_offset(values, offset, path)


def _expected(path: str | Path, error: UnreadableError) -> str:
    return (
        f"Expected a label image in {path}, but: {error}. Replace the file by a good "
        f"copy."
    )


def check_mode(image: Image.Image, path: str | Path = "the mask") -> None:
    """Refuse an image that does not have one 8-bit channel.

    Raises:
        WrongModeError: The image has several channels or more than 8 bits.
    """
    if image.mode not in LABEL_MODES:
        raise WrongModeError(
            f"Expected a palette or grey 8-bit mask, but {path} has mode "
            f"{image.mode}. Save class numbers, not colours."
        )


def stored_values(image: Image.Image) -> np.ndarray:
    """The values (H, W) uint8 that a palette or grey image of 1 to 8 bits stores.

    Args:
        image: An image whose pixels are not decoded yet.
    """
    tile = getattr(image, "tile", None)  # only image files have it, until they are read
    codec_arguments = tile[0][3] if tile else ""
    raw_mode = (
        codec_arguments[0] if isinstance(codec_arguments, tuple) else codec_arguments
    )
    values = np.array(image, dtype=np.uint8)
    stretched = STRETCHED.get(str(raw_mode)[:3], 1)
    return values if stretched == 1 else values // stretched


def add_offset(values: np.ndarray, offset: int, path: str | Path) -> np.ndarray:
    """Labels (H, W) uint8: values (H, W) uint8 with an offset added to all but 255.

    Raises:
        LabelRangeError: A label is not in 0..254; the message names `path`.
    """
    if not offset:
        return values
    present = np.flatnonzero(count_values(values))
    outside = [
        value
        for value in present
        if value != IGNORE and not 0 <= value + offset < IGNORE
    ]
    if outside:
        raise LabelRangeError(
            f"Expected mask values from 0 to {IGNORE - 1} after the label offset "
            f"{offset} is added, but {path} holds {outside[0]}. Correct the mask, or "
            f"the `label_offset` of the dataset kind."
        )
    table = np.arange(256) + offset
    table[IGNORE] = IGNORE
    return table.astype(np.uint8)[values]


def count_values(values: np.ndarray) -> np.ndarray:
    """Number of pixels (256,) int64 of each value in an array (H, W) uint8.

    The array is counted in strips: counting needs eight times the memory of its part.
    """
    counts = np.zeros(256, np.int64)
    flat = values.reshape(-1)
    for start in range(0, flat.size, STRIP):
        counts += np.bincount(flat[start : start + STRIP], minlength=256)
    return counts
