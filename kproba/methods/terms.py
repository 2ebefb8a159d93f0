"""TODO methods.terms."""

from dataclasses import dataclass
from typing import Literal

CrossEntropy = Literal["protected_bce", "bce", "ce", "unbiased_ce"]


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms added to the cross-entropy of an increment.

    The formulas are in `kproba.methods.losses.step`. The first four need a branch per step, `kd` and
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
