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

Of a network with a softmax p is that softmax. Unsure pixels (`kproba.splits.UNSURE`)
train nothing.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
import torch.nn.functional as F

from kproba.artifacts import atomic_directory, atomic_path, write_label_image
from kproba.data import Batch
from kproba.distributed import ALONE, Process
from kproba.methods import RULES, RULES_THAT_SCORE, RULES_WITH_BANK
from kproba.model import Outputs, SegmentationNetwork, compose_logits, upsample
from kproba.prototypes import PrototypeBank, bank_features
from kproba.quality import hidden_confusion, quality_table
from kproba.splits import UNSURE, LabelMap

ENTROPY_BINS = 10_000  # of [0, 1]
LEAST_EVIDENCE = -60.0  # log q or log κ
LEAST_SHARE = 1e-6  # of a class
LOWEST_ENTROPY = 0.001  # below it every pixel is sure


@dataclass(frozen=True)
class PseudoLabelSettings:
    """The rule and its numbers.

    Attributes:
        rule: One of `kproba.methods.RULES`.
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
        settings: The rule, one of `kproba.methods.RULES_THAT_SCORE`.
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


def export(
    teacher: SegmentationNetwork,
    bank: PrototypeBank | None,
    batches: Iterable[Batch],
    folder: str | Path,
    table: str | Path,
    quality: str | Path,
    *,
    settings: PseudoLabelSettings,
    names: list[str],
    label_map: LabelMap,
    source: SegmentationNetwork | None = None,
    process: Process = ALONE,
) -> None:
    """Write the training target of every image of a step.

    Args:
        teacher: Network of step t-1.
        bank: Bank of that step; None for the rules without.
        batches: This process's images with their raw labels, read twice by the rule
            `entropy`; the table is in the order of their keys.
        folder: Gets one palette PNG per image, named by its id: the target with old
            classes in place of those 0 that the rule recognised.
        table: Gets a CSV: per image its background pixels, how many were recovered or
            are unsure, and per old class (by name) how many.
        quality: Gets a CSV: how good the labels are, see `kproba.quality`.
        settings: The rule.
        names: Names of S_{t-1}, background first.
        label_map: Raw labels to the outputs of step t.
        source: Network of the bank's features, if not the teacher.
        process: This one of several that share the work; networks and bank are on its
            device.
    """
    thresholds = None
    if settings.rule == "entropy":
        thresholds = entropy_thresholds(teacher, batches, label_map, process)
    to_target = torch.from_numpy(label_map.training_table())
    side = label_map.first_new + 1
    confusion = torch.zeros(side, side, dtype=torch.int64)
    own: dict[int, dict[str, Any]] = {}  # rows of the table by key
    with atomic_directory(folder, process) as temporary:
        for batch in batches:
            images = batch.images.to(process.device, non_blocking=True)
            targets = to_target[batch.targets.long()]
            hidden = targets == 0
            found = pseudo_label(
                *(teacher, bank, images, settings, thresholds, source),
                hidden=hidden.to(process.device),
            ).cpu()
            merged = torch.where(hidden, found, targets)
            confusion += hidden_confusion(batch.targets, found, label_map)
            for key, name, target, label, zero in zip(
                batch.keys.tolist(), batch.ids, merged, found, hidden, strict=True
            ):
                write_label_image(temporary / f"{name}.png", target.numpy())
                counts = torch.bincount(label[zero], minlength=256)
                own[key] = _table_row(name, target.numel(), counts.tolist(), names)
        rows = {key: row for part in process.gather(own) for key, row in part.items()}
        confusion = torch.stack(process.gather(confusion)).sum(dim=0)
        if process.first:
            with atomic_path(quality) as temporary_table:
                judged = quality_table(confusion, names)
                judged.to_csv(temporary_table, index=False, float_format="%.4f")
            with atomic_path(table) as temporary_table:
                lines = [rows[key] for key in sorted(rows)]
                pd.DataFrame(lines).to_csv(temporary_table, index=False)


def _table_row(
    name: str, pixels: int, counts: list[int], names: list[str]
) -> dict[str, Any]:
    """One image: what its background pixels were taken for, class by class."""
    found = counts[1 : len(names)]
    row: dict[str, Any] = {
        "id": name,
        "pixels": pixels,
        "background": sum(counts),
        "recovered": sum(found),
        "unsure": counts[UNSURE],
    }
    for label, count in zip(names[1:], found, strict=True):
        row[label if label not in row else f"{label} (class)"] = count
    return row
