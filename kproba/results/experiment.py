"""One experiment as the page shows it: a dataset, a task and a setting."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kproba.data.folders import Folders
from kproba.data.labels import LabelMap
from kproba.data.sources import Source
from kproba.data.tasks import Groups
from kproba.runtime.files import read_json

WARNINGS = 3  # of a kind that the page shows


@dataclass(frozen=True)
class Experiment:
    """A dataset, a task and a setting, with all methods and seeds.

    Attributes:
        dataset, task, setting: Their names.
        kind: Kind of the dataset, such as "voc".
        groups: Raw labels of the classes of all steps.
        names: Class names in output order, "background" first.
        indices: Index of the dataset and of its additions.
        checks: integrity.json of the dataset and of its additions.
        folders: Where the pictures of the dataset and its additions are.
        selection: Share of the training images that was held out, and that the results
            were measured on; 0: they were measured on the validation images.
    """

    dataset: str
    kind: str
    task: str
    setting: str
    groups: Groups
    names: Sequence[str]
    indices: Sequence[str]
    checks: Sequence[str] = ()
    folders: Mapping[str, Folders] = field(default_factory=dict)
    selection: float = 0.0

    @property
    def evaluated_images(self) -> str:
        """What the evaluated images are, in words."""
        if not self.selection:
            return "validation"
        return f"held out: {self.selection:.0%} of the training images, for a selection"

    @property
    def key(self) -> tuple[str, str, str]:
        """Its values in the columns `EXPERIMENT`; equal to `StepResult.experiment`."""
        return self.dataset, self.task, self.setting

    @property
    def title(self) -> str:
        """Heading of its section."""
        return f"{self.dataset}, task {self.task}"

    @property
    def anchor(self) -> str:
        """The id of its section in the page, without white space."""
        return "-".join("-".join(self.key).split())

    @property
    def introduced(self) -> list[int]:
        """The step that introduced each class, background first."""
        return [0, *(s for s, group in enumerate(self.groups) for _ in group)]

    def in_words(self) -> str:
        """Its classes and steps: "10 classes in 3 steps: 6, then 2 and 2"."""
        sizes = [len(group) for group in self.groups]
        classes = f"{sum(sizes)} class{'es' if sum(sizes) != 1 else ''}"
        if len(sizes) == 1:
            return f"{classes} in one step"
        *first, last = map(str, sizes[1:])
        if len(sizes) > 3 and len(set(sizes[1:])) == 1:
            later = f"{len(sizes) - 1} steps of {last}"
        else:
            later = f"{', '.join(first)} and {last}" if first else last
        return f"{classes} in {len(sizes)} steps: {sizes[0]} first, then {later}"

    def warnings(self) -> list[str]:
        """Warnings of the dataset check as text, a few of each kind."""
        texts = []
        for path in self.checks:
            entries = read_json(path).get("warnings", [])
            kinds = dict.fromkeys(entry["kind"] for entry in entries)
            for kind in kinds:
                of_kind = [entry["text"] for entry in entries if entry["kind"] == kind]
                more = len(of_kind) - WARNINGS
                text = f"{kind}: {'; '.join(of_kind[:WARNINGS])}"
                texts.append(text + (f"; and {more} more" if more > 0 else ""))
        return texts


def read_truth(image: Mapping[Any, Any], groups: Groups) -> np.ndarray:
    """Ground truth (H, W) uint8 in output indices after the last step of `groups`.

    Args:
        image: Row of an index or a split, as `read_index` returned it.
        groups: Raw labels per step. Classes of later steps become 255, ignored.
    """
    labels = Source.from_row(image).read_labels()
    return LabelMap(groups).evaluation_table()[labels]
