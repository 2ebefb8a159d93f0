"""TODO methods.losses.case."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from kproba.data.labels import IGNORE
from kproba.network.network import Outputs


class Masks(NamedTuple):
    """Where the terms of an increment look, at feature resolution (B, h, w) bool.

    Attributes:
        new: M⁺, cells whose raw label is a class of C_t.
        background: M⁻, cells whose raw label is 0.
        remaining: Cells of M⁻ whose pseudo label is 0 too.
    """

    new: torch.Tensor
    background: torch.Tensor
    remaining: torch.Tensor


class Counts(NamedTuple):
    """Denominators over the global batch."""

    pixels: float  # pixels that are not 255
    new: float  # cells of M⁺
    background: float  # cells of M⁻
    cells: float  # all cells
    images: float = 0
    area: float = 0  # all pixels, those that are 255 too
    remaining: float = 0  # cells of M⁻ whose pseudo label is 0


def cell_masks(
    targets: torch.Tensor, first_new: int, size: Sequence[int], *, sequential: bool
) -> Masks:
    """M⁺ and M⁻ at feature resolution, nearest neighbour (the cell's centre pixel).

    A pseudo-labelled target names old classes only where the raw label is 0, so the
    masks can be read from it. Unsure pixels (255 by now) are in none.

    Args:
        targets: ŷ, (B, H, W) uint8.
        first_new: Output index of the first class of C_t.
        size: (h, w).
        sequential: Old classes in the target are true labels (setting "sequential"),
            not pseudo labels; they belong to neither mask.
    """
    cells = F.interpolate(targets[:, None].float(), tuple(size), mode="nearest-exact")
    cells = cells[:, 0]
    new = (cells >= first_new) & (cells != IGNORE)
    remaining = cells == 0
    background = remaining if sequential else cells < first_new
    return Masks(new, background, remaining)


class Case(NamedTuple):
    """One micro-batch as the terms of an increment see it.

    Attributes:
        student: Outputs of the network that trains.
        teacher: Outputs of step t-1's network; None if nothing is distilled.
        targets: ŷ, (B, H, W) uint8, 255 ignored.
        masks: M⁺ and M⁻.
        counts: Denominators.
        certainty: Share of each image's background that the pseudo labels are sure of,
            (B,); None where that does not matter.
    """

    student: Outputs
    teacher: Outputs | None
    targets: torch.Tensor
    masks: Masks
    counts: Counts
    certainty: torch.Tensor | None = None
