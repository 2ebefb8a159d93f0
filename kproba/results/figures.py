"""Figures of an experiment, for papers and for the page."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.font_manager
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatterSciNotation

from kproba.data.folders import Folders
from kproba.data.fonts import drawn_name, font_families
from kproba.data.splits import read_indices
from kproba.data.tasks import Groups
from kproba.plan.results import StepResult
from kproba.results import measures
from kproba.results.example_figure import draw_examples
from kproba.results.palette import SERIES, Style, method_styles
from kproba.results.tables import keep_first_seed, read_evaluation, read_summary
from kproba.runtime.files import atomic_path
from kproba.runtime.tables import read_table

matplotlib.use("Agg")

MOST_CURVES = 10  # in one panel


def draw_figures(
    results: Sequence[StepResult],
    indices: Sequence[str | Path],
    outputs: Mapping[str, str | Path],
    *,
    groups: Groups,
    folders: Mapping[str, Folders] | None = None,
) -> None:
    """Draw the figures of one experiment.

    Args:
        results: All its steps.
        indices: Index of the dataset and of its additions.
        outputs: PNG by name, all of `kproba.artifacts.FIGURE_NAMES`:
            `miou`: curves of every measure of one step, over the steps;
            `training`: the loss over the iterations of every step;
            `classes`: IoU of every class after every step, per method;
            `pseudo_labels`: IoU of every step's pseudo labels, per class and method;
            `examples`: the same validation images through steps and methods.
        groups: Raw labels of the classes, per step of the task.
        folders: Where the pictures of each dataset and addition are.
    """
    evaluations = [{**read_evaluation(result), **result.run} for result in results]
    index = pd.concat(read_indices(indices, folders))
    settings: Any = {"font.size": 9, "figure.dpi": 110, **_as_written(evaluations)}
    with plt.rc_context(settings):
        _save(_draw_miou(evaluations), outputs["miou"])
        _save(_draw_training(results), outputs["training"])
        _save(_draw_classes(evaluations), outputs["classes"])
        _save(draw_examples(results, index, groups), outputs["examples"])
        _save(_draw_quality(results, evaluations), outputs["pseudo_labels"])


def _as_written(evaluations: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Settings of matplotlib with which all names are drawn as they are written.

    Text between two dollars would be read as a formula, and letters that the default
    font lacks would be boxes.
    """
    names = {str(entry["name"]) for one in evaluations for entry in one["classes"]}
    names |= {str(one["method"]) for one in evaluations}
    families = list(matplotlib.rcParams["font.family"])
    for path in font_families(sorted(names)):
        matplotlib.font_manager.fontManager.addfont(path)
        families.append(matplotlib.font_manager.FontProperties(fname=path).get_name())
    return {"text.parse_math": False, "font.family": list(dict.fromkeys(families))}


class _PlainLog(LogFormatterSciNotation):
    """Labels of a logarithmic axis as plain numbers: formulas are not drawn."""

    def __call__(self, value: float, position: int | None = None) -> str:
        return f"{value:g}" if super().__call__(value, position) else ""


