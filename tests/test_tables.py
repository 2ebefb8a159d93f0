"""Tables of results."""

import math
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from small_experiment import (
    CLASS_IOUS,
    CLASS_NAMES,
    MEAN_IOUS,
    STEPS,
    repeat_step,
    step_owner,
    step_result,
    write_tables,
)

from kproba.results.costs import duration, size
from kproba.results.measures import class_forgetting
from kproba.results.tables import (
    keep_first_seed,
    main,
    markdown_table,
    read_summary,
    short_table,
    summarise,
)
from kproba.runtime.files import read_json, write_json


def test_summary_has_a_row_for_every_run_and_step(tables):
    summary = read_summary(tables[0])
    assert list(zip(summary["method"], summary["step"], strict=True)) == STEPS
    assert set(summary["task"]) == {"1-1"}  # not the task of the shared step 0
    for step, line in zip(STEPS, summary.to_dict("records"), strict=True):
        expected = MEAN_IOUS[step_owner(*step)]
        numbers = [np.nan if number is None else number for number in expected]
        measured = [line["old"], line["new"], line["all"]]
        assert measured == pytest.approx(numbers, nan_ok=True)
        assert np.isnan(line["hiou"])


def test_columns_of_the_summary(tables):
    assert list(read_summary(tables[0])) == [
        *("dataset", "task", "setting", "method", "seed", "step"),
        *("old", "new", "all", "hiou", "avg", "forgetting", "seconds", "folder"),
        "without_pixels",
    ]


def test_summary_names_the_folder_of_every_test(tables, tmp_path):
    folders = read_summary(tables[0])["folder"]
    assert folders[0] == folders[3] == str(tmp_path / "base" / "0")
    assert folders[2] == str(tmp_path / "kproba" / "2")


def test_seconds_are_summed_over_the_jobs_of_the_steps_after_step_0(results, tmp_path):
    bank = tmp_path / "prototypes.benchmark.tsv"
    bank.write_text("s\th:m:s\n1.5\t0:00:01\n2.5\t0:00:02\n")
    times = {**results[1].times, "bank": str(bank)}
    results[1] = replace(results[1], times=times)
    results[2] = replace(results[2], times={**results[2].times, "bank": str(bank)})
    summarise(results, tmp_path / "summary.csv", tmp_path / "classes.csv")
    first, *later = read_summary(tmp_path / "summary.csv")["seconds"][:3]
    assert math.isnan(first)  # step 0 is shared, and apart
    assert later == [14, 28]
    joint = read_summary(tmp_path / "summary.csv")["seconds"].iloc[-1]
    assert joint == 10  # its only training


def test_seconds_of_a_training_are_those_of_all_its_attempts(results, tmp_path):
    write_json(results[1].usage, {"seconds": 500.0})
    write_json(results[2].usage, {"seconds": 3.0})
    summarise(results, tmp_path / "summary.csv", tmp_path / "classes.csv")
    seconds = read_summary(tmp_path / "summary.csv")["seconds"]
    assert list(seconds[1:3]) == [500, 510]


def test_jobs_of_a_step_are_known_by_what_they_do_not_by_file_names(results, tmp_path):
    """The benchmark of a training may have any name."""
    path = tmp_path / "renamed.tsv"
    path.write_text("s\th:m:s\n7\t0:00:07\n")
    write_json(results[1].usage, {"seconds": 8.0})
    results[1] = replace(results[1], times={"training": str(path)})
    summarise(results, tmp_path / "summary.csv", tmp_path / "classes.csv")
    assert read_summary(tmp_path / "summary.csv")["seconds"][1] == 8


def test_every_method_keeps_its_first_seed(tmp_path):
    results = [
        replace(step_result(tmp_path, method, step), seed=seed)
        for method, seeds in (("kproba", (3, 1, 2)), ("joint", (0,)))
        for seed in seeds
        for step in (0, 1)
    ]
    kept = [(r.method, r.seed, r.step) for r in keep_first_seed(results)]
    assert kept == [
        *(("kproba", 1, 0), ("kproba", 1, 1), ("joint", 0, 0), ("joint", 0, 1))
    ]


