"""The list of all measures: columns, headings and panels of the results.

To add a measure, add an entry here or by `kproba.extend.add_measure`: evaluation.json,
summary.csv, the figures, the page, the curves and the command line take it from there.
What is computed from the test of one step appears in the results of older evaluations,
too, because their confusion.csv is kept. Snakemake does not watch the code of this
package. So after adding an entry here, make tables, figures and page again:

    snakemake --forcerun summarise draw_figures write_report
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kproba.plan.results import StepResult
from kproba.results.costs import read_seconds

Evaluation = Mapping[str, Any]  # content of evaluation.json


def class_iou(confusion: np.ndarray) -> np.ndarray:
    """IoU in percent per class, (C,) float64; NaN without any pixel of either kind."""
    hit = np.diag(confusion).astype(np.float64)
    union = confusion.sum(0) + confusion.sum(1) - hit
    return 100 * np.divide(hit, union, out=np.full_like(hit, np.nan), where=union > 0)


@dataclass(frozen=True)
class ClassScores:
    """The counts after one step, and the classes that its means include.

    Attributes:
        iou: (C,) float64, percent; a class that is nowhere (no truth, no prediction)
            has 0.
        steps: (C,) int, the step that introduced each class; background 0.
        counted: (C,) bool, whether the policy's means include the class.
        confusion: (C, C) int, counts of pixels, true classes in rows; for measures that
            are not made of IoUs.
    """

    iou: np.ndarray
    steps: np.ndarray
    counted: np.ndarray
    confusion: np.ndarray

    @classmethod
    def from_confusion(
        cls,
        confusion: np.ndarray,
        step_of_class: Sequence[int],
        policy: str,
        *,
        leave_out_absent: bool = False,
    ) -> "ClassScores":
        """Scores from pixel counts (C, C), true classes in rows.

        The policy `mib` leaves out the background and classes without ground truth.
        `leave_out_absent` leaves out such classes under the other policies too.
        """
        iou = class_iou(confusion)
        counted = np.ones(len(iou), bool)
        if leave_out_absent:
            counted = confusion.sum(1) > 0
        if policy == "mib":
            counted = confusion.sum(1) > 0
            counted[0] = False
        steps = np.array(step_of_class)
        return cls(np.nan_to_num(iou), steps, counted, confusion)

    def mean_iou(self, classes: np.ndarray) -> float:
        """Mean over the counted ones of `classes` (C,) bool; NaN if there are none."""
        values = self.iou[self.counted & classes]
        return float(values.mean()) if values.size else math.nan


@dataclass(frozen=True, kw_only=True)
class Measure(ABC):
    """One number per step of a run.

    Attributes:
        name: Column of summary.csv.
        title: Heading in tables and figures.
        explanation: Its definition, for readers of the page.
        in_markdown: Whether the Markdown table lists it.
        lower_is_better: Whether the smallest value is the best one.
    """

    name: str
    title: str
    explanation: str
    in_markdown: bool = True
    lower_is_better: bool = False

    @abstractmethod
    def value(
        self, result: StepResult, evaluations: Sequence[Evaluation]
    ) -> float | None:
        """The measure after a step.

        Args:
            result: The step.
            evaluations: Tests of the earlier steps of the run, then of this step.

        Returns:
            None or NaN where it is not defined.
        """


@dataclass(frozen=True, kw_only=True)
class StepMeasure(Measure):
    """A percentage from the test of one step; evaluation.json holds it by its name.

    Attributes:
        compute: The measure of one step's scores; NaN where it is not defined.
        is_mean: Whether it is a mean IoU over a group of classes. Only these are in
            the short table, in the curves of a training and beside published numbers.
    """

    compute: Callable[[ClassScores], float]
    is_mean: bool = False

    def value(
        self, result: StepResult, evaluations: Sequence[Evaluation]
    ) -> float | None:
        """As the test of the step recorded it."""
        number: float | None = evaluations[-1][self.name]
        return number


@dataclass(frozen=True, kw_only=True)
class RunMeasure(Measure):
    """A percentage from the evaluations of a run's steps so far.

    Attributes:
        compute: The measure of these evaluations, in order; NaN if not defined.
    """

    compute: Callable[[Sequence[Evaluation]], float]

    def value(
        self, result: StepResult, evaluations: Sequence[Evaluation]
    ) -> float | None:
        """From all steps so far."""
        return self.compute(evaluations)


@dataclass(frozen=True, kw_only=True)
class CostMeasure(Measure):
    """Costs of the jobs of a run so far, without those of step 0.

    Step 0 is apart because the methods share it. A run of one step, such as `joint`,
    costs what this step costs.

    Attributes:
        compute: The cost of one step.
        is_time: Whether it is in seconds; pages then show minutes and hours.
    """

    compute: Callable[[StepResult], float]
    is_time: bool = False

    def of_run(self, results: Sequence[StepResult]) -> float:
        """The cost of the steps of a run so far; NaN after step 0 alone.

        Args:
            results: The steps so far, in order.
        """
        later = [result for result in results if result.step > 0]
        return sum(map(self.compute, later)) if later else math.nan

    def value(
        self, result: StepResult, evaluations: Sequence[Evaluation]
    ) -> float | None:
        """The cost of this step alone, from the files of its jobs."""
        return self.compute(result)


def class_forgetting(evaluations: Sequence[Evaluation]) -> dict[int, float]:
    """Forgetting in percent by output index: best earlier IoU minus IoU now.

    For every class that an earlier step evaluated. Under the policy `mib`, whose means
    leave the background out, so does this.

    Args:
        evaluations: Tests of the steps so far, in order.
    """
    *earlier, now = evaluations
    iou_now = {entry["index"]: entry["iou"] or 0.0 for entry in now["classes"]}
    best: dict[int, float] = {}
    for evaluation in earlier:
        for entry in evaluation["classes"]:
            index = entry["index"]
            if index > 0 or now["protocol"]["policy"] != "mib":
                iou = entry["iou"] or 0.0
                best[index] = max(iou, best.get(index, iou))
    return {index: iou - iou_now[index] for index, iou in best.items()}


def _mean(values: Iterable[float | None]) -> float:
    numbers = [math.nan if value is None else value for value in values]
    return sum(numbers) / len(numbers) if numbers else math.nan


def _harmonic_mean(scores: ClassScores) -> float:
    old, new = OLD.compute(scores), NEW.compute(scores)
    if old == new == 0:
        return 0.0
    return 2 * old * new / (old + new) if old + new > 0 else math.nan


OLD = StepMeasure(
    name="old",
    title="old",
    explanation="mean IoU of the background and the classes of step 0",
    compute=lambda scores: scores.mean_iou(scores.steps == 0),
    is_mean=True,
)
NEW = StepMeasure(
    name="new",
    title="new",
    explanation="mean IoU of the classes of all later steps",
    compute=lambda scores: scores.mean_iou(scores.steps > 0),
    is_mean=True,
)
# The one that rankings and tables of seeds show.
ALL = StepMeasure(
    name="all",
    title="all",
    explanation="mean IoU of the background and all classes seen",
    compute=lambda scores: scores.mean_iou(scores.steps >= 0),
    is_mean=True,
)

_ENTRIES: tuple[Measure, ...] = (
    OLD,
    NEW,
    ALL,
    StepMeasure(
        name="hiou",
        title="hIoU",
        explanation="harmonic mean of old and new",
        compute=_harmonic_mean,
    ),
    RunMeasure(
        name="avg",
        title="avg",
        explanation="mean of all over the steps so far",
        compute=lambda evaluations: _mean(entry[ALL.name] for entry in evaluations),
        in_markdown=False,
    ),
    RunMeasure(
        name="forgetting",
        title="forgetting",
        explanation="mean over earlier classes: best earlier IoU minus current IoU",
        compute=lambda evaluations: _mean(class_forgetting(evaluations).values()),
        lower_is_better=True,
    ),
    CostMeasure(
        name="seconds",
        title="time",
        explanation="time of training, pseudo labels and bank, for all steps except "
        "step 0",
        is_time=True,
        compute=lambda result: round(float(sum(read_seconds(result).values())), 1),
    ),
)
MEASURES: dict[str, Measure] = {measure.name: measure for measure in _ENTRIES}


def all_measures() -> list[Measure]:
    """All measures, in the order of the tables."""
    return list(MEASURES.values())


def step_measures() -> list[StepMeasure]:
    """The measures that evaluation.json holds, in the order of the list."""
    return [measure for measure in all_measures() if isinstance(measure, StepMeasure)]


def step_means() -> list[StepMeasure]:
    """The mean IoUs among them."""
    return [measure for measure in step_measures() if measure.is_mean]
