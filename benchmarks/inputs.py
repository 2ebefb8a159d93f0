"""Inputs of the benchmarks: untrained networks, noise, blocks of classes, JPEGs."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image

from kproba.data.label_images import write_label_image
from kproba.network.architecture import Architecture
from kproba.network.network import SegmentationNetwork

CROP = 513


def network_of(backbone: str, classes: int = 20) -> SegmentationNetwork:
    """An untrained, frozen network of one step."""
    architecture = Architecture(
        backbone=backbone,
        output_stride=16,
        atrous_rates=(6, 12, 18),
        aspp_channels=256,
        aspp_dropout=0.1,
        bn_momentum=0.01,
    )
    network = SegmentationNetwork(architecture, [classes])
    network = network.to(memory_format=torch.channels_last)
    return network.eval().requires_grad_(False)


def images_of(count: int, crop: int) -> torch.Tensor:
    """Noise, (count, 3, crop, crop) uint8."""
    generator = torch.Generator().manual_seed(0)
    shape = (count, 3, crop, crop)
    return torch.randint(0, 256, shape, generator=generator).to(torch.uint8)


def targets_of(count: int, crop: int, classes: int) -> torch.Tensor:
    """Blocks of classes, as in pictures."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randint(0, classes, (count, 1, 12, 12), generator=generator)
    return F.interpolate(coarse.float(), (crop, crop))[:, 0].to(torch.uint8)


def photographs(folder: Path, count: int) -> pd.DataFrame:
    """A split of JPEGs of VOC's size, 375 × 500, of about 60 kB, with masks."""
    generator = np.random.default_rng(0)
    rows = []
    for number in range(count):
        coarse = generator.integers(0, 256, (47, 63, 3), dtype=np.uint8)  # smooth noise
        image = Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC)
        mask = generator.integers(0, 21, (375, 500)).astype(np.uint8) // 20
        paths = folder / f"{number}.jpg", folder / f"{number}.png"
        image.save(paths[0], quality=92)
        write_label_image(paths[1], mask)
        files = {"image": str(paths[0]), "mask": str(paths[1])}
        rows.append({"id": str(number), **files})
    return pd.DataFrame(rows)
