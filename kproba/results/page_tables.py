"""Tables of the page about methods: their results, and what they cost."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

import pandas as pd

from kproba.plan.results import StepResult
from kproba.results import measures
from kproba.results.cells import (
    Cell,
    Column,
    Table,
    duration_cell,
    integer_cell,
    mark_best,
    number_cell,
    percent_of,
    size_cell,
)
from kproba.results.costs import (
    FEATURES,
    KINDS,
    OLD_IMAGES,
    RARE,
    TRAINING,
    read_costs,
)
from kproba.results.measures import CostMeasure, Measure

SIZES = ("memory", "model", "bank size")  # columns of costs in MiB


def result_measures() -> list[Measure]:
    """The measures of the first table: `all` first, and no costs."""
    others = [m for m in measures.all_measures() if not isinstance(m, CostMeasure)]
    return [measures.ALL, *(m for m in others if m.name != measures.ALL.name)]


def added_costs() -> list[CostMeasure]:
    """The measures of costs but for the time, which has columns of its own."""
    costs = [m for m in measures.all_measures() if isinstance(m, CostMeasure)]
    return [measure for measure in costs if measure.name != "seconds"]


def final_table(last: pd.DataFrame, joint: Collection[str]) -> Table:
    """All measures of every method after the last step.

    The best value of each column is marked. Joint training does not compete: it has
    its rows at the end. Of several the best one is what the others are a share of.

    Args:
        last: The last step of summary.csv.
        joint: Methods that are trained on everything at once.
    """
    shown = result_measures()
    means = last.astype({measures.ALL.name: float}).groupby("method")[measures.ALL.name]
    reached = means.mean().reindex(sorted(joint)).dropna()
    level = reached.max()  # NaN without joint training
    compares = bool(level > 0) and not set(last["method"]) <= set(joint)
    seeds = last.groupby("method")["seed"].nunique()
    unequal = seeds.nunique() > 1
    rows: list[list[Cell]] = []
    levels: list[list[Cell]] = []
    for method, runs in last.groupby("method", sort=False):
        row = [Cell(str(method)), *(number_cell(runs[m.name]) for m in shown)]
        if compares:
            share = 100 * runs[measures.ALL.name].astype(float).mean() / level
            known = method not in joint and not math.isnan(share)
            cell = Cell(percent_of(share), share) if known else Cell("–")
            row.insert(2, cell)
        if unequal:
            row.append(integer_cell(seeds[method]))
        (levels if method in joint else rows).append(row)
    columns = [Column("method"), *(Column(m.title, m.explanation) for m in shown)]
    lowest = [False, *(measure.lower_is_better for measure in shown)]
    if compares:
        name = reached.idxmax()
        columns.insert(
            2, Column(f"% of {name}", f"all, as a share of the value of {name}")
        )
        lowest.insert(2, False)
    for place in range(1, len(lowest)):
        rows = mark_best(rows, place, lowest=lowest[place])
    if unequal:
        columns.append(Column("seeds"))
    rows.sort(key=lambda row: -(row[1].sort if row[1].sort is not None else -1.0))
    ended = [[replace(row[0], row="level"), *row[1:]] for row in levels]
    return Table("Results after the last step, in percent", columns, [*rows, *ended])


def step_table(summary: pd.DataFrame) -> Table:
    """All measures of every method after every step."""
    shown = result_measures()
    rows: list[list[Cell]] = []
    for (method, step), runs in summary.groupby(["method", "step"], sort=False):
        cells = (number_cell(runs[measure.name]) for measure in shown)
        row = "first" if rows and rows[-1][0].text != str(method) else ""
        rows.append([Cell(str(method), row=row), integer_cell(step), *cells])
    titles = ["method", "step", *(measure.title for measure in shown)]
    return Table("Results after every step, in percent", _plain(titles), rows)


def seed_table(last: pd.DataFrame) -> Table:
    """`all` after the last step, seed by seed.

    Args:
        last: The last step of summary.csv.
    """
    name = measures.ALL.name
    values = last.pivot_table(index="method", columns="seed", values=name, sort=False)
    rows = [
        [Cell(str(method)), *(number_cell(pd.Series([value])) for value in line)]
        for method, line in zip(values.index, values.to_numpy(), strict=True)
    ]
    titles = ["method", *(f"seed {seed}" for seed in values.columns)]
    return Table("all after the last step, by seed, in percent", _plain(titles), rows)


def _plain(titles: Iterable[str]) -> list[Column]:
    return [Column(title) for title in titles]


def read_all_costs(results: Sequence[StepResult]) -> pd.DataFrame:
    """Costs of every step, a row each: method, seed, step and `read_costs`."""
    return pd.DataFrame(
        [
            {"method": r.method, "seed": r.seed, "step": r.step, **read_costs(r)}
            for r in results
        ]
    )


def total_table(costs: pd.DataFrame, last: pd.DataFrame) -> Table:
    """Time, memory and sizes of a whole run, means over seeds.

    Args:
        costs: From `read_all_costs`.
        last: The last step of summary.csv, for measures of costs that were added.
    """
    spent = costs.assign(time=costs[_kinds(costs)].sum(axis=1, min_count=1))
    others = added_costs()
    rows = []
    for method, runs in spent.groupby("method", sort=False):
        start = runs[runs["step"] == 0].groupby("seed")["time"].sum(min_count=1)
        later = runs[runs["step"] > 0].groupby("seed")["time"].sum(min_count=1)
        whole = runs.groupby("seed")["time"].sum(min_count=1)
        ended = runs[runs["step"] == runs["step"].max()]
        mine = last[last["method"] == method]
        row = [Cell(str(method)), *map(duration_cell, (start, later, whole))]
        row += [size_cell(runs.groupby("seed")["memory"].max())]
        row += [size_cell(ended[name]) for name in ("model", "bank size")]
        row += [
            duration_cell(mine[m.name]) if m.is_time else number_cell(mine[m.name])
            for m in others
        ]
        rows.append(row)
    columns = [
        Column("method"),
        Column("step 0", "time of step 0, which methods may share"),
        Column("later steps", "time of all steps but step 0"),
        Column("all steps", "time of the whole run"),
        Column("memory", "most of any training"),
        Column("model", "size on disk after the last step"),
        Column("bank", "size on disk after the last step"),
        *(Column(measure.title, measure.explanation) for measure in others),
    ]
    return Table("Time, memory and size of a whole run", columns, rows)


def _kinds(costs: pd.DataFrame) -> list[str]:
    """The columns of costs that are times of jobs."""
    return [name for name in (*KINDS, *RARE) if name in costs]


def cost_table(results: Sequence[StepResult]) -> Table:
    """Time, memory and size of every step, means over seeds."""
    return step_costs(read_all_costs(results))


def step_costs(costs: pd.DataFrame) -> Table:
    """Time, memory and size of every step, means over seeds.

    Args:
        costs: From `read_all_costs`.
    """
    names = [name for name in costs.columns if name not in ("method", "seed", "step")]
    lines: list[list[Cell]] = []
    for (method, step), runs in costs.groupby(["method", "step"], sort=False):
        numbers = [_cost_cell(name, runs[name]) for name in names]
        row = "first" if lines and lines[-1][0].text != str(method) else ""
        lines.append([Cell(str(method), row=row), integer_cell(step), *numbers])
    notes: Mapping[str, str] = {
        TRAINING: "of this step alone, start of the job included",
        "pseudo labels": "of this step alone",
        "bank": "of this step alone",
        OLD_IMAGES: "of choosing those that this step trains on",
        FEATURES: "of measuring those of old classes, from which this step draws",
        "images/s": "of training",
        "memory": "of the largest process of the training, or on its GPU",
        "model": "on disk",
        "bank size": "on disk",
    }
    columns = [Column(name, notes.get(name, "")) for name in names]
    caption = "Costs of every step"
    return Table(caption, [Column("method"), Column("step"), *columns], lines)


def _cost_cell(name: str, values: pd.Series) -> Cell:
    if name in (*KINDS, *RARE):
        return duration_cell(values)
    return size_cell(values) if name in SIZES else number_cell(values)
