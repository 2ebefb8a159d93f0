"""TODO data.label_images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def label_palette() -> list[int]:
    """The 256-colour palette of label images: VOC's colour map, 255 is cream.

    Entry i spreads the bits of i over the high bits of red, green and blue, as VOC's
    devkit does, so neighbouring indices get clearly different colours.
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
    """Write labels (H, W) uint8 as a palette PNG, by default with `label_palette`."""
    image = Image.fromarray(labels.astype(np.uint8, copy=False), mode=None).convert("L")
    image.putpalette(label_palette() if palette is None else palette)
    image.save(path, format="PNG")


def read_label_image(path: str | Path) -> np.ndarray:
    """Read the label values (H, W) uint8 of a palette or grey PNG.

    Raises:
        WrongModeError: The file is no single-channel 8-bit image.
    """
    with Image.open(path) as image:
        return label_values(image, path)


class WrongModeError(ValueError):
    """An image that holds something else than labels."""


# Pillow stretches grey images of few bits over 0..255; labels want the stored values.
STRETCHED = {"L;2": 85, "L;4": 17}


def label_values(image: Image.Image, path: str | Path = "the mask") -> np.ndarray:
    """Label values (H, W) uint8 of an opened palette or grey image.

    Raises:
        WrongModeError: It has several channels or more than 8 bits; names `path`.
    """
    if image.mode not in ("P", "L", "1"):
        raise WrongModeError(
            f"Expected a palette or grey 8-bit mask, but {path} has mode "
            f"{image.mode}. Save class numbers, not colours."
        )
    tile = getattr(image, "tile", None)  # of image files only, until they are read
    stored = tile[0][3] if tile else ""
    raw = stored[0] if isinstance(stored, tuple) else stored
    return np.array(image, dtype=np.uint8) // STRETCHED.get(str(raw), 1)
