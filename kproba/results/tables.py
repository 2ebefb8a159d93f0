"""Tables of results, as CSV, as text and as Markdown.

python -m kproba.results.tables results/summary.csv               # the short table
python -m kproba.results.tables --markdown results/summary.csv    # the last step alone
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kproba.plan.results import StepResult
from kproba.results import measures
from kproba.results.costs import duration
from kproba.results.measures import (
    ClassScores,
    CostMeasure,
    Measure,
    class_forgetting,
)
from kproba.results.record import read_evaluation_record
from kproba.runtime.files import atomic_path
from kproba.runtime.logs import exit_on_error
from kproba.runtime.records import REMAKE, ArtifactError
from kproba.runtime.tables import read_counts, read_table

EXPERIMENT = ["dataset", "task", "setting"]
NAMES = [*EXPERIMENT, "method", "class", "folder"]  # columns of text
QUALITY = ["precision", "recall", "iou"]
QUALITY_COLUMNS = [
    *(*EXPERIMENT, "method", "seed", "step", "index", "class", "pixels"),
    *("labelled", "correct", "unsure", "of_background", "of_future", *QUALITY),
]


def read_evaluation(result: StepResult) -> dict[str, Any]:
    """Content of a step's evaluation.json, with all measures of one step.

    Measures that did not exist when the step was evaluated are computed from its
    counts.
    """
    wanted = [m.name for m in measures.step_measures()]
    content = read_evaluation_record(result.evaluation, wanted)
    missing = [m for m in measures.step_measures() if m.name not in content]
    if missing:
        counts = read_confusion(result.confusion, len(content["classes"]))
        steps = [entry["step"] for entry in content["classes"]]
        policy = content["protocol"]["policy"]
        left_out = content["protocol"].get("leave_out_absent", False)
        scores = ClassScores.from_confusion(
            counts, steps, policy, leave_out_absent=left_out
        )
        content |= {measure.name: measure.compute(scores) for measure in missing}
    return content


def read_confusion(path: str | Path, classes: int) -> np.ndarray:
    """Read a confusion.csv.

    Args:
        path: The file.
        classes: C, background included.

    Returns:
        (C, C) int64 pixels, true classes in rows.

    Raises:
        FileNotFoundError: There is no such file.
        ArtifactError: It is damaged, or has other classes. It is a ValueError.
    """
    counts = read_counts(path).to_numpy()
    if len(counts) != classes:
        raise ArtifactError(
            f"Expected {classes} classes in {path}, as in evaluation.json beside it, "
            f"but it has {len(counts)}. {REMAKE}"
        )
    return counts


def summarise(
    results: Sequence[StepResult], summary: str | Path, classes: str | Path
) -> None:
    """Write summary.csv and classes.csv.

    Args:
        results: All steps of all runs.
        summary: Output: per step its names, all measures (percent, and seconds of the
            run so far, without step 0), its folder, and the classes in no evaluated
            image.
        classes: Output: IoU and forgetting in percent per step and class.
    """
    numbers, per_class = [], []
    evaluations = [read_evaluation(result) for result in results]
    runs: dict[tuple[Any, ...], list[tuple[StepResult, dict[str, Any]]]] = {}
    for result, evaluation in zip(results, evaluations, strict=True):
        runs.setdefault(_run_key(result), []).append((result, evaluation))
    entries = [_computed_once(measure) for measure in measures.all_measures()]
    for result, evaluation in zip(results, evaluations, strict=True):
        steps = [
            entry for entry in runs[_run_key(result)] if entry[0].step <= result.step
        ]
        so_far = [tested for _, tested in steps]
        made = [earlier for earlier, _ in steps]
        values = {
            m.name: m.of_run(made)
            if isinstance(m, CostMeasure)
            else m.value(result, so_far)
            for m in entries
        }
        absent = "; ".join(evaluation.get("without_pixels", []))
        more = {"folder": result.folder, "without_pixels": absent}
        numbers.append({**result.run, **values, **more})
        forgotten = class_forgetting(so_far)
        for tested in evaluation["classes"]:
            per_class.append(
                {
                    **result.run,
                    "index": tested["index"],
                    "class": tested["name"],
                    "introduced": tested["step"],
                    "iou": tested["iou"],
                    "forgetting": forgotten.get(tested["index"]),
                }
            )
    for path, table in ((summary, numbers), (classes, per_class)):
        with atomic_path(path) as temporary:
            pd.DataFrame(table).to_csv(temporary, index=False, float_format="%.4f")


def _computed_once(measure: Measure) -> Measure:
    """Make a measure of costs read the files of a step once, not for each later step.

    The returned measure must not outlive the results that it gets.
    """
    if not isinstance(measure, CostMeasure):
        return measure
    compute, known = measure.compute, dict[int, float]()

    def remembered(result: StepResult) -> float:
        if id(result) not in known:
            known[id(result)] = compute(result)
        return known[id(result)]

    return replace(measure, compute=remembered)


def _run_key(result: StepResult) -> tuple[Any, ...]:
    return *result.experiment, result.method, result.seed


def keep_first_seed(results: Sequence[StepResult]) -> list[StepResult]:
    """The steps of every method's smallest seed."""
    first: dict[str, int] = {}
    for result in results:
        first[result.method] = min(result.seed, first.get(result.method, result.seed))
    return [result for result in results if result.seed == first[result.method]]


