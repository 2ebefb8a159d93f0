"""Masks, counts and certainty, which the loss terms need besides the outputs."""

from typing import NamedTuple

import numpy as np
import torch

from kproba.data.labels import IGNORE, UNKNOWN, UNSURE
from kproba.data.loaders import Batch
from kproba.methods.losses.case import Counts, Masks, cell_masks
from kproba.methods.terms import CERTAINTY, SALIENCY
from kproba.network.network import SegmentationNetwork
from kproba.runtime.distributed import Process
from kproba.training.checkpoint import StopFlag
from kproba.training.settings import StepSettings


class Prepared(NamedTuple):
    """A micro-batch before it is copied to the device.

    Attributes:
        batch: Images and targets; unsure pixels are 255 now.
        masks: M⁺ and M⁻; None at step 0.
        certainty: ν, (B,) float32, if a term needs it.
    """

    batch: Batch
    masks: Masks | None = None
    certainty: torch.Tensor | None = None


def prepare(
    batch: Batch, student: SegmentationNetwork, settings: StepSettings
) -> Prepared:
    """Derive masks and certainty from the targets of a batch, on the CPU."""
    if settings.step == 0:
        return Prepared(batch)
    first_new, targets = settings.label_map.first_new, batch.targets
    known, certainty = targets, None
    if SALIENCY in settings.method.needs:  # unknown objects have the raw label 0
        known = targets.masked_fill(targets == UNKNOWN, 0)
    if CERTAINTY in settings.method.needs:
        certainty = share_of_sure(known, first_new)
    if count_label(UNSURE, targets):
        targets = targets.masked_fill(targets == UNSURE, IGNORE)
        known = known.masked_fill(known == UNSURE, IGNORE)
        batch = batch._replace(targets=targets)
    size = student.feature_size(*targets.shape[-2:])
    masks = cell_masks(known, first_new, size, sequential=settings.sequential)
    return Prepared(batch, masks, certainty)


def count_label(label: int, targets: torch.Tensor) -> int:
    """Pixels that have a label; NumPy counts ten times as fast as PyTorch."""
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
    stop: StopFlag,
    state_due: bool,
    process: Process,
) -> tuple[Counts, bool, bool]:
    """Denominators over the global batch, and decisions of all processes.

    Both use the same exchange between the processes.

    Args:
        prepared: Micro-batches of this process.
        stop: Whether a stop of this process is requested.
        state_due: Whether a state of this process should be saved.
        process: This process of several.

    Returns:
        The counts, whether any process should stop, and whether a state should be
        saved.
    """
    pixels = new = background = cells = images = area = remaining = 0.0
    for batch, masks, _ in prepared:
        size = batch.targets.numel()
        pixels += size - count_label(IGNORE, batch.targets)
        images += len(batch.targets)
        area += size
        if masks is not None:
            new += float(masks.new.sum())
            background += float(masks.background.sum())
            remaining += float(masks.remaining.sum())
            cells += masks.new.numel()
    flags = [float(stop.requested), float(state_due)]
    counts = [pixels, new, background, cells, images, area, remaining]
    *summed, stops, due = process.sum([*counts, *flags])
    names = ("pixels", "new", "background", "cells", "images", "area", "remaining")
    return Counts(**dict(zip(names, summed, strict=True))), stops > 0, due > 0
