"""Logits over all classes seen, composed from the logits of the steps.

The module of step 0 gives the logits [background, classes of C_0], that of step k ≥ 1
gives [r_k, classes of C_k], with r_k the background adaptation of step k. The
background's logit over S_t is

    z_0 + Σ_{k=1..t} min(r_k, 0),

and while step t trains it is sg(z_0) + Σ_{k<t} sg(min(r_k, 0)) + r_t, with sg = no
gradient (Zhang & Gao, "Background Adaptation with Residual Modeling", ECCV 2024). A
head without such adaptation has r_k = 0.
"""

from collections.abc import Sequence

import torch


def compose_logits(logits: Sequence[torch.Tensor]) -> torch.Tensor:
    """Compose the logits over S_t for inference.

    Args:
        logits: z_k of the steps 0..t, each (B, 1 + |C_k|, h, w).

    Returns:
        (B, |S_t|, h, w): z_0 + Σ_k min(r_k, 0) for the background, then the classes in
        the order of their steps.
    """
    background = logits[0][:, :1]
    for adaptation in logits[1:]:
        background = background + adaptation[:, :1].clamp(max=0)
    return torch.cat([background, *(z[:, 1:] for z in logits)], dim=1)


def training_background(logits: Sequence[torch.Tensor]) -> torch.Tensor:
    """The background's logit while the newest step trains, earlier parts protected.

    Args:
        logits: z_k of the steps 0..t, each (B, 1 + |C_k|, h, w), t ≥ 1.

    Returns:
        (B, 1, h, w): sg(z_0) + Σ_{k<t} sg(min(r_k, 0)) + r_t.
    """
    return compose_logits(logits[:-1])[:, :1].detach() + logits[-1][:, :1]
