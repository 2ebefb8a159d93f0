"""Masks and turned pictures of a few pixels."""

from pathlib import Path

import numpy as np
from PIL import Image


def labels_of(*values: int, shape: tuple[int, int] = (4, 6)) -> np.ndarray:
    """A mask of `shape` that starts with `values`."""
    mask = np.zeros(shape, np.uint8)
    mask.ravel()[: len(values)] = values
    return mask


def save_turned(path: Path, size: tuple[int, int], orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", size, (9, 99, 200)).save(path, exif=exif)
