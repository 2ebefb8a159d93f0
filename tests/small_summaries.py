"""Small summaries whose differences are known by hand."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

Runs = Mapping[
    str, Mapping[int, float]
]  # `all` after the last step, by method and seed


def summary(
    runs: Runs, dataset: str = "pets", task: str = "1-1", setting: str = "overlap"
) -> pd.DataFrame:
    """Rows of two steps of every run; `old` is `all` + 2 and `new` is `all` - 3.

    Methods whose names begin with "joint" have the last step alone.
    """
    rows = [
        {
            **{"dataset": dataset, "task": task, "setting": setting},
            **{"method": method, "seed": seed, "step": step},
            **{"old": value + 2, "new": value - 3 if step else None, "all": value},
            "avg": value + 1,
        }
        for method, seeds in runs.items()
        for seed, number in seeds.items()
        for step, value in ((0, number + 10), (1, number))
        if step or not method.startswith("joint")
    ]
    return pd.DataFrame(rows)


def seeds(*values: float) -> dict[int, float]:
    """Values of the seeds 0, 1, .."""
    return dict(enumerate(values))


def write(table: pd.DataFrame, path: Path) -> Path:
    """Write a summary as CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False, float_format="%.4f")
    return path
