"""TODO results.page_tables."""

import math
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kproba.results.cells import Cell, Table, _heat, _number, _step_cell
from kproba.results.experiment import Experiment, _step
from kproba.results.tables import (
    EXPERIMENT,
    JOBS,
    MEASURES,
    QUALITY,
    Row,
    seconds_of,
    usage_of,
)
from kproba.runtime.files import read_json

MOST_CLASSES = 25  # in a matrix of confusions


MOST_CONFUSIONS = 12  # in the list of them


MIB = 2**20


COLUMNS = {
    "old": "mean IoU of the background and the classes of step 0",
    "new": "mean IoU of the classes of all later steps",
    "all": "mean IoU of the background and all classes seen",
    "hIoU": "harmonic mean of old and new",
    "avg": "mean of all over the steps so far",
    "forgetting": "mean over earlier classes of best earlier IoU minus IoU now",
    "seconds": "of training, pseudo labels and bank",
}


def _facts(
    experiment: Experiment, rows: Sequence[Row], seeds: Sequence[int]
) -> list[tuple[str, str]]:
    """What was run, as names and values."""
    results = [read_json(row["evaluation"]) for row in rows]
    models = _models(rows)
    protocol, last = results[-1]["protocol"], max(results, key=_step)
    crop = protocol["crop"]
    names = iter(experiment.names[1:])
    steps = [", ".join(next(names) for _ in group) for group in experiment.groups]
    by = {row["method"]: r["prediction"] for row, r in zip(rows, results, strict=True)}
    versions = [entry["provenance"] for entry in models]
    return [
        ("dataset", f"{experiment.dataset} ({experiment.kind})"),
        ("task, setting", f"{experiment.task}, {experiment.setting}"),
        *((f"classes of step {step}", listed) for step, listed in enumerate(steps)),
        ("seeds", ", ".join(map(str, seeds))),
        ("backbone", _distinct(m["architecture"]["backbone"] for m in models)),
        ("tested on", f"{last['images']} images, policy {protocol['policy']}"),
        ("size in the test", "whole images" if crop is None else f"crop of {crop}"),
        ("checkpoint", str(protocol["checkpoint"])),
        ("predicts", "; ".join(f"{name}: {how}" for name, how in by.items())),
        ("kproba", _distinct(entry["kproba"] for entry in versions)),
        ("commit", _distinct(entry["commit"] for entry in versions)),
        ("PyTorch", _distinct(entry["torch"] for entry in versions)),
        (
            "trained on",
            _distinct(usage_of(row).get("device", "unknown") for row in rows),
        ),
    ]


