"""Pseudo labels: which background pixels of a new step are really old classes.

For pixels with raw label 0, p are the teacher's class probabilities over S_{t-1}
(sigmoids of its upsampled logits) and the bank's evidence is upsampled from feature
resolution. All rules may answer 0, and the first three do where max s is below their
`score_threshold`. All other pixels keep their label.

| rule         | answer                                                               |
|--------------|----------------------------------------------------------------------|
| `lda`        | argmax s, what `fuse` makes of p and the posterior q of LDA           |
| `klda`       | the same with q of KLDA: by random Fourier features                   |
| `kappa`      | the same with κ = softmax(-d_c/τ), d distances to prototypes, for q   |
| `confidence` | argmax p where max p ≥ threshold, else 0 (BARM)                       |
| `argmax`     | argmax p                                                             |
| `agree`      | argmax p where the bank agrees or max p ≥ threshold, else 0           |
| `entropy`    | argmax p where its entropy is below the class's median, else unsure   |

Of a network with a softmax p is that softmax. Unsure pixels (`kproba.data.labels.UNSURE`)
train nothing.
"""

import math
from collections.abc import Iterable

import torch

from kproba.bank.bank import PrototypeBank
from kproba.bank.fusion import (
    PseudoLabelSettings,
    evidence,
    fit_to_image,
    fuse,
    log_probabilities,
)
from kproba.data.labels import UNSURE, LabelMap
from kproba.data.loaders import Batch
from kproba.methods.rules import RULES, RULES_THAT_SCORE, RULES_WITH_BANK
from kproba.network.heads import compose_logits
from kproba.network.layers import upsample
from kproba.network.network import SegmentationNetwork
from kproba.runtime.distributed import ALONE, Process

ENTROPY_BINS = 10_000  # of [0, 1]


LOWEST_ENTROPY = 0.001  # below it every pixel is sure


def decide(
    logits: torch.Tensor,
    log_evidence: torch.Tensor | None,
    settings: PseudoLabelSettings,
    *,
    softmax: bool = False,
    thresholds: torch.Tensor | None = None,
    share: torch.Tensor | None = None,
    counted: torch.Tensor | None = None,
) -> torch.Tensor:
    """Apply a rule to every pixel.

    Args:
        logits: Teacher's logits over S_{t-1}, (B, C, H, W).
        log_evidence: The bank's log q (`klda`, `lda`, `agree`) or log κ (`kappa`),
            (B, C, H, W); None for the rules without a bank.
        settings: The rule.
        softmax: Whether p is one softmax.
        thresholds: Of `entropy`, (C,); see `entropy_thresholds`.
        share: The bank's shares of the classes, (C,), for an image prior.
        counted: Pixels that tell of the image's classes, (B, H, W) bool; None: all.

    Returns:
        Labels (B, H, W) uint8 in output indices.

    Raises:
        ValueError: The rule needs evidence, shares or thresholds and got none.
    """
    rule = settings.rule
    if rule not in RULES:
        raise ValueError(f"Expected a rule of {', '.join(RULES)}, but got '{rule}'.")
    if rule in RULES_WITH_BANK and log_evidence is None:
        raise ValueError(f"Rule '{rule}' needs a prototype bank, but got none.")
    if rule == "entropy" and thresholds is None:
        raise ValueError("Rule 'entropy' needs a threshold per class, but got none.")
    log_p = log_probabilities(logits, softmax=softmax)
    best, label = log_p.max(dim=1)
    sure = best.exp() >= settings.threshold
    if log_evidence is None or rule not in RULES_WITH_BANK:
        if rule == "confidence":
            label = label * sure
        elif thresholds is not None:
            label = label.where(entropy(log_p) < thresholds[label], UNSURE)
    elif rule in RULES_THAT_SCORE:
        log_s = fuse(log_p, log_evidence, settings)
        if settings.image_prior:
            if share is None:
                raise ValueError("image_prior needs the bank's shares, but got none.")
            log_s = fit_to_image(log_s, share, settings.image_prior, counted)
        best, label = log_s.max(dim=1)
        label = label * (best.exp() >= settings.score_threshold)
    else:  # agree
        label = label * (sure | (log_evidence.argmax(dim=1) == label))
    return label.to(torch.uint8)


def entropy(log_p: torch.Tensor) -> torch.Tensor:
    """Entropy of p̄ as a share of the largest, log C; (B, C, H, W) to (B, H, W)."""
    log_p = log_p.log_softmax(dim=1)
    return -(log_p.exp() * log_p).sum(dim=1) / math.log(max(log_p.shape[1], 2))


@torch.inference_mode()
def entropy_thresholds(
    teacher: SegmentationNetwork,
    batches: Iterable[Batch],
    label_map: LabelMap,
    process: Process = ALONE,
) -> torch.Tensor:
    """Median entropy of every class, over the hidden pixels that are taken for it.

    To a ten-thousandth, from counts that add up over processes (Douillard et al., CVPR
    2021).

    Args:
        teacher: Network of step t-1.
        batches: This process's images with their raw labels.
        label_map: Of step t; tells which labels are hidden.
        process: This one of several.

    Returns:
        (C,) float32, at least 0.001.
    """
    counts = torch.zeros(
        teacher.channels * ENTROPY_BINS, dtype=torch.int64, device=process.device
    )
    table = torch.from_numpy(label_map.training_table())
    for batch in batches:
        images = batch.images.to(process.device, non_blocking=True)
        hidden = (table[batch.targets.long()] == 0).to(process.device)
        logits = teacher.predict_logits(images)
        log_p = log_probabilities(logits, softmax=teacher.architecture.softmax)
        place = (entropy(log_p) * ENTROPY_BINS).long().clamp(0, ENTROPY_BINS - 1)
        place += log_p.argmax(dim=1) * ENTROPY_BINS
        counts += torch.bincount(place[hidden], minlength=len(counts))
    process.add_up(counts)
    below = counts.view(-1, ENTROPY_BINS).cumsum(dim=1)
    half = below[:, -1:] / 2
    median = (below < half).sum(dim=1) + 1
    return (median / ENTROPY_BINS).clamp(min=LOWEST_ENTROPY)


@torch.inference_mode()
def pseudo_label(
    teacher: SegmentationNetwork,
    bank: PrototypeBank | None,
    images: torch.Tensor,
    settings: PseudoLabelSettings,
    thresholds: torch.Tensor | None = None,
    source: SegmentationNetwork | None = None,
    hidden: torch.Tensor | None = None,
) -> torch.Tensor:
    """Labels over S_{t-1} of images (B, 3, H, W) uint8, (B, H, W) uint8.

    `source` is the network of the bank's features, if not the teacher; `hidden`
    (B, H, W) bool are the pixels that need a label, None: all.
    """
    outputs = teacher(images)
    size = images.shape[-2:]
    logits = upsample(compose_logits(outputs.logits).float(), size)
    log_evidence = share = None
    if bank is not None and settings.rule in RULES_WITH_BANK:
        shown = outputs if source is None else source(images)
        log_evidence = upsample(evidence(shown, bank, settings), size)
        share = bank.share
    return decide(
        logits,
        log_evidence,
        settings,
        softmax=teacher.architecture.softmax,
        thresholds=thresholds,
        share=share,
        counted=hidden,
    )
