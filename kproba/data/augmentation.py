"""Random scaling, cropping, flipping and colour changes of training images."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from kproba.data.labels import IGNORE

# What the crop shows outside the image, by `Augmentation.outside`: grey level of the
# image and label of the target.
OUTSIDE = {"ignore": (128, IGNORE), "background": (0, 0)}


@dataclass(frozen=True)
class Augmentation:
    """Settings of the augmentation.

    Attributes:
        crop_size: Side of the square crop in pixels.
        scale: Smallest and largest factor on the size of the image.
        horizontal_flip: Probability of a flip; 0 where left and right have a meaning.
        brightness, contrast, saturation: Largest relative change, 0 for none.
        outside: What the pixels of a crop outside the image are: "ignore": mid grey,
            and not trained on; "background": black, and trained as background, as in
            the code of SSUL and BARM.
    """

    crop_size: int
    scale: tuple[float, float]
    horizontal_flip: float
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    outside: Literal["ignore", "background"] = "ignore"

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Augmentation":
        """From a section of the configuration."""
        return cls(**{**content, "scale": tuple(content["scale"])})


def keyed_generator(*key: object) -> np.random.Generator:
    """A random generator that depends only on its key, such as (seed, epoch, id)."""
    digest = hashlib.sha256(json.dumps(key).encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, np.uint32))


def augment(
    image: torch.Tensor,
    target: torch.Tensor,
    settings: Augmentation,
    rng: np.random.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale, crop, flip and recolour one image with its target.

    The crop is anywhere in the image with equal probability. If the image is smaller
    than the crop along a side, the image is anywhere in the crop.

    Args:
        image: (3, H, W) uint8.
        target: (H, W) uint8, 255 ignored.
        settings: Ranges of the changes.
        rng: Source of all randomness.

    Returns:
        Image (3, S, S) and target (S, S), uint8, S = crop_size. `settings.outside` says
        what they are outside the image.
    """
    side = settings.crop_size
    factor = rng.uniform(*settings.scale)
    flip = rng.random() < settings.horizontal_flip
    offsets = rng.random(2)
    jitter = rng.uniform(-1, 1, 3)
    height, width = (max(1, round(factor * extent)) for extent in target.shape)
    image = F.resize(image, [height, width], antialias=True)
    target = F.resize(
        target[None], [height, width], interpolation=v2.InterpolationMode.NEAREST_EXACT
    )
    # Along each side either the crop is placed in the image, or the image in the crop.
    # So one random number decides both.
    down = int(offsets[0] * (abs(height - side) + 1))
    right = int(offsets[1] * (abs(width - side) + 1))
    top, left = (down if height > side else 0), (right if width > side else 0)
    image, target = (
        tensor[..., top : top + side, left : left + side] for tensor in (image, target)
    )
    # Pad after the cut. Otherwise an image of 100,000 x 1 pixels would be padded first.
    above, before = (down if height < side else 0), (right if width < side else 0)
    below, after = max(0, side - height) - above, max(0, side - width) - before
    grey, label = OUTSIDE[settings.outside]
    image = F.pad(image, [before, above, after, below], fill=[float(grey)])
    target = F.pad(target, [before, above, after, below], fill=[float(label)])
    if flip:
        image, target = (F.horizontal_flip(tensor) for tensor in (image, target))
    for change, amount, adjust in (
        (settings.brightness, jitter[0], F.adjust_brightness),
        (settings.contrast, jitter[1], F.adjust_contrast),
        (settings.saturation, jitter[2], F.adjust_saturation),
    ):
        if change:
            image = adjust(image, 1 + change * float(amount))
    return image, target[0]
