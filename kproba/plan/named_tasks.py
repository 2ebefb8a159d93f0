"""The class groups of a task that an experiment names."""

from collections.abc import Mapping, Sequence
from typing import Any

from kproba.data.tasks import Groups, parse_task, resolve_groups
from kproba.plan.errors import ConfigError, suggestion


def named_groups(
    where: str,
    task: str,
    own_tasks: Mapping[str, Any],
    names: Sequence[str],
    orders: Mapping[str, Sequence[int]],
) -> Groups:
    """The class groups of a task by its name.

    Args:
        where: The experiment, for messages.
        task: Its name: one of the configuration, or a form such as "15-1".
        own_tasks: The section `tasks` of the configuration.
        names: Names of the dataset's raw labels 1, 2, ..
        orders: Published class orders of the dataset.

    Raises:
        ConfigError: The classes cannot be divided so, or a class is unknown.
    """
    if task in own_tasks:
        labels = {name: label for label, name in enumerate(names, start=1)}
        try:
            return resolve_groups(
                own_tasks[task],
                labels,
                where=f"tasks.{task}",
                suggest=lambda word: suggestion(word, labels),
            )
        except ValueError as error:
            raise ConfigError(str(error)) from error
    try:
        return parse_task(task, len(names), orders)
    except ValueError as error:
        hint = suggestion(task, own_tasks)
        raise ConfigError(f"{where}.task: {error}{hint}") from error
