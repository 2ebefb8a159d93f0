"""Published numbers of a task, beside those of this run."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import pandas as pd

from kproba.plan.results import StepResult
from kproba.results import measures
from kproba.results.cells import Cell, Column, Table, number_cell
from kproba.results.experiment import Experiment
from kproba.results.facts import join_words, read_models, read_test
from kproba.results.tables import EXPERIMENT

COMPARABLE = 10  # published rows that are not folded
# How the list calls the backbones of this package.
PUBLISHED_NAMES = {"resnet101": "R101", "resnet50": "R50"}


@dataclass(frozen=True)
class Published:
    """The tables of published numbers.

    Attributes:
        near: The rows of this run, and the most comparable published ones.
        others: The other published rows; None without any.
        sources: Footnotes, numbered from 1.
    """

    near: Table
    others: Table | None
    sources: Sequence[str]


def compare_published(
    experiment: Experiment,
    results: Sequence[StepResult],
    last: pd.DataFrame,
    joint: Collection[str] = (),
) -> Published | None:
    """Published numbers of the same task; None without any.

    Args:
        experiment: Whose numbers.
        results: All its steps.
        last: The last step of summary.csv.
        joint: Methods that are trained on everything at once.
    """
    path = files("kproba") / "lists" / "published.csv"
    table = pd.read_csv(str(path), dtype=str, keep_default_na=False)
    wanted = [experiment.kind, experiment.task, experiment.setting]
    table = table[(table[EXPERIMENT] == wanted).all(axis=1)]
    if table.empty or len(experiment.indices) > 1:  # with additions it is another task
        return None
    if experiment.selection:  # measured on other images
        return None
    own, choices = [], {"backbone": "", "background": ""}
    ranked = last.groupby("method", sort=False)[measures.ALL.name].mean()
    order = sorted(ranked.index, key=lambda name: (name in joint, -ranked[name]))
    for method in order:
        choices = _list_choices([r for r in results if r.method == method])
        runs = last[last["method"] == method]
        numbers = [number_cell(runs[measure.name]) for measure in _order()]
        own.append(_line(f"{method} (this run)", choices, numbers, "", "own"))
    entries = sorted(table.to_dict("records"), key=lambda row: _distance(row, choices))
    sources = list(dict.fromkeys(entry["source"] for entry in entries))
    lines = []
    for entry in entries:
        printed = [entry.get(measure.name, "") for measure in _order()]
        numbers = [Cell(t or "–", float(t) if t else None) for t in printed]
        number = str(sources.index(entry["source"]) + 1)
        lines.append(_line(entry["method"], entry, numbers, number))
    columns = _columns()
    near = Table(
        "This run and the most comparable published numbers, mIoU in percent",
        columns,
        [*own, *lines[:COMPARABLE]],
        "published",
    )
    rest = lines[COMPARABLE:]
    caption = "Other published numbers of this task, mIoU in percent"
    others = Table(caption, columns, rest, "published") if rest else None
    return Published(near, others, sources)


def _order() -> list[measures.StepMeasure]:
    """The mean IoUs, `all` first."""
    others = [m for m in measures.step_means() if m.name != measures.ALL.name]
    return [measures.ALL, *others]


def _columns() -> list[Column]:
    return [
        Column("method"),
        *(Column(measure.title, measure.explanation) for measure in _order()),
        Column("backbone", look="words"),
        Column("exemplars", "memory of old images", "words"),
        Column("background", "the means that count the background", "words"),
        Column("source", "number of the footnote"),
        Column("note", look="words"),
    ]


def _line(
    name: str,
    words: Mapping[Any, str],
    numbers: Sequence[Cell],
    source: str,
    row: str = "",
) -> list[Cell]:
    before = ("backbone", "exemplars", "background")
    return [
        Cell(name, row=row),
        *numbers,
        *(Cell(words[column] or "–", words=True) for column in before),
        Cell(source, float(source) if source else None, look="source"),
        Cell(words["note"], words=True, look="remark"),
    ]


def _distance(entry: Mapping[Any, str], own: Mapping[str, str]) -> tuple[Any, ...]:
    """Sorts published rows: the most comparable first, then the highest `all`."""
    return (
        entry["backbone"] != own["backbone"],
        entry["exemplars"] != "no",
        entry["background"] != own["background"],
        -float(entry[measures.ALL.name] or -1),
    )


def _list_choices(results: Sequence[StepResult]) -> dict[str, str]:
    """The choices of a method of this run that published tables state of theirs."""
    protocol = read_test(results[-1])["protocol"]
    backbone = join_words(m["architecture"]["backbone"] for m in read_models(results))
    return {
        "backbone": PUBLISHED_NAMES.get(backbone, backbone),
        "exemplars": "no",
        "background": "none" if protocol["policy"] == "mib" else "old and all",
        "note": "",
    }
