"""TODO methods.losses.pod."""

import math
from collections.abc import Sequence

import torch

from kproba.methods.losses.case import Case
from kproba.methods.method import Method
from kproba.network.heads import compose_logits

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
    """Logits over S_t to S_{t-1}: those of new classes are added to background's."""
    new = logits[:, old:].sum(dim=1, keepdim=True)
    return torch.cat([logits[:, :1] + new, logits[:, 1:old]], dim=1)


def pod_terms(case: Case, method: Method) -> dict[str, torch.Tensor]:
    """Local POD of stages, first block and logits; more, the fewer classes are new.

    Each is a share of the mean over all L maps and grows with √(|S_t| / |C_t|), as in
    the authors' code.
    """
    student, teacher, _, _, counts, _ = case
    weights = method.losses
    if teacher is None or not (weights.pod or weights.pod_logits):
        return {}
    own = [*student.stages, student.blocks[0]]
    other = [*teacher.stages, teacher.blocks[0]]
    new = student.logits[-1].shape[1] - 1
    classes = 1 + sum(z.shape[1] - 1 for z in student.logits)
    schedule, maps = math.sqrt(classes / new), len(own) + 1
    losses = {}
    if weights.pod:
        term = pod(own, other, counts.images) * len(own) / maps
        losses["pod"] = weights.pod * schedule * term
    if weights.pod_logits:
        logits, taught = (
            compose_logits([z.float() for z in outputs.logits])
            for outputs in (student, teacher)
        )
        logits = logits_for_pod(logits, classes - new)
        term = pod([logits], [taught], counts.images) / maps
        losses["pod_logits"] = weights.pod_logits * schedule * term
    return losses
