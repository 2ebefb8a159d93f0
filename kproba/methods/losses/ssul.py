"""The term of SSUL (Cha et al., NeurIPS 2021, arXiv 2106.11562)."""

from collections.abc import Sequence

import torch

from kproba.data.labels import UNKNOWN
from kproba.methods.losses.case import Case
from kproba.methods.losses.cross_entropy import bce
from kproba.network.layers import upsample
from kproba.network.logits import compose_logits


def unknown_bce(
    logits: Sequence[torch.Tensor],
    unknown: torch.Tensor,
    targets: torch.Tensor,
    count: float,
) -> torch.Tensor:
    """BCE over the background, the classes and unknown objects (SSUL).

    Σ_c BCE(z_c, [c = ŷ]) over all channels, mean over pixels that are not 255. Every
    pixel has one positive channel: unknown objects where ŷ is `UNKNOWN`.

    Args:
        logits: z_k of the steps 0..t, each (B, 1 + |C_k|, h, w).
        unknown: The logit of unknown objects, (B, 1, h, w).
        targets: ŷ in output indices or `UNKNOWN`, (B, H, W) uint8, 255 ignored.
        count: Valid pixels.
    """
    known = compose_logits([z.float() for z in logits])
    live = torch.cat([known, unknown.float()], dim=1)
    channels = targets.long()
    channels = channels.where(channels != UNKNOWN, known.shape[1])
    return bce(upsample(live, targets.shape[-2:]), channels, count)


def unknown_bce_term(case: Case) -> torch.Tensor:
    """`unknown_bce` over S_t and unknown objects."""
    unknown = case.student.extras["unknown"]
    return unknown_bce(case.student.logits, unknown, case.targets, case.counts.pixels)
