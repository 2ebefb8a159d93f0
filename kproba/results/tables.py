"""Tables of results, as CSV, as text and as Markdown.

python -m kproba.results.tables results/summary.csv               # the short table
python -m kproba.results.tables --markdown results/summary.csv    # after the last step alone
"""

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from kproba.runtime.files import atomic_path, read_json

Row = Mapping[str, Any]


EXPERIMENT = ["dataset", "task", "setting"]


MEASURES = ["old", "new", "all"]


def summarise(rows: Sequence[Row], summary: str | Path, classes: str | Path) -> None:
    """Write summary.csv and classes.csv.

    Args:
        rows: Per run and step: dataset, task, setting, method, seed, step, the paths of
            `evaluation` and `usage` (JSON) and of its `times` (Snakemake benchmarks).
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
        seconds = sum(seconds_of(row).values())
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


# What the benchmarks of a step's jobs are called, and what the jobs do.
JOBS = {"train": "training", "pseudo_labels": "pseudo labels", "prototypes": "bank"}


def seconds_of(row: Row) -> dict[str, float]:
    """Seconds of a step's jobs, by what they do.

    Snakemake knows the last attempt of a training; usage.json knows all of them.
    """
    seconds: dict[str, float] = {}
    for path in filter(Path.is_file, map(Path, row["times"])):
        job = JOBS[path.name.split(".")[0]]
        seconds[job] = float(pd.read_csv(path, sep="\t")["s"].sum())
    if "training" in seconds:
        trained = usage_of(row).get("seconds", 0.0)
        seconds["training"] = max(seconds["training"], trained)
    return seconds


def usage_of(row: Row) -> dict[str, Any]:
    """What a training has cost; nothing where it is not known."""
    return read_json(row["usage"]) if Path(row["usage"]).is_file() else {}


def first_seeds(rows: Sequence[Row]) -> list[Row]:
    """The rows of every method's smallest seed."""
    first: dict[str, int] = {}
    for row in rows:
        seed = int(row["seed"])
        first[row["method"]] = min(seed, first.get(row["method"], seed))
    return [row for row in rows if int(row["seed"]) == first[row["method"]]]


QUALITY = ["precision", "recall", "iou"]


def collect_quality(rows: Sequence[Row], path: str | Path) -> None:
    """Write the quality of all pseudo labels in one table.

    Args:
        rows: As for `summarise`, with the path of a step's `quality` or "".
        path: One row per run, step and class: see `kproba.methods.quality.quality_table`.
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
    measures = (*MEASURES, *QUALITY, "of_background", "hiou", "avg", "forgetting")
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
            cells += [mean_and_deviation(ended[measure]) for measure in measures]
            lines.append(f"| {' | '.join(cells)} | {seconds:.0f} |")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _cell(value: float) -> str:
    return f"{'-':>7}" if math.isnan(value) else f"{value:7.1f}"


def mean_and_deviation(values: pd.Series) -> str:
    """The mean of some seeds, with the standard deviation of several."""
    mean, deviation = values.mean(), values.std()
    text = "–" if math.isnan(mean) else f"{mean:.1f}"
    return text if math.isnan(deviation) else f"{text} ± {deviation:.1f}"


def main() -> int:
    """Print a table of a summary.csv."""
    *flags, path = sys.argv[1:] or ["--help"]
    if path.startswith("-") or flags not in ([], ["--markdown"]):
        usage = (
            "usage: python -m kproba.results.tables [--markdown] results/summary.csv"
        )
        print(usage, file=sys.stderr)
        return 2
    table = markdown_table if flags else short_table
    print(table(read_summary(path)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