def collect_quality(results: Sequence[StepResult], path: str | Path) -> None:
    """Write the quality of all pseudo labels in one table.

    Args:
        results: All steps of all runs.
        path: Output: a row per step and class, see
            `kproba.methods.quality.quality_table`.
    """
    tables = [pd.DataFrame(columns=QUALITY_COLUMNS)]
    for result in results:
        if result.quality:
            table = read_table(result.quality, {"index": int})
            names = [entry["name"] for entry in read_evaluation(result)["classes"]]
            if not table["index"].between(0, len(names) - 1).all():
                raise ArtifactError(
                    f"Expected values from 0 to {len(names) - 1} in the column `index` "
                    f"of {result.quality}, but got other values. The table belongs to "
                    f"another step. {REMAKE}"
                )
            table["class"] = [names[index] for index in table["index"]]
            tables.append(pd.DataFrame([result.run] * len(table)).join(table))
    with atomic_path(path) as temporary:
        pd.concat(tables).to_csv(temporary, index=False)


def read_summary(path: str | Path, needed: Sequence[str] = ()) -> pd.DataFrame:
    """Read summary.csv, classes.csv or pseudo_labels.csv; names stay text.

    Args:
        path: The file.
        needed: Columns that it must have.

    Raises:
        FileNotFoundError: There is no such file.
        ArtifactError: It is not a table, or lacks a column. It is a ValueError.
    """
    read_table(path, dict.fromkeys(needed, str))
    columns = [*(m.name for m in measures.all_measures()), *QUALITY, "of_background"]
    return pd.read_csv(
        path,
        dtype=dict.fromkeys(NAMES, str),
        keep_default_na=False,  # a method may have the name "null"
        na_values={name: [""] for name in columns},
    )


def short_table(summary: pd.DataFrame) -> str:
    """The mean IoUs after each step, for each method, as text."""
    means = measures.step_means()
    widths = {m.name: max(7, len(m.title) + 1) for m in means}
    titles = "".join(f"{m.title:>{widths[m.name]}}" for m in means)
    blocks = []
    for key, experiment in summary.groupby(EXPERIMENT, sort=False):
        steps = sorted(experiment["step"].unique())
        width = max(len(name) for name in experiment["method"]) + 2
        head = "".join(f"{f'step {step}':^{len(titles)}}" for step in steps)
        lines = [
            f"{key[0]} {key[1]} {key[2]}: mIoU in percent",
            " " * width + head,
            " " * width + titles * len(steps),
        ]
        for method, runs in experiment.groupby("method", sort=False):
            line = f"{method:<{width}}"
            for step in steps:
                averages = runs[runs["step"] == step][list(widths)].mean()
                for name, size in widths.items():
                    value = averages[name]
                    text = "-" if math.isnan(value) else f"{value:.1f}"
                    line += f"{text:>{size}}"
            seeds = runs["seed"].nunique()
            lines.append(line + (f"   mean of {seeds} seeds" if seeds > 1 else ""))
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def markdown_table(summary: pd.DataFrame) -> str:
    """Each method after the last step, mean ± deviation over seeds, as Markdown.

    Costs are those of all steps of a run but step 0.
    """
    listed = [measure for measure in measures.all_measures() if measure.in_markdown]
    columns = ["method", "seeds", *(measure.name for measure in listed)]
    blocks = []
    for key, experiment in summary.groupby(EXPERIMENT, sort=False):
        lines = [f"{key[0]} {key[1]} {key[2]}, after the last step:", ""]
        lines += [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        last = experiment["step"].max()
        for method, runs in experiment.groupby("method", sort=False):
            ended = runs[runs["step"] == last]
            cells = [str(method), str(ended["seed"].nunique())]
            for measure in listed:
                if isinstance(measure, CostMeasure):
                    cost = ended[measure.name].mean()
                    cells.append(duration(cost) if measure.is_time else f"{cost:.0f}")
                else:
                    cells.append(mean_and_deviation(ended[measure.name]))
            lines.append(f"| {' | '.join(cells)} |")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def mean_and_deviation(values: pd.Series) -> str:
    """Mean over seeds, with the standard deviation where there are several."""
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
    with exit_on_error():
        needed = [*EXPERIMENT, "method", "seed", "step"]
        needed += [measure.name for measure in measures.all_measures()]
        print(table(read_summary(path, needed)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