def test_class_table_has_a_row_for_every_class_of_every_step(tables):
    classes = pd.read_csv(tables[1])
    assert len(classes) == sum(len(CLASS_IOUS[step_owner(*step)]) for step in STEPS)
    last = classes[(classes["method"] == "kproba") & (classes["step"] == 2)]
    assert list(last["class"]) == list(CLASS_NAMES)
    assert list(last["index"]) == [0, 1, 2, 3]
    assert list(last["introduced"]) == [0, 0, 1, 2]
    np.testing.assert_array_equal(last["iou"], [75, 10, 30, np.nan])


@pytest.mark.parametrize("name", ["007", "1e3", "null", "None"])
def test_names_stay_text(results, tmp_path, name):
    renamed = [replace(result, dataset=name, method=name) for result in results]
    summarise(renamed, tmp_path / "summary.csv", tmp_path / "classes.csv")
    summary = read_summary(tmp_path / "summary.csv")
    assert set(summary["dataset"]) == set(summary["method"]) == {name}


def _summary(*lines: tuple) -> pd.DataFrame:
    names = ["method", "seed", "step", "old", "new", "all"]
    table = pd.DataFrame(lines, columns=names)
    return table.assign(dataset="pets", task="1-1", setting="overlap")


def test_short_table_by_hand():
    table = _summary(
        ("kproba", 0, 0, 60, np.nan, 60),
        ("kproba", 0, 1, 50, 20.04, 40),
        ("joint", 0, 1, 70, 65, 100),
    )
    lines = [line.rstrip() for line in short_table(table).splitlines()]
    assert lines == [
        "pets 1-1 overlap: mIoU in percent",
        "               step 0               step 1",
        "            old    new    all    old    new    all",
        "kproba     60.0      -   60.0   50.0   20.0   40.0",
        "joint         -      -      -   70.0   65.0  100.0",
    ]


def test_short_table_averages_seeds():
    table = _summary(
        ("kproba", 0, 0, 60, 10, 40),
        ("kproba", 7, 0, 50, 30, 42),
        ("joint", 0, 0, 1, 2, 3),
    )
    *_, several, single = short_table(table).splitlines()
    assert several.split() == [
        *("kproba", "55.0", "20.0", "41.0"),
        *("mean", "of", "2", "seeds"),
    ]
    assert single.split() == ["joint", "1.0", "2.0", "3.0"]


def test_short_table_has_a_block_for_each_experiment():
    one = _summary(("kproba", 0, 0, 60, 10, 40))
    other = one.assign(setting="disjoint", old=20.0)
    blocks = short_table(pd.concat([one, other])).split("\n\n")
    assert [block.splitlines()[0] for block in blocks] == [
        "pets 1-1 overlap: mIoU in percent",
        "pets 1-1 disjoint: mIoU in percent",
    ]
    assert blocks[1].splitlines()[-1].split() == ["kproba", "20.0", "10.0", "40.0"]


