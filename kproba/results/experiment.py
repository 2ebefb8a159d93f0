"""TODO results.experiment."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from kproba.data.tasks import Groups
from kproba.results.tables import EXPERIMENT, Row


@dataclass(frozen=True)
class Experiment:
    """A dataset, a task and a setting, whatever methods and seeds.

    Attributes:
        dataset, task, setting: Their names.
        kind: Of the dataset.
        groups: Raw labels of the classes of all steps.
        names: Class names in output order, "background" first.
        indices: Index of the dataset and of its additions.
        figures: Paths of figures by name.
    """

    dataset: str
    kind: str
    task: str
    setting: str
    groups: Groups
    names: Sequence[str]
    indices: Sequence[str]
    figures: Mapping[str, str]

    @property
    def key(self) -> tuple[str, str, str]:
        """What its rows have in their columns `EXPERIMENT`."""
        return self.dataset, self.task, self.setting

    @property
    def title(self) -> str:
        """As it is called in headings."""
        return " ".join(self.key)


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in EXPERIMENT)


def _is_of(table: pd.DataFrame, experiment: Experiment) -> pd.Series:
    return (table[EXPERIMENT] == list(experiment.key)).all(axis=1)


def _step(result: Mapping[str, Any]) -> int:
    return int(result["step"])
