"""Packed steps that datasets of the configuration continue from."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from kproba.data.tasks import Groups
from kproba.plan.errors import ConfigError
from kproba.predict.packed import PackedStep, read_packed

Config = dict[str, Any]


def read_packed_step(dataset: str, settings: Config) -> PackedStep:
    """The packed step that a dataset continues from, with labels 1..N.

    Raises:
        ConfigError: It cannot be read, or the dataset has no additions.
    """
    where = f"datasets.{dataset}"
    if not settings["additions"]:
        raise ConfigError(
            f"{where}.additions: expected at least one folder of pictures with a new "
            f"class, but got none. Add one: a packed step is used to start the next "
            f"step."
        )
    try:
        packed = read_packed(Path(settings["path"]).expanduser())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{where}.path: {error}") from error
    count = len(packed.labels)
    if sorted(packed.labels) == list(range(count)):
        return packed
    # The task may have more classes than the step knows: count the known ones.
    numbers = iter(range(1, count))
    groups = tuple(tuple(next(numbers) for _ in group) for group in packed.groups)
    return replace(packed, groups=groups)


def groups_of_packed(where: str, packed: PackedStep, task: str) -> Groups:
    """Raw labels of the classes of a packed step, per step.

    Raises:
        ConfigError: The task has another name; the message starts with `where`.
    """
    if task != packed.task:
        raise ConfigError(
            f"{where}.task: expected '{packed.task}', the task of the step in "
            f"{packed.path}, but got '{task}'. Write '{packed.task}'; the additions "
            f"are its next steps."
        )
    return packed.groups


def packed_names(packed: PackedStep | None) -> list[str]:
    """Names of the classes of a packed step by label; empty without one."""
    if packed is None:
        return []
    by_label = dict(zip(packed.labels, packed.names, strict=True))
    return [by_label[label] for label in sorted(by_label) if label]