def _models(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """What the models say of themselves; of those that were removed nothing."""
    described = [Path(row["model"]).with_suffix(".json") for row in rows]
    return [read_json(path) for path in described if path.is_file()]


def _distinct(values: Iterable[object]) -> str:
    return ", ".join(dict.fromkeys(str(value) for value in values))


def _results(summary: pd.DataFrame, *, steps: bool = False) -> Table:
    measures = (*MEASURES, "hiou", "avg", "forgetting", "seconds")
    keys = ["method", "step"] if steps else ["method"]
    rows = []
    for key, runs in summary.groupby(keys, sort=False):
        method, *step = key
        heading = [Cell(str(method)), *(_step_cell(s) for s in step)]
        line = [*heading, *(_number(runs[measure]) for measure in measures)]
        count = runs["seed"].nunique()
        rows.append(line if steps else [*line, Cell(str(count), count)])
    return Table(
        "mIoU in percent after every step" if steps else "mIoU after the last step",
        [
            *((key, "") for key in keys),
            *((name, "" if steps else text) for name, text in COLUMNS.items()),
            *([] if steps else [("seeds", "")]),
        ],
        rows,
    )


def _of_seeds(summary: pd.DataFrame) -> Table:
    """`all` after the last step, seed by seed."""
    last = summary[summary["step"] == summary["step"].max()]
    found = last.pivot_table(index="method", columns="seed", values="all", sort=False)
    rows = [
        [Cell(str(method)), *(_number(pd.Series([value])) for value in line)]
        for method, line in zip(found.index, found.to_numpy(), strict=True)
    ]
    columns = [("method", ""), *((f"seed {seed}", "") for seed in found.columns)]
    return Table("mIoU of all classes after the last step, by seed", columns, rows)


def _published(
    experiment: Experiment, rows: Sequence[Row], summary: pd.DataFrame
) -> Table | None:
    """Published numbers of the same task beside those of this run."""
    table = pd.read_csv(
        str(files("kproba") / "lists" / "published.csv"),
        dtype=str,
        keep_default_na=False,
    )
    wanted = [experiment.kind, experiment.task, experiment.setting]
    table = table[(table[EXPERIMENT] == wanted).all(axis=1)]
    if table.empty or len(experiment.indices) > 1:  # with additions it is another task
        return None
    texts, others = ("backbone", "exemplars"), ("background", "source", "note")
    last = summary[summary["step"] == summary["step"].max()]
    lines = []
    for method, runs in last.groupby("method", sort=False):
        here = _chosen_here([row for row in rows if row["method"] == method])
        lines.append(
            [
                Cell(f"{method} (here)"),
                *(Cell(here[name], words=True) for name in texts),
                *(_number(runs[measure]) for measure in MEASURES),
                *(Cell(here[name], words=True) for name in others),
            ]
        )
    for entry in table.to_dict("records"):
        numbers = [entry[measure] for measure in MEASURES]
        lines.append(
            [
                Cell(entry["method"]),
                *(Cell(entry[name], words=True) for name in texts),
                *(Cell(text or "–", float(text) if text else None) for text in numbers),
                *(Cell(entry[name], words=True) for name in others),
            ]
        )
    explained = {"exemplars": "memory of old images", "background": "counted in"}
    columns = ["method", *texts, *MEASURES, *others]
    caption = "Published numbers of this task, and those of this run"
    return Table(caption, [(name, explained.get(name, "")) for name in columns], lines)


def _chosen_here(rows: Sequence[Row]) -> dict[str, str]:
    """What published tables tell of a method's choices, for a method of this run."""
    protocol = read_json(rows[-1]["evaluation"])["protocol"]
    policy, crop = protocol["policy"], protocol["crop"]
    size = "whole images" if crop is None else f"crop of {crop}"
    return {
        "backbone": _distinct(
            model["architecture"]["backbone"] for model in _models(rows)
        ),
        "exemplars": "no",
        "background": "none" if policy == "mib" else "old and all",
        "source": "this run",
        "note": f"policy {policy}, {size}, checkpoint {protocol['checkpoint']}",
    }


def _class_maps(experiment: Experiment, classes: pd.DataFrame) -> dict[str, Table]:
    """Per method the IoU of every class after every step, and what was forgotten."""
    steps = range(len(experiment.groups))
    maps = {}
    for method, runs in classes.groupby("method", sort=False):
        rows = []
        for index, name in enumerate(experiment.names):
            own = runs[runs["index"] == index]
            cells = [_heat(own[own["step"] == step]["iou"]) for step in steps]
            lost = own[own["step"] == steps[-1]]["forgetting"]
            rows.append([Cell(name), *cells, _number(lost)])
        columns = [("class", ""), *((f"step {step}", "") for step in steps)]
        columns.append(("forgotten", "best earlier IoU minus IoU now, in points"))
        caption = f"{method}: IoU of every class in percent"
        maps[str(method)] = Table(caption, columns, rows)
    return maps


def _confusions(experiment: Experiment, rows: Sequence[Row]) -> dict[str, list[Table]]:
    """Per method what the classes were taken for after the last step, all seeds."""
    last = len(experiment.groups) - 1
    found: dict[str, np.ndarray] = {}
    for row in rows:
        if row["step"] == last:
            counts = pd.read_csv(row["confusion"], index_col=0).to_numpy()
            found[row["method"]] = found.get(row["method"], 0) + counts
    steps = [0, *(s for s, group in enumerate(experiment.groups) for _ in group)]
    tables = {}
    for method, counts in found.items():
        whole = counts.sum(axis=1, keepdims=True)
        shares = 100 * np.divide(
            counts, whole, out=np.zeros(counts.shape), where=whole > 0
        )
        tables[method] = [_largest_confusions(method, shares, experiment.names, steps)]
        if len(shares) <= MOST_CLASSES:
            tables[method].append(_confusion_matrix(method, shares, experiment.names))
    return tables


def _largest_confusions(
    method: str, shares: np.ndarray, names: Sequence[str], steps: Sequence[int]
) -> Table:
    """The largest confusions of classes that came in different steps."""
    of_steps = np.array(steps)
    between = shares * (of_steps[:, None] != of_steps[None])
    between[0] = between[:, 0] = 0
    largest = np.argsort(between, axis=None)[::-1][:MOST_CONFUSIONS]
    places = [np.unravel_index(place, between.shape) for place in largest]
    rows = [
        [
            Cell(names[true]),
            Cell(str(steps[true]), steps[true]),
            Cell(names[taken], words=True),
            Cell(str(steps[taken]), steps[taken]),
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
        [Cell(name), *(_heat(pd.Series([share])) for share in line)]
        for name, line in zip(names, shares, strict=True)
    ]
    columns = [("class", ""), *((name, "") for name in names)]
    caption = f"{method}: classes (rows) and what they are taken for, percent of pixels"
    return Table(caption, columns, rows)


def _quality(judged: pd.DataFrame) -> Table | None:
    """Means over the old classes, then over seeds, of every method and step."""
    rows = []
    for (method, step), runs in judged.groupby(["method", "step"], sort=False):
        by_seed = runs.groupby("seed")
        means = by_seed[QUALITY].mean()
        counts = by_seed[
            ["pixels", "labelled", "correct", "of_background", "of_future"]
        ]
        sums = counts.sum(min_count=1)  # empty where the masks do not tell
        means["found"] = (
            100 * sums["correct"] / sums["pixels"].where(sums["pixels"] > 0)
        )
        labelled = sums["labelled"].where(sums["labelled"] > 0)
        for kind in ("of_background", "of_future"):
            means[kind] = 100 * sums[kind] / labelled
        order = ["found", *QUALITY, "of_background", "of_future"]
        cells = [_number(means[column]) for column in order]
        rows.append([Cell(str(method)), _step_cell(step), *cells])
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


def _quality_of_classes(judged: pd.DataFrame) -> dict[str, Table]:
    """Per method, step and class: how much was recovered, how much of it is right."""
    tables = {}
    for method, of_method in judged.groupby("method", sort=False):
        rows = []
        for (step, _, name), runs in of_method.groupby(["step", "index", "class"]):
            cells = [_heat(runs[column]) for column in ("recall", "precision", "iou")]
            rows.append([Cell(str(name)), _step_cell(step), *cells])
        columns = [("class", ""), ("step", ""), ("recovered", ""), ("precision", "")]
        caption = f"{method}: pseudo labels of every class, in percent"
        tables[str(method)] = Table(caption, [*columns, ("IoU", "")], rows)
    return tables


def _costs(rows: Sequence[Row]) -> Table:
    """Time, memory and size of every step, means over seeds."""
    measured = pd.DataFrame([_cost(row) for row in rows])
    lines = []
    for (method, step), runs in measured.groupby(["method", "step"], sort=False):
        numbers = [_number(runs[column]) for column in measured.columns[2:]]
        lines.append([Cell(str(method)), _step_cell(step), *numbers])
    explained = {
        "training": "seconds of the job, start included",
        "pseudo labels": "seconds",
        "bank": "seconds",
        "images/s": "of training",
        "memory": "MiB: of the largest process of the training, or on its GPU",
        "model": "MiB on disk",
        "bank size": "MiB on disk",
    }
    caption = "What the steps cost; what methods share stands with each of them"
    columns = [(name, explained.get(name, "")) for name in measured.columns]
    return Table(caption, columns, lines)


def _mib(path: str) -> float:
    """Size of a file; NaN if there is none, or it was removed since."""
    return Path(path).stat().st_size / MIB if Path(path).is_file() else math.nan


def _cost(row: Row) -> dict[str, Any]:
    """Cost of one step of one run; NaN for what it does not have or nobody measured."""
    memory = math.nan
    for path in map(Path, row["times"]):
        if path.name.startswith("train.") and path.is_file():
            benchmark = pd.read_csv(path, sep="\t", na_values="-")
            memory = float(benchmark["max_rss"].max())
    usage = usage_of(row)
    peak = usage.get("peak_memory_bytes")
    return {
        "method": row["method"],
        "step": row["step"],
        **dict.fromkeys(JOBS.values(), math.nan),
        **seconds_of(row),
        "images/s": usage.get("images_per_second", math.nan),
        "memory": memory if peak is None else peak / MIB,
        "model": _mib(row["model"]),
        "bank size": _mib(row["bank"]),
    }
