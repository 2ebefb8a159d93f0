"""Pseudo labels: finds background pixels of a new step that show old classes.

For pixels with raw label 0, p are the teacher's class probabilities over S_{t-1}, from
its upsampled logits, and the bank's evidence is upsampled from feature resolution.
Every rule may answer 0, and those that score do where max s is below
`score_threshold`. All other pixels keep their label.

| rule         | answer                                                               |
|--------------|----------------------------------------------------------------------|
| `lda`        | argmax s, the score of network and LDA bank together (`fuse`)         |
| `klda`       | the same with KLDA: a bank of random Fourier features                 |
| `kappa`      | the same with κ = softmax(-d_c/τ), d distances to prototypes          |
| `ridge`      | the same with a ridge regression on random ReLU features              |
| `step0`      | the same with step 0's network in the place of the bank               |
| `step0_mean` | argmax s, the mean of p and step 0's p                                |
| `confidence` | argmax p where max p ≥ threshold, else 0 (BARM, SSUL)                 |
| `argmax`     | argmax p                                                             |
| `sampled`    | a class drawn from p, pixel by pixel                                 |
| `agree`      | argmax p where the bank agrees or max p ≥ threshold, else 0           |
| `entropy`    | argmax p where its entropy is low for the class, else unsure          |

Unsure pixels (`kproba.data.labels.UNSURE`) do not take part in training.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from kproba.bank.decision import Decision
from kproba.bank.fusion import Combination
from kproba.bank.likeliest import likeliest_classes
from kproba.bank.views import View, views
from kproba.data.labels import check_room_for_classes
from kproba.data.tiles import needs_tiles
from kproba.methods.evidence import Evidence, PixelEvidence
from kproba.methods.rules import RULES
from kproba.network.network import SegmentationNetwork
from kproba.runtime.references import resolve


@dataclass(frozen=True)
class LabelSettings:
    """The rule of the pseudo labels and its parameters.

    Attributes:
        rule: One of `kproba.methods.rules.RULES`.
        threshold: Least p of `confidence` and `agree`.
        score_threshold: Least s of the rules that score.
        decision: How rules with a bank combine it with the network.
    """

    rule: str
    threshold: float = 0.0
    score_threshold: float = 0.0
    decision: Decision | None = None

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "LabelSettings":
        """From the settings of a job."""
        decision = content.get("decision")
        return cls(**{**content, "decision": decision and Decision.from_dict(decision)})


@dataclass(frozen=True)
class LabelCase:
    """Everything that a rule may use to label the pixels of whole images or parts.

    Attributes:
        log_p: The teacher's log-probabilities over S_{t-1}, (B, C, H, W) float32.
        settings: The rule and its parameters.
        log_evidence: The bank's log q or log κ, (B, C, H, W); None without a bank.
        combination: The bank and how it decides with the network; None without one.
        thresholds: Result of the rule's `prepare`; None if it has none.
        log_apart: Log p of the background and of each hidden channel of the head, each
            alone, (B, 1 + hidden, H, W); None if nothing is hidden. In `log_p` they are
            one class.
        hidden: Pixels that need a label, (B, H, W) bool; None: all.
        sample: Pixels that represent the whole image, if this is a part of a large one
            and the decision has an image prior; else None.
        origin: Row and column of the first pixel in the image.
    """

    log_p: torch.Tensor
    settings: LabelSettings
    log_evidence: torch.Tensor | None = None
    combination: Combination | None = None
    thresholds: torch.Tensor | None = None
    log_apart: torch.Tensor | None = None
    hidden: torch.Tensor | None = None
    sample: "LabelCase | None" = None
    origin: tuple[int, int] = (0, 0)

    def need_bank(self) -> tuple[torch.Tensor, Combination]:
        """The bank's evidence and the bank.

        Raises:
            ValueError: There are none.
        """
        if self.log_evidence is None or self.combination is None:
            raise ValueError(
                f"Expected a prototype bank for the rule '{self.settings.rule}', but "
                f"got none."
            )
        return self.log_evidence, self.combination


def by_score(case: LabelCase) -> torch.Tensor:
    """Rules that score by network and bank: argmax s, 0 where s is too small."""
    _, combination = case.need_bank()
    log_s, sample = _log_scores(case), case.sample
    if sample is None:
        log_s = combination.fit(log_s, case.hidden)
    else:
        log_s = combination.fit(log_s, sample.hidden, _log_scores(sample))
    best, label = log_s.max(dim=1)
    return label * (best.exp() >= case.settings.score_threshold)


def _log_scores(case: LabelCase) -> torch.Tensor:
    log_evidence, combination = case.need_bank()
    return combination.log_scores(case.log_p, log_evidence)


def by_confidence(case: LabelCase) -> torch.Tensor:
    """`confidence`: argmax p, 0 where p is below the threshold.

    A class must be likelier than the background and than each hidden channel of the
    head, but not than their sum (SSUL).
    """
    log_p = case.log_p
    if case.log_apart is not None:
        likelier = case.log_apart.amax(dim=1, keepdim=True)
        log_p = torch.cat([likelier, log_p[:, 1:]], dim=1)
    best, label = log_p.max(dim=1)
    return label * (best.exp() >= case.settings.threshold)


def by_argmax(case: LabelCase) -> torch.Tensor:
    """`argmax`: argmax p."""
    return case.log_p.argmax(dim=1)


# 1/g and 1/g² of g³ = g + 1: their multiples fill the interval from 0 to 1 evenly,
# along rows, along columns and in every neighbourhood of an image.
_DOWN, _ACROSS = 0.7548776662466927, 0.5698402909980532


def by_sampling(case: LabelCase) -> torch.Tensor:
    """`sampled`: a class drawn from p̄, so that labels around a pixel have its shares.

    The number that decides depends on the place of the pixel alone. So the labels do
    not depend on batches, tiles and processes.
    """
    height, width = case.log_p.shape[-2:]
    device = case.log_p.device
    rows = torch.arange(height, dtype=torch.float64, device=device) + case.origin[0]
    columns = torch.arange(width, dtype=torch.float64, device=device) + case.origin[1]
    place = (rows[:, None] * _DOWN + columns * _ACROSS).frac()
    upper = case.log_p.double().softmax(dim=1).cumsum(dim=1)
    label = (upper <= place).sum(dim=1)
    # The last sum may be a little below 1: then the last class that is possible.
    last = upper.argmax(dim=1)
    return torch.minimum(label, last)


def by_agreement(case: LabelCase) -> torch.Tensor:
    """`agree`: argmax p, 0 where the bank disagrees and p is below the threshold."""
    log_evidence, _ = case.need_bank()
    best, label = case.log_p.max(dim=1)
    sure = best.exp() >= case.settings.threshold
    return label * (sure | (log_evidence.argmax(dim=1) == label))


def decide(case: LabelCase) -> torch.Tensor:
    """Apply the rule of the settings to every pixel.

    Returns:
        Labels (B, H, W) uint8 in output indices, or `UNSURE`.

    Raises:
        ValueError: An unknown rule, or one that needs evidence or thresholds and got
            none.
    """
    name = case.settings.rule
    if name not in RULES:
        raise ValueError(
            f"Expected one of the rules {', '.join(RULES)}, but got '{name}'."
        )
    labels: torch.Tensor = resolve(RULES[name].function)(case)
    return labels.to(torch.uint8)


def quick_scores(
    labeller: "Labeller", view: View, hidden: torch.Tensor | None
) -> torch.Tensor | None:
    """`by_score` in a fast form; None if the decision needs all scores."""
    combination = labeller.combination
    if combination is None or not combination.decision.by_parts:
        return None
    best, label = likeliest_classes(labeller.network, combination, view, hidden)
    return label * (best >= labeller.settings.score_threshold)


def quick_confidence(
    labeller: "Labeller", view: View, hidden: torch.Tensor | None
) -> torch.Tensor | None:
    """`by_confidence` in a fast form; None if the head has hidden channels."""
    network = labeller.network
    if network.head.hidden:
        return None
    logits = network.pixel_logits(view.outputs, view.size)
    best, label = network.probabilities(logits).max(dim=1)
    return label * (best >= labeller.settings.threshold)


@dataclass(frozen=True)
class Labeller:
    """The network of step t-1, with its bank where the rule reads one.

    Attributes:
        network: Network of step t-1.
        settings: The rule and its numbers.
        combination: The bank and how it decides with the network; None for rules
            without a bank.
        thresholds: Result of the rule's `prepare`; None if it has none.

    Raises:
        ValueError: The network has more classes than a byte can name.
    """

    network: SegmentationNetwork
    settings: LabelSettings
    combination: Combination | None = None
    thresholds: torch.Tensor | None = None

    def __post_init__(self) -> None:
        check_room_for_classes(self.network.channels)

    @torch.inference_mode()
    def label(
        self,
        images: torch.Tensor,
        hidden: torch.Tensor | None = None,
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> torch.Tensor:
        """Labels over S_{t-1}, (B, H, W) uint8, of images (B, 3, H, W) uint8.

        If an image needs tiles, the probabilities of the network and the evidence of
        the bank are averaged over the tiles separately, and the rule is applied to each
        part.

        Args:
            images: (B, 3, H, W) uint8.
            hidden: Pixels that need a label, (B, H, W) bool; None: all.
            sizes: Height and width of each image, where they are on a canvas; beyond
                them labels are 0.
        """
        evidence = PixelEvidence(self.network, self.combination)
        if not needs_tiles(images.shape):
            labels = torch.zeros_like(images[:, 0], dtype=torch.uint8)
            for view in views(self.network, images, sizes, self.combination):
                mask = None if hidden is None else hidden[view.place]
                labels[view.place] = self._label_view(evidence, view, mask)
            return labels
        masks = [None] * len(images) if hidden is None else list(hidden)
        pairs = zip(images, masks, strict=True)
        return torch.stack([self._label_in_tiles(evidence, *pair) for pair in pairs])

    def _label_view(
        self, evidence: PixelEvidence, view: View, hidden: torch.Tensor | None
    ) -> torch.Tensor:
        """Labels (b, h, w) of what the networks see, quickly if the rule can."""
        rule = RULES.get(self.settings.rule)
        if rule is not None and rule.quick is not None:
            found: torch.Tensor | None = resolve(rule.quick)(self, view, hidden)
            if found is not None:
                return found
        return decide(self._case(evidence.of_view(view), hidden))

    def _label_in_tiles(
        self, evidence: PixelEvidence, image: torch.Tensor, hidden: torch.Tensor | None
    ) -> torch.Tensor:
        """Labels (H, W) uint8 of an image (3, H, W) with the pixels `hidden` (H, W)."""
        scores = evidence.in_tiles(image)
        sample = None
        if self.combination is not None and self.combination.decision.image_prior:
            down, across = scores.sample_places()
            chosen = None if hidden is None else hidden[down][:, across]
            # If the sample has no hidden pixels, use all of them for the class shares.
            chosen = chosen[None] if chosen is not None and chosen.any() else None
            sample = self._case(evidence.split(scores.sample()), chosen)
        labels = torch.zeros(image.shape[1:], dtype=torch.uint8, device=image.device)
        for rows, columns, part in scores.parts():
            mask = None if hidden is None else hidden[None, rows, columns]
            case = self._case(evidence.split(part), mask, sample)
            case = replace(case, origin=(rows.start, columns.start))
            labels[rows, columns] = decide(case)[0]
        return labels

    def _case(
        self,
        evidence: Evidence,
        hidden: torch.Tensor | None,
        sample: LabelCase | None = None,
    ) -> LabelCase:
        return LabelCase(
            log_p=evidence.log_p,
            settings=self.settings,
            log_evidence=evidence.log_evidence,
            log_apart=evidence.log_apart,
            combination=self.combination,
            thresholds=self.thresholds,
            hidden=hidden,
            sample=sample,
        )
