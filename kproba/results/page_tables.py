"""Tables of the page, from summary.csv and from the files of the steps."""

from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kproba.plan.results import StepResult
from kproba.results import measures
from kproba.results.cells import (
    Cell,
    Table,
    duration_cell,
    heat_cell,
    integer_cell,
    number_cell,
)
from kproba.results.costs import KINDS, read_costs, read_usage
from kproba.results.experiment import Experiment
from kproba.results.record import read_evaluation_record
from kproba.results.tables import EXPERIMENT, QUALITY, read_confusion
from kproba.runtime import records

# What the page reads of model.json and evaluation.json.
_MODEL = records.record(
    {
        "architecture": records.record({"backbone": records.text()}, others=True),
        "provenance": records.record(
            dict.fromkeys(("kproba", "commit", "torch"), records.maybe(records.text())),
            others=True,
        ),
    },
    others=True,
)
_TEST = records.record(
    {
        "prediction": records.text(),
        "protocol": records.record(
            {"crop": records.maybe(records.integer(1)), "checkpoint": records.text()},
            others=True,
        ),
    },
    others=True,
)

MOST_CLASSES = 25  # in a matrix of confusions
MOST_CONFUSIONS = 12  # in the list of them


def list_facts(
    experiment: Experiment, results: Sequence[StepResult], seeds: Sequence[int]
) -> list[tuple[str, str]]:
    """What was run, as names and values."""
    evaluations = [_read_test(result) for result in results]
    last = max(range(len(results)), key=lambda place: results[place].step)
    models = _read_models(results)
    protocol = evaluations[-1]["protocol"]
    crop = protocol["crop"]
    names = iter(experiment.names[1:])
    steps = [", ".join(next(names) for _ in group) for group in experiment.groups]
    predictions = {
        result.method: evaluation["prediction"]
        for result, evaluation in zip(results, evaluations, strict=True)
    }
    versions = [entry["provenance"] for entry in models]
    devices = (read_usage(result).get("device", "unknown") for result in results)
    return [
        ("dataset", f"{experiment.dataset} ({experiment.kind})"),
        ("task, setting", f"{experiment.task}, {experiment.setting}"),
        *((f"classes of step {step}", listed) for step, listed in enumerate(steps)),
        ("seeds", ", ".join(map(str, seeds))),
        ("backbone", _join(m["architecture"]["backbone"] for m in models)),
        (
            "tested on",
            f"{evaluations[last]['images']} images, policy {protocol['policy']}",
        ),
        ("size in the test", "whole images" if crop is None else f"crop of {crop}"),
        ("checkpoint", str(protocol["checkpoint"])),
        ("predicts", "; ".join(f"{name}: {by}" for name, by in predictions.items())),
        ("kproba", _join(entry["kproba"] for entry in versions)),
        ("commit", _join(entry["commit"] for entry in versions)),
        ("PyTorch", _join(entry["torch"] for entry in versions)),
        ("trained on", _join(devices)),
    ]


def _read_models(results: Sequence[StepResult]) -> list[dict[str, Any]]:
    """Content of every model.json that was not removed."""
    paths = [Path(result.model).with_suffix(".json") for result in results]
    return [records.read_record(path, _MODEL) for path in paths if path.is_file()]


def _read_test(result: StepResult) -> dict[str, Any]:
    """Content of a step's evaluation.json."""
    content = read_evaluation_record(result.evaluation)
    records.check_content(content, _TEST, result.evaluation)
    return content


def _join(values: Iterable[object]) -> str:
    """Distinct values in words."""
    return ", ".join(dict.fromkeys(str(value) for value in values))


def final_table(last: pd.DataFrame) -> Table:
    """All measures of every method after the last step, with their explanations.

    Args:
        last: The last step of summary.csv.
    """
    rows = []
    for method, runs in last.groupby("method", sort=False):
        seeds = runs["seed"].nunique()
        rows.append([Cell(str(method)), *_measure_cells(runs), integer_cell(seeds)])
    columns = [(m.title, m.explanation) for m in measures.all_measures()]
    columns = [("method", ""), *columns, ("seeds", "")]
    return Table("mIoU after the last step", columns, rows)


def step_table(summary: pd.DataFrame) -> Table:
    """All measures of every method after every step."""
    rows = []
    for (method, step), runs in summary.groupby(["method", "step"], sort=False):
        rows.append([Cell(str(method)), integer_cell(step), *_measure_cells(runs)])
    titles = ["method", "step", *(measure.title for measure in measures.all_measures())]
    columns = [(title, "") for title in titles]
    return Table("mIoU in percent after every step", columns, rows)


