"""Figures of an experiment, for papers and for the page."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from kproba.data.drawing import class_colours
from kproba.data.label_images import read_label_image
from kproba.data.labels import LabelMap
from kproba.data.splits import read_indices
from kproba.data.tasks import Groups
from kproba.results.tables import MEASURES, Row, first_seeds, read_summary
from kproba.runtime.files import atomic_path, read_json

matplotlib.use("Agg")


MOST_COLUMNS = 9  # of predictions in the figure of examples


MOST_CURVES = 10  # in one panel


MOST_NAMED = 48  # classes in a legend


# Okabe and Ito's colours, told apart by colour-blind readers too.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]


LEVEL = "#767676"  # of what is one line through all steps


def draw_figures(
    rows: Sequence[Row],
    indices: Sequence[str | Path],
    *,
    groups: Groups,
    miou: str | Path,
    training: str | Path,
    classes: str | Path,
    pseudo_labels: str | Path,
    examples: str | Path,
) -> None:
    """Draw the figures of one experiment.

    Args:
        rows: As for `summarise`, of one experiment.
        indices: Index of the dataset and of its additions.
        groups: Class groups of the task.
        miou: Output: curves of old, new, all and their harmonic mean over the steps.
        training: Output: the loss over the iterations of every step.
        classes: Output: IoU of every class after every step, per method.
        pseudo_labels: Output: IoU of every step's pseudo labels, per class and method.
        examples: Output: the same validation images through steps and methods.
    """
    results = [{**read_json(row["evaluation"]), **row} for row in rows]
    with plt.rc_context({"font.size": 9, "figure.dpi": 110}):
        _save(_draw_miou(results), miou)
        _save(_draw_training(rows), training)
        _save(_draw_classes(results), classes)
        _save(_draw_examples(rows, pd.concat(read_indices(indices)), groups), examples)
        _save(_draw_quality(rows), pseudo_labels)


def _save(figure: Figure, path: str | Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", bbox_inches="tight")
    plt.close(figure)


def _draw_miou(results: Sequence[Row]) -> Figure:
    methods = list(dict.fromkeys(row["method"] for row in results))
    steps = sorted({row["step"] for row in results})
    if len(methods) > MOST_CURVES:
        return _draw_ranking(results, methods)
    figure, axes = plt.subplots(1, 4, figsize=(12, 3), sharey=True)
    for axis, measure in zip(axes, (*MEASURES, "hiou"), strict=True):
        for number, method in enumerate(methods):
            runs = pd.DataFrame([row for row in results if row["method"] == method])
            curve = runs.groupby("step")[measure].agg(["mean", "std"]).dropna(how="all")
            colour = COLOURS[number % len(COLOURS)]
            if len(curve) == 1 and len(steps) > 1:  # joint: one training, one line
                level = float(curve["mean"].iloc[0])
                axis.axhline(level, color=LEVEL, linestyle="--", label=method)
            else:
                axis.errorbar(
                    curve.index,
                    curve["mean"],
                    yerr=curve["std"].fillna(0),
                    marker="os^Dv"[number % 5],
                    color=colour,
                    label=method,
                    capsize=2,
                )
        title = "hIoU" if measure == "hiou" else measure
        axis.set(title=title, xlabel="step", xticks=steps, ylim=(0, 100))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("mIoU in percent")
    handles, labels = axes[2].get_legend_handles_labels()
    shown = dict(zip(labels, handles, strict=True))
    handles = [shown[method] for method in methods if method in shown]
    figure.legend(handles=handles, loc="upper center", ncol=MOST_CURVES)
    figure.subplots_adjust(top=0.8)
    return figure


def _draw_ranking(results: Sequence[Row], methods: Sequence[str]) -> Figure:
    """`all` after the last step, one line per method: for more than curves can show."""
    last = max(row["step"] for row in results)
    table = pd.DataFrame([row for row in results if row["step"] == last])
    ended = table.groupby("method")["all"].agg(["mean", "std"]).reindex(list(methods))
    figure, axis = plt.subplots(figsize=(8, 0.8 + 0.22 * len(methods)))
    places = range(len(methods))
    deviation = ended["std"].fillna(0)
    axis.errorbar(
        ended["mean"], places, xerr=deviation, fmt="o", color=COLOURS[0], capsize=2
    )
    first = float(ended["mean"].iloc[0])
    axis.axvline(first, color=COLOURS[1], linestyle="--")
    axis.set_yticks(places, methods)
    axis.invert_yaxis()
    axis.grid(alpha=0.3)
    axis.set_xlabel(f"mIoU of all classes after step {last} in percent")
    axis.set_title(f"the dashed line is {methods[0]}")
    return figure


def _draw_training(rows: Sequence[Row]) -> Figure:
    """The sum of the loss terms, a panel per step, a line per training."""
    trainings: dict[int, dict[str, str]] = {}  # what methods share once
    for row in first_seeds(rows):
        shared = trainings.setdefault(row["step"], {})
        shared.setdefault(row["metrics"], row["method"])
    steps = sorted(trainings)
    size = (1 + 2.8 * len(steps), 3)
    figure, axes = plt.subplots(
        1, len(steps), figsize=size, squeeze=False, layout="constrained"
    )
    for axis, step in zip(axes[0], steps, strict=True):
        for number, (path, method) in enumerate(trainings[step].items()):
            curve = pd.read_csv(path)
            style = ["-", "--", ":"][number // len(COLOURS) % 3]
            colour = COLOURS[number % len(COLOURS)]
            axis.plot(
                curve["iteration"], curve["loss"], style, color=colour, label=method
            )
        axis.set(title=f"step {step}", xlabel="iteration", yscale="log")
        axis.grid(alpha=0.3)
        if len(trainings[step]) <= MOST_CURVES:
            axis.legend(loc="best", fontsize=7)
    axes[0][0].set_ylabel("loss (of the first seed)")
    return figure


def _draw_classes(results: Sequence[Row]) -> Figure:
    widest = max(results, key=lambda row: len(row["classes"]))
    table = pd.DataFrame(
        {**entry, "method": row["method"], "step": row["step"]}
        for row in results
        for entry in row["classes"]
    )
    names = {entry["index"]: entry["name"] for entry in widest["classes"]}
    return _heat_maps(table, names)


def _draw_quality(rows: Sequence[Row]) -> Figure:
    tables = [
        read_summary(row["quality"]).assign(method=row["method"], step=row["step"])
        for row in rows
        if row["quality"]
    ]
    table = pd.concat(tables) if tables else pd.DataFrame()
    if table.empty:
        figure = plt.figure(figsize=(4, 0.5))
        figure.text(0.5, 0.5, "no pseudo labels here", ha="center")
        return figure
    table = table[table["index"] > 0]
    names = dict(sorted(zip(table["index"], table["class"], strict=True)))
    return _heat_maps(table, names)


def _heat_maps(table: pd.DataFrame, classes: Mapping[int, str]) -> Figure:
    """IoU by class and step, one map per method, mean over seeds.

    Args:
        table: Columns method, step, index and iou.
        classes: Names by index, in the order of the rows.
    """
    methods = list(dict.fromkeys(table["method"]))
    steps = sorted(set(table["step"]))
    names = list(classes.values())
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


def _draw_examples(rows: Sequence[Row], index: pd.DataFrame, groups: Groups) -> Figure:
    shown = first_seeds(rows)
    columns = _example_columns(shown)
    names = sorted(
        {p.stem for folder in columns.values() for p in folder.glob("*.png")}
    )
    table = LabelMap(groups).evaluation_table()
    last = max(shown, key=lambda row: row["step"])
    entries = read_json(last["evaluation"])["classes"]
    palette = class_colours(len(entries))
    image_of = dict(zip(index["id"], index["image"], strict=True))
    mask_of = dict(zip(index["id"], index["mask"], strict=True))
    figure, axes = plt.subplots(
        max(1, len(names)),
        2 + len(columns),
        figsize=(1.25 * (2 + len(columns)), 1.25 * max(1, len(names)) + 0.8),
        squeeze=False,
    )
    for axis in axes.ravel():
        axis.axis("off")
    for line, name in enumerate(names):
        with Image.open(image_of[name]) as image:
            axes[line][0].imshow(image.convert("RGB"))
        truth = table[read_label_image(mask_of[name])]
        axes[line][1].imshow(palette[truth])
        for axis, folder in zip(axes[line][2:], columns.values(), strict=True):
            if (folder / f"{name}.png").is_file():  # else of an addition, before it
                axis.imshow(palette[read_label_image(folder / f"{name}.png")])
    for axis, title in zip(axes[0], ("image", "truth", *columns), strict=True):
        axis.set_title(title, fontsize=8)
    handles = [
        Patch(
            facecolor=tuple(colour / 255),
            edgecolor="grey",
            label=f"{entry['name']} (step {entry['step']})",
        )
        for entry, colour in zip(entries, palette, strict=False)
    ]
    if len(handles) <= MOST_NAMED:
        figure.legend(
            handles=handles,
            ncol=6,
            loc="upper center",
            bbox_to_anchor=(0.5, 0.06),
            fontsize=8,
        )
    figure.subplots_adjust(wspace=0.04, hspace=0.04)
    return figure


def _example_columns(rows: Sequence[Row]) -> dict[str, Path]:
    """Folders of predictions by their titles; of many only those of the last step."""
    last = max(row["step"] for row in rows)
    folders: dict[Path, str] = {}  # a step 0 that methods share once
    for row in rows:
        folder = Path(row["evaluation"]).with_name("examples")
        own = folder.parts[-4] == row["method"]  # tested with the method's bank
        first = row["step"] == 0 and not own and "step 0" not in folders.values()
        title = "step 0" if first else f"{row['method']}\nstep {row['step']}"
        folders.setdefault(folder, title)
    columns = {title: folder for folder, title in folders.items()}
    if len(columns) > MOST_COLUMNS:
        kept = ("step 0", f"step {last}")
        columns = {t: f for t, f in columns.items() if t.endswith(kept)}
    return columns