def test_command_prints_the_short_table(tables, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tables", str(tables[0])])
    assert main() == 0
    assert capsys.readouterr().out == short_table(read_summary(tables[0])) + "\n"


def test_command_without_a_file_says_how_to_use_it(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tables"])
    assert main() == 2
    assert "usage:" in capsys.readouterr().err


def test_markdown_has_the_last_step_with_deviations(results, tmp_path):
    again = repeat_step(results[2], tmp_path / "other", "finetune", seed=1)
    summary, *_ = write_tables([*results, again], tmp_path)
    lines = markdown_table(read_summary(summary)).splitlines()
    assert lines[0] == "pets 1-1 overlap, after the last step:"
    cells = {line.split(" | ")[0][2:]: line.split(" | ") for line in lines[4:]}
    assert list(cells) == ["kproba", "finetune", "joint"]
    deviation = np.std([28.75, 25.0], ddof=1)
    mean = np.mean([28.75, 25.0])
    assert cells["kproba"][1:3] == ["2", f"33.8 ± {np.std([42.5, 25], ddof=1):.1f}"]
    assert cells["kproba"][4] == f"{mean:.1f} ± {deviation:.1f}"
    # Both increments of seed 0, and the one of seed 1, averaged.
    assert cells["kproba"][-1] == "15 s |"
    assert cells["joint"][-1] == "10 s |"


def test_table_of_pseudo_labels_has_a_row_per_class(tables):
    table = read_summary(tables[2])
    assert set(table["method"]) == {"kproba"}
    assert list(table["class"]) == [*CLASS_NAMES[:2], *CLASS_NAMES[:3]]
    assert table.loc[1, "of_future"] == 5


def test_avg_is_the_mean_of_all_over_the_steps_so_far(tables):
    summary = read_summary(tables[0]).set_index(["method", "step"])["avg"]
    assert summary["kproba", 0] == pytest.approx(60)
    assert summary["kproba", 1] == pytest.approx((60 + 40) / 2)
    assert summary["kproba", 2] == pytest.approx((60 + 40 + 28.75) / 3, abs=1e-4)
    assert summary["joint", 2] == pytest.approx(67.5)


def test_forgetting_by_hand(tables):
    """Best earlier IoU less the one now, over background, cat and dog; cow is new."""
    summary = read_summary(tables[0]).set_index(["method", "step"])["forgetting"]
    assert np.isnan(summary["kproba", 0])
    assert summary["kproba", 1] == pytest.approx(((80 - 70) + (40 - 30)) / 2)
    expected = ((80 - 75) + (40 - 10) + (20 - 30)) / 3
    assert summary["kproba", 2] == pytest.approx(expected, abs=1e-4)
    expected = ((80 - 50) + (40 - 0) + (40 - 0)) / 3
    assert summary["finetune", 2] == pytest.approx(expected, abs=1e-4)
    assert np.isnan(summary["joint", 2])
    classes = pd.read_csv(tables[1])
    last = classes[(classes["method"] == "kproba") & (classes["step"] == 2)]
    np.testing.assert_allclose(last["forgetting"], [5, 30, -10, np.nan])


def test_forgetting_leaves_out_a_background_that_is_not_counted():
    def result(policy: str, *ious: float) -> dict[str, Any]:
        classes = [{"index": k, "iou": iou} for k, iou in enumerate(ious)]
        return {"all": 1.0, "protocol": {"policy": policy}, "classes": classes}

    for policy, expected in (("ssul", {0: 40, 1: 5}), ("mib", {1: 5})):
        steps = [result(policy, 90.0, 40.0), result(policy, 50.0, 35.0, 7.0)]
        assert class_forgetting(steps) == expected


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (math.nan, "–"),
        (0, "0 s"),
        (38.4, "38 s"),
        (90, "1.5 min"),
        (599, "10 min"),
        (1573, "26 min"),
        (3599, "1 h 00 min"),
        (3600, "1 h 00 min"),
        (11100, "3 h 05 min"),
    ],
)
def test_durations_are_in_units_that_a_person_reads(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("bytes_", "text"),
    [
        (math.nan, "–"),
        (0, "0.0 B"),
        (87_000, "87 kB"),
        (999_400, "999 kB"),
        (999_600, "1.0 MB"),
        (18_300_000, "18 MB"),
        (1_092_055_040, "1.1 GB"),
        (2_500 * 10**9, "2500 GB"),
    ],
)
def test_sizes_are_in_units_that_a_person_reads(bytes_, text):
    assert size(bytes_ / 2**20) == text


def test_classes_that_no_tested_image_shows_are_in_the_summary(results, tmp_path):
    content = read_json(results[1].evaluation)
    write_json(results[1].evaluation, {**content, "without_pixels": ["cat", "cow"]})
    summarise(results, tmp_path / "summary.csv", tmp_path / "classes.csv")
    absent = read_summary(tmp_path / "summary.csv")["without_pixels"]
    assert list(absent[:3]) == ["", "cat; cow", ""]
