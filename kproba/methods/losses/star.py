"""The terms of STAR (Chen et al., NeurIPS 2023) and Adapter (Zhu et al., AAAI 2025).

x is the feature g_0 of a cell, u = x/‖x‖ its direction, and z_c the logit of class c.
The previous network calls a pixel c where z_c is its largest logit and above 0.5, else
background. No term distils logits: drawn features of old classes
(`kproba.methods.replay`) and kept features protect the old classes.
"""

import torch
import torch.nn.functional as F

from kproba.methods.losses.case import Case
from kproba.methods.losses.dkd import new_bce_term
from kproba.methods.replay import recognise

SURE = 0.7  # of `uncertainty`: a pixel whose highest probability is above it is sure


def replayed_bce(
    real: torch.Tensor,
    fakes: torch.Tensor,
    background: torch.Tensor,
    *,
    factor: float,
    cells: float,
    drawn: float,
    background_cells: torch.Tensor | float,
) -> torch.Tensor:
    """BCE of the new classes on real pixels, drawn features and background cells.

    [L + w_f L_f + w_b L_b] / (1 + w_f + w_b), with w_f = f/N and w_b = ρ b/N. L is the
    BCE of the real pixels; L_f and L_b are Σ_c mean BCE(z_c, 0) over the f drawn
    features of old classes and over the b cells of background. N counts all cells.

    Args:
        real: L, a scalar.
        fakes: z of C_t for this part's drawn features, (n, |C_t|).
        background: z of C_t for this part's background cells, (m, |C_t|).
        factor: ρ.
        cells: N over the global batch.
        drawn: f over the global batch.
        background_cells: b over the global batch.
    """
    weighted = F.softplus(fakes).sum() + factor * F.softplus(background).sum()
    total = 1 + (drawn + factor * background_cells) / max(cells, 1)
    return (real + weighted / max(cells, 1)) / total


def contrast(sums: torch.Tensor, means: torch.Tensor) -> torch.Tensor:
    """Mean over the new classes k of 1 / min_c ‖ν_k - μ_c‖.

    ν_k is the normalised sum of the directions of class k in the batch. A class that is
    not in the batch has ν_k = 0, so its distance to every direction is 1.

    Args:
        sums: Σ u of every new class, (K, A).
        means: μ of the old classes, unit vectors (C, A).
    """
    directions = F.normalize(sums, dim=1)
    distances = torch.linalg.vector_norm(directions[:, None] - means[None], dim=2)
    return (1 / distances.amin(dim=1).clamp(min=1e-6)).mean()


def uncertainty(
    logits: torch.Tensor, targets: torch.Tensor, count: float
) -> torch.Tensor:
    """Mean of ((1 - (p₁ - p₂)) [not sure])², p₁ ≥ p₂ the two highest probabilities.

    A pixel is sure if its label is its likeliest class, or if p₁ is above 0.7. p₁ gives
    no gradient, so the term only lowers the second class (Adapter).

    Args:
        logits: z over the classes without background, (B, C, H, W).
        targets: Labels in output indices, where the first class is 1, (B, H, W) uint8.
        count: Pixels.
    """
    if logits.shape[1] < 2:  # there is no second class
        return logits.sum() * 0
    best, channels = logits.topk(2, dim=1)
    first, second = best.sigmoid().unbind(dim=1)
    sure = (targets == channels[:, 0] + 1) | (first > SURE)
    margin = 1 - (first.detach() - second)
    return (margin.square() * ~sure).sum() / max(count, 1)


def _recognised(case: Case) -> torch.Tensor:
    """The previous network's class of every pixel, 0 for background, (B, H, W)."""
    return recognise(case.teacher_logits)


def _background(case: Case) -> torch.Tensor:
    """Cells with label 0 that the previous network calls background, (B, h, w) bool."""
    masks = case.need_masks()
    found = case.once(_recognised)[:, None].float()
    size = masks.background.shape[-2:]
    cells = F.interpolate(found, size, mode="nearest-exact")[:, 0]
    return masks.background & (cells == 0)


def _recognised_share(case: Case) -> torch.Tensor:
    """Share of each cell that has label 0 and is an old class by the previous network.

    (B, h, w) float32, by bilinear interpolation of the mask of pixels.
    """
    unlabelled = case.targets < case.old_classes
    mask = unlabelled & (case.once(_recognised) > 0)
    size = case.need_masks().background.shape[-2:]
    share = F.interpolate(
        mask[:, None].float(), size, mode="bilinear", align_corners=False
    )
    return share[:, 0]


def _directions(case: Case) -> torch.Tensor:
    """Σ of the directions u of every new class, (K, A) float32, with gradient.

    Each cell counts with the share of it that has the label.
    """
    x = case.student.blocks[0].float()
    classes = torch.arange(case.new_classes, device=x.device) + case.old_classes
    labels = case.targets[:, None] == classes[:, None, None]
    share = F.interpolate(
        labels.float(), x.shape[-2:], mode="bilinear", align_corners=False
    )
    return torch.einsum("bkhw,bahw->ka", share, F.normalize(x, dim=1))


def background_cells(case: Case) -> torch.Tensor:
    """B of `replayed_bce` in this micro-batch, (1,)."""
    return case.once(_background).sum()[None].double()


def recognised_weight(case: Case) -> torch.Tensor:
    """Σ M of `feature_kd_term` in this micro-batch, (1,)."""
    return case.once(_recognised_share).sum()[None].double()


def direction_sums(case: Case) -> torch.Tensor:
    """The sums of `contrast` in this micro-batch, (K · A,)."""
    return case.once(_directions).detach().flatten()


def replayed_bce_term(case: Case) -> torch.Tensor:
    """`replayed_bce` of C_t."""
    replay, new = case.need_replay(), case.student.logits[-1][:, 1:].float()
    first = case.old_classes - 1  # row of the weights: the background has none
    weights, biases = (
        case.student.extras[name][first:].float() for name in ("weights", "biases")
    )
    with torch.autocast(new.device.type, enabled=False):
        fakes = replay.fakes @ weights.T + biases
    return replayed_bce(
        new_bce_term(case),
        fakes,
        new.permute(0, 2, 3, 1)[case.once(_background)],
        factor=replay.background_factor,
        cells=case.counts.cells,
        drawn=replay.drawn,
        background_cells=case.totals["replayed_bce"][0].float(),
    )


def feature_kd_term(case: Case) -> torch.Tensor:
    """Σ M ‖x - x of the teacher‖² / (A Σ M), M = recognised old classes (STAR, PKD)."""
    share, total = case.once(_recognised_share), case.totals["feature_kd"][0]
    own = case.student.blocks[0].float()
    difference = own - case.need_teacher().blocks[0].float()
    squares = difference.square().mean(dim=1) * share
    return squares.sum() / total.float().clamp(min=1e-6)


def contrast_term(case: Case) -> torch.Tensor:
    """`contrast` of the new classes with the old ones.

    The sums are those of the global batch. Every part of the batch gives the gradient
    of its own directions, and its share of the value.
    """
    own = case.once(_directions)
    sums = own + (case.totals["contrast"].to(own).view_as(own) - own).detach()
    value = contrast(sums, case.need_replay().means)
    return value - (1 - case.share) * value.detach()


def uncertainty_term(case: Case) -> torch.Tensor:
    """`uncertainty` over all classes, mean over all pixels."""
    return uncertainty(case.logits[:, 1:], case.targets, case.counts.area)
