"""Two networks together: the network of step 0 takes the place of the bank.

Network and bank of a step are two models, and an ensemble of any two models may be
better than one of them. The rules here combine the network of a step with that of step
0, which a bank with `bank.network: base` runs as well. So a comparison with them, at
the same number of networks, shows what the bank adds.

The network of step 0 knows only the background and the classes C_0. Of the bank's file,
only the class shares are read, for the image prior.

With p the probabilities of the network of step t, p̄ the same normalised over S_t, and
p⁰ those of step 0's network:

`step0`: the network of step 0 divides what the other network gives to C_0,

    s_0 = p̄_0,
    s_c = m softmax_{C_0}(w log p_c + a log p⁰_c),  m = Σ_{c in C_0} p̄_c,  c in C_0,
    s_c = p̄_c for the classes of later steps.

If both decide on the foreground, the background belongs to the divided classes,

    s_c = m softmax_{0, C_0}(w log p_c + a log p⁰_c + b [c>0]),  m = p̄_0 + Σ_{C_0} p̄_c.

`step0_mean`: the usual ensemble,

    p'_c = (p_c + p⁰_c) / 2 for c in C_0,  p'_c = p_c for all others,

and s = p' normalised over S_t if both decide on the foreground. If the network of step
t decides alone, s_0 = p̄_0 and s_c = (1 - p̄_0) p'_c / Σ_{c'>0} p'_c'.

The mean is that of p and not of p̄: the sigmoid of a class does not depend on the other
classes that a network knows, while p⁰ normalised has to give the pixels of later
classes to the background or to C_0. The background is no part of the mean, because for
step 0's network it contains all later classes.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from kproba.bank.decision import Decision
from kproba.network.heads import Head
from kproba.network.layers import upsample
from kproba.network.network import Outputs


def network_evidence(
    head: Head, outputs: Outputs, classes: int, size: Sequence[int] | None = None
) -> torch.Tensor:
    """Log p⁰ of every cell or pixel, as the evidence of a combination.

    Args:
        head: The head of both networks.
        outputs: Outputs of step 0's network for images (B, 3, H, W).
        classes: |S_t|.
        size: (H, W) for the pixels; None for the cells.

    Returns:
        (B, |S_t|, h, w) or (B, |S_t|, H, W) float32; 0 for the classes of later steps,
        which `fuse_networks` does not read.
    """
    logits = head.compose(outputs.logits, outputs.extras).float()
    if size is not None:
        logits = upsample(logits, size)
    log_p = head.log_probabilities(head.merge(logits))
    return F.pad(log_p, (0, 0, 0, 0, 0, classes - log_p.shape[1]))


def fuse_networks(
    log_p: torch.Tensor, log_first: torch.Tensor, known: int, decision: Decision
) -> torch.Tensor:
    """Scores of two networks together: log s, (B, C, H, W) float32.

    The formulas are at the top of this module.

    Args:
        log_p: Log p of the network of step t, (B, C, H, W), C = |S_t|.
        log_first: Log p⁰ of step 0's network, (B, C, H, W); only the first `known`
            channels are read.
        known: 1 + |C_0|.
        decision: Its rule is "step0" or "step0_mean".
    """
    if decision.rule == "step0_mean":
        return _averaged(log_p, log_first, known, decision)
    return _divided(log_p, log_first, known, decision)


def _divided(
    log_p: torch.Tensor, log_first: torch.Tensor, known: int, decision: Decision
) -> torch.Tensor:
    """The rule `step0`."""
    log_p = log_p.log_softmax(dim=1)
    start = 1 if decision.foreground == "network" else 0
    group = log_p[:, start:known]
    score = decision.posterior_weight * log_first[:, start:known]
    if decision.probability_weight:  # 0 times a log p of -inf would be NaN
        score = score + decision.probability_weight * group
    if not start:
        score = torch.cat([score[:, :1], score[:, 1:] + decision.foreground_bias], 1)
    divided = group.logsumexp(dim=1, keepdim=True) + score.log_softmax(dim=1)
    return torch.cat([log_p[:, :start], divided, log_p[:, known:]], dim=1)


def _averaged(
    log_p: torch.Tensor, log_first: torch.Tensor, known: int, decision: Decision
) -> torch.Tensor:
    """The rule `step0_mean`."""
    pairs = torch.stack([log_p[:, 1:known], log_first[:, 1:known]])
    mean = pairs.logsumexp(dim=0) - math.log(2)
    averaged = torch.cat([log_p[:, :1], mean, log_p[:, known:]], dim=1)
    if decision.foreground == "both":
        return averaged.log_softmax(dim=1)
    log_p = log_p.log_softmax(dim=1)
    foreground = log_p[:, 1:].logsumexp(dim=1, keepdim=True)
    classes = foreground + averaged[:, 1:].log_softmax(dim=1)
    return torch.cat([log_p[:, :1], classes], dim=1)
