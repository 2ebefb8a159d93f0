"""TODO training.targets."""

from typing import NamedTuple

import numpy as np
import torch

from kproba.data.labels import IGNORE, UNSURE
from kproba.data.loaders import Batch
from kproba.methods.losses.case import Counts, Masks, cell_masks
from kproba.network.network import SegmentationNetwork
from kproba.runtime.distributed import Process
from kproba.training.checkpoint import StopFlag
from kproba.training.settings import StepSettings


class Prepared(NamedTuple):
    """A micro-batch before it goes to the device.

    Attributes:
        batch: Images and targets; unsure pixels are 255 now.
        masks: M⁺ and M⁻; None at step 0.
        certainty: ν, (B,) float32, if the method scales by it.
    """

    batch: Batch
    masks: Masks | None = None
    certainty: torch.Tensor | None = None


def prepare(
    batch: Batch, student: SegmentationNetwork, settings: StepSettings
) -> Prepared:
    """The batch with what its targets tell, on the CPU."""
    if settings.step == 0:
        return Prepared(batch)
    first_new, targets = settings.label_map.first_new, batch.targets
    certainty = None
    if settings.recipe.scale_by_certainty:
        certainty = share_of_sure(targets, first_new)
    if pixels_with(UNSURE, targets):
        targets = targets.masked_fill(targets == UNSURE, IGNORE)
        batch = batch._replace(targets=targets)
    stride = student.architecture.output_stride
    size = [-(-extent // stride) for extent in targets.shape[-2:]]
    sequential = settings.setting == "sequential"
    masks = cell_masks(batch.targets, first_new, size, sequential=sequential)
    return Prepared(batch, masks, certainty)


def pixels_with(label: int, targets: torch.Tensor) -> int:
    """How many pixels have a label; NumPy counts ten times as fast as PyTorch."""
    return int(np.count_nonzero(targets.numpy() == label))


def share_of_sure(targets: torch.Tensor, first_new: int) -> torch.Tensor:
    """Share of each image's background or old pixels that have a label (PLOP's ν).

    Args:
        targets: ŷ with `UNSURE` pixels, (B, H, W) uint8.
        first_new: Output index of the first class of C_t.

    Returns:
        (B,) float32; 1 for an image without such pixels.
    """
    sure = (targets < first_new).sum(dim=(1, 2))
    unsure = (targets == UNSURE).sum(dim=(1, 2))
    return torch.where(sure + unsure > 0, sure / (sure + unsure).clamp(min=1), 1.0)


def global_counts(
    prepared: list[Prepared],
    stop: "StopFlag",
    state_due: bool,
    process: Process,
) -> tuple[Counts, bool, bool]:
    """Denominators over the global batch, and what all processes must do together.

    Returns:
        The counts, whether any process was told to stop, and whether any finds that a
        state is due.
    """
    pixels = new = background = cells = images = area = remaining = 0.0
    for batch, masks, _ in prepared:
        size = batch.targets.numel()
        pixels += size - pixels_with(IGNORE, batch.targets)
        images += len(batch.targets)
        area += size
        if masks is not None:
            new += float(masks.new.sum())
            background += float(masks.background.sum())
            remaining += float(masks.remaining.sum())
            cells += masks.new.numel()
    flags = [float(stop.asked), float(state_due)]
    counted = [pixels, new, background, cells, images, area, remaining]
    *counts, stopped, due = process.sum([*counted, *flags])
    return Counts(*counts), stopped > 0, due > 0
