"""The result of a segmentation, and the reading of its input pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from kproba.bank.description import SeenClass
from kproba.data.pictures import DEEP_MODES, UnreadableError, turn_upright
from kproba.data.pictures import read_picture as read_picture_file

Picture = str | Path | Image.Image | np.ndarray | torch.Tensor


@dataclass(frozen=True)
class Segmentation:
    """The classes of the pixels of one image.

    Attributes:
        classes: The classes, background first.
        indices: (H, W) uint8, the likeliest class of each pixel as index of `classes`.
        confidence: (H, W) float32, the probability of that class.
        network_probabilities: (C, h, w) float32, at the size of the network's input;
            None if the image was processed in parts.
        how: "whole", "6 tiles", "scaled to 1024x683", or both of the latter; with
            "in parts" if the probabilities of all classes did not fit into memory.
    """

    classes: tuple[SeenClass, ...]
    indices: np.ndarray
    confidence: np.ndarray
    network_probabilities: torch.Tensor | None
    how: str

    @property
    def labels(self) -> np.ndarray:
        """(H, W) uint8, values as in the masks of the dataset."""
        table = np.array([entry.label for entry in self.classes], np.uint8)
        return table[self.indices]

    @property
    def probabilities(self) -> np.ndarray:
        """(C, H, W) float32, at the image's own size.

        Raises:
            ValueError: The image was processed in parts, so they were never all in
                memory.
        """
        if self.network_probabilities is None:
            height, width = self.indices.shape
            raise ValueError(
                f"Expected an image whose probabilities fit into memory, but it has "
                f"{width}x{height} pixels and {len(self.classes)} classes. Cut it, or "
                f"scale it with `long_side`."
            )
        return resized(self.network_probabilities, self.indices.shape).numpy()

    def pixels(self) -> dict[str, int]:
        """Number of pixels of each class by name, also of classes without any."""
        counts = np.bincount(self.indices.ravel(), minlength=len(self.classes))
        names = [entry.name for entry in self.classes]
        return dict(zip(names, counts.tolist(), strict=True))

    def areas(self) -> dict[str, float]:
        """Share of the image of each class by name, of classes with pixels only."""
        total = self.indices.size
        return {name: count / total for name, count in self.pixels().items() if count}


def likeliest(
    probabilities: torch.Tensor, size: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Index (H, W) uint8 and probability (H, W) of the likeliest class of each pixel.

    Args:
        probabilities: (C, h, w), which are scaled to `size`.
        size: (H, W).
    """
    best = torch.full(tuple(size), -torch.inf)
    index = torch.zeros(tuple(size), dtype=torch.uint8)
    # One class at a time, because all classes at full size may not fit into memory.
    for number, small in enumerate(probabilities):
        values = resized(small[None], size)[0]
        index[values > best] = number
        best = torch.maximum(best, values)
    return index, best


def describe_size(tiles: int, picture: Image.Image, shape: Sequence[int]) -> str:
    """`Segmentation.how` of an image that the network saw as (h, w) = `shape`."""
    how = [] if tiles == 1 else [f"{tiles} tiles"]
    if (shape[1], shape[0]) != picture.size:
        how.insert(0, f"scaled to {shape[1]}x{shape[0]}")
    return ", ".join(how) or "whole"


def read_picture(image: Picture) -> Image.Image:
    """An image as RGB, turned upright according to its EXIF orientation.

    Args:
        image: As for `Segmenter.predict`.

    Raises:
        ValueError: The image has more than 8 bits per channel, or a wrong shape or
            type.
        UnreadableError: The file cannot be read; an OSError.
    """
    if isinstance(image, str | Path):
        try:
            return read_picture_file(image)
        except UnreadableError as error:
            raise UnreadableError(
                f"Expected an image in {image}, but: {error}. Convert it, or leave it "
                f"out."
            ) from error
    if isinstance(image, torch.Tensor):
        image = image.cpu().numpy()
        image = image.transpose(1, 2, 0) if image.ndim == 3 else image
    if isinstance(image, np.ndarray):
        image = _picture_of_array(image)
    if image.mode.startswith(DEEP_MODES):
        raise ValueError(
            f"Expected 8 bits per channel, but got an image of mode {image.mode}. "
            f"Convert it to 8 bits."
        )
    return turn_upright(image).convert("RGB")


def _picture_of_array(array: np.ndarray) -> Image.Image:
    channels = array.shape[2] if array.ndim == 3 else 3
    if (
        array.dtype != np.uint8
        or array.ndim not in (2, 3)
        or channels not in (3, 4)
        or not array.size
    ):
        raise ValueError(
            f"Expected an image of shape (H, W, 3) or (H, W) and type uint8, but "
            f"got shape {array.shape} and type {array.dtype}. Convert it."
        )
    return Image.fromarray(array)


def resized(values: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """(C, h, w) to (C, *size), bilinear."""
    if values.shape[1:] == tuple(size):
        return values
    resized = F.interpolate(
        values[None], tuple(size), mode="bilinear", align_corners=False
    )
    return resized[0]
