"""The loss terms, each a plain function of tensors.

Every term is a sum divided by a count that the caller names. The loop passes counts of
the whole global batch, so that processes and micro-batches add up to exactly the mean
over the global batch, however unevenly new classes and background are spread over them.
An empty selection has the sum 0 and contributes 0, never NaN.

Symbols: z logits, y raw label (0: background, old or future), ŷ pseudo-labelled target,
M⁺ = {y ∉ {0, 255}}, M⁻ = {y = 0}, r_t the background adaptation of the newest branch.
Formulas: Zhang & Gao, ECCV 2024 (arXiv 2407.09838); docs/method.md.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from kproba.methods import LossWeights, Method
from kproba.model import Outputs, compose_logits, training_background, upsample
from kproba.splits import IGNORE


class Masks(NamedTuple):
    """Where the terms of an increment look, at feature resolution (B, h, w) bool.

    Attributes:
        new: M⁺, cells whose raw label is a class of C_t.
        background: M⁻, cells whose raw label is 0.
    """

    new: torch.Tensor
    background: torch.Tensor


class Counts(NamedTuple):
    """Denominators over the global batch."""

    pixels: float  # pixels that are not 255
    new: float  # cells of M⁺
    background: float  # cells of M⁻
    cells: float  # all cells


def cell_masks(
    targets: torch.Tensor, first_new: int, size: Sequence[int], *, sequential: bool
) -> Masks:
    """M⁺ and M⁻ at feature resolution, nearest neighbour (the cell's centre pixel).

    A pseudo-labelled target names old classes only where the raw label is 0, so both
    masks can be read from it.

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
    background = cells == 0 if sequential else cells < first_new
    return Masks(new, background)


def bce(logits: torch.Tensor, channels: torch.Tensor, count: float) -> torch.Tensor:
    """Per-pixel binary cross-entropy, summed over channels, mean over valid pixels.

    Σ_c softplus(z_c) - z_target, which equals BCE against the one-hot target without
    building it. A pixel of a class that has no channel here is negative for all.

    Args:
        logits: (B, K, H, W), K channels.
        channels: (B, H, W) int64: the positive channel, K for a pixel that is negative
            for all channels, 255 for ignored pixels.
        count: Denominator, valid pixels.
    """
    valid = channels != IGNORE
    negative = F.softplus(logits).sum(dim=1)
    chosen = channels.clamp(max=logits.shape[1] - 1)
    positive = logits.gather(1, chosen[:, None])[:, 0]
    positive = positive * (channels < logits.shape[1])
    return ((negative - positive) * valid).sum() / max(count, 1)


def pb_bce(
    logits: Sequence[torch.Tensor], targets: torch.Tensor, count: float
) -> torch.Tensor:
    """BCE over S_t against ŷ where only background and C_t learn (PB-BCE).

    The logits of old classes carry no gradient, so their channels, a constant for the
    optimiser, are neither upsampled nor added to the value.

    Args:
        logits: z_k of the branches 0..t, each (B, 1 + |C_k|, h, w).
        targets: ŷ in output indices, (B, H, W) uint8, 255 ignored.
        count: Valid pixels.
    """
    new = logits[-1].shape[1] - 1
    first_new = 1 + sum(z.shape[1] - 1 for z in logits[:-1])
    logits = [z.float() for z in logits]  # sums of logits want all their digits
    background = training_background(logits)
    live = torch.cat([background, logits[-1][:, 1:]], dim=1)
    live = upsample(live, targets.shape[-2:])
    return bce(live, _live_channels(targets, first_new, new), count)


def _live_channels(targets: torch.Tensor, first_new: int, new: int) -> torch.Tensor:
    """Output index to channel among [background, C_t]; 1 + new for old classes."""
    table = torch.full((256,), 1 + new, device=targets.device)
    table[0] = 0
    table[first_new : first_new + new] = torch.arange(1, 1 + new)
    table[IGNORE] = IGNORE
    return table[targets.long()]


def full_bce(
    logits: Sequence[torch.Tensor], targets: torch.Tensor, count: float
) -> torch.Tensor:
    """BCE over S_t against the target, every channel learns (step 0, fine-tuning).

    The background's logit is the one of inference. Arguments as in `pb_bce`.
    """
    live = compose_logits([z.float() for z in logits])
    live = upsample(live, targets.shape[-2:])
    return bce(live, targets.long(), count)


def bga_ce(adaptation: torch.Tensor, new: torch.Tensor, count: float) -> torch.Tensor:
    """On M⁺, BCE(r_t → 0) = softplus(r_t): where a new class is, background falls.

    Args:
        adaptation: r_t, (B, h, w) logits.
        new: M⁺, (B, h, w) bool.
        count: |M⁺|.
    """
    return (F.softplus(adaptation.float()) * new).sum() / max(count, 1)


def bga_t(
    adaptation: torch.Tensor, background: torch.Tensor, count: float
) -> torch.Tensor:
    """On M⁻, max(0, (σ(r_t) - 1)² - σ(r_t)²): background must not be pulled down.

    Arguments as in `bga_ce`, with M⁻.
    """
    probability = adaptation.float().sigmoid()
    triplet = ((probability - 1).square() - probability.square()).clamp(min=0)
    return (triplet * background).sum() / max(count, 1)


def gkd(
    student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor], count: float
) -> torch.Tensor:
    """Distillation of the old branches' logits.

    Σ_{k<t} Σ_channels mean_{batch, space} BCE(z_k → σ(z_k of the teacher)).

    Args:
        student: z_k of the old branches, each (B, 1 + |C_k|, h, w).
        teacher: The same of the teacher.
        count: B·h·w.
    """
    terms = [
        F.binary_cross_entropy_with_logits(
            own.float(), other.float().sigmoid(), reduction="sum"
        )
        for own, other in zip(student, teacher, strict=True)
    ]
    return torch.stack(terms).sum() / max(count, 1)


