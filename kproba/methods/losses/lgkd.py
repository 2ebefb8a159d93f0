"""Label-guided distillation (Yang et al., ICCV 2023, LGKD), a term for `plop`."""

import torch
import torch.nn.functional as F

from kproba.data.labels import IGNORE
from kproba.methods.losses.case import Case
from kproba.network.logits import compose_logits


def guided_targets(teacher: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The teacher's probabilities over S_t, guided by the labels.

    New classes have the probability 0. Where the label is a new class y, it gets the
    probability of the background: q_y = q_0 of the teacher, q_0 = 0.

    Args:
        teacher: Its logits over S_{t-1}, (B, |S_{t-1}|, h, w).
        labels: Per cell the channel of its new class in a map of |S_t| channels, 0
            where there is none, (B, h, w) int64.

    Returns:
        (B, |S_{t-1}| + 1, h, w): the old classes, and in the last channel the mass of
        the labelled new class.
    """
    q = teacher.softmax(dim=1)
    moved = (labels > 0)[:, None] * q[:, :1]
    return torch.cat([q[:, :1] - moved, q[:, 1:], moved], dim=1)


def lgkd(
    student: torch.Tensor,
    teacher: torch.Tensor,
    labels: torch.Tensor,
    chosen: torch.Tensor,
    count: float,
) -> torch.Tensor:
    """Cross-entropy of the guided targets, -Σ_c q_c log p_c, over the chosen cells.

    Args:
        student: z over S_t, (B, |S_t|, h, w).
        teacher: z over S_{t-1}, (B, |S_{t-1}|, h, w), without gradient.
        labels: See `guided_targets`.
        chosen: Cells that count, (B, h, w) bool.
        count: All cells.
    """
    old, log_p = teacher.shape[1], student.log_softmax(dim=1)
    q = guided_targets(teacher, labels)
    of_label = log_p.gather(1, labels[:, None])
    log_p = torch.cat([log_p[:, :old], of_label], dim=1)
    return -((q * log_p).sum(dim=1) * chosen).sum() / max(count, 1)


def _labels_of_cells(case: Case) -> torch.Tensor:
    """The new class of every cell, 0 where it has none, (B, h, w) int64."""
    size = case.student.logits[0].shape[-2:]
    cells = F.interpolate(case.targets[:, None].float(), size, mode="nearest-exact")
    labels = cells[:, 0].long()
    return labels * ((labels >= case.old_classes) & (labels != IGNORE))


def _guided(case: Case, *, new: bool) -> torch.Tensor:
    labels = case.once(_labels_of_cells)
    student, teacher = (
        compose_logits([z.float() for z in outputs.logits])
        for outputs in (case.student, case.need_teacher())
    )
    return lgkd(student, teacher, labels, (labels > 0) == new, case.counts.cells)


def lgkd_term(case: Case) -> torch.Tensor:
    """`lgkd` on the cells whose label is no new class."""
    return _guided(case, new=False)


def lgkd_new_term(case: Case) -> torch.Tensor:
    """`lgkd` on the cells whose label is a new class."""
    return _guided(case, new=True)
