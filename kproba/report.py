"""Tables, figures and the page that shows them.

python -m kproba.report results/summary.csv               # the short table
python -m kproba.report --markdown results/summary.csv    # after the last step alone
"""

import base64
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np
import pandas as pd
from PIL import Image

from kproba import __version__
from kproba.artifacts import atomic_path, read_json, read_label_image
from kproba.drawing import class_colours
from kproba.splits import Groups, LabelMap, read_index

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import Patch

Row = Mapping[str, Any]
EXPERIMENT = ["dataset", "task", "setting"]
MEASURES = ["old", "new", "all"]
MOST_COLUMNS = 9  # of predictions in the figure of examples
# Okabe and Ito's colours, told apart by colour-blind readers too.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]

# --- tables --------------------------------------------------------------------------


def summarise(rows: Sequence[Row], summary: str | Path, classes: str | Path) -> None:
    """Write summary.csv and classes.csv.

    Args:
        rows: Per run and step: dataset, task, setting, method, seed, step, the path of
            `evaluation` (JSON) and of its `times` (Snakemake benchmarks).
        summary: One row each: old, new, all, hiou, avg and forgetting in percent, see
            `over_steps`, and seconds of the step.
        classes: One row per run, step and class: IoU and forgetting in percent.
    """
    numbers, per_class = [], []
    for row, result, (average, forgotten) in zip(
        rows, *_results_over_steps(rows), strict=True
    ):
        run = {key: row[key] for key in (*EXPERIMENT, "method", "seed", "step")}
        scores = {key: result[key] for key in (*MEASURES, "hiou")}
        seconds = sum(pd.read_csv(path, sep="\t")["s"].sum() for path in row["times"])
        numbers.append(
            {
                **run,
                **scores,
                "avg": average,
                "forgetting": _mean(forgotten.values()),
                "seconds": round(float(seconds), 1),
            }
        )
        for entry in result["classes"]:
            per_class.append(
                {
                    **run,
                    "index": entry["index"],
                    "class": entry["name"],
                    "introduced": entry["step"],
                    "iou": entry["iou"],
                    "forgetting": forgotten.get(entry["index"]),
                }
            )
    for path, table in ((summary, numbers), (classes, per_class)):
        with atomic_path(path) as temporary:
            pd.DataFrame(table).to_csv(temporary, index=False, float_format="%.4f")


QUALITY = ["precision", "recall", "iou"]


def collect_quality(rows: Sequence[Row], path: str | Path) -> None:
    """Write the quality of all pseudo labels in one table.

    Args:
        rows: As for `summarise`, with the path of a step's `quality` or "".
        path: One row per run, step and class: see `kproba.quality.quality_table`.
    """
    tables = [_QUALITY_COLUMNS]
    for row in rows:
        if row["quality"]:
            run = {key: row[key] for key in (*EXPERIMENT, "method", "seed", "step")}
            table = pd.read_csv(row["quality"], keep_default_na=False, dtype=str)
            tables.append(pd.DataFrame([run] * len(table)).join(table))
    with atomic_path(path) as temporary:
        pd.concat(tables).to_csv(temporary, index=False)


_QUALITY_COLUMNS = pd.DataFrame(
    columns=[
        *(*EXPERIMENT, "method", "seed", "step", "index", "class", "pixels"),
        *("labelled", "correct", "unsure", "of_background", "of_future", *QUALITY),
    ]
)


def _results_over_steps(
    rows: Sequence[Row],
) -> tuple[list[Any], list[tuple[float, dict[int, float]]]]:
    """The result of every row, and its numbers over the steps of the row's run."""

    def run(row: Row) -> tuple[Any, ...]:
        return tuple(row[key] for key in (*EXPERIMENT, "method", "seed"))

    results = [read_json(row["evaluation"]) for row in rows]
    numbers = []
    for row, result in zip(rows, results, strict=True):
        earlier = [
            before
            for other, before in zip(rows, results, strict=True)
            if run(other) == run(row) and other["step"] < row["step"]
        ]
        numbers.append(over_steps([*earlier, result]))
    return results, numbers


