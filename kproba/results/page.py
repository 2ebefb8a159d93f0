"""The page that shows all results and opens alone: no server, no other file.

Numbers come from the tables (`kproba.results.tables`), pictures from the folders of the
steps. Everything that the page shows is chosen by a rule that it states. The templates
are in kproba/results/templates.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from kproba import __version__
from kproba.plan.results import StepResult, by_experiment
from kproba.results import (
    facts,
    measures,
    page_classes,
    page_pictures,
    page_tables,
    palette,
)
from kproba.results.charts import (
    Point,
    Series,
    line_chart,
    ranking,
    small_chart,
    value_range,
)
from kproba.results.experiment import Experiment
from kproba.results.palette import Style
from kproba.results.published import compare_published
from kproba.results.svg import marker
from kproba.results.tables import (
    EXPERIMENT,
    keep_first_seed,
    read_evaluation,
    read_summary,
)
from kproba.results.training_curves import draw_training
from kproba.results.verdict import Verdict, give_verdict
from kproba.runtime.files import atomic_path

MOST_CURVES = 10  # methods in one chart


@dataclass(frozen=True)
class Numbers:
    """The rows of an experiment.

    Attributes:
        summary: Of summary.csv.
        classes: Of classes.csv.
        quality: Of pseudo_labels.csv.
    """

    summary: pd.DataFrame
    classes: pd.DataFrame
    quality: pd.DataFrame

    @property
    def last(self) -> pd.DataFrame:
        """The last step of the summary."""
        return self.summary[self.summary["step"] == self.summary["step"].max()]

    def files(self, name: str) -> list[tuple[str, str]]:
        """Name and data URI of the three tables as CSV.

        Args:
            name: Beginning of the names.
        """
        return [
            (f"{name}-{kind}.csv", _as_data(table.to_csv(index=False), "text/csv"))
            for kind, table in (
                ("summary", self.summary),
                ("classes", self.classes),
                ("pseudo_labels", self.quality),
            )
            if len(table)
        ]


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
    joint = {result.method for result in results if result.joint}
    styles = palette.method_styles((result.method for result in results), joint)
    sections = []
    for experiment in experiments:
        rows = (
            part.get(experiment.key, table.iloc[:0])
            for part, table in zip(parts, tables, strict=True)
        )
        mine = steps.get(experiment.key, [])
        sections.append(_section(experiment, mine, Numbers(*rows), styles))
    html = _render(
        sections=sections,
        version=__version__,
        date=max((section["date"] for section in sections), default=""),
        measures=[*page_tables.result_measures(), *page_tables.added_costs()],
        styles=styles,
    )
    with atomic_path(page) as temporary:
        temporary.write_text(html, encoding="utf-8")


def _render(**values: Any) -> str:
    """The page from its template and values."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("kproba.results", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["exact"] = lambda number: f"{number:.7g}"
    environment.filters["data"] = _as_data
    environment.filters["breakable"] = _breakable
    environment.globals["marker"] = marker
    light, dark = palette.tokens(), palette.tokens(dark=True)
    colours = f":root{{{palette.as_css(light)}}}"
    night = f"{{:root{{{palette.as_css(dark)}}}}}"
    colours += f"@media screen and (prefers-color-scheme: dark){night}"
    values["colours"] = Markup(colours)
    values["series"] = [
        name for name in light if name[1:].isdigit() or name in palette.LEVEL_LINES
    ]
    values["levels"] = range(1, palette.LEVELS + 1)
    # What stands in the style and the script of the page is no text to be escaped.
    values["source"] = lambda name: Markup(
        environment.loader.get_source(environment, name)[0]  # type: ignore[union-attr]
    )
    return environment.get_template("report.html.jinja").render(values)


def _breakable(text: str) -> Markup:
    """A text that may be broken after "_", as names of networks are."""
    return Markup("_<wbr>").join(text.split("_"))


def _as_data(text: str, kind: str) -> str:
    """A data URI of a text in UTF-8.

    Args:
        text: The content.
        kind: MIME type, such as "text/csv".
    """
    content = base64.b64encode(text.encode()).decode()
    return f"data:{kind};charset=utf-8;base64,{content}"


def _by_experiment(table: pd.DataFrame) -> dict[tuple[str, ...], pd.DataFrame]:
    """The rows of each experiment, by `Experiment.key`."""
    groups = table.groupby(EXPERIMENT, sort=False)
    return {tuple(map(str, key)): rows for key, rows in groups}


