"""Local POD (Douillard et al., CVPR 2021, arXiv 2011.11390, PLOP)."""

import math
from collections.abc import Sequence

import torch

from kproba.methods.losses.case import Case
from kproba.network.logits import compose_logits

POD_SCALES = (1, 2, 4)


def local_pod(features: torch.Tensor) -> torch.Tensor:
    """Squared features, averaged over width and over height of every region.

    The map is cut into s × s regions for s = 1, 2, 4 (PLOP, Local POD). Cells
    that are left over when s does not divide a side belong to no region.

    Args:
        features: (B, C, h, w).

    Returns:
        (B, Σ_s s² C (h_s + w_s)), h_s and w_s being the sides of a region.
    """
    squares = features.float().square()
    parts = []
    for scale in POD_SCALES:
        height, width = (extent // scale for extent in features.shape[-2:])
        if not height or not width:
            continue  # a map smaller than the grid
        cut = squares[..., : height * scale, : width * scale]
        regions = cut.unflatten(-1, (scale, width)).unflatten(-3, (scale, height))
        parts += [regions.mean(dim=-1).flatten(1), regions.mean(dim=-3).flatten(1)]
    return torch.cat(parts, dim=1)


def pod(
    student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor], count: float
) -> torch.Tensor:
    """Distance of the local PODs, 1/L Σ_l ‖Φ(f_l) - Φ(f_l of the teacher)‖.

    Args:
        student: L feature maps, each (B, C, h, w).
        teacher: The same of the teacher.
        count: Images.
    """
    terms = [
        torch.linalg.vector_norm(local_pod(own) - local_pod(other), dim=1).sum()
        for own, other in zip(student, teacher, strict=True)
    ]
    return torch.stack(terms).sum() / len(terms) / max(count, 1)


def logits_for_pod(logits: torch.Tensor, old: int) -> torch.Tensor:
    """Logits over S_t to S_{t-1}: those of new classes are added to the background."""
    new = logits[:, old:].sum(dim=1, keepdim=True)
    return torch.cat([logits[:, :1] + new, logits[:, 1:old]], dim=1)


def class_ratio(case: Case) -> float:
    """√(|S_t| / |C_t|), the factor of PLOP's weights: larger for fewer new classes."""
    return math.sqrt(case.classes / case.new_classes)


def pod_term(case: Case) -> torch.Tensor:
    """`pod` of the stages and the first block, their share of the mean over all L maps.

    L counts the logits too, as in the authors' code.
    """
    teacher = case.need_teacher()
    student_maps = [*case.student.stages, case.student.blocks[0]]
    teacher_maps = [*teacher.stages, teacher.blocks[0]]
    count = len(student_maps)
    return pod(student_maps, teacher_maps, case.counts.images) * count / (count + 1)


def pod_logits_term(case: Case) -> torch.Tensor:
    """`pod` of the logits, their share of the mean over all L maps."""
    teacher = case.need_teacher()
    student_logits, teacher_logits = (
        compose_logits([z.float() for z in outputs.logits])
        for outputs in (case.student, teacher)
    )
    student_logits = logits_for_pod(student_logits, case.old_classes)
    maps = len(case.student.stages) + 2
    return pod([student_logits], [teacher_logits], case.counts.images) / maps
