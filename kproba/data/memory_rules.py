"""The rules for the labels of old images in memory, by name.

This module imports nothing that is slow: the plan reads the rules, too.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class MemoryRule:
    """A rule that decides which labels an image in memory has.

    Attributes:
        name: Value of `memory.rule`.
        description: For the documents, in the form of their lists.
        leaks: Whether an image shows labels that nobody gave it.
        reads: Keys of `memory` that the rule uses.
    """

    name: str
    description: str
    leaks: bool = False
    reads: tuple[str, ...] = ()


KNOWN, TRUE_LABELS = "known", "true_labels"
_ENTRIES = (
    MemoryRule(
        KNOWN,
        "labels that existed when the image was seen: those of its step, and older "
        "classes that the network recognised (DKD-M)",
        reads=("threshold",),
    ),
    MemoryRule(
        TRUE_LABELS,
        "the true labels of all classes up to the step that trains on the image "
        "(SSUL-M); this leaks: an old image shows labels that nobody gave it",
        leaks=True,
    ),
)
MEMORY_RULES: dict[str, MemoryRule] = {rule.name: rule for rule in _ENTRIES}
