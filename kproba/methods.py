"""What a method is: a few switches read by the one training loop.

A method names its cross-entropy (and with it the form of the network's output), the
further loss terms with their weights, the rule of its pseudo labels, what an increment
trains, and whether it is incremental at all. Everything else (splits, loop, evaluation)
is the same code for every method.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

CrossEntropy = Literal["protected_bce", "bce", "ce", "unbiased_ce"]


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms added to the cross-entropy of an increment.

    The formulas are in `kproba.losses`. The first four need a branch per step, `kd` and
    `unbiased_kd` a softmax.
    """

    bga_ce: float = 0.0  # background falls where a new class is
    bga_t: float = 0.0  # background stays where background is
    gkd: float = 0.0  # logits of the old branches stay
    bfd: float = 0.0  # features of the old branches stay on background
    kd: float = 0.0  # the softmax over the old classes stays
    unbiased_kd: float = 0.0  # the same, the new classes counting as background
    pod: float = 0.0  # local POD of the features of every stage
    pod_logits: float = 0.0  # and of the logits


OF_BRANCHES = ("bga_ce", "bga_t", "gkd", "bfd")
OF_SOFTMAX = ("kd", "unbiased_kd")


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
            `FIRST_GUIDED` on (`kproba.guidance`).
        trains: "all"; "heads": everything but the backbone; or "newest": the newest
            branch alone.
        prediction: How a pixel's class is found in the test: by the "network" alone, or
            by network and bank together (`kproba.prediction`), whose evidence is that
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

# The rules of `kproba.pseudo_labels` with the settings that each reads, those among
# them that read the bank, and those that score every class by network and bank.
SCORE = ("score_threshold", "foreground", "probability_weight", "image_prior")
POSTERIOR = ("posterior_weight", "foreground_bias")
RULES: dict[str, tuple[str, ...]] = {
    "lda": (*SCORE, *POSTERIOR),
    "klda": (*SCORE, *POSTERIOR),
    "kappa": (*SCORE, "temperature", "metric"),
    "confidence": ("threshold",),
    "argmax": (),
    "agree": ("threshold",),
    "entropy": (),
}
RULES_WITH_BANK = ("lda", "klda", "kappa", "agree")
RULES_THAT_SCORE = ("lda", "klda", "kappa")

BARM_LOSSES = LossWeights(bga_ce=1.0, bga_t=5.0, gkd=1.0, bfd=4.0)
SURE = {"rule": "confidence", "threshold": 0.7}

METHODS = {
    # BARM with prototypes, which join in the prediction and from step 2 on in what the
    # old branches are taught. The configuration may name another rule for its labels.
    "kproba": Method(losses=BARM_LOSSES, teacher="fused", prediction="fused"),
    # Zhang & Gao, ECCV 2024.
    "barm": Method(losses=BARM_LOSSES, pseudo_labels=SURE),
    # Cha et al., NeurIPS 2021, without memory and without saliency: what is old stays
    # as it is, the new branch alone learns.
    "ssul": Method(pseudo_labels=SURE, trains="newest"),
    # Douillard et al., CVPR 2021.
    "plop": Method(
        cross_entropy="ce",
        losses=LossWeights(pod=0.01, pod_logits=0.0005),
        pseudo_labels={"rule": "entropy"},
        start_from_background=True,
        scale_by_certainty=True,
    ),
    # Cermelli et al., CVPR 2020.
    "mib": Method(
        cross_entropy="unbiased_ce",
        losses=LossWeights(unbiased_kd=10.0),
        use_pseudo_labels=False,
        start_from_background=True,
    ),
    # Li & Hoiem, ECCV 2016.
    "lwf": Method(
        cross_entropy="ce", losses=LossWeights(kd=1.0), use_pseudo_labels=False
    ),
    # The lower bound: kproba's network trained on the new labels, nothing protected.
    "finetune": Method(cross_entropy="bce", use_pseudo_labels=False),
    # The upper bound: one training on the labels of all classes.
    "joint": Method(joint=True, cross_entropy="bce", use_pseudo_labels=False),
}

# Step 0, once for all methods with the same form of output; also trains `joint`.
BASES = {
    "base": METHODS["joint"],
    "base_softmax": Method(joint=True, cross_entropy="ce", use_pseudo_labels=False),
}


def base_of(method: Method) -> str:
    """The name under which a method's step 0 is trained."""
    return "base_softmax" if method.softmax else "base"
