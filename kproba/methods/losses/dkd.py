"""The terms of DKD (Baek et al., NeurIPS 2022), on the head `sigmoid`.

x is the feature g_0 of a cell, with entries ≥ 0, and z_c = w_c x + b_c the logit of
class c. "Decomposed" distillation uses the positive and the negative part of w_c x
separately.
"""

import torch
import torch.nn.functional as F

from kproba.methods.losses.case import Case
from kproba.network.layers import upsample


def new_bce(
    logits: torch.Tensor,
    targets: torch.Tensor,
    first_new: int,
    count: float,
    positive_weight: float = 1.0,
) -> torch.Tensor:
    """BCE of the classes of the step, Σ_c mean over all pixels of BCE(z_c, [ŷ = c]).

    Every other pixel is a negative of all of them, ignored pixels (255) too, as in the
    authors' code. The term of positives has the factor `positive_weight`.

    Args:
        logits: z of the classes of C_t at the size of the image, (B, |C_t|, H, W).
        targets: ŷ in output indices, (B, H, W) uint8.
        first_new: Output index of the first class of C_t.
        count: All pixels.
        positive_weight: Weight of the positives.
    """
    classes = torch.arange(logits.shape[1], device=logits.device) + first_new
    positive = targets[:, None] == classes[:, None, None]
    weight = logits.new_tensor(positive_weight)
    loss = F.binary_cross_entropy_with_logits(
        logits, positive.to(logits), pos_weight=weight, reduction="sum"
    )
    return loss / max(count, 1)


def sigmoid_kd(
    student: torch.Tensor, teacher: torch.Tensor, count: float
) -> torch.Tensor:
    """Σ_c mean of BCE(z_c, σ(z_c of the teacher)) (DKD, equations 5 and 9).

    Args:
        student: (B, C, H, W) logits.
        teacher: The same of the teacher, without gradient.
        count: Pixels or cells.
    """
    goals = teacher.sigmoid()
    loss = F.binary_cross_entropy_with_logits(student, goals, reduction="sum")
    return loss / max(count, 1)


def parts_of_logits(
    features: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The two parts of w_c x: Σ_j max(w_cj, 0) x_j and Σ_j min(w_cj, 0) x_j.

    Args:
        features: x, (B, A, h, w).
        weights: w, (C, A).

    Returns:
        Two maps (B, C, h, w) float32; their sum plus the bias is the logit.
    """
    x, kernels = features.float(), weights.float()[:, :, None, None]
    return F.conv2d(x, kernels.clamp(min=0)), F.conv2d(x, kernels.clamp(max=0))


def _old_parts(case: Case) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
    """Parts of the old classes' logits: (positive, negative) of student and teacher."""
    old, pairs = case.old_classes - 1, []  # without background, which has no logit
    with torch.autocast(case.targets.device.type, enabled=False):
        for outputs in (case.student, case.need_teacher()):
            weights = outputs.extras["weights"][:old]
            pairs.append(parts_of_logits(outputs.blocks[0], weights))
    return tuple(pairs)


def new_bce_term(case: Case) -> torch.Tensor:
    """`new_bce` of C_t, mean over all pixels."""
    logits = upsample(case.student.logits[-1][:, 1:].float(), case.targets.shape[-2:])
    return new_bce(
        logits,
        case.targets,
        case.old_classes if len(case.student.logits) > 1 else 1,
        case.counts.area,
        case.options["positive_weight"],
    )


def auxiliary_term(case: Case) -> torch.Tensor:
    """Mean over all pixels of BCE(z_a, 0) for the auxiliary classifier z_a."""
    logits = case.student.extras["auxiliary"].float()
    logits = upsample(logits, case.targets.shape[-2:])
    return F.softplus(logits).sum() / max(case.counts.area, 1)


def class_kd_term(case: Case) -> torch.Tensor:
    """`sigmoid_kd` of the old classes at the size of the image."""
    old = slice(1, case.old_classes)
    return sigmoid_kd(
        case.logits[:, old], case.teacher_logits[:, old], case.counts.area
    )


def positive_kd_term(case: Case) -> torch.Tensor:
    """`sigmoid_kd` of the positive parts of the old logits, mean over cells."""
    (student, _), (teacher, _) = case.once(_old_parts)
    return sigmoid_kd(student, teacher, case.counts.cells)


def negative_kd_term(case: Case) -> torch.Tensor:
    """`sigmoid_kd` of the negative parts of the old logits, mean over cells."""
    (_, student), (_, teacher) = case.once(_old_parts)
    return sigmoid_kd(student, teacher, case.counts.cells)
