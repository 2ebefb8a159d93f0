"""Finds steps without training images from the counts of an index.

A split is written just before its step. Without this check, a step without images would
stop the run after all earlier steps were trained.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kproba.data.labels import IGNORE


@dataclass(frozen=True)
class TaskSteps:
    """The steps of a task whose images all come from one index.

    Attributes:
        task: Its name in the configuration.
        setting: "overlap", "disjoint" or "sequential".
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
    empty = empty_steps(rows[rows["subset"] == "train"]["classes"], tasks, names)
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
    class_lists: Iterable[str], tasks: Iterable[TaskSteps], names: Sequence[str]
) -> list[str]:
    """A sentence about every step without training images.

    Args:
        class_lists: The column `classes` of the training images.
        tasks: The steps to check.
        names: Names of the raw labels 1, 2, ..
    """
    present = {frozenset(map(int, cell.split())) - {0, IGNORE} for cell in class_lists}
    sentences = []
    for task in tasks:
        for step in task.steps:
            new = set(task.groups[step])
            seen = {label for group in task.groups[: step + 1] for label in group}
            holding = [classes for classes in present if classes & new]
            if task.setting != "overlap":
                holding = [classes for classes in holding if classes <= seen]
            if holding:
                continue
            listed = ", ".join(names[label - 1] for label in task.groups[step])
            text = (
                f"step {step} of task '{task.task}' ({task.setting}) has no training "
                f"image: no image shows {listed}"
            )
            if task.setting != "overlap":
                text += " without a class of a later step"
            sentences.append(text)
    return sentences
