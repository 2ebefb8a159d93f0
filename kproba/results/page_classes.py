"""Tables of the page about classes: by step, confused, and as pseudo labels."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from kproba.plan.results import StepResult
from kproba.results.cells import (
    Cell,
    Column,
    Table,
    change_cell,
    fixed,
    integer_cell,
    number_cell,
    share_cell,
)
from kproba.results.experiment import Experiment
from kproba.results.tables import QUALITY, read_confusion

MOST_CLASSES = 25  # in a matrix of confusions
MOST_CONFUSIONS = 12  # in the list of them
MOST_OPEN = 40  # classes of a map that is not folded
LIMIT = 25.0  # points of the strongest colour in a map, either way


def class_tables(experiment: Experiment, classes: pd.DataFrame) -> dict[str, Table]:
    """Per method a map: IoU of every class after every step, coloured by its change.

    Args:
        experiment: Its classes and steps.
        classes: classes.csv.
    """
    tables = {}
    for method, runs in classes.groupby("method", sort=False):
        evaluated = sorted({int(step) for step in runs["step"]})
        places = runs.groupby(["index", "step"]).indices
        none = np.zeros(0, np.intp)
        loses = bool(runs["forgetting"].notna().any())  # joint training has one step
        rows = []
        for index, name in enumerate(experiment.names):
            found = [places.get((index, step), none) for step in evaluated]
            ious = [float(runs["iou"].iloc[place].mean()) for place in found]
            lost = [float(runs["forgetting"].iloc[place].mean()) for place in found]
            cells = [
                change_cell(iou, -forgotten, LIMIT)
                for iou, forgotten in zip(ious, lost, strict=True)
            ]
            row = _step_line(experiment, index)
            total = [
                replace(number_cell(runs["forgetting"].iloc[found[-1]]), deviation=None)
            ]
            rows.append([Cell(name, row=row), *cells, *(total if loses else [])])
        columns = [
            Column("class"),
            *(Column(str(step), before="step ") for step in evaluated),
        ]
        if loses:
            note = "best earlier IoU minus IoU after the last step, in points"
            columns.append(Column("lost", note))
        caption = f"{method}: IoU of every class in percent"
        tables[str(method)] = Table(caption, columns, rows, "map", str(method))
    return tables


def _step_line(experiment: Experiment, index: int) -> str:
    """The class of a row that begins the classes of a later step."""
    steps = experiment.introduced
    return "first" if index and steps[index] != steps[index - 1] else ""


def confusion_tables(
    experiment: Experiment, results: Sequence[StepResult]
) -> dict[str, list[Table]]:
    """Per method what the classes were taken for after the last step, all seeds."""
    last = len(experiment.groups) - 1
    counts: dict[str, np.ndarray] = {}
    for result in results:
        if result.step == last:
            table = read_confusion(result.confusion, len(experiment.names))
            counts[result.method] = counts.get(result.method, 0) + table
    tables = {}
    for method, confusion in counts.items():
        pixels = confusion.sum(axis=1, keepdims=True)
        shares = 100 * np.divide(
            confusion, pixels, out=np.zeros(confusion.shape), where=pixels > 0
        )
        tables[method] = [_largest_confusions(method, shares, experiment)]
        if len(shares) <= MOST_CLASSES:
            tables[method].append(_confusion_matrix(method, shares, experiment))
    return tables


def _largest_confusions(
    method: str, shares: np.ndarray, experiment: Experiment
) -> Table:
    """The largest confusions of classes that came in different steps."""
    names, introduced = experiment.names, np.array(experiment.introduced)
    between = shares * (introduced[:, None] != introduced[None])
    between[0] = between[:, 0] = 0
    largest = np.argsort(between, axis=None)[::-1][:MOST_CONFUSIONS]
    places = [np.unravel_index(place, between.shape) for place in largest]
    rows = [
        [
            Cell(names[true]),
            Cell(names[taken], words=True),
            Cell(fixed(between[true, taken]), float(between[true, taken])),
            Cell(f"{introduced[true]} → {introduced[taken]}", words=True),
        ]
        for true, taken in places
        if between[true, taken] >= 0.05
    ]
    columns = [Column("class"), Column("taken for", look="words")]
    columns += [Column("%", "of the pixels of the class")]
    columns.append(
        Column("steps", "of the class, and of the class it is taken for", "words")
    )
    caption = f"{method}: largest confusions of old and new classes"
    return Table(caption, columns, rows, "", "Largest confusions across steps")


def _confusion_matrix(method: str, shares: np.ndarray, experiment: Experiment) -> Table:
    names = experiment.names
    errors = shares[~np.eye(len(shares), dtype=bool)]
    largest = float(errors.max(initial=0.0))
    rows = []
    for true, name in enumerate(names):
        cells = [
            share_cell(
                float(share),
                largest,
                hit=true == taken,
                edge=bool(_step_line(experiment, taken)),
            )
            for taken, share in enumerate(shares[true])
        ]
        rows.append([Cell(name, row=_step_line(experiment, true)), *cells])
    heads = [
        Column(name, look=_step_line(experiment, taken))
        for taken, name in enumerate(names)
    ]
    caption = f"{method}: classes (rows) and what they are taken for, percent of pixels"
    short = f"Rows: true class; columns: prediction. Strongest colour: {largest:.0f} %"
    return Table(caption, [Column("class"), *heads], rows, "matrix", short)


def quality_table(quality: pd.DataFrame) -> Table | None:
    """Means over the old classes, then over seeds, of every method and step.

    Args:
        quality: pseudo_labels.csv without the background.

    Returns:
        None without pseudo labels.
    """
    rows: list[list[Cell]] = []
    for (method, step), runs in quality.groupby(["method", "step"], sort=False):
        by_seed = runs.groupby("seed")
        means = by_seed[QUALITY].mean()
        counts = by_seed[
            ["pixels", "labelled", "correct", "of_background", "of_future"]
        ]
        sums = counts.sum(min_count=1)  # empty where the masks lack old classes
        pixels = sums["pixels"].where(sums["pixels"] > 0)
        means["recovered"] = 100 * sums["correct"] / pixels
        labelled = sums["labelled"].where(sums["labelled"] > 0)
        for kind in ("of_background", "of_future"):
            means[kind] = 100 * sums[kind] / labelled
        order = ["recovered", *QUALITY, "of_background", "of_future"]
        cells = [number_cell(means[column]) for column in order]
        row = "first" if rows and rows[-1][0].text != str(method) else ""
        rows.append([Cell(str(method), row=row), integer_cell(step), *cells])
    columns = [
        Column("method"),
        Column("step"),
        Column("recovered", "percent of the hidden pixels of old classes"),
        Column("precision", "mean over the classes that were labelled at all"),
        Column("recall", "mean over the old classes"),
        Column("IoU", "mean over the old classes"),
        Column(
            "really background", "percent of the labelled pixels that are background"
        ),
        Column(
            "really future", "percent of the labelled pixels that are a later class"
        ),
    ]
    caption = "Pseudo labels against the hidden ground truth, in percent"
    return Table(caption, columns, rows) if rows else None


def class_quality_tables(quality: pd.DataFrame) -> dict[str, Table]:
    """Per method, step and class: how much was recovered, how much of it is right.

    Args:
        quality: pseudo_labels.csv without the background.
    """
    tables = {}
    for method, labels in quality.groupby("method", sort=False):
        rows: list[list[Cell]] = []
        for (step, _, name), runs in labels.groupby(["step", "index", "class"]):
            cells = [
                number_cell(runs[column]) for column in ("recall", "precision", "iou")
            ]
            row = "first" if rows and rows[-1][1].text != str(step) else ""
            rows.append([Cell(str(name), row=row), integer_cell(step), *cells])
        titles = ("class", "step", "recovered", "precision", "IoU")
        caption = f"{method}: pseudo labels of every class, in percent"
        columns = [Column(title) for title in titles]
        tables[str(method)] = Table(caption, columns, rows, "", str(method))
    return tables
