"""Distillation of the softmax over the old classes: LwF and MiB."""

import torch

from kproba.methods.losses.case import Case


def kd(student: torch.Tensor, teacher: torch.Tensor, count: float) -> torch.Tensor:
    """Cross-entropy of the softmax over S_{t-1}, a mean over its classes.

    -1/|S_{t-1}| Σ_c q_c log p_c, with p and q the softmax of student and teacher over
    S_{t-1}. This is LwF as the field runs it for segmentation, with weight 100 (the
    code of Cermelli et al., CVPR 2020, and Douillard et al., CVPR 2021).

    Args:
        student: z over S_t, (B, |S_t|, H, W); the new classes are left out.
        teacher: z over S_{t-1}, (B, |S_{t-1}|, H, W).
        count: Pixels.
    """
    return soft_kd(student, teacher, count, temperature=1.0) / teacher.shape[1]


def soft_kd(
    student: torch.Tensor,
    teacher: torch.Tensor,
    count: float,
    temperature: float = 2.0,
) -> torch.Tensor:
    """Cross-entropy of the softened softmax over S_{t-1} (LwF, equations 2 to 4).

    -Σ_c q_c log p_c, with p and q the softmax of z/T of student and teacher.

    Args:
        student: z over S_t, (B, |S_t|, H, W); the new classes are left out.
        teacher: z over S_{t-1}, (B, |S_{t-1}|, H, W).
        count: Pixels.
        temperature: T.
    """
    old = teacher.shape[1]
    log_p = (student[:, :old] / temperature).log_softmax(dim=1)
    q = (teacher / temperature).softmax(dim=1)
    return -(q * log_p).sum() / max(count, 1)


def unbiased_kd(
    student: torch.Tensor, teacher: torch.Tensor, count: float
) -> torch.Tensor:
    """Distillation in which new classes count as background (MiB).

    -1/|S_{t-1}| Σ_c q_c log p̂_c, with q the teacher's softmax, p the student's, and
    p̂_0 = p_0 + Σ_{c new} p_c, p̂_c = p_c for the old classes.

    Args:
        student: z over S_t, (B, |S_t|, H, W).
        teacher: z over S_{t-1}, (B, |S_{t-1}|, H, W).
        count: Pixels.
    """
    old = teacher.shape[1]
    log_p = student.log_softmax(dim=1)
    background = torch.cat([log_p[:, :1], log_p[:, old:]], dim=1)
    background = background.logsumexp(dim=1, keepdim=True)
    log_p = torch.cat([background, log_p[:, 1:old]], dim=1)
    return -(teacher.softmax(dim=1) * log_p).sum() / old / max(count, 1)


def kd_term(case: Case) -> torch.Tensor:
    """`kd` over S_{t-1}, mean over all pixels."""
    return kd(case.logits, case.teacher_logits, case.counts.area)


def soft_kd_term(case: Case) -> torch.Tensor:
    """`soft_kd` over S_{t-1}, mean over all pixels."""
    return soft_kd(case.logits, case.teacher_logits, case.counts.area)


def unbiased_kd_term(case: Case) -> torch.Tensor:
    """`unbiased_kd` over S_{t-1}, mean over all pixels."""
    return unbiased_kd(case.logits, case.teacher_logits, case.counts.area)