def _measure_cells(runs: pd.DataFrame) -> list[Cell]:
    return [
        duration_cell(runs[measure.name])
        if isinstance(measure, measures.CostMeasure) and measure.is_time
        else number_cell(runs[measure.name])
        for measure in measures.all_measures()
    ]


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
    columns = [("method", ""), *((f"seed {seed}", "") for seed in values.columns)]
    return Table("mIoU of all classes after the last step, by seed", columns, rows)


def published_table(
    experiment: Experiment, results: Sequence[StepResult], last: pd.DataFrame
) -> Table | None:
    """Published numbers of the same task beside those of this run; None without any.

    Args:
        experiment: Whose numbers.
        results: All its steps.
        last: The last step of summary.csv.
    """
    table = pd.read_csv(
        str(files("kproba") / "lists" / "published.csv"),
        dtype=str,
        keep_default_na=False,
    )
    wanted = [experiment.kind, experiment.task, experiment.setting]
    table = table[(table[EXPERIMENT] == wanted).all(axis=1)]
    if table.empty or len(experiment.indices) > 1:  # with additions it is another task
        return None
    means = measures.step_means()
    texts, others = ("backbone", "exemplars"), ("background", "source", "note")

    def line(name: str, words: Mapping[Any, str], numbers: list[Cell]) -> list[Cell]:
        return [
            Cell(name),
            *(Cell(words[column], words=True) for column in texts),
            *numbers,
            *(Cell(words[column], words=True) for column in others),
        ]

    lines = []
    for method, runs in last.groupby("method", sort=False):
        choices = _list_choices([r for r in results if r.method == method])
        numbers = [number_cell(runs[measure.name]) for measure in means]
        lines.append(line(f"{method} (here)", choices, numbers))
    for entry in table.to_dict("records"):
        printed = [entry.get(measure.name, "") for measure in means]
        numbers = [Cell(t or "–", float(t) if t else None) for t in printed]
        lines.append(line(entry["method"], entry, numbers))
    explanations = {"exemplars": "memory of old images", "background": "counted in"}
    names = ["method", *texts, *(measure.title for measure in means), *others]
    caption = "Published numbers of this task, and those of this run"
    return Table(caption, [(name, explanations.get(name, "")) for name in names], lines)


def _list_choices(results: Sequence[StepResult]) -> dict[str, str]:
    """The choices of a method of this run that published tables state of theirs."""
    protocol = _read_test(results[-1])["protocol"]
    policy, crop = protocol["policy"], protocol["crop"]
    size = "whole images" if crop is None else f"crop of {crop}"
    models = _read_models(results)
    return {
        "backbone": _join(model["architecture"]["backbone"] for model in models),
        "exemplars": "no",
        "background": "none" if policy == "mib" else "old and all",
        "source": "this run",
        "note": f"policy {policy}, {size}, checkpoint {protocol['checkpoint']}",
    }


def class_tables(experiment: Experiment, classes: pd.DataFrame) -> dict[str, Table]:
    """Per method the IoU of every class after every step, and its forgetting.

    Args:
        experiment: Its classes and steps.
        classes: classes.csv.
    """
    steps = range(len(experiment.groups))
    tables = {}
    for method, runs in classes.groupby("method", sort=False):
        places = runs.groupby(["index", "step"]).indices
        none = np.zeros(0, np.intp)
        rows = []
        for index, name in enumerate(experiment.names):
            found = [places.get((index, step), none) for step in steps]
            cells = [heat_cell(runs["iou"].iloc[place]) for place in found]
            lost = runs["forgetting"].iloc[found[-1]]
            rows.append([Cell(name), *cells, number_cell(lost)])
        columns = [("class", ""), *((f"step {step}", "") for step in steps)]
        columns.append(("forgotten", "best earlier IoU minus IoU now, in points"))
        caption = f"{method}: IoU of every class in percent"
        tables[str(method)] = Table(caption, columns, rows)
    return tables


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
    steps = [0, *(s for s, group in enumerate(experiment.groups) for _ in group)]
    tables = {}
    for method, confusion in counts.items():
        pixels = confusion.sum(axis=1, keepdims=True)
        shares = 100 * np.divide(
            confusion, pixels, out=np.zeros(confusion.shape), where=pixels > 0
        )
        tables[method] = [_largest_confusions(method, shares, experiment.names, steps)]
        if len(shares) <= MOST_CLASSES:
            tables[method].append(_confusion_matrix(method, shares, experiment.names))
    return tables


