"""The page that shows all results and opens alone: no server, no other file.

Numbers come from the tables (`kproba.results.tables`), pictures from the folders of the
steps. Everything that the page shows is chosen by a rule that it states.
"""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from kproba import __version__
from kproba.plan.results import StepResult, by_experiment
from kproba.results import page_pictures, page_tables
from kproba.results.experiment import Experiment
from kproba.results.figures import MOST_CURVES
from kproba.results.tables import (
    EXPERIMENT,
    keep_first_seed,
    read_evaluation,
    read_summary,
)
from kproba.runtime.files import atomic_path


def write_report(
    results: Sequence[StepResult],
    experiments: Sequence[Experiment],
    page: str | Path,
    *,
    summary: str | Path,
    classes: str | Path,
    pseudo_labels: str | Path,
) -> None:
    """Write the page.

    Args:
        results: All steps of all runs.
        experiments: A section each, in this order.
        page: Output HTML.
        summary: summary.csv of all results.
        classes: classes.csv.
        pseudo_labels: pseudo_labels.csv.
    """
    tables = [read_summary(path) for path in (summary, classes, pseudo_labels)]
    parts = [_by_experiment(table) for table in tables]
    steps = by_experiment(results)
    sections = []
    for experiment in experiments:
        numbers = [
            part.get(experiment.key, table.iloc[:0])
            for part, table in zip(parts, tables, strict=True)
        ]
        sections.append(_section(experiment, steps.get(experiment.key, []), *numbers))
    template = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    source = (files("kproba.results") / "page.html.jinja").read_text(encoding="utf-8")
    html = template.from_string(source).render(sections=sections, version=__version__)
    with atomic_path(page) as temporary:
        temporary.write_text(html, encoding="utf-8")


def _by_experiment(table: pd.DataFrame) -> dict[tuple[str, ...], pd.DataFrame]:
    """The rows of each experiment, by `Experiment.key`."""
    groups = table.groupby(EXPERIMENT, sort=False)
    return {tuple(map(str, key)): rows for key, rows in groups}


def _section(
    experiment: Experiment,
    results: Sequence[StepResult],
    summary: pd.DataFrame,
    classes: pd.DataFrame,
    quality: pd.DataFrame,
) -> dict[str, Any]:
    seeds = sorted({result.seed for result in results})
    foreground = quality[quality["index"] > 0]
    pictured = keep_first_seed(results)
    last = summary[summary["step"] == summary["step"].max()]
    ended = [
        read_evaluation(r) for r in results if r.step == max(r.step for r in results)
    ]
    absent = list(
        dict.fromkeys(name for e in ended for name in e.get("without_pixels", []))
    )
    left_out = [e["protocol"].get("leave_out_absent", False) for e in ended]
    return {
        "title": experiment.title,
        "id": "-".join(experiment.key).replace(" ", "-"),
        "seeds": seeds,
        "facts": page_tables.list_facts(experiment, results, seeds),
        "last": page_tables.final_table(last),
        "absent": absent,
        "warnings": experiment.warnings(),
        "left_out": any(left_out),
        "steps": page_tables.step_table(summary),
        "by_seed": page_tables.seed_table(last) if len(seeds) > 1 else None,
        "published": page_tables.published_table(experiment, results, last),
        "classes": page_tables.class_tables(experiment, classes),
        "confusions": page_tables.confusion_tables(experiment, results),
        "quality": page_tables.quality_table(foreground),
        "quality_of_classes": page_tables.class_quality_tables(foreground),
        "labels": page_pictures.draw_labels(experiment, pictured),
        "costs": page_tables.cost_table(results),
        "figures": {
            name: page_pictures.embed(Path(path).read_bytes(), "image/png")
            for name, path in experiment.figures.items()
        },
        "ranked": len({result.method for result in results}) > MOST_CURVES,
        "legend": page_pictures.list_colours(experiment.names),
        "pictures": page_pictures.draw_examples(experiment, pictured),
    }
