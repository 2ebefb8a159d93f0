"""The figure of examples: validation images through the steps of every method."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from kproba.data.colours import drawing_colours
from kproba.data.drawing import paint_labels
from kproba.data.fonts import drawn_name
from kproba.data.label_images import read_label_image
from kproba.data.sources import Source
from kproba.data.tasks import Groups
from kproba.plan.results import StepResult
from kproba.results.experiment import read_truth
from kproba.results.tables import keep_first_seed, read_evaluation

MOST_COLUMNS = 9  # of predictions
MOST_NAMED = 48  # classes in a legend
FRAME = "#949494"  # the background of a mask is white, as the paper is


@dataclass(frozen=True)
class _Column:
    """Predictions of one step in the figure of examples."""

    title: str
    step: int
    folder: Path


def draw_examples(
    results: Sequence[StepResult], index: pd.DataFrame, groups: Groups
) -> Figure:
    """A line per validation image: image, truth, and predictions in columns.

    Args:
        results: Steps of an experiment; the first seed of each method is shown.
        index: Index of the dataset and of its additions.
        groups: Raw labels of the classes, per step of the task.
    """
    pictured = keep_first_seed(results)
    columns = _example_columns(pictured)
    names = sorted({p.stem for column in columns for p in column.folder.glob("*.png")})
    last = max(pictured, key=lambda result: result.step)
    classes = read_evaluation(last)["classes"]
    shown = index[index["id"].isin(names)]  # of an index that may have a million rows
    images = {image["id"]: image for image in shown.to_dict("records")}
    down, across = max(1, len(names)), 2 + len(columns)
    size = (1.25 * across, 1.25 * down + 0.8)
    figure, axes = plt.subplots(down, across, figsize=size, squeeze=False)
    for axis in axes.ravel():
        axis.axis("off")
    for line, name in zip(axes, names, strict=False):
        photograph = Source.from_row(images[name]).read_image()
        _show(line[0], photograph.permute(1, 2, 0).numpy())
        truth = read_truth(images[name], groups)
        _show(line[1], paint_labels(truth, len(classes)))
        for axis, column in zip(line[2:], columns, strict=True):
            path = column.folder / f"{name}.png"
            if path.is_file():  # else the image is of an addition, before its step
                _show(axis, paint_labels(read_label_image(path), len(classes)))
    titles = ("image", "truth", *(column.title for column in columns))
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=8)
    _name_colours(figure, classes)
    figure.subplots_adjust(wspace=0.04, hspace=0.04)
    return figure


def _show(axis: Axes, picture: np.ndarray) -> None:
    """Show a picture (H, W, 3) uint8 in a thin frame."""
    axis.imshow(picture)
    axis.axis("on")
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set(color=FRAME, linewidth=0.5)


def _name_colours(figure: Figure, classes: Sequence[Mapping[str, Any]]) -> None:
    """A legend of the classes, if they are few enough."""
    palette = drawing_colours(len(classes))
    handles = [
        Patch(
            facecolor=tuple(colour / 255),
            edgecolor="grey",
            label=f"{drawn_name(entry['name'], f'class {index}')} "
            f"(step {entry['step']})",
        )
        for index, (entry, colour) in enumerate(zip(classes, palette, strict=False))
    ]
    if len(handles) <= MOST_NAMED:
        figure.legend(
            handles=handles,
            ncol=6,
            loc="upper center",
            bbox_to_anchor=(0.5, 0.1),
            fontsize=8,
        )


def _example_columns(results: Sequence[StepResult]) -> list[_Column]:
    """One column per test, if methods share it too; of many only first and last steps.

    Titles name the first method that shows the test. Step 0 of the network alone is
    the same for all methods with that kind of output, so the first such needs no name.
    """
    columns: dict[Path, _Column] = {}
    unnamed: Path | None = None  # folder of the step 0 without a method's name
    for result in results:
        folder = Path(result.examples)
        title = f"{result.method}\nstep {result.step}"
        if result.step == 0 and result.bank is None and unnamed in (None, folder):
            unnamed, title = folder, "step 0"
        columns.setdefault(folder, _Column(title, result.step, folder))
    if len(columns) <= MOST_COLUMNS:
        return list(columns.values())
    last = max(result.step for result in results)
    return [column for column in columns.values() if column.step in (0, last)]
