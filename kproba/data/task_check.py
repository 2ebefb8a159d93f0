"""Finds steps without training images from the counts of an index.

A split is written just before its step. Without this check, a step without images would
stop the run after all earlier steps were trained.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kproba.data.labels import IGNORE
from kproba.data.tasks import partition_label


@dataclass(frozen=True)
class TaskSteps:
    """The steps of a task whose images all come from one index.

    Attributes:
        task: Its name in the configuration.
        setting: One of `kproba.data.splits.SETTINGS`.
        groups: Raw labels of the classes of all steps.
        steps: The steps that are checked.
    """

    task: str
    setting: str
    groups: Sequence[Sequence[int]]
    steps: Sequence[int]

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "TaskSteps":
        """From plain values."""
        return cls(**content)


def check_steps(
    index: str | Path, tasks: Iterable[TaskSteps], names: Sequence[str]
) -> None:
    """Refuse steps without training images.

    Args:
        index: index.csv of the dataset or addition.
        tasks: The steps to check.
        names: Names of the raw labels 1, 2, ..

    Raises:
        ValueError: A step has no training image.
    """
    from kproba.data.splits import read_index  # imports pandas, which the plan avoids

    rows = read_index(index)
    rows = rows[rows["subset"] == "train"]
    cells = dict(zip(rows["id"], rows["classes"], strict=True))
    empty = empty_steps(cells, tasks, names)
    if empty:
        raise ValueError(describe_empty(empty))


def describe_empty(sentences: Sequence[str]) -> str:
    """The message about steps without training images."""
    listed = "".join(f"\n  {sentence}" for sentence in sentences)
    return (
        f"Expected training images for every step, but:{listed}\nAdd such images, or "
        f"change the task."
    )


def empty_steps(
    class_lists: Mapping[str, str], tasks: Iterable[TaskSteps], names: Sequence[str]
) -> list[str]:
    """A sentence about every step without training images.

    Args:
        class_lists: The column `classes` of the training images, by id.
        tasks: The steps to check.
        names: Names of the raw labels 1, 2, ..
    """
    shown = {
        name: frozenset(map(int, cell.split())) - {0, IGNORE}
        for name, cell in class_lists.items()
    }
    present = set(shown.values())
    sentences = []
    for task in tasks:
        owned = _owned_labels(shown, task) if task.setting == "partitioned" else set()
        for step in task.steps:
            new = set(task.groups[step])
            seen = {label for group in task.groups[: step + 1] for label in group}
            reason = ""
            if task.setting == "partitioned":
                found = bool(owned & new)
                reason = " and belongs to this step"
            elif task.setting == "overlap":
                found = any(classes & new for classes in present)
            else:
                found = any(classes & new and classes <= seen for classes in present)
                reason = " without a class of a later step"
            if found:
                continue
            listed = ", ".join(names[label - 1] for label in task.groups[step])
            sentences.append(
                f"step {step} of task '{task.task}' ({task.setting}) has no training "
                f"image: no image shows {listed}{reason}"
            )
    return sentences


def _owned_labels(
    shown: Mapping[str, frozenset[int]], task: TaskSteps
) -> set[int | None]:
    """The classes to which the setting "partitioned" gives an image of the index.

    The classes of all checked steps take part: those that only this index shows.
    """
    classes = {label for step in task.steps for label in task.groups[step]}
    return {partition_label(name, labels, classes) for name, labels in shown.items()}
