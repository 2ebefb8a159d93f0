"""The list of measures: what is in it appears everywhere."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from parsed_page import experiment, write_page
from small_experiment import CLASS_NAMES, GROUPS, STEPS, write_tables

from kproba.artifacts import FIGURE_NAMES
from kproba.results import figures, measures
from kproba.results.evaluation import EvaluationSettings, means, write_results
from kproba.results.figures import draw_figures
from kproba.results.tables import (
    markdown_table,
    read_evaluation,
    read_summary,
    short_table,
)

BEST = measures.StepMeasure(
    name="best",
    title="best class",
    explanation="largest IoU of a class",
    compute=lambda scores: float(scores.iou.max()),
    is_mean=True,
)
CLASSES = measures.RunMeasure(
    name="class_count",
    title="classes",
    explanation="classes tested so far",
    compute=lambda evaluations: sum(len(entry["classes"]) for entry in evaluations),
)
JOBS = measures.CostMeasure(
    name="jobs",
    title="jobs",
    explanation="jobs of the step",
    compute=lambda result: float(len(result.times)),
)
# Largest IoU after each step by the counts of confusion.csv. Step 0: the background,
# 90 of its 100 pixels and 33 of cats; later: the last class, 57 of its 90 and 10 more.
LARGEST = {0: 100 * 90 / (100 + 33), 1: 100 * 57 / (90 + 10), 2: 100 * 57 / (90 + 10)}


@pytest.fixture
def more_measures(monkeypatch) -> None:
    """A made-up measure of every kind at the end of the list."""
    more = {measure.name: measure for measure in (BEST, CLASSES, JOBS)}
    monkeypatch.setattr(measures, "MEASURES", {**measures.MEASURES, **more})


def test_a_measure_may_be_something_other_than_an_iou():
    counts = np.array([[6, 2], [1, 3]])
    scores = measures.ClassScores.from_confusion(counts, [0, 0], "ssul")
    accuracy = scores.confusion.trace() / scores.confusion.sum()
    assert accuracy == pytest.approx(9 / 12)


def test_names_and_titles_are_distinct():
    for kind in ("name", "title"):
        values = [getattr(measure, kind) for measure in measures.all_measures()]
        assert len(set(values)) == len(values)


def test_measures_of_one_step_and_their_means():
    names = [measure.name for measure in measures.step_measures()]
    assert names == ["old", "new", "all", "hiou"]
    assert [measure.name for measure in measures.step_means()] == names[:3]


def test_new_measure_is_in_the_result_of_a_test(more_measures, tmp_path):
    confusion = np.array([[8, 2], [0, 6]])
    assert means(confusion, [0, 0], "ssul")["best"] == 80
    write_results(
        confusion,
        tmp_path / "evaluation.json",
        tmp_path / "confusion.csv",
        names=CLASS_NAMES[:2],
        step_of_class=[0, 0],
        settings=EvaluationSettings("ssul", False, None),
        images=1,
        about={},
    )
    assert json.loads((tmp_path / "evaluation.json").read_text())["best"] == 80


def test_older_results_get_a_new_measure_from_their_counts(more_measures, results):
    for result in results:
        content = read_evaluation(result)
        assert content["best"] == pytest.approx(LARGEST[result.step])
        assert content["hiou"] is None  # as it was recorded


def test_new_measures_are_columns_of_the_summary(more_measures, results, tmp_path):
    path, *_ = write_tables(results, tmp_path)
    summary = read_summary(path)
    assert list(summary)[-6:-1] == [
        *("seconds", "best", "class_count", "jobs", "folder"),
    ]
    expected = [round(LARGEST[step], 4) for _, step in STEPS]
    assert list(summary["best"]) == expected
    assert list(summary["class_count"]) == [2, 5, 9, 2, 5, 9, 4]
    assert summary["jobs"].fillna(0).tolist() == [0, 1, 2, 0, 1, 2, 1]


def test_numbers_that_are_missing_stay_numbers(more_measures, results, tmp_path):
    path, *_ = write_tables(results, tmp_path)
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    columns = [measure.name for measure in measures.all_measures()]
    table.loc[0, columns] = ""
    table.to_csv(path, index=False)
    assert read_summary(path).loc[0, columns].isna().all()


def test_new_measures_are_in_the_text_tables(more_measures, results, tmp_path):
    path, *_ = write_tables(results, tmp_path)
    title, head, columns, kproba, *_ = short_table(read_summary(path)).splitlines()
    assert title == "pets 1-1 overlap: mIoU in percent"
    assert head.split() == ["step", "0", "step", "1", "step", "2"]
    assert columns.split() == ["old", "new", "all", "best", "class"] * 3
    largest = [f"{LARGEST[step]:.1f}" for step in range(3)]
    assert kproba.split()[4::4] == largest
    assert len(kproba) == len(columns)
    lines = markdown_table(read_summary(path)).splitlines()
    names = ["old", "new", "all", "hiou", "forgetting", "seconds"]
    names += ["best", "class_count", "jobs"]
    assert lines[2] == f"| method | seeds | {' | '.join(names)} |"
    cells = lines[4].strip("| ").split(" | ")
    assert cells[-3:] == [f"{LARGEST[2]:.1f}", "9.0", "2"]  # jobs of two increments


def test_new_measure_of_a_step_has_a_panel(
    more_measures, results, index, tmp_path, monkeypatch
):
    drawn: list = []
    close = figures.plt.close
    monkeypatch.setattr(figures.plt, "close", drawn.append)
    outputs = {name: tmp_path / f"{name}.png" for name in FIGURE_NAMES}
    draw_figures(results, [index], outputs, groups=GROUPS)
    axes = drawn[0].axes
    titles = [axis.get_title() for axis in axes]
    assert titles == ["old", "new", "all", "hIoU", "best class"]
    curves = {curve.get_label(): curve[0] for curve in axes[4].containers}
    expected = [(step, LARGEST[step]) for step in range(3)]
    np.testing.assert_allclose(curves["finetune"].get_xydata(), expected)
    assert tuple(drawn[0].get_size_inches()) == (15, 3)
    for figure in drawn:
        close(figure)


def test_new_measures_are_on_the_page(more_measures, results, index, tmp_path):
    page = write_page(results, tmp_path, experiment(index))
    head, first, *_ = page.tables["Results after every step, in percent"]
    assert head[-2:] == [BEST.title, CLASSES.title]
    assert first[-2:] == [f"{LARGEST[0]:.1f}", "2.0"]
    head, *_ = page.tables["Results after the last step, in percent"]
    assert head[-2:] == [BEST.title, CLASSES.title]
    head, first, *_ = page.tables["Time, memory and size of a whole run"]
    assert (head[-1], first[-1]) == (JOBS.title, "2.0")  # of two increments
    text = " ".join(page.texts)
    for measure in (BEST, CLASSES, JOBS):
        explanation = measure.explanation
        assert f"{explanation[:1].upper()}{explanation[1:]}." in text


def test_published_numbers_lack_a_new_mean(more_measures, results, index, tmp_path):
    voc = experiment(index, kind="voc", task="15-1")
    renamed = [type(r).from_dict({**r.to_dict(), "task": "15-1"}) for r in results]
    page = write_page(renamed, tmp_path, voc)
    head, here, *_, last = page.tables[
        "This run and the most comparable published numbers, mIoU in percent"
    ]
    place = head.index("best class")
    assert here[place] == f"{LARGEST[2]:.1f}"
    assert last[place] == "–"


def test_tables_and_measures_do_not_load_torch():
    code = (
        "import sys, kproba.results.tables, kproba.runtime.run_file, "
        "kproba.results.tensorboard; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
