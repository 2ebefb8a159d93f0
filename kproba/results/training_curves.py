"""Training curves of the page: each term of the loss alone, one line per method."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from markupsafe import Markup

from kproba.plan.results import StepResult
from kproba.results.charts import Curve, loss_chart
from kproba.results.palette import Style
from kproba.results.tables import keep_first_seed
from kproba.runtime.tables import read_table

POINTS = 40  # of a line in a step, at most

# By term of the loss: iterations and values.
Terms = dict[str, tuple[list[float], list[float]]]


def draw_training(
    results: Sequence[StepResult], styles: Mapping[str, Style]
) -> dict[str, Markup]:
    """A chart per term of the loss.

    Terms are never summed: methods, and the steps of a method, have different ones.

    Args:
        results: All steps of an experiment. The first seed of each method is drawn.
        styles: How each method that is to be drawn is drawn.
    """
    found: dict[str, dict[str, dict[int, tuple[list[float], list[float]]]]] = {}
    ends: dict[int, float] = {}
    for result in keep_first_seed(results):
        if result.method not in styles:
            continue
        for term, curve in _read_terms(result.metrics).items():
            of_term = found.setdefault(term, {})
            of_term.setdefault(result.method, {})[result.step] = curve
            ends[result.step] = max(ends.get(result.step, 0), *curve[0])
    ends = dict(sorted(ends.items()))
    charts = {}
    for term, methods in found.items():
        curves = [Curve(name, styles[name], steps) for name, steps in methods.items()]
        charts[term] = loss_chart(term, curves, ends)
    return charts


def _read_terms(path: str) -> Terms:
    """The terms of a metrics.csv, averaged to few points; none without the file.

    A record without terms holds their sum alone, which is then the one term.
    """
    try:
        table = read_table(path, {"iteration": float, "loss": float})
    except FileNotFoundError:
        return {}
    if table.empty:
        return {}
    names = [
        str(name)
        for name in table.columns
        if name not in ("iteration", "loss") and not str(name).startswith("lr_")
    ] or ["loss"]
    numbers = table[names].apply(pd.to_numeric, errors="coerce")
    together = np.arange(len(table)) // max(1, math.ceil(len(table) / POINTS))
    means = numbers.groupby(together).mean()
    iterations = table["iteration"].groupby(together).max().tolist()
    return {name: (iterations, means[name].tolist()) for name in names}
