"""TODO data.augmentation."""

import hashlib
import json
from dataclasses import dataclass

import numpy as np
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from kproba.data.labels import IGNORE


@dataclass(frozen=True)
class Augmentation:
    """Random scale, crop and flip, the field's usual training augmentation.

    Attributes:
        crop_size: Side of the square crop in pixels.
        scale: Smallest and largest factor on the image's own size.
        horizontal_flip: Probability; 0 where left and right mean something.
        brightness, contrast, saturation: Largest relative change, 0 for none.
    """

    crop_size: int
    scale: tuple[float, float]
    horizontal_flip: float
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0


def keyed_generator(*key: object) -> np.random.Generator:
    """A generator that depends on nothing but its key (such as seed, epoch, id)."""
    digest = hashlib.sha256(json.dumps(key).encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, np.uint32))


def augment(
    image: torch.Tensor,
    target: torch.Tensor,
    settings: Augmentation,
    rng: np.random.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale, crop and flip one image with its target.

    Args:
        image: (3, H, W) uint8.
        target: (H, W) uint8, 255 ignored.
        settings: How much.
        rng: Source of every choice.

    Returns:
        Image (3, S, S) and target (S, S), uint8, S = crop_size. What the crop shows
        outside the image is 255 in the target and mid grey in the image.
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
    pad = [0, 0, max(0, side - width), max(0, side - height)]
    image = F.pad(image, pad, fill=[128.0])
    target = F.pad(target, pad, fill=[float(IGNORE)])
    top = int(offsets[0] * (image.shape[1] - side + 1))
    left = int(offsets[1] * (image.shape[2] - side + 1))
    image, target = (
        F.crop(tensor, top, left, side, side) for tensor in (image, target)
    )
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
