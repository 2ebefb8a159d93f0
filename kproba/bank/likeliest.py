"""The most likely class of every pixel, without the scores of all classes.

Evaluation and pseudo labels need only labels. `kproba.bank.fusion` gives log s of every
class; here the same rule is computed with probabilities, in few passes over the (H, W,
C) values, and strip by strip, so that they stay in a processor's cache. Both agree up
to rounding: labels differ only where two classes tie, or where the scores of all
classes are below `LEAST`. That is background.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from kproba.bank.decision import Decision
from kproba.bank.fusion import LEAST_SHARE, Combination
from kproba.bank.views import View
from kproba.network.heads import Head
from kproba.network.layers import upsample
from kproba.network.network import SegmentationNetwork

LEAST = 1e-37  # of a sum of scores or probabilities
ROUNDING = 1e-4  # of logits, so that interpolation cannot make a class win after all
GPU_VALUES = 2**26  # of a strip on a GPU


class Rows:
    """Bilinear interpolation of cells to pixels, for some rows of pixels at a time.

    The same as `upsample` up to rounding: columns are interpolated at once, and rows
    when they are used.

    Args:
        cells: (B, C, h, w) float32.
        size: (H, W).
    """

    def __init__(self, cells: torch.Tensor, size: Sequence[int]):
        high, (height, width) = cells.shape[2], size
        wide = upsample(cells, (high, width)).permute(0, 2, 3, 1).contiguous()
        self.wide = wide  # (B, h, W, C)
        place = (torch.arange(height, device=cells.device) + 0.5) * high / height - 0.5
        place = place.clamp(min=0)
        self.upper = place.long().clamp(max=high - 1)
        self.lower = (self.upper + 1).clamp(max=high - 1)
        self.share = (place - self.upper).view(-1, 1, 1)

    def __getitem__(self, rows: slice) -> torch.Tensor:
        """Some rows of pixels, (B, rows, W, C)."""
        upper, lower, share = self.upper[rows], self.lower[rows], self.share[rows]
        if self.wide.device.type == "cpu" and upper[0] == upper[-1]:
            # All rows are between two rows of cells, so no indexing is needed.
            first, last = int(upper[0]), int(lower[0])
            return torch.lerp(
                self.wide[:, first, None], self.wide[:, last, None], share
            )
        return self.wide[:, upper].lerp_(self.wide[:, lower], share)

    def strips(self) -> Iterator[slice]:
        """Rows of pixels, one strip after the other: together they are all rows.

        On a GPU, a strip has enough rows to keep it busy. On a CPU, it has the rows
        between two rows of cells, whose values stay in the cache.
        """
        height, device = len(self.upper), self.wide.device
        if device.type == "cpu":
            counts = self.upper.unique_consecutive(return_counts=True)[1].tolist()
        else:
            step = max(1, GPU_VALUES // self.wide[:, 0].numel())
            counts = [min(step, height - top) for top in range(0, height, step)]
        top = 0
        for count in counts:
            yield slice(top, top + count)
            top += count


def largest_logits(
    logits: torch.Tensor, size: Sequence[int], head: Head | None = None
) -> torch.Tensor:
    """The channel with the largest logit of every pixel, (B, H, W) int64.

    A pixel is a mean of the four cells around it. So a class wins nowhere between four
    cells if its largest logit there is below the smallest of another class. Classes
    that win nowhere in the batch are not brought to the size of the images: of many
    classes, an image shows few.

    Args:
        logits: (B, C, h, w) float32, as `SegmentationNetwork.compose` gives them.
        size: (H, W).
        head: The head of the network; only one with hidden channels is needed.
    """
    cells = F.pad(logits, (0, 1, 0, 1), mode="replicate")
    largest = F.max_pool2d(cells, 2, stride=1)
    smallest = -F.max_pool2d(-cells, 2, stride=1)
    bound = smallest.amax(dim=1, keepdim=True)
    bound -= ROUNDING * bound.abs().clamp(min=1)
    wins = (largest < bound).logical_not()  # keeps NaN, so a class wins
    wins = wins.any(dim=3).any(dim=2).any(dim=0)
    hidden = 0 if head is None else head.hidden
    if hidden:  # they can only raise the background
        wins[0] = wins[-hidden:] = True
    possible = wins.nonzero()[:, 0]
    rows_of = Rows(logits[:, possible], size)
    labels = logits.new_empty(len(logits), *size, dtype=torch.int64)
    for rows in rows_of.strips():
        values = rows_of[rows]
        if head is not None and hidden:
            values = head.merge(values.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        labels[:, rows] = possible[values.argmax(dim=3)]
    return labels


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

    With the network of step 0 in the place of the bank, u_c and s_0 are those of
    `kproba.bank.ensemble`.

    Args:
        network: Network of the step.
        combination: Its bank, with a decision that is `by_parts`.
        view: Outputs of the networks for the images.
        counted: Pixels that count for the class shares, (B, H, W) bool; None: all.

    Returns:
        max_c s_c, (B, H, W) float32, and its class, int64; 0 is background.
    """
    parts: Iterable[Part] = _parts(network, combination, view)
    if combination.decision.image_prior:
        parts = _fitted(list(parts), combination, counted)
    images = len(view.outputs.backbone)
    best = view.outputs.backbone.new_empty(images, *view.size, dtype=torch.float32)
    labels = torch.empty_like(best, dtype=torch.int64)
    for rows, u, share in parts:
        score, label = u.max(dim=3)
        score *= share / u.sum(dim=3).clamp(min=LEAST)
        is_class = score > 1 - share
        best[:, rows] = torch.where(is_class, score, 1 - share)
        labels[:, rows] = (label + 1) * is_class
    return best, labels


