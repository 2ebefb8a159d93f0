"""The terms of BARM (Zhang & Gao, ECCV 2024, arXiv 2407.09838)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from kproba.data.labels import IGNORE, check_room_for_classes
from kproba.methods.losses.case import Case
from kproba.methods.losses.cross_entropy import bce
from kproba.network.layers import upsample
from kproba.network.logits import training_background


def pb_bce(
    logits: Sequence[torch.Tensor], targets: torch.Tensor, count: float
) -> torch.Tensor:
    """BCE over S_t against ŷ, with gradients only for background and C_t (PB-BCE).

    The logits of old classes have no gradient. Their channels are a constant for the
    optimizer, so they are neither upsampled nor added to the value.

    Args:
        logits: z_k of the branches 0..t, each (B, 1 + |C_k|, h, w).
        targets: ŷ in output indices, (B, H, W) uint8, 255 ignored.
        count: Valid pixels.

    Raises:
        ValueError: There are more classes than the bytes of ŷ can name.
    """
    new = logits[-1].shape[1] - 1
    first_new = 1 + sum(z.shape[1] - 1 for z in logits[:-1])
    check_room_for_classes(first_new + new)
    logits = [z.float() for z in logits]  # sums of logits need full precision
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


def bga_ce(adaptation: torch.Tensor, new: torch.Tensor, count: float) -> torch.Tensor:
    """On M⁺, BCE(r_t → 0) = softplus(r_t): lowers the background on new classes.

    Args:
        adaptation: r_t, (B, h, w) logits.
        new: M⁺, (B, h, w) bool.
        count: |M⁺|.
    """
    return (F.softplus(adaptation.float()) * new).sum() / max(count, 1)


def bga_t(
    adaptation: torch.Tensor, background: torch.Tensor, count: float
) -> torch.Tensor:
    """On M⁻, max(0, (σ(r_t) - 1)² - σ(r_t)²): keeps the background from falling.

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


def protected_bce_term(case: Case) -> torch.Tensor:
    """`pb_bce` over S_t."""
    return pb_bce(case.student.logits, case.targets, case.counts.pixels)


def bga_ce_term(case: Case) -> torch.Tensor:
    """`bga_ce` on M⁺."""
    return bga_ce(case.adaptation, case.need_masks().new, case.counts.new)


def bga_t_term(case: Case) -> torch.Tensor:
    """`bga_t` on M⁻."""
    background = case.need_masks().background
    return bga_t(case.adaptation, background, case.counts.background)


def bga_t_remaining_term(case: Case) -> torch.Tensor:
    """`bga_t` on the cells of M⁻ whose pseudo label is background.

    So the background may fall on cells with a recognised old class.
    """
    remaining = case.need_masks().remaining
    return bga_t(case.adaptation, remaining, case.counts.remaining)


def gkd_term(case: Case) -> torch.Tensor:
    """`gkd` of the old branches."""
    teacher = case.need_teacher()
    return gkd(case.student.logits[:-1], teacher.logits, case.counts.cells)


def bfd_term(case: Case) -> torch.Tensor:
    """`bfd` of the old branches on M⁻."""
    teacher, background = case.need_teacher(), case.need_masks().background
    return bfd(
        case.student.blocks[:-1], teacher.blocks, background, case.counts.background
    )
