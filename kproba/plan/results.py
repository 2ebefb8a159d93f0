"""The record of a step for the report: the names of its run, and its files."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, overload


@dataclass(frozen=True)
class StepResult:
    """One step of one run, a row of the summary.

    Artifacts may be shared: the paths are those of the owner, and the names are those
    of the run with this result.

    Attributes:
        dataset, task, setting, method, seed, step: Names of the run and step.
        folder: Folder of the evaluated step, for `kproba predict`.
        evaluation: evaluation.json of the step.
        confusion: confusion.csv of the step.
        examples: Folder of predictions of some validation images.
        model: model.safetensors of the evaluated network.
        metrics: metrics.csv of its training.
        usage: usage.json of its training.
        times: Snakemake's benchmark files of the jobs of the step, by kind of job:
            "training", "pseudo labels", "bank", "old images".
        bank: The bank that is combined with the network; None: the network alone.
        labels: Folder of the pseudo labels that the step trained on; None without.
        quality: Table of their quality; None if there are none.
        split: Table of their images; None if there are none.
        settings: settings.json of the training; None if it is not known.
        images: Table of the images of the training; None if it is not known.
        joint: Whether the method is trained on everything at once.
    """

    dataset: str
    task: str
    setting: str
    method: str
    seed: int
    step: int
    folder: str
    evaluation: str
    confusion: str
    examples: str
    model: str
    metrics: str
    usage: str
    times: Mapping[str, str]
    bank: str | None = None
    labels: str | None = None
    quality: str | None = None
    split: str | None = None
    settings: str | None = None
    images: str | None = None
    joint: bool = False

    @property
    def experiment(self) -> tuple[str, str, str]:
        """Dataset, task and setting."""
        return self.dataset, self.task, self.setting

    @property
    def run(self) -> dict[str, Any]:
        """The names that the tables of results begin with, by column."""
        names = ("dataset", "task", "setting", "method", "seed", "step")
        return {name: getattr(self, name) for name in names}

    def to_dict(self, locate: Callable[[str], str] = str) -> dict[str, Any]:
        """Plain values, which a job gets as text.

        Args:
            locate: Where a file is; see `kproba.plan.plan.Plan`.
        """
        names = {*self.run, "times", "joint"}
        files = {
            field.name: path and locate(path)
            for field in fields(self)
            if field.name not in names
            for path in (getattr(self, field.name),)
        }
        times = {kind: locate(path) for kind, path in self.times.items()}
        return {**self.run, **files, "times": times, "joint": self.joint}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "StepResult":
        """Read the values that `to_dict` wrote."""
        return cls(**content)


class LazyResults(Sequence[StepResult]):
    """Results that are computed when they are first used.

    Args:
        find: Returns them.
    """

    def __init__(self, find: Callable[[], list[StepResult]]):
        self._find = cache(find)

    def __len__(self) -> int:
        return len(self._find())

    @overload
    def __getitem__(self, place: int) -> StepResult: ...
    @overload
    def __getitem__(self, place: slice) -> list[StepResult]: ...

    def __getitem__(self, place: int | slice) -> StepResult | list[StepResult]:
        return self._find()[place]


def by_experiment(
    results: Iterable[StepResult],
) -> dict[tuple[str, str, str], list[StepResult]]:
    """Results by `StepResult.experiment`, in their order."""
    found: dict[tuple[str, str, str], list[StepResult]] = {}
    for result in results:
        found.setdefault(result.experiment, []).append(result)
    return found


def list_files(results: Iterable[StepResult], *kinds: str) -> list[str]:
    """All files of some kinds that steps have, each once, sorted.

    Args:
        results: The steps.
        kinds: Names of attributes of `StepResult`; "times" gives all of them.

    Raises:
        ValueError: An unknown kind.
    """
    known = {field.name for field in fields(StepResult)}
    if unknown := set(kinds) - known:
        raise ValueError(f"Expected attributes of StepResult, but got {unknown}.")
    files: set[str] = set()
    for result in results:
        for kind in kinds:
            value = getattr(result, kind)
            files |= set(value.values()) if kind == "times" else {value}
    return sorted(files - {None})
