"""The heads by name. A new head is a subclass of `Head` and an entry of `HEADS`.

The plan reads this table, so nothing here imports torch at the top of a module.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from kproba.network.heads.branches import BranchHead
from kproba.network.heads.head import Head, NetworkParts, ParameterGroup
from kproba.network.heads.softmax import SoftmaxHead
from kproba.network.heads.unknown import UnknownHead
from kproba.runtime.references import Reference

__all__ = [
    "HEADS",
    "BranchHead",
    "Head",
    "HeadEntry",
    "NetworkParts",
    "ParameterGroup",
    "SoftmaxHead",
    "UnknownHead",
    "head_entry",
]


@dataclass(frozen=True)
class HeadEntry:
    """One head, an entry of `HEADS`.

    Attributes:
        name: Value of `Architecture.head`.
        description: One line for the documentation.
        base: Name of the pseudo method whose step 0 all methods with this head share.
        step_0_loss: Name of the cross-entropy of step 0.
        provides: Names of outputs that loss terms may need.
        implementation: Subclass of `Head`, or its reference
            "package.module:name"; it is called without arguments.
        step_0_terms: Weights of further loss terms of step 0, by name. They must need
            neither a teacher nor masks, which step 0 does not have.
        step_0_options: Numbers that the terms of step 0 read, by name
            (`kproba.methods.method.Method.options`).
        step_0_options_of: By kind of dataset, such numbers in place of these.
    """

    name: str
    description: str
    base: str
    step_0_loss: str
    provides: frozenset[str]
    implementation: Reference
    step_0_terms: Mapping[str, float] = field(default_factory=dict)
    step_0_options: Mapping[str, float] = field(default_factory=dict)
    step_0_options_of: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


_HEADS = "kproba.network.heads"
HEADS: dict[str, HeadEntry] = {
    entry.name: entry
    for entry in (
        HeadEntry(
            name="branches",
            description="One branch per step, with a sigmoid per class.",
            base="base",
            step_0_loss="bce",
            provides=frozenset({"branches"}),
            implementation=f"{_HEADS}.branches:BranchHead",
        ),
        HeadEntry(
            name="softmax",
            description="One classifier per step on shared features, with one softmax.",
            base="base_softmax",
            step_0_loss="ce",
            provides=frozenset({"softmax"}),
            implementation=f"{_HEADS}.softmax:SoftmaxHead",
        ),
        HeadEntry(
            name="sigmoid",
            description="One classifier per step on shared features, with a sigmoid "
            "per class and no background.",
            base="base_sigmoid",
            step_0_loss="new_bce",
            step_0_options={"positive_weight": 4.0},
            step_0_options_of={"ade20k": {"positive_weight": 30.0}},
            provides=frozenset({"sigmoid"}),
            implementation=f"{_HEADS}.sigmoid:SigmoidHead",
        ),
        HeadEntry(
            name="auxiliary",
            description='As `sigmoid`, with an auxiliary classifier for "no class", '
            "from which new classes start.",
            base="base_auxiliary",
            step_0_loss="new_bce",
            step_0_terms={"auxiliary": 1.0},
            step_0_options={"positive_weight": 2.0},
            step_0_options_of={"ade20k": {"positive_weight": 35.0}},
            provides=frozenset({"sigmoid", "auxiliary"}),
            implementation=f"{_HEADS}.sigmoid:AuxiliaryHead",
        ),
        HeadEntry(
            name="unknown",
            description="A sigmoid per class, and one for unknown objects.",
            base="base_unknown",
            step_0_loss="unknown_bce",
            provides=frozenset({"unknown"}),
            implementation=f"{_HEADS}.unknown:UnknownHead",
        ),
    )
}


def head_entry(name: str) -> HeadEntry:
    """The entry of a head.

    Raises:
        ValueError: There is none of this name.
    """
    if name not in HEADS:
        raise ValueError(
            f"Expected one of the heads {', '.join(HEADS)}, but got {name!r}."
        )
    return HEADS[name]