def _section(
    experiment: Experiment,
    results: Sequence[StepResult],
    numbers: Numbers,
    styles: Mapping[str, Style],
) -> dict[str, Any]:
    """What the template shows of an experiment."""
    summary, last = numbers.summary, numbers.last
    methods = list(dict.fromkeys(result.method for result in results))
    joint = {result.method for result in results if result.joint}
    verdict = _judge(results, last, joint)
    foreground = numbers.quality[numbers.quality["index"] > 0]
    pictured = keep_first_seed(results)
    costs = page_tables.read_all_costs(results)
    drawn = {name: styles[name] for name in methods[:MOST_CURVES]}
    return {
        "title": experiment.title,
        "words": experiment.in_words(),
        "setting": experiment.setting,
        "id": experiment.anchor,
        "date": facts.newest_evaluation(results),
        "verdict": verdict,
        "facts": facts.key_facts(experiment, results),
        "more": facts.more_facts(experiment, results),
        "settings": facts.list_settings(results),
        "warnings": experiment.warnings(),
        "last": page_tables.final_table(last, joint),
        "steps": page_tables.step_table(summary),
        "by_seed": page_tables.seed_table(last) if last["seed"].nunique() > 1 else None,
        "charts": _draw_charts(summary, joint, styles),
        "published": compare_published(experiment, results, last, joint),
        "classes": page_classes.class_tables(experiment, numbers.classes),
        "folded": len(experiment.names) > page_classes.MOST_OPEN,
        "limit": round(page_classes.LIMIT),
        "confusions": page_classes.confusion_tables(experiment, results),
        "quality": page_classes.quality_table(foreground),
        "quality_of_classes": page_classes.class_quality_tables(foreground),
        "labels": page_pictures.draw_labels(experiment, pictured),
        "pictures": page_pictures.draw_examples(experiment, pictured),
        "training": draw_training(results, drawn),
        "drawn": drawn,
        "methods": len(methods),
        "totals": page_tables.total_table(costs, last),
        "costs": page_tables.step_costs(costs),
        "files": numbers.files(experiment.anchor),
        "joint": bool(joint),
    }


def _judge(
    results: Sequence[StepResult], last: pd.DataFrame, joint: set[str]
) -> Verdict:
    """The verdict, with the classes that no validation image shows."""
    final = max(result.step for result in results)
    ended = [read_evaluation(result) for result in results if result.step == final]
    absent = dict.fromkeys(name for e in ended for name in e.get("without_pixels", []))
    left_out = any(e["protocol"].get("leave_out_absent", False) for e in ended)
    policies = {e["protocol"]["policy"] for e in ended}
    left_out = left_out or policies == {"mib"}
    return give_verdict(last, joint, absent=list(absent), left_out=left_out)


def _draw_charts(
    summary: pd.DataFrame, joint: set[str], styles: Mapping[str, Style]
) -> dict[str, Any]:
    """The charts of the measures of one step, `all` first."""
    steps = sorted({int(step) for step in summary["step"]})
    methods = list(dict.fromkeys(summary["method"]))
    shown = [m for m in page_tables.result_measures() if m in measures.step_measures()]
    if len(methods) - len(joint) > MOST_CURVES or len(steps) == 1:
        lines = _series(summary, measures.ALL.name, styles)
        only = set(methods) <= joint
        levels = [] if only else [line for line in lines if line.name in joint]
        ranked = [line for line in lines if only or line.name not in joint]
        if len(methods) - len(joint) > MOST_CURVES:  # more than there are colours
            same = Style("s0", styles[methods[0]].colour, "o")
            ranked = [Series(one.name, same, one.points) for one in ranked]
        return {"large": ranking("mIoU of all classes", ranked, levels), "small": []}
    series = {m.name: _series(summary, m.name, styles) for m in shown}
    ticks = value_range([line for lines in series.values() for line in lines])
    large, *small = shown
    return {
        "large": line_chart(large.title, series[large.name], steps, ticks),
        "small": [
            (m.title, small_chart(m.title, series[m.name], steps, ticks)) for m in small
        ],
    }


def _series(
    summary: pd.DataFrame, measure: str, styles: Mapping[str, Style]
) -> list[Series]:
    """The values of a measure, means over seeds; one step alone is a level line."""
    steps = summary["step"].nunique()
    series = []
    for method, runs in summary.groupby("method", sort=False):
        values = runs.astype({measure: float}).groupby("step")[measure]
        curve = values.agg(["mean", "std"]).dropna(subset="mean").fillna(0)
        points = [
            Point(float(step), float(mean), float(spread))
            for step, mean, spread in curve.itertuples()
        ]
        level = steps > 1 and runs["step"].nunique() == 1
        series.append(Series(str(method), styles[str(method)], points, level))
    return series
