"""One experiment as the page shows it: a dataset, a task and a setting."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from kproba.data.labels import LabelMap
from kproba.data.sources import Source
from kproba.data.splits import Folders
from kproba.data.tasks import Groups
from kproba.results.tables import EXPERIMENT


@dataclass(frozen=True)
class Experiment:
    """A dataset, a task and a setting, whatever methods and seeds.

    Attributes:
        dataset, task, setting: Their names.
        kind: Kind of the dataset, such as "voc".
        groups: Raw labels of the classes of all steps.
        names: Class names in output order, "background" first.
        indices: Index of the dataset and of its additions.
        folders: Where the pictures of the dataset and its additions are.
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
    folders: Mapping[str, Folders] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, str]:
        """Its values in the columns `EXPERIMENT`; equal to `StepResult.experiment`."""
        return self.dataset, self.task, self.setting

    @property
    def title(self) -> str:
        """Heading of its section."""
        return " ".join(self.key)

    def select(self, table: pd.DataFrame) -> pd.DataFrame:
        """The rows of a table of all experiments that belong to this one."""
        return table[(table[EXPERIMENT] == list(self.key)).all(axis=1)]


def read_truth(image: Mapping[Any, Any], groups: Groups) -> np.ndarray:
    """Ground truth (H, W) uint8 in output indices after the last step of `groups`.

    Args:
        image: Row of an index or a split, as `read_index` returned it.
        groups: Raw labels per step. Classes of later steps become 255, ignored.
    """
    labels = Source.from_row(image).read_labels()
    return LabelMap(groups).evaluation_table()[labels]
