"""The page that shows all results and opens alone: no server, no other file.

Numbers come from the tables (`kproba.results.tables`), pictures from the folders of the steps.
Everything that the page shows is chosen by a rule that it states.
"""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from kproba import __version__
from kproba.results.experiment import Experiment, _is_of, _key
from kproba.results.figures import MOST_CURVES
from kproba.results.page_pictures import _embedded, _label_pictures, _legend, _pictures
from kproba.results.page_tables import (
    _class_maps,
    _confusions,
    _costs,
    _facts,
    _of_seeds,
    _published,
    _quality,
    _quality_of_classes,
    _results,
)
from kproba.results.tables import Row, first_seeds, read_summary
from kproba.runtime.files import atomic_path


def write_report(
    rows: Sequence[Row],
    experiments: Sequence[Experiment],
    page: str | Path,
    *,
    summary: str | Path,
    classes: str | Path,
    pseudo_labels: str | Path,
) -> None:
    """Write the page.

    Args:
        rows: Per run and step where its files are: as for `kproba.results.tables.summarise`,
            and `confusion`, `examples`, `split`, `labels` (a folder, or ""), `model`,
            `bank` (or "") and `usage`.
        experiments: What is shown, in this order.
        page: Output.
        summary: summary.csv of all rows.
        classes: classes.csv.
        pseudo_labels: pseudo_labels.csv.
    """
    tables = [read_summary(path) for path in (summary, classes, pseudo_labels)]
    sections = []
    for experiment in experiments:
        own = [row for row in rows if _key(row) == experiment.key]
        numbers = [table[_is_of(table, experiment)] for table in tables]
        sections.append(_section(experiment, own, *numbers))
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


def _section(
    experiment: Experiment,
    rows: Sequence[Row],
    summary: pd.DataFrame,
    classes: pd.DataFrame,
    quality: pd.DataFrame,
) -> dict[str, Any]:
    seeds = sorted({int(row["seed"]) for row in rows})
    judged = quality[quality["index"] > 0]
    first = first_seeds(rows)
    return {
        "title": experiment.title,
        "id": "-".join(experiment.key).replace(" ", "-"),
        "seeds": seeds,
        "facts": _facts(experiment, rows, seeds),
        "last": _results(summary[summary["step"] == summary["step"].max()]),
        "steps": _results(summary, steps=True),
        "of_seeds": _of_seeds(summary) if len(seeds) > 1 else None,
        "published": _published(experiment, rows, summary),
        "classes": _class_maps(experiment, classes),
        "confusions": _confusions(experiment, rows),
        "quality": _quality(judged),
        "quality_of_classes": _quality_of_classes(judged),
        "labels": _label_pictures(experiment, first),
        "costs": _costs(rows),
        "figures": {
            name: _embedded(Path(path).read_bytes(), "image/png")
            for name, path in experiment.figures.items()
        },
        "ranked": len({row["method"] for row in rows}) > MOST_CURVES,
        "legend": _legend(experiment.names),
        "pictures": _pictures(experiment, first),
    }