def _largest_confusions(
    method: str, shares: np.ndarray, names: Sequence[str], steps: Sequence[int]
) -> Table:
    """The largest confusions of classes that came in different steps."""
    introduced = np.array(steps)
    between = shares * (introduced[:, None] != introduced[None])
    between[0] = between[:, 0] = 0
    largest = np.argsort(between, axis=None)[::-1][:MOST_CONFUSIONS]
    places = [np.unravel_index(place, between.shape) for place in largest]
    rows = [
        [
            Cell(names[true]),
            integer_cell(steps[true]),
            Cell(names[taken], words=True),
            integer_cell(steps[taken]),
            Cell(f"{between[true, taken]:.1f}", float(between[true, taken])),
        ]
        for true, taken in places
        if between[true, taken] >= 0.05
    ]
    columns = [("class", ""), ("of step", ""), ("taken for", ""), ("of step", "")]
    columns.append(("percent", "of the pixels of the class"))
    return Table(f"{method}: old and new classes confused", columns, rows)


def _confusion_matrix(method: str, shares: np.ndarray, names: Sequence[str]) -> Table:
    rows = [
        [Cell(name), *(heat_cell(pd.Series([share])) for share in line)]
        for name, line in zip(names, shares, strict=True)
    ]
    columns = [("class", ""), *((name, "") for name in names)]
    caption = f"{method}: classes (rows) and what they are taken for, percent of pixels"
    return Table(caption, columns, rows)


def quality_table(quality: pd.DataFrame) -> Table | None:
    """Means over the old classes, then over seeds, of every method and step.

    Args:
        quality: pseudo_labels.csv without the background.

    Returns:
        None without pseudo labels.
    """
    rows = []
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
        rows.append([Cell(str(method)), integer_cell(step), *cells])
    columns = [
        ("method", ""),
        ("step", ""),
        ("recovered", "percent of the hidden pixels of old classes, over all of them"),
        ("precision", "mean over the classes that were labelled at all"),
        ("recall", "mean over the old classes"),
        ("IoU", "mean over the old classes"),
        ("really background", "percent of the pixels labelled as an old class"),
        ("really future", "percent of the pixels labelled as an old class"),
    ]
    caption = "Pseudo labels against the hidden ground truth"
    return Table(caption, columns, rows) if rows else None


def class_quality_tables(quality: pd.DataFrame) -> dict[str, Table]:
    """Per method, step and class: how much was recovered, how much of it is right.

    Args:
        quality: pseudo_labels.csv without the background.
    """
    tables = {}
    for method, labels in quality.groupby("method", sort=False):
        rows = []
        for (step, _, name), runs in labels.groupby(["step", "index", "class"]):
            cells = [
                heat_cell(runs[column]) for column in ("recall", "precision", "iou")
            ]
            rows.append([Cell(str(name)), integer_cell(step), *cells])
        titles = ("class", "step", "recovered", "precision", "IoU")
        caption = f"{method}: pseudo labels of every class, in percent"
        tables[str(method)] = Table(caption, [(title, "") for title in titles], rows)
    return tables


def cost_table(results: Sequence[StepResult]) -> Table:
    """Time, memory and size of every step, means over seeds."""
    costs = pd.DataFrame(
        [{"method": r.method, "step": r.step, **read_costs(r)} for r in results]
    )
    lines = []
    for (method, step), runs in costs.groupby(["method", "step"], sort=False):
        numbers = [
            duration_cell(runs[column])
            if column in KINDS
            else number_cell(runs[column])
            for column in costs.columns[2:]
        ]
        lines.append([Cell(str(method)), integer_cell(step), *numbers])
    explanations = {
        "training": "of this step alone, start of the job included",
        "pseudo labels": "of this step alone",
        "bank": "of this step alone",
        "images/s": "of training",
        "memory": "MiB: of the largest process of the training, or on its GPU",
        "model": "MiB on disk",
        "bank size": "MiB on disk",
    }
    caption = "Costs per step; shared jobs are listed for every method that uses them"
    columns = [(name, explanations.get(name, "")) for name in costs.columns]
    return Table(caption, columns, lines)
