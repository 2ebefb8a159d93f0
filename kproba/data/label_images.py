"""Label images: PNGs with one label per pixel, and their palette."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from kproba.data.labels import IGNORE

# Pillow stretches grey images of 2 and 4 bits to 0..255, by these factors.
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
        WrongModeError: The file is not a single-channel 8-bit image.
        LabelRangeError: A label is not in 0..254 when the offset is added.
    """
    with Image.open(path) as image:
        return label_values(image, path, offset)


def label_values(
    image: Image.Image, path: str | Path = "the mask", offset: int = 0
) -> np.ndarray:
    """Labels (H, W) uint8 of an opened palette or grey image.

    Args:
        image: The image.
        path: Its file, for messages.
        offset: As for `read_label_image`.

    Raises:
        WrongModeError: The image has several channels or more than 8 bits.
        LabelRangeError: A label is not in 0..254 when the offset is added.
    """
    if image.mode not in ("P", "L", "1"):
        raise WrongModeError(
            f"Expected a palette or grey 8-bit mask, but {path} has mode "
            f"{image.mode}. Save class numbers, not colours."
        )
    tile = getattr(image, "tile", None)  # only image files have it, until they are read
    codec_arguments = tile[0][3] if tile else ""
    raw_mode = (
        codec_arguments[0] if isinstance(codec_arguments, tuple) else codec_arguments
    )
    values = np.array(image, dtype=np.uint8) // STRETCHED.get(str(raw_mode), 1)
    return _add_offset(values, offset, path) if offset else values


def _add_offset(values: np.ndarray, offset: int, path: str | Path) -> np.ndarray:
    labels = values.astype(np.int64)
    labelled = values != IGNORE
    labels[labelled] += offset
    outside = labelled & ((labels < 0) | (labels >= IGNORE))
    if outside.any():
        raise LabelRangeError(
            f"Expected mask values that stay in 0..{IGNORE - 1} when the label offset "
            f"{offset} is added, but {path} holds {values[outside].min()}. Correct the "
            f"mask, or the `label_offset` of the kind of dataset."
        )
    return labels.astype(np.uint8)