def _save(figure: Figure, path: str | Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", bbox_inches="tight")
    plt.close(figure)


def _draw_miou(evaluations: Sequence[Mapping[str, Any]]) -> Figure:
    """A panel per measure of one step, a curve per method, mean over seeds."""
    table = pd.DataFrame(evaluations)
    methods = list(dict.fromkeys(table["method"]))
    steps = sorted(set(table["step"]))
    if len(methods) > MOST_CURVES:
        return _draw_ranking(table, methods)
    panels, styles = measures.step_measures(), method_styles(methods)
    size = (3 * len(panels), 3)
    figure, axes = plt.subplots(
        1, len(panels), figsize=size, sharey=True, squeeze=False
    )
    legend: dict[str, Any] = {}
    for axis, measure in zip(axes[0], panels, strict=True):
        for method in methods:
            runs = table[table["method"] == method]
            single = len(steps) > 1 and runs["step"].nunique() == 1
            _draw_curve(axis, runs, measure.name, styles[method], single)
        axis.set(title=measure.title, xlabel="step", xticks=steps, ylim=(0, 100))
        axis.set_xlim(steps[0] - 0.3, steps[-1] + 0.3)  # markers at the ends stay whole
        axis.grid(alpha=0.3)
        if measure == measures.ALL:  # which every method has
            handles, labels = axis.get_legend_handles_labels()
            legend = dict(zip(labels, handles, strict=True))
    axes[0][0].set_ylabel("percent")
    handles = [legend[method] for method in methods if method in legend]
    figure.legend(handles=handles, loc="upper center", ncol=MOST_CURVES)
    figure.subplots_adjust(top=0.8)
    return figure


def _draw_curve(
    axis: Axes, runs: pd.DataFrame, measure: str, style: Style, single: bool
) -> None:
    """Mean and deviation of one method.

    Args:
        axis: Where.
        runs: Evaluations of the method.
        measure: The column.
        style: Colour and marker of the method, as on the page.
        single: Whether the method has one step and others have more, as `joint` has: a
            line through all steps.
    """
    [method] = set(runs["method"])
    values = runs.astype({measure: float}).groupby("step")[measure]
    curve = values.agg(["mean", "std"]).dropna(how="all")
    if single:
        for level in curve["mean"]:  # one, or none if it is not defined
            axis.axhline(
                level, color=style.colour, linestyle=style.dashes, label=method
            )
        return
    axis.errorbar(
        curve.index,
        curve["mean"],
        yerr=curve["std"].fillna(0),
        marker=style.marker or "o",
        color=style.colour,
        label=method,
        capsize=2,
    )


def _draw_ranking(table: pd.DataFrame, methods: Sequence[str]) -> Figure:
    """`all` after the last step, one line per method: for more than curves can show."""
    last = table["step"].max()
    runs = table[table["step"] == last].groupby("method")[measures.ALL.name]
    ended = runs.agg(["mean", "std"]).reindex(list(methods))
    figure, axis = plt.subplots(figsize=(8, 0.8 + 0.22 * len(methods)))
    places = range(len(methods))
    deviation = ended["std"].fillna(0)
    axis.errorbar(
        ended["mean"], places, xerr=deviation, fmt="o", color=SERIES[0][0], capsize=2
    )
    first = float(ended["mean"].iloc[0])
    axis.axvline(first, color=SERIES[1][0], linestyle="--")
    axis.set_yticks(places, methods)
    axis.invert_yaxis()
    axis.grid(alpha=0.3)
    axis.set_xlabel(f"mIoU of all classes after step {last} in percent")
    axis.set_title(f"the dashed line is {methods[0]}")
    return figure


def _draw_training(results: Sequence[StepResult]) -> Figure:
    """How far the loss falls: a panel per step, a line per training.

    Methods have different loss terms, so their sums cannot be compared. Each is divided
    by its first logged value.
    """
    trainings: dict[int, dict[str, str]] = {}  # what methods share once
    for result in keep_first_seed(results):
        methods = trainings.setdefault(result.step, {})
        methods.setdefault(result.metrics, result.method)
    steps = sorted(trainings)
    styles = method_styles(
        name for names in trainings.values() for name in names.values()
    )
    size = (1 + 2.8 * len(steps), 3)
    figure, axes = plt.subplots(
        1, len(steps), figsize=size, squeeze=False, layout="constrained"
    )
    for axis, step in zip(axes[0], steps, strict=True):
        for number, (path, method) in enumerate(trainings[step].items()):
            curve = read_table(path, {"iteration": int, "loss": float})
            if curve.empty:  # the method trains nothing
                continue
            style = ["-", "--", ":"][number // len(SERIES) % 3]
            colour = styles[method].colour
            share = curve["loss"] / curve["loss"].head(1).sum()
            axis.plot(curve["iteration"], share, style, color=colour, label=method)
        axis.set(title=f"step {step}", xlabel="iteration", yscale="log")
        axis.yaxis.set_major_formatter(_PlainLog())
        axis.yaxis.set_minor_formatter(_PlainLog(labelOnlyBase=False))
        axis.grid(alpha=0.3)
        if axis.lines and len(trainings[step]) <= MOST_CURVES:
            axis.legend(loc="best", fontsize=7)
    axes[0][0].set_ylabel("loss / its first value (first seed)")
    return figure


def _draw_classes(evaluations: Sequence[Mapping[str, Any]]) -> Figure:
    widest = max(evaluations, key=lambda evaluation: len(evaluation["classes"]))
    table = pd.DataFrame(
        {**entry, "method": evaluation["method"], "step": evaluation["step"]}
        for evaluation in evaluations
        for entry in evaluation["classes"]
    )
    names = {entry["index"]: entry["name"] for entry in widest["classes"]}
    return _heat_maps(table, names)


def _draw_quality(
    results: Sequence[StepResult], evaluations: Sequence[Mapping[str, Any]]
) -> Figure:
    tables = [
        read_summary(result.quality).assign(method=result.method, step=result.step)
        for result in results
        if result.quality
    ]
    table = pd.concat(tables) if tables else pd.DataFrame()
    if table.empty:
        figure = plt.figure(figsize=(4, 0.5))
        figure.text(0.5, 0.5, "no pseudo labels here", ha="center")
        return figure
    table = table[table["index"] > 0]
    shown = set(table["index"])
    widest = max(evaluations, key=lambda evaluation: len(evaluation["classes"]))
    names = {
        entry["index"]: entry["name"]
        for entry in widest["classes"]
        if entry["index"] in shown
    }
    return _heat_maps(table, names)


def _heat_maps(table: pd.DataFrame, classes: Mapping[int, str]) -> Figure:
    """IoU by class and step, one map per method, mean over seeds.

    Args:
        table: Columns method, step, index and iou.
        classes: Names by index, in the order of the rows.
    """
    methods = list(dict.fromkeys(table["method"]))
    steps = sorted(set(table["step"]))
    names = [drawn_name(name, f"class {index}") for index, name in classes.items()]
    means = table.astype({"iou": float}).groupby(["method", "index", "step"])["iou"]
    iou = means.apply(lambda values: values.mean(skipna=False))
    across = min(4, len(methods))
    down = math.ceil(len(methods) / across)
    size = (1.5 + 2.2 * across, down * (1.2 + 0.22 * len(names)))
    figure, axes = plt.subplots(
        down, across, figsize=size, squeeze=False, layout="constrained"
    )
    for axis in axes.ravel()[len(methods) :]:
        axis.remove()
    for number, (axis, method) in enumerate(zip(axes.ravel(), methods, strict=False)):
        grid = iou[method].unstack().reindex(index=list(classes), columns=steps)
        matrix = grid.to_numpy(dtype=float)
        axis.imshow(matrix, vmin=0, vmax=100, cmap="viridis", aspect="auto")
        for (line, column), value in np.ndenumerate(matrix):
            if not np.isnan(value):
                ink = "white" if value < 60 else "black"
                axis.text(
                    column, line, f"{value:.0f}", ha="center", va="center", color=ink
                )
        axis.set(title=method, xlabel="step", xticks=range(len(steps)))
        axis.set_xticklabels([str(step) for step in steps])
        axis.set_yticks(range(len(names)), [] if number % across else names)
    return figure
