"""Methods compared over seeds: means, and differences seed by seed.

Two methods with the same seed see the same images in the same order, and methods with
the same head share step 0. So their difference is taken seed by seed, and its standard
deviation is that of these differences. It is usually smaller than that of the results.

All functions take rows of summary.csv (`kproba.results.tables`).
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from kproba.results import measures
from kproba.results.cells import fixed
from kproba.results.tables import EXPERIMENT

RUN = [*EXPERIMENT, "method", "seed"]
ALL = measures.ALL.name
MINUS = "\u2212"


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation of some values, such as those of the seeds.

    Attributes:
        mean: NaN without values.
        deviation: Of the sample (n - 1 below the sum); NaN for fewer than two values.
        count: How many values there are.
    """

    mean: float
    deviation: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        """The spread of values; NaNs are left out."""
        numbers = np.array([v for v in values if not math.isnan(v)], dtype=np.float64)
        mean = float(numbers.mean()) if len(numbers) else math.nan
        deviation = float(numbers.std(ddof=1)) if len(numbers) > 1 else math.nan
        return cls(mean, deviation, len(numbers))

    @property
    def text(self) -> str:
        """Such as "44.1 ± 1.2"; one value has no deviation, and no value is a dash."""
        if math.isnan(self.mean):
            return "–"
        mean = fixed(self.mean).replace("-", MINUS)
        if math.isnan(self.deviation):
            return mean
        return f"{mean} ± {fixed(self.deviation)}"

    @property
    def is_positive(self) -> bool:
        """Whether the mean is above 0 by more than one standard deviation.

        A single value has no deviation, so it is never enough.
        """
        return self.count > 1 and self.mean > self.deviation

    @property
    def is_negative(self) -> bool:
        """Whether the mean is below 0 by more than one standard deviation.

        A single value has no deviation. It counts as negative if it is below 0, so that
        one seed is no way around the test.
        """
        deviation = 0.0 if math.isnan(self.deviation) else self.deviation
        return self.mean < -deviation - 1e-9  # rounding of the mean is no loss


def experiments(
    summary: pd.DataFrame,
) -> Iterator[tuple[tuple[str, ...], pd.DataFrame]]:
    """Dataset, task and setting, and the rows, of each experiment, in their order."""
    for key, rows in summary.groupby(EXPERIMENT, sort=False):
        yield tuple(map(str, key)), rows


def last_steps(summary: pd.DataFrame) -> pd.DataFrame:
    """The rows after the last step of their experiment; unfinished runs have none."""
    last = summary.groupby(EXPERIMENT, sort=False)["step"].transform("max")
    return summary[summary["step"] == last]


def unfinished_runs(summary: pd.DataFrame, ended: pd.DataFrame) -> list[str]:
    """The runs without a result after the last step of their experiment.

    Args:
        summary: Rows of all steps.
        ended: Those of `last_steps`.
    """
    finished = set(ended[RUN].itertuples(index=False, name=None))
    runs = dict.fromkeys(summary[RUN].itertuples(index=False, name=None))
    return [describe_run(run) for run in runs if run not in finished]


def describe_run(run: Iterable[object]) -> str:
    """Dataset, task, setting, method and seed in words."""
    *names, seed = run
    return f"{' '.join(map(str, names))} seed {seed}"


def paired_difference(
    ended: pd.DataFrame, method: str, reference: str, measure: str = ALL
) -> Spread:
    """How much a method is ahead of another one, seed by seed.

    Args:
        ended: The last step of the runs of one experiment, a row per run.
        method: The method.
        reference: The other one, which is subtracted.
        measure: Column to compare.

    Returns:
        In points, over the seeds that both have.
    """
    values = {
        name: rows.set_index("seed")[measure].astype(float)
        for name, rows in ended.groupby("method", sort=False)
    }
    if method not in values or reference not in values:
        return Spread.of([])
    return Spread.of(values[method] - values[reference])  # NaN where one lacks a seed


def mean_of(ended: pd.DataFrame, method: str, measure: str = ALL) -> Spread:
    """A measure of a method over its seeds.

    Args:
        ended: The last step of the runs of one experiment, a row per run.
        method: The method.
        measure: Its column.
    """
    return Spread.of(ended.loc[ended["method"] == method, measure].astype(float))
