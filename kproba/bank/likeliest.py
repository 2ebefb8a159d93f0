"""The likeliest class of every pixel, without the scores of all classes.

A test needs labels alone. `kproba.bank.fusion` gives log s of every class; here the
same rule is computed with probabilities, in about a third of the passes over the
(C, H, W) values. Both agree up to rounding: labels differ only where two classes tie,
or where the scores of all classes are below `LEAST`. That is background.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from kproba.bank.fusion import LEAST_SHARE, Combination
from kproba.bank.views import View
from kproba.network.layers import upsample
from kproba.network.logits import compose_logits
from kproba.network.network import SegmentationNetwork

LEAST = 1e-37  # of a sum of scores or probabilities
ROUNDING = 1e-4  # of logits, so that interpolation cannot make a class win after all


def largest_logits(logits: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """The channel with the largest logit of every pixel, (B, H, W) int64.

    A pixel is a mean of the four cells around it. So a class wins nowhere between four
    cells if its largest logit there is below the smallest of another class. Classes
    that win nowhere in the batch are not brought to the size of the images: of many
    classes, an image shows few.

    Args:
        logits: (B, C, h, w) float32.
        size: (H, W).
    """
    cells = F.pad(logits, (0, 1, 0, 1), mode="replicate")
    largest = F.max_pool2d(cells, 2, stride=1)
    smallest = -F.max_pool2d(-cells, 2, stride=1)
    bound = smallest.amax(dim=1, keepdim=True)
    bound -= ROUNDING * bound.abs().clamp(min=1)
    wins = (largest < bound).logical_not()  # NaN is kept: something must win
    possible = wins.any(dim=3).any(dim=2).any(dim=0).nonzero()[:, 0]
    return possible[upsample(logits[:, possible], size).argmax(dim=1)]


def likeliest_classes(
    network: SegmentationNetwork,
    combination: Combination,
    view: View,
    counted: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels by network and bank, and their scores.

    With p the network's probabilities and q the bank's evidence, u_c = p_c^w q_c^a, and
    r_c = 1, or with an image prior π'_c / π_c (`kproba.bank.fusion.fit_to_image`):

        s_0 = p_0 / Σ_c p_c,  s_c = (1 - s_0) r_c u_c / Σ_{c'>0} r_c' u_c'.

    Args:
        network: Network of the step.
        combination: Its bank, with a decision whose `foreground` is "network".
        view: What network and bank see of the images.
        counted: Pixels that tell of the image's classes, (B, H, W) bool; None: all.

    Returns:
        max_c s_c, (B, H, W) float32, and its class, int64; 0 is background.
    """
    size, decision = view.size, combination.decision
    logits = compose_logits(view.outputs.logits).float()
    p = network.probabilities(upsample(logits, size))
    background, foreground = p[:, 0].clone(), p[:, 1:].sum(dim=1)
    # Interpolation is linear: the exponent may be applied to the cells.
    evidence = combination.log_evidence(view.features) * decision.evidence_weight
    # A factor that the classes have in common changes nothing. Without it, all of them
    # could be 0 in float32 where the bank is sure of the background.
    evidence -= evidence[:, 1:].amax(dim=1, keepdim=True)
    evidence[:, 0] = 0  # is not read
    u = p if decision.probability_weight == 1 else p.pow_(decision.probability_weight)
    u = u.mul_(upsample(evidence, size).exp_())[:, 1:]
    share = foreground / (foreground + background).clamp(min=LEAST)
    if decision.image_prior:
        weight = share if counted is None else share * counted
        u.mul_(_changes(u, weight, combination)[:, :, None, None])
    best, label = u.max(dim=1)
    best *= foreground / u.sum(dim=1).clamp(min=LEAST)
    is_class = best > background
    best = torch.where(is_class, best, background)
    return best / (foreground + background).clamp(min=LEAST), (label + 1) * is_class


def _changes(
    u: torch.Tensor, weight: torch.Tensor, combination: Combination
) -> torch.Tensor:
    """How the shares of the classes change in each image: r, (B, C - 1).

    Args:
        u: Scores of the classes but the background, (B, C - 1, H, W).
        weight: 1 - s_0 of every pixel that counts, (B, H, W).
        combination: The bank, whose shares in training are π, and the decision.
    """
    trained = combination.bank.share[1:].to(u)
    trained = (trained / trained.sum()).clamp(min=LEAST_SHARE)
    values = u.permute(0, 2, 3, 1).flatten(1, 2)  # (B, pixels, C - 1)
    weight = weight.flatten(1)
    whole = weight.sum(dim=1, keepdim=True).clamp(min=1e-6)
    change = torch.ones_like(values[:, 0])
    for _ in range(combination.decision.image_prior):
        total = torch.bmm(values, change[:, :, None])[:, :, 0].clamp(min=LEAST)
        counted = torch.bmm((weight / total)[:, None], values)[:, 0]
        change = (change * counted / whole).clamp(min=LEAST_SHARE) / trained
    return change
