"""The rules of the pseudo labels by name, with their inputs and code.

A rule decides which old class each background pixel of a step shows. Its function takes
a `kproba.methods.labels.LabelCase`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from kproba.runtime.references import Reference

# The keys of the section `decision` for rules that combine network and bank, or two
# networks.
COMBINED = ("foreground", "probability_weight", "image_prior", "least_share")
POSTERIOR = (*COMBINED, "posterior_weight", "foreground_bias")
AVERAGE = ("foreground", "image_prior", "least_share")
KAPPA = (*COMBINED, "temperature", "metric")


@dataclass(frozen=True)
class LabelRule:
    """A rule of the pseudo labels.

    Attributes:
        name: Value of `pseudo_labels.rule`.
        description: One line, for the documents.
        function: Takes a `LabelCase` and returns labels (B, H, W) in output indices.
        reads: Keys of `pseudo_labels` that it uses.
        decision: Keys of `decision` that it uses.
        bank: The kind of bank that it uses: "identity" for features without a map
            (LDA), "rff" for random Fourier features, "relu" for a ridge regression on
            random ReLU features; None: no bank.
        combines: The rule for predictions by network and bank if this rule makes the
            pseudo labels; None: the default, `lda`.
        by_networks: Whether the network of step 0 takes the place of the bank, which
            then gives only the class shares.
        by_distance: Whether the bank's evidence is the distance to its prototypes, and
            not a posterior.
        scores: Whether it scores every class by network and bank, and so can predict.
        quick: Takes the `Labeller`, a `kproba.bank.views.View` and the hidden pixels,
            and returns the same labels without the scores of all classes, or None where
            the decision does not allow that. None: there is no such function.
        prepare: Takes the teacher, the batches, the label map and the process, and
            returns what `LabelCase.thresholds` holds; None: nothing is prepared.
    """

    name: str
    description: str
    function: Reference
    reads: tuple[str, ...] = ()
    decision: tuple[str, ...] = ()
    bank: Literal["identity", "rff", "relu"] | None = None
    combines: str | None = None
    by_networks: bool = False
    by_distance: bool = False
    scores: bool = False
    quick: Reference | None = None
    prepare: Reference | None = None


_LABELS = "kproba.methods.labels"
_ENTROPY = "kproba.methods.entropy"
_ENTRIES = (
    LabelRule(
        "lda",
        "The class with the largest combined score of network and LDA bank.",
        f"{_LABELS}:by_score",
        reads=("score_threshold",),
        decision=POSTERIOR,
        bank="identity",
        combines="lda",
        scores=True,
        quick=f"{_LABELS}:quick_scores",
    ),
    LabelRule(
        "klda",
        "As `lda`, with a bank of random Fourier features (KLDA).",
        f"{_LABELS}:by_score",
        reads=("score_threshold",),
        decision=POSTERIOR,
        bank="rff",
        combines="klda",
        scores=True,
        quick=f"{_LABELS}:quick_scores",
    ),
    LabelRule(
        "kappa",
        "As `lda`, with distances to the prototypes, κ = softmax(-d/τ).",
        f"{_LABELS}:by_score",
        reads=("score_threshold",),
        decision=KAPPA,
        bank="rff",
        combines="kappa",
        by_distance=True,
        scores=True,
        quick=f"{_LABELS}:quick_scores",
    ),
    LabelRule(
        "ridge",
        "As `lda`, with a ridge regression on random ReLU features (SegACIL).",
        f"{_LABELS}:by_score",
        reads=("score_threshold",),
        decision=POSTERIOR,
        bank="relu",
        combines="ridge",
        scores=True,
        quick=f"{_LABELS}:quick_scores",
    ),
    LabelRule(
        "step0",
        "As `lda`, with the network of step 0 in the place of the bank.",
        f"{_LABELS}:by_score",
        reads=("score_threshold",),
        decision=POSTERIOR,
        bank="identity",
        combines="step0",
        by_networks=True,
        scores=True,
        quick=f"{_LABELS}:quick_scores",
    ),
    LabelRule(
        "step0_mean",
        "As `step0`, with the mean of the probabilities of both networks.",
        f"{_LABELS}:by_score",
        reads=("score_threshold",),
        decision=AVERAGE,
        bank="identity",
        combines="step0_mean",
        by_networks=True,
        scores=True,
        quick=f"{_LABELS}:quick_scores",
    ),
    LabelRule(
        "confidence",
        "The class of the network, if its probability reaches the threshold (BARM).",
        f"{_LABELS}:by_confidence",
        reads=("threshold",),
        quick=f"{_LABELS}:quick_confidence",
    ),
    LabelRule("argmax", "The network's class.", f"{_LABELS}:by_argmax"),
    LabelRule(
        "sampled",
        "A class drawn from the network's probabilities, pixel by pixel.",
        f"{_LABELS}:by_sampling",
    ),
    LabelRule(
        "agree",
        "The class of the network, if the bank agrees or the threshold is reached.",
        f"{_LABELS}:by_agreement",
        reads=("threshold",),
        bank="rff",
        combines="klda",
    ),
    LabelRule(
        "entropy",
        "The class of the network, if its entropy is low, as in PLOP's code.",
        f"{_ENTROPY}:by_entropy",
        prepare=f"{_ENTROPY}:published_thresholds",
    ),
    LabelRule(
        "entropy_median",
        "The class of the network, if its entropy is below the class median (PLOP).",
        f"{_ENTROPY}:by_median_entropy",
        prepare=f"{_ENTROPY}:entropy_thresholds",
    ),
)
RULES: dict[str, LabelRule] = {rule.name: rule for rule in _ENTRIES}
DEFAULT_COMBINATION = "lda"


def scoring_rules() -> list[str]:
    """Names of the rules by which network and bank can predict together."""
    return [name for name, rule in RULES.items() if rule.scores]


def needs_scatter(rule: str, decision: Mapping[str, Any]) -> bool:
    """Whether the bank of a rule holds the within-class scatter.

    Every rule with a bank reads it, except for Euclidean distances.
    """
    return not (RULES[rule].by_distance and decision["metric"] == "euclidean")