def over_steps(results: Sequence[Row]) -> tuple[float, dict[int, float]]:
    """Numbers of a run up to a step that need its earlier steps.

    Args:
        results: Contents of evaluation.json of the steps so far, in order.

    Returns:
        avg, the mean of `all` over these steps; and by output index the forgetting of
        every class that an earlier step has tested: max over these of IoU - IoU now.
        Under the policy `mib`, whose means leave the background out, so does this.
    """
    *earlier, now = results
    iou_now = {entry["index"]: entry["iou"] or 0.0 for entry in now["classes"]}
    best: dict[int, float] = {}
    for result in earlier:
        for entry in result["classes"]:
            index = entry["index"]
            if index > 0 or now["protocol"]["policy"] != "mib":
                iou = entry["iou"] or 0.0
                best[index] = max(iou, best.get(index, iou))
    forgotten = {index: iou - iou_now[index] for index, iou in best.items()}
    return _mean([result["all"] for result in results]), forgotten


def _mean(values: Iterable[float | None]) -> float:
    numbers = [math.nan if value is None else value for value in values]
    return sum(numbers) / len(numbers) if numbers else math.nan


def read_summary(path: str | Path) -> pd.DataFrame:
    """Read summary.csv; names stay text."""
    names = (*EXPERIMENT, "method", "class")
    measures = (*MEASURES, *QUALITY, "hiou", "avg", "forgetting")
    numbers = {name: [""] for name in measures}
    return pd.read_csv(
        path,
        dtype=dict.fromkeys(names, str),
        keep_default_na=False,
        na_values=numbers,
    )


