"""TODO bank.fusion."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from kproba.bank.bank import PrototypeBank, bank_features
from kproba.network.network import Outputs

LEAST_EVIDENCE = -60.0  # log q or log κ


LEAST_SHARE = 1e-6  # of a class


@dataclass(frozen=True)
class PseudoLabelSettings:
    """The rule and its numbers.

    Attributes:
        rule: One of `kproba.methods.rules.RULES`.
        threshold: Least p of `confidence` and `agree`.
        score_threshold: Least s of `klda`, `lda` and `kappa`.
        foreground: Who says how likely a pixel is of any class at all, the "network" or
            "both"; of the same rules.
        probability_weight: w of the same; 0: the bank alone.
        posterior_weight: a of `klda` and `lda`.
        foreground_bias: b of `klda` and `lda`, where both say how much foreground.
        image_prior: How often the classes' shares are fitted to the image, of the same
            rules; 0: never. See `fit_to_image`.
        temperature: τ of `kappa`.
        metric: "euclidean" or "mahalanobis", of `kappa`.
    """

    rule: str
    threshold: float
    score_threshold: float
    foreground: Literal["network", "both"]
    probability_weight: float
    posterior_weight: float
    foreground_bias: float
    image_prior: int
    temperature: float
    metric: Literal["euclidean", "mahalanobis"]


def log_probabilities(logits: torch.Tensor, *, softmax: bool) -> torch.Tensor:
    """Log p, a sigmoid per class or one softmax; logits (B, C, H, W)."""
    return logits.log_softmax(dim=1) if softmax else F.logsigmoid(logits)


def fuse(
    log_p: torch.Tensor, log_evidence: torch.Tensor, settings: PseudoLabelSettings
) -> torch.Tensor:
    """What network and bank together make of every pixel: log s, (B, C, H, W) float32.

    With p̄ the network's probabilities normalised over the classes and q the bank's,
    where the network says how much foreground there is,

        s_0 = p̄_0,  s_c = (1 - p̄_0) softmax_{c>0}(w log p̄_c + a log q_c),

    and where both do, s = softmax(w log p̄ + a log q + b [c>0]). `kappa` has κ for q,
    and neither a nor b.

    Args:
        log_p: Log-probabilities of the network, (B, C, H, W).
        log_evidence: Log q or log κ of the bank, (B, C, H, W).
        settings: The rule, one of `kproba.methods.rules.RULES_THAT_SCORE`.
    """
    log_p = log_p.log_softmax(dim=1)
    by_kappa = settings.rule == "kappa"
    score = settings.probability_weight * log_p
    score += log_evidence * (1.0 if by_kappa else settings.posterior_weight)
    if settings.foreground == "both":
        score[:, 1:] += 0.0 if by_kappa else settings.foreground_bias
        return score.log_softmax(dim=1)
    foreground = log_p[:, 1:].logsumexp(dim=1, keepdim=True)
    return torch.cat([log_p[:, :1], foreground + score[:, 1:].log_softmax(1)], dim=1)


def fit_to_image(
    log_s: torch.Tensor,
    share: torch.Tensor,
    iterations: int,
    counted: torch.Tensor | None = None,
) -> torch.Tensor:
    """Scores with the classes' shares in the image in place of those in training.

    An image shows few of the classes, and what most of its foreground looks like, the
    doubtful rest probably is. EM for the shares of the classes c > 0 in the foreground,
    with one image as the new data (Saerens, Latinne & Decaestecker, Neural Computation
    14, 2002):

        π'_c = mean over pixels of s_c / (1 - s_0), each weighted by its 1 - s_0,
        s_c ← s_c π'_c / π_c, normalised to 1 - s_0, from the first s_c each time.

    Args:
        log_s: What `fuse` gives, (B, C, H, W).
        share: π, the share of every class in training, (C,), any scale.
        iterations: Of EM.
        counted: Pixels that tell of the image's classes, (B, H, W) bool; None: all.

    Returns:
        Log s after the iterations, (B, C, H, W); s_0 as it was.
    """
    trained = (share[1:] / share[1:].sum()).clamp(min=LEAST_SHARE).log().to(log_s)
    foreground = log_s[:, 1:].logsumexp(dim=1, keepdim=True)
    first = log_s[:, 1:] - foreground
    weight = (
        foreground.exp() if counted is None else foreground.exp() * counted[:, None]
    )
    total = weight.sum(dim=(2, 3)).clamp(min=1e-6)
    fitted = first
    for _ in range(iterations):
        shown = (fitted.exp() * weight).sum(dim=(2, 3)) / total
        change = shown.clamp(min=LEAST_SHARE).log() - trained
        fitted = (first + change[:, :, None, None]).log_softmax(dim=1)
    return torch.cat([log_s[:, :1], foreground + fitted], dim=1)


def evidence(
    outputs: Outputs, bank: PrototypeBank, settings: PseudoLabelSettings
) -> torch.Tensor:
    """The bank's log evidence of every cell, (B, C, h, w) float32, at least -60."""
    features = bank_features(outputs, bank.settings).float()
    batch, _, height, width = features.shape
    cells = features.permute(0, 2, 3, 1).flatten(0, 2)
    if settings.rule == "kappa":
        log_evidence = bank.log_kappa(
            cells, temperature=settings.temperature, metric=settings.metric
        )
    else:
        log_evidence = bank.log_posterior(cells)
    # Of a class without prototype it is -inf, which must not be interpolated.
    log_evidence = log_evidence.clamp(min=LEAST_EVIDENCE)
    return log_evidence.view(batch, height, width, -1).permute(0, 3, 1, 2)