def likeliest_by_bank(combination: Combination, view: View) -> torch.Tensor:
    """Labels by the bank alone, (B, H, W) int64.

    The scores differ from what is interpolated here by a number that all classes share.

    Args:
        combination: The bank, with a decision that is `bank_alone` and without an image
            prior.
        view: Outputs of the networks for the images.
    """
    decision = combination.decision
    scores = combination.log_evidence(view.features) * decision.evidence_weight
    scores[:, 1:] += decision.bias
    return largest_logits(scores, view.size)


class Part(NamedTuple):
    """Scores of some rows of pixels.

    Attributes:
        rows: The rows of these pixels.
        u: Scores of the classes but the background, (B, rows, W, C - 1), any scale.
        share: 1 - s_0, (B, rows, W).
    """

    rows: slice
    u: torch.Tensor
    share: torch.Tensor


def _parts(
    network: SegmentationNetwork, combination: Combination, view: View
) -> Iterator[Part]:
    """u_c of all pixels, strip by strip."""
    if combination.decision.by_networks:
        yield from _parts_by_networks(network, combination, view)
        return
    weight = combination.decision.probability_weight
    # Interpolation is linear: the exponent may be applied to the cells.
    evidence = combination.log_evidence(view.features)[:, 1:]
    evidence = evidence * combination.decision.evidence_weight
    # A common factor of all classes changes nothing. Without it, all scores could be 0
    # in float32 for pixels that the bank considers background.
    evidence -= evidence.amax(dim=1, keepdim=True)
    logits = Rows(network.compose(view.outputs), view.size)
    log_q = Rows(evidence, view.size)
    for rows in logits.strips():
        z = network.head.merge(logits[rows].permute(0, 3, 1, 2))
        p = network.probabilities(z).permute(0, 2, 3, 1)
        foreground = p[..., 1:].sum(dim=3)
        share = foreground / (foreground + p[..., 0]).clamp(min=LEAST)
        classes = p[..., 1:] if weight == 1 else p[..., 1:].pow(weight)
        yield Part(rows, log_q[rows].exp_().mul_(classes), share)


def _parts_by_networks(
    network: SegmentationNetwork, combination: Combination, view: View
) -> Iterator[Part]:
    """u_c of all pixels by two networks, strip by strip."""
    decision, known = combination.decision, combination.known - 1
    # Both networks have the same head.
    pair = [
        Rows(network.compose(each), view.size) for each in (view.outputs, view.features)
    ]
    for rows in pair[0].strips():
        p, first = (
            network.probabilities(network.head.merge(z[rows].permute(0, 3, 1, 2)))
            for z in pair
        )
        classes, first = (q.permute(0, 2, 3, 1)[..., 1:] for q in (p, first))
        old, later = classes[..., :known], classes[..., known:]
        if decision.rule == "step0_mean":
            old = (old + first) / 2
        else:
            old = _divided(old, first, decision)
        u = torch.cat([old, later], dim=3)
        foreground = (u if decision.foreground == "both" else classes).sum(dim=3)
        share = foreground / (foreground + p[:, 0]).clamp(min=LEAST)
        yield Part(rows, u, share)


def _divided(p: torch.Tensor, first: torch.Tensor, decision: Decision) -> torch.Tensor:
    """Σ p, divided in the ratio of p^w p⁰^a, over the last dimension."""
    # Without the common factor, all products could be 0 in float32.
    evidence = first / first.amax(dim=-1, keepdim=True).clamp(min=LEAST)
    product = p.pow(decision.probability_weight)
    product *= evidence.pow_(decision.posterior_weight)
    product /= product.sum(dim=-1, keepdim=True).clamp(min=LEAST)
    return product.mul_(p.sum(dim=-1, keepdim=True))


def _fitted(
    parts: list[Part], combination: Combination, counted: torch.Tensor | None
) -> Iterator[Part]:
    """r_c u_c: the scores with the prior of each image.

    Args:
        parts: All pixels of the images.
        combination: The bank, whose shares in training are π, and the decision.
        counted: Pixels that count for the class shares, (B, H, W) bool; None: all.
    """
    trained = combination.trained_shares.to(parts[0].u)
    change = torch.ones_like(parts[0].u[:, 0, 0])  # r, (B, C - 1)
    for iteration in range(combination.decision.image_prior):
        whole, seen = torch.zeros_like(change[:, :1]), torch.zeros_like(change)
        for rows, u, share in parts:
            weight = share if counted is None else share * counted[:, rows]
            values, weight = u.flatten(1, 2), weight.flatten(1)
            if iteration == 0:  # r is 1
                total = values.sum(dim=2)
            else:
                total = torch.bmm(values, change[:, :, None])[:, :, 0]
            total = total.clamp_(min=LEAST)
            seen += torch.bmm((weight / total)[:, None], values)[:, 0]
            whole += weight.sum(dim=1, keepdim=True)
        change = (change * seen / whole.clamp(min=1e-6)).clamp(min=LEAST_SHARE)
        change /= trained
    for rows, u, share in parts:
        yield Part(rows, u.mul_(change[:, None, None]), share)
