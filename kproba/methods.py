"""What a method is: a few switches read by the one training loop.

A method names the loss terms with their weights, whether the logits of old classes are
protected, which pseudo labels the step trains on, and whether it is incremental at all.
Everything else (network, splits, loop, evaluation) is the same code for every method.
"""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms added to the cross-entropy of an increment.

    The formulas are in `kproba.losses`; the defaults are those of the reference
    (docs/method.md).
    """

    bga_ce: float = 1.0  # background falls where a new class is
    bga_t: float = 5.0  # background stays where background is
    gkd: float = 1.0  # logits of the old branches stay
    bfd: float = 4.0  # features of the old branches stay on background


@dataclass(frozen=True)
class Method:
    """One class-incremental method.

    Attributes:
        joint: Train all classes of the task at once instead of step by step.
        use_pseudo_labels: Train an increment on the labels that `export_pseudo_labels`
            wrote (old classes found in the background) instead of the raw labels.
        protect_old_logits: The cross-entropy sends no gradient into the logits of old
            classes nor into earlier parts of the background logit (PB-BCE).
        losses: Weights of the further terms of an increment.
    """

    joint: bool = False
    use_pseudo_labels: bool = True
    protect_old_logits: bool = True
    losses: LossWeights = field(default_factory=LossWeights)

    def to_dict(self) -> dict[str, Any]:
        """The method as plain JSON types."""
        return asdict(self)


# The rules of `kproba.pseudo_labels`, and those among them that read the bank.
RULES = ("klda", "lda", "kappa", "confidence", "argmax", "agree")
RULES_WITH_BANK = ("klda", "lda", "kappa", "agree")

NOTHING_ADDED = LossWeights(bga_ce=0, bga_t=0, gkd=0, bfd=0)

METHODS = {
    # Background adaptation guided by kernel prototypes.
    "kproba": Method(),
    # The lower bound: the same network trained on the new labels, nothing protected.
    "finetune": Method(
        use_pseudo_labels=False, protect_old_logits=False, losses=NOTHING_ADDED
    ),
    # The upper bound: one training on the labels of all classes.
    "joint": Method(joint=True, use_pseudo_labels=False, losses=NOTHING_ADDED),
}
