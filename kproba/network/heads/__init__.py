"""The table of heads, read by the plan: nothing here imports torch.

A head turns the shared features of the ASPP into logits, with one module per step. A
new head is one more entry of `HEADS` and the class that it refers to.
"""

from dataclasses import dataclass

from kproba.runtime.references import Reference


@dataclass(frozen=True)
class HeadEntry:
    """One head, an entry of `HEADS`.

    Attributes:
        name: Value of `Architecture.head`.
        description: One line for the documentation.
        base: Name of the pseudo method whose step 0 all methods with this head share.
        step_0_loss: Name of the loss term of step 0.
        provides: What loss terms may need of the head.
        implementation: `kproba.network.heads.head.Head` subclass, or its reference
            "package.module:name"; it is called without arguments.
    """

    name: str
    description: str
    base: str
    step_0_loss: str
    provides: frozenset[str]
    implementation: Reference


HEADS: dict[str, HeadEntry] = {
    entry.name: entry
    for entry in (
        HeadEntry(
            name="branches",
            description="A branch per step with a sigmoid per class.",
            base="base",
            step_0_loss="bce",
            provides=frozenset({"branches"}),
            implementation="kproba.network.heads.branches:BranchHead",
        ),
        HeadEntry(
            name="softmax",
            description="A classifier per step on shared features with one softmax.",
            base="base_softmax",
            step_0_loss="ce",
            provides=frozenset({"softmax"}),
            implementation="kproba.network.heads.softmax:SoftmaxHead",
        ),
    )
}


def head_entry(name: str) -> HeadEntry:
    """The entry of a head.

    Raises:
        ValueError: There is none of this name.
    """
    if name not in HEADS:
        raise ValueError(f"Expected a head of {', '.join(HEADS)}, but got {name!r}.")
    return HEADS[name]
