"""Cross-entropies: a sigmoid per class, or one softmax."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from kproba.data.labels import IGNORE
from kproba.methods.losses.case import Case
from kproba.network.layers import upsample
from kproba.network.logits import compose_logits


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


def full_bce(
    logits: Sequence[torch.Tensor], targets: torch.Tensor, count: float
) -> torch.Tensor:
    """BCE over S_t against the target; all channels are trained (step 0, fine-tuning).

    The logit of the background is the same as in inference. Arguments as in `pb_bce`.
    """
    live = compose_logits([z.float() for z in logits])
    live = upsample(live, targets.shape[-2:])
    return bce(live, targets.long(), count)


def ce(
    logits: torch.Tensor,
    targets: torch.Tensor,
    count: float,
    certainty: torch.Tensor | None = None,
) -> torch.Tensor:
    """Softmax cross-entropy over S_t against ŷ, -log softmax(z)_ŷ.

    Args:
        logits: z over S_t, (B, |S_t|, H, W).
        targets: ŷ in output indices, (B, H, W) uint8, 255 ignored.
        count: Denominator.
        certainty: ν, a factor per image (B,); None for 1 (PLOP).
    """
    loss = F.cross_entropy(
        logits, targets.long(), ignore_index=IGNORE, reduction="none"
    )
    if certainty is not None:
        loss = loss * certainty[:, None, None]
    return loss.sum() / max(count, 1)


def unbiased_ce(
    logits: torch.Tensor, targets: torch.Tensor, old: int, count: float
) -> torch.Tensor:
    """Softmax cross-entropy in which background may be any old class (MiB).

    Where ŷ = 0: -log Σ_{c < old} softmax(z)_c, elsewhere -log softmax(z)_ŷ.

    Args:
        logits: z over S_t, (B, |S_t|, H, W).
        targets: ŷ in output indices, (B, H, W) uint8, 255 ignored.
        old: |S_{t-1}|, background included.
        count: Valid pixels.
    """
    log_p = logits.log_softmax(dim=1)
    background = log_p[:, :old].logsumexp(dim=1, keepdim=True)
    log_p = torch.cat([background, log_p[:, 1:]], dim=1)
    loss = F.nll_loss(log_p, targets.long(), ignore_index=IGNORE, reduction="none")
    return loss.sum() / max(count, 1)  # summed so, it is deterministic on a GPU


def bce_term(case: Case) -> torch.Tensor:
    """`full_bce` over S_t."""
    return full_bce(case.student.logits, case.targets, case.counts.pixels)


def ce_term(case: Case) -> torch.Tensor:
    """`ce` over S_t."""
    return ce(case.logits, case.targets, case.counts.pixels)


def certain_ce_term(case: Case) -> torch.Tensor:
    """`ce`, each image times its certainty ν.

    The mean is over all pixels, including the unsure ones, as in the authors' code
    (PLOP).
    """
    return ce(case.logits, case.targets, case.counts.area, case.certainty)


def unbiased_ce_term(case: Case) -> torch.Tensor:
    """`unbiased_ce` over S_t."""
    return unbiased_ce(case.logits, case.targets, case.old_classes, case.counts.pixels)
