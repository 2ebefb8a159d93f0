"""The loss terms by name, with their needs and formulas.

A term maps a `kproba.methods.losses.case.Case` (outputs, targets and counts of one
micro-batch) to a scalar tensor. The training adds up the terms of a method, each times
its weight.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from kproba.runtime.references import Reference

# Needs of terms, besides the ones that a head provides (`HeadEntry.provides`).
TEACHER = "teacher"  # the outputs of step t-1's network
STAGES = "stages"  # the features of every stage of the backbone
TEACHER_LOGITS = "teacher logits"  # those that the bank may correct
CERTAINTY = "certainty"  # how much of an image the pseudo labels are sure of
STATISTICS = "statistics"  # of old classes (`kproba.methods.replay`)
SALIENCY = "saliency"  # targets with `kproba.data.labels.UNKNOWN`, by saliency maps
NEEDS = (TEACHER, STAGES, TEACHER_LOGITS, CERTAINTY, STATISTICS, SALIENCY)


@dataclass(frozen=True)
class Term:
    """A loss term.

    Attributes:
        name: Key in the `losses` of a method, or its `cross_entropy`.
        description: One line, for the schema.
        function: Takes a `Case` and returns a scalar tensor.
        needs: Names of its inputs: entries of `HeadEntry.provides` and of `NEEDS`.
        classifies: Whether it is a cross-entropy: a method has exactly one of these.
        reaches_old: Whether the term gives a gradient to every trainable parameter of
            old steps. If no term of a method does, DistributedDataParallel searches for
            unused parameters, which is slower. A wrong True stops a training on several
            processes. If only several terms together reach all parameters, set False
            for each.
        scale: Takes a `Case` and returns a factor on the weight; None: 1.
        options: Numbers that it reads as `case.options`, by name, with their defaults.
            A method may set other values (`Method.options`).
        totals: Takes a `Case` and returns a vector of sums, (n,) without gradient. The
            loop adds it up over all micro-batches and processes, and gives the result
            to the term as `case.totals[name]`. For a term that is no plain sum over
            pixels; None: the term needs none.
        column: Name in metrics.csv; "": that of the term.
    """

    name: str
    description: str
    function: Reference
    needs: frozenset[str] = frozenset()
    classifies: bool = False
    reaches_old: bool = False
    scale: Reference | None = None
    options: Mapping[str, float] = field(default_factory=dict)
    totals: Reference | None = None
    column: str = ""


_LOSSES = "kproba.methods.losses"
_ENTRIES = (
    Term(
        "protected_bce",
        "BCE without a gradient for the logits of old classes (BARM).",
        f"{_LOSSES}.barm:protected_bce_term",
        needs=frozenset({"branches"}),
        classifies=True,
        column="bce",
    ),
    Term(
        "bce",
        "BCE with a sigmoid per class; every channel is trained.",
        f"{_LOSSES}.cross_entropy:bce_term",
        needs=frozenset({"branches"}),
        classifies=True,
        reaches_old=True,
    ),
    Term(
        "ce",
        "Softmax cross-entropy.",
        f"{_LOSSES}.cross_entropy:ce_term",
        needs=frozenset({"softmax"}),
        classifies=True,
        reaches_old=True,
    ),
    Term(
        "certain_ce",
        "As `ce`, with each image weighted by the certainty of its pseudo labels "
        "(PLOP).",
        f"{_LOSSES}.cross_entropy:certain_ce_term",
        needs=frozenset({"softmax", CERTAINTY}),
        classifies=True,
        reaches_old=True,
        column="ce",
    ),
    Term(
        "unbiased_ce",
        "Softmax cross-entropy; the background may be any old class (MiB).",
        f"{_LOSSES}.cross_entropy:unbiased_ce_term",
        needs=frozenset({"softmax"}),
        classifies=True,
        reaches_old=True,
        column="ce",
    ),
    Term(
        "unknown_bce",
        "BCE with a sigmoid per class and one for unknown objects, which saliency maps "
        "show (SSUL).",
        f"{_LOSSES}.ssul:unknown_bce_term",
        needs=frozenset({"unknown", SALIENCY}),
        classifies=True,
        reaches_old=True,
        column="bce",
    ),
    Term(
        "bga_ce",
        "Lowers the background logit on pixels of new classes (BARM).",
        f"{_LOSSES}.barm:bga_ce_term",
        needs=frozenset({"branches"}),
    ),
    Term(
        "bga_t",
        "Keeps the background logit high where the raw label is background (BARM).",
        f"{_LOSSES}.barm:bga_t_term",
        needs=frozenset({"branches"}),
    ),
    Term(
        "bga_t_remaining",
        "As `bga_t`, only where the pseudo label is background too.",
        f"{_LOSSES}.barm:bga_t_remaining_term",
        needs=frozenset({"branches"}),
        column="bga_t",
    ),
    Term(
        "gkd",
        "Distils the logits of the old branches (BARM).",
        f"{_LOSSES}.barm:gkd_term",
        needs=frozenset({"branches", TEACHER, TEACHER_LOGITS}),
        reaches_old=True,
    ),
    Term(
        "bfd",
        "Distils the features of the old branches on background (BARM).",
        f"{_LOSSES}.barm:bfd_term",
        needs=frozenset({"branches", TEACHER}),
    ),
    Term(
        "kd",
        "Distils the softmax over the old classes, a mean over the classes (LwF).",
        f"{_LOSSES}.distillation:kd_term",
        needs=frozenset({"softmax", TEACHER}),
        reaches_old=True,
    ),
    Term(
        "soft_kd",
        "As `kd`, with temperature 2 and the sum over the classes, as in LwF's paper.",
        f"{_LOSSES}.distillation:soft_kd_term",
        needs=frozenset({"softmax", TEACHER}),
        reaches_old=True,
    ),
    Term(
        "unbiased_kd",
        "As `kd`, with new classes counted as background (MiB).",
        f"{_LOSSES}.distillation:unbiased_kd_term",
        needs=frozenset({"softmax", TEACHER}),
        reaches_old=True,
    ),
    Term(
        "pod",
        "Local POD of the features of every stage (PLOP).",
        f"{_LOSSES}.pod:pod_term",
        needs=frozenset({TEACHER, STAGES}),
        scale=f"{_LOSSES}.pod:class_ratio",
    ),
    Term(
        "pod_logits",
        "Local POD of the logits (PLOP).",
        f"{_LOSSES}.pod:pod_logits_term",
        needs=frozenset({TEACHER, STAGES}),
        reaches_old=True,
        scale=f"{_LOSSES}.pod:class_ratio",
    ),
    Term(
        "lgkd",
        "Distils the softmax over all classes where no new class is (LGKD).",
        f"{_LOSSES}.lgkd:lgkd_term",
        needs=frozenset({"softmax", TEACHER}),
        reaches_old=True,
    ),
    Term(
        "lgkd_new",
        "As `lgkd` where a new class is: it gets the teacher's background (LGKD).",
        f"{_LOSSES}.lgkd:lgkd_new_term",
        needs=frozenset({"softmax", TEACHER}),
    ),
    Term(
        "new_bce",
        "BCE of the classes of the step alone; all other pixels are negative (DKD).",
        f"{_LOSSES}.dkd:new_bce_term",
        needs=frozenset({"sigmoid"}),
        classifies=True,
        options={"positive_weight": 1.0},
        column="bce",
    ),
    Term(
        "auxiliary",
        "Teaches the auxiliary classifier that no pixel is a class (DKD).",
        f"{_LOSSES}.dkd:auxiliary_term",
        needs=frozenset({"auxiliary"}),
    ),
    Term(
        "class_kd",
        "Distils the sigmoid of every old class (DKD).",
        f"{_LOSSES}.dkd:class_kd_term",
        needs=frozenset({"sigmoid", TEACHER}),
    ),
    Term(
        "positive_kd",
        "Distils the positive part of the sum behind each old logit (DKD).",
        f"{_LOSSES}.dkd:positive_kd_term",
        needs=frozenset({"sigmoid", TEACHER}),
    ),
    Term(
        "negative_kd",
        "Distils the negative part of the sum behind each old logit (DKD).",
        f"{_LOSSES}.dkd:negative_kd_term",
        needs=frozenset({"sigmoid", TEACHER}),
    ),
    Term(
        "replayed_bce",
        "As `new_bce`, with drawn features of old classes and of background (STAR).",
        f"{_LOSSES}.star:replayed_bce_term",
        needs=frozenset({"sigmoid", TEACHER, STATISTICS}),
        classifies=True,
        options={"positive_weight": 1.0},
        totals=f"{_LOSSES}.star:background_cells",
        column="bce",
    ),
    Term(
        "feature_kd",
        "Keeps the features where the previous network sees an old class (STAR).",
        f"{_LOSSES}.star:feature_kd_term",
        needs=frozenset({"sigmoid", TEACHER}),
        totals=f"{_LOSSES}.star:recognised_weight",
    ),
    Term(
        "contrast",
        "Keeps the mean features of new classes away from those of old ones (STAR).",
        f"{_LOSSES}.star:contrast_term",
        needs=frozenset({"sigmoid", STATISTICS}),
        totals=f"{_LOSSES}.star:direction_sums",
    ),
    Term(
        "uncertainty",
        "Lowers the second class of a pixel where the first is not sure (Adapter).",
        f"{_LOSSES}.star:uncertainty_term",
        needs=frozenset({"sigmoid"}),
    ),
)
# In the order in which they are added up.
TERMS: dict[str, Term] = {term.name: term for term in _ENTRIES}


def cross_entropies() -> list[str]:
    """Names of the terms that classify."""
    return [name for name, term in TERMS.items() if term.classifies]


def further_terms() -> list[str]:
    """Names of the terms that a method may add to its cross-entropy."""
    return [name for name, term in TERMS.items() if not term.classifies]


def collect_needs(names: Iterable[str]) -> frozenset[str]:
    """The needs of several terms together."""
    return frozenset().union(*(TERMS[name].needs for name in names))


def collect_options(names: Iterable[str]) -> dict[str, float]:
    """The options of several terms together, with their defaults."""
    options: dict[str, float] = {}
    for name in names:
        options |= TERMS[name].options
    return options


def in_order(weights: Mapping[str, float]) -> dict[str, float]:
    """Weights that are not 0, in the order of the table."""
    return {name: float(weights[name]) for name in TERMS if weights.get(name)}
