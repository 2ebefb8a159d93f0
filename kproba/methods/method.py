"""What a method is: a few switches read by the one training loop.

A method names its cross-entropy (and with it the form of the network's output), the
further loss terms with their weights, the rule of its pseudo labels, what an increment
trains, and whether it is incremental at all. Everything else (splits, loop, evaluation)
is the same code for every method.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from kproba.methods.terms import CrossEntropy, LossWeights


@dataclass(frozen=True)
class Method:
    """One class-incremental method.

    Attributes:
        joint: Train all classes of the task at once instead of step by step.
        cross_entropy: Of an increment. With a sigmoid per class and a branch per step:
            "bce", or "protected_bce", which sends no gradient into the logits of old
            classes nor into earlier parts of the background logit. With one softmax
            and a classifier on shared features: "ce", or "unbiased_ce", where
            background may be any old class.
        losses: Weights of the further terms of an increment.
        use_pseudo_labels: Train an increment on the labels that `export_pseudo_labels`
            wrote (old classes found in the background) instead of the raw labels.
        pseudo_labels: Keys of the configuration's `pseudo_labels` that the method sets.
        keeps_background: Where `bga_t` keeps the background up: "raw", wherever the
            raw label is 0 (the reference), or "pseudo", only where the pseudo label is
            too, so that background may fall on what was recognised as an old class.
        teacher: Whose answer `gkd` holds the old branches to: that of the previous
            "network", or on background that of network and bank, "fused", from step
            `FIRST_GUIDED` on (`kproba.bank.teacher`).
        trains: "all"; "heads": everything but the backbone; or "newest": the newest
            branch alone.
        prediction: How a pixel's class is found in the test: by the "network" alone, or
            by network and bank together (`kproba.bank.predictor`), whose evidence is that
            of "lda", "klda" or "kappa"; "fused" is what the rule of the pseudo labels
            reads, and "lda" if that reads no bank. No matter of a training where no
            bank teaches: methods that differ in this and in the bank share models.
        start_from_background: New classes start with the background's weights and an
            equal share of its probability, not at random.
        scale_by_certainty: The cross-entropy of an image counts by the share of its
            background that the pseudo labels are sure of.
    """

    joint: bool = False
    cross_entropy: CrossEntropy = "protected_bce"
    losses: LossWeights = field(default_factory=LossWeights)
    use_pseudo_labels: bool = True
    pseudo_labels: Mapping[str, Any] = field(default_factory=dict)
    keeps_background: Literal["raw", "pseudo"] = "raw"
    teacher: Literal["network", "fused"] = "network"
    trains: Literal["all", "heads", "newest"] = "all"
    prediction: Literal["network", "fused", "lda", "klda", "kappa"] = "network"
    start_from_background: bool = False
    scale_by_certainty: bool = False

    @property
    def softmax(self) -> bool:
        """Whether the network answers with one softmax."""
        return self.cross_entropy in ("ce", "unbiased_ce")

    @property
    def distils(self) -> bool:
        """Whether an increment asks the previous network."""
        terms = asdict(self.losses)
        return any(terms[name] for name in terms if name not in ("bga_ce", "bga_t"))

    @property
    def guided(self) -> bool:
        """Whether the bank has a say in what increments are taught."""
        return self.teacher == "fused" and self.losses.gkd > 0

    def to_dict(self) -> dict[str, Any]:
        """What determines a training, as plain JSON types."""
        content = asdict(self)
        del content["pseudo_labels"], content["prediction"]
        return content

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Method":
        """What `to_dict` gave."""
        return cls(**{**content, "losses": LossWeights(**content["losses"])})


# Step 1 is taught by step 0's network, which has learned its classes side by side and
# has mistaken none for one of a later step: the bank has nothing to correct.
FIRST_GUIDED = 2