def short_table(summary: pd.DataFrame) -> str:
    """MIoU of old, new and all classes after each step, for each method, as text."""
    blocks = []
    for key, experiment in summary.groupby(EXPERIMENT, sort=False):
        steps = sorted(experiment["step"].unique())
        width = max(len(name) for name in experiment["method"]) + 2
        head = " " * width + "".join(f"{f'step {step}':^21}" for step in steps)
        columns = " " * width + "    old    new    all" * len(steps)
        lines = [f"{key[0]} {key[1]} {key[2]}: mIoU in percent", head, columns]
        for method, runs in experiment.groupby("method", sort=False):
            line = f"{method:<{width}}"
            for step in steps:
                means = runs[runs["step"] == step][MEASURES].mean()
                line += "".join(_cell(means[measure]) for measure in MEASURES)
            seeds = runs["seed"].nunique()
            lines.append(line + (f"   mean of {seeds} seeds" if seeds > 1 else ""))
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def markdown_table(summary: pd.DataFrame) -> str:
    """Each method after the last step, mean ± deviation over seeds, as Markdown.

    The seconds are those of all increments of a run, or of its only training.
    """
    blocks = []
    measures = (*MEASURES, "hiou", "forgetting")
    for key, experiment in summary.groupby(EXPERIMENT, sort=False):
        columns = ["method", "seeds", *measures, "seconds"]
        lines = [f"{key[0]} {key[1]} {key[2]}, after the last step:", ""]
        lines += [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        last = experiment["step"].max()
        for method, runs in experiment.groupby("method", sort=False):
            ended = runs[runs["step"] == last]
            alone = runs["step"].nunique() == 1
            trained = runs if alone else runs[runs["step"] > 0]
            seconds = trained.groupby("seed")["seconds"].sum().mean()
            cells = [str(method), str(ended["seed"].nunique())]
            cells += [_mean_and_deviation(ended[measure]) for measure in measures]
            lines.append(f"| {' | '.join(cells)} | {seconds:.0f} |")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _cell(value: float) -> str:
    return f"{'-':>7}" if math.isnan(value) else f"{value:7.1f}"


# --- figures -------------------------------------------------------------------------


def draw_figures(
    rows: Sequence[Row],
    index: str | Path,
    *,
    groups: Groups,
    miou: str | Path,
    classes: str | Path,
    pseudo_labels: str | Path,
    examples: str | Path,
) -> None:
    """Draw the figures of one experiment.

    Args:
        rows: As for `summarise`, of one experiment.
        index: Index of the dataset.
        groups: Class groups of the task.
        miou: Output: curves of old, new and all over the steps.
        classes: Output: IoU of every class after every step, per method.
        pseudo_labels: Output: IoU of every step's pseudo labels, per class and method.
        examples: Output: the same validation images through steps and methods.
    """
    results = [{**read_json(row["evaluation"]), **row} for row in rows]
    with plt.rc_context({"font.size": 9, "figure.dpi": 110}):
        _save(_draw_miou(results), miou)
        _save(_draw_classes(results), classes)
        _save(_draw_examples(rows, read_index(index), groups), examples)
        _save(_draw_quality(rows), pseudo_labels)


def _save(figure: Figure, path: str | Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", bbox_inches="tight")
    plt.close(figure)


def _draw_miou(results: Sequence[Row]) -> Figure:
    methods = list(dict.fromkeys(row["method"] for row in results))
    steps = sorted({row["step"] for row in results})
    figure, axes = plt.subplots(1, 3, figsize=(10, 3), sharey=True)
    for axis, measure in zip(axes, MEASURES, strict=True):
        for number, method in enumerate(methods):
            runs = pd.DataFrame([row for row in results if row["method"] == method])
            curve = runs.groupby("step")[measure].agg(["mean", "std"]).dropna(how="all")
            colour = COLOURS[number % len(COLOURS)]
            if len(curve) == 1 and len(steps) > 1:  # joint: one training, one line
                level = float(curve["mean"].iloc[0])
                axis.axhline(level, color=colour, linestyle="--", label=method)
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
        axis.set(title=measure, xlabel="step", xticks=steps, ylim=(0, 100))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("mIoU in percent")
    axes[-1].legend(loc="best")
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
    first_seed = rows[0]["seed"]
    shown = [row for row in rows if row["seed"] == first_seed]
    columns = _example_columns(shown)
    names = sorted(path.stem for path in next(iter(columns.values())).glob("*.png"))
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
    if len(handles) <= 24:
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


# --- page ----------------------------------------------------------------------------


def write_report(
    summary: str | Path,
    pseudo_labels: str | Path,
    figures: Sequence[str | Path],
    page: str | Path,
) -> None:
    """Write one HTML page that opens alone: tables, and figures as embedded images.

    Args:
        summary: summary.csv.
        pseudo_labels: pseudo_labels.csv.
        figures: Paths results/<dataset>/<task>-<setting>/figures/<name>.png.
        page: Output.
    """
    numbers, judged = read_summary(summary), read_summary(pseudo_labels)
    experiments = []
    for labels, rows in numbers.groupby(EXPERIMENT, sort=False):
        key = [str(label) for label in labels]
        folder = f"{key[0]}/{key[1]}-{key[2]}"
        images = {
            Path(path).stem: base64.b64encode(Path(path).read_bytes()).decode()
            for path in figures
            if Path("/", path).parent.parent.as_posix().endswith(f"/{folder}")
        }
        seeds = sorted(int(seed) for seed in rows["seed"].unique())
        experiments.append(
            {
                "title": " ".join(key),
                "seeds": seeds,
                "rows": _page_rows(rows),
                "pseudo_labels": _quality_rows(
                    judged[(judged[EXPERIMENT] == key).all(axis=1)]
                ),
                "images": images,
            }
        )
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    source = (files("kproba") / "report.html.jinja").read_text(encoding="utf-8")
    html = template.from_string(source).render(
        experiments=experiments, version=__version__
    )
    with atomic_path(page) as temporary:
        temporary.write_text(html, encoding="utf-8")


def _page_rows(rows: pd.DataFrame) -> list[dict[str, str]]:
    """Mean over seeds, with the standard deviation where there are several."""
    lines = []
    for (method, step), runs in rows.groupby(["method", "step"], sort=False):
        line = {"method": str(method), "step": str(step)}
        for measure in (*MEASURES, "hiou", "avg", "forgetting", "seconds"):
            line[measure] = _mean_and_deviation(runs[measure])
        lines.append(line)
    return lines


def _quality_rows(judged: pd.DataFrame) -> list[dict[str, str]]:
    """Means over the old classes, then over seeds, of every method and step."""
    lines = []
    old = judged[judged["index"] > 0]
    for (method, step), runs in old.groupby(["method", "step"], sort=False):
        line = {"method": str(method), "step": str(step)}
        by_seed = runs.groupby("seed")
        means = by_seed[QUALITY].mean()
        counts = by_seed[["labelled", "of_background", "of_future"]].sum()
        for kind in ("of_background", "of_future"):
            means[kind] = 100 * counts[kind] / counts["labelled"]
        for column in means:
            line[str(column)] = _mean_and_deviation(means[column])
        lines.append(line)
    return lines


def _mean_and_deviation(values: pd.Series) -> str:
    mean, deviation = values.mean(), values.std()
    text = "–" if math.isnan(mean) else f"{mean:.1f}"
    return text if math.isnan(deviation) else f"{text} ± {deviation:.1f}"


def main() -> int:
    """Print a table of a summary.csv."""
    *flags, path = sys.argv[1:] or ["--help"]
    if path.startswith("-") or flags not in ([], ["--markdown"]):
        usage = "usage: python -m kproba.report [--markdown] results/summary.csv"
        print(usage, file=sys.stderr)
        return 2
    table = markdown_table if flags else short_table
    print(table(read_summary(path)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