def bfd(
    student: Sequence[torch.Tensor],
    teacher: Sequence[torch.Tensor],
    background: torch.Tensor,
    count: float,
) -> torch.Tensor:
    """Distillation of the old branches' block features on M⁻.

    Σ_{k<t} mean_{M⁻, channels} (g_k - g_k of the teacher)².

    Args:
        student: g_k of the old branches, each (B, A, h, w).
        teacher: The same of the teacher.
        background: M⁻, (B, h, w) bool.
        count: |M⁻|.
    """
    terms = [
        ((own.float() - other.float()).square().mean(dim=1) * background).sum()
        for own, other in zip(student, teacher, strict=True)
    ]
    return torch.stack(terms).sum() / max(count, 1)


def step_losses(
    student: Outputs,
    teacher: Outputs | None,
    targets: torch.Tensor,
    masks: Masks | None,
    counts: Counts,
    method: Method,
) -> dict[str, torch.Tensor]:
    """The weighted terms of one micro-batch; their sum is the loss.

    Args:
        student: Outputs of the network that trains.
        teacher: Outputs of step t-1's network; None at step 0 or if nothing is
            distilled.
        targets: (B, H, W) uint8, 255 ignored.
        masks: M⁺ and M⁻; None at step 0.
        counts: Denominators.
        method: Which terms, with which weights.
    """
    if masks is None:
        return {"bce": full_bce(student.logits, targets, counts.pixels)}
    weights: LossWeights = method.losses
    losses = {}
    cross_entropy = pb_bce if method.protect_old_logits else full_bce
    losses["bce"] = cross_entropy(student.logits, targets, counts.pixels)
    adaptation = student.logits[-1][:, 0]
    if weights.bga_ce:
        term = bga_ce(adaptation, masks.new, counts.new)
        losses["bga_ce"] = weights.bga_ce * term
    if weights.bga_t:
        term = bga_t(adaptation, masks.background, counts.background)
        losses["bga_t"] = weights.bga_t * term
    if teacher is not None and weights.gkd:
        term = gkd(student.logits[:-1], teacher.logits, counts.cells)
        losses["gkd"] = weights.gkd * term
    if teacher is not None and weights.bfd:
        term = bfd(
            student.blocks[:-1], teacher.blocks, masks.background, counts.background
        )
        losses["bfd"] = weights.bfd * term
    return losses
