"""The page that shows all results: its numbers, facts, tables and links."""

import base64
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from parsed_page import ParsedPage, experiment, write_page
from small_experiment import (
    CLASS_NAMES,
    MEAN_IOUS,
    STEPS,
    repeat_step,
    step_owner,
)

from kproba.methods.quality import quality_table
from kproba.results import facts, page_tables
from kproba.runtime.files import read_json, write_json

FINAL = "Results after the last step, in percent"
STEPWISE = "Results after every step, in percent"
QUALITY = "Pseudo labels against the hidden ground truth, in percent"
NEAR = "This run and the most comparable published numbers, mIoU in percent"
OTHERS = "Other published numbers of this task, mIoU in percent"
COSTS = "Costs of every step"
TOTALS = "Time, memory and size of a whole run"


@pytest.fixture
def page(results, index, tmp_path) -> ParsedPage:
    """The page of the small experiment."""
    return write_page(results, tmp_path, experiment(index))


def test_page_opens_alone(page, tmp_path):
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|@import|url\(", html)
    assert not {tag for tag, _ in page.tags} & {"iframe", "object", "embed"}
    for _, attributes in page.tags:
        for name in ("src", "srcset", "href", "data", "poster"):
            link = attributes.get(name, "#")
            assert link.startswith(("data:", "#"))


def test_page_begins_with_title_and_verdict(page, tmp_path):
    date = facts.newest_evaluation(
        [type("R", (), {"evaluation": tmp_path / "joint/2/evaluation.json"})()]
    )
    assert f"KProBA: pets, task 1-1, {date}" in page.texts
    words = " ".join(page.texts)
    lead = (
        "After 3 steps kproba reaches 28.8 mIoU, 43 % of joint (67.5), which is "
        "trained on everything at once."
    )
    assert lead in words
    assert "It forgot 8.3 points; fine-tuning ends at 25.0." in words
    assert "3 classes in 3 steps: 1 first, then 1 and 1; setting overlap" in words
    assert words.index(lead) < words.index("dataset pets")


def test_page_lists_what_was_run(results, index, tmp_path):
    settings = [tmp_path / f"settings{step}.json" for step in range(3)]
    for step, path in enumerate(settings):
        run = {"method": "base" if step == 0 else "kproba", "step": step}
        epochs = 30 if step else 60.5
        write_json(path, {"run": run, "optimisation": {"epochs": epochs}})
    split = tmp_path / "split.csv"
    split.write_text("id\n" + "x\n" * 1234)
    results = [
        replace(r, settings=str(settings[r.step]), images=str(split))
        if r.method == "kproba"
        else r
        for r in results
    ]
    page = write_page(results, tmp_path, experiment(index))
    listed: dict[str, str] = {}
    for name, value in zip(page.texts, page.texts[1:], strict=False):
        listed.setdefault(name, value)  # a later one is of the glossary
    assert listed["task"] == "1-1"
    assert listed["classes per step"] == "1 + 1 + 1"
    assert listed["images per step"] == "1 234, 1 234, 1 234"
    assert listed["evaluated on"] == "2 images"
    assert listed["policy"] == "ssul"
    assert listed["backbone"] == "resnet50"
    assert listed["epochs"] == "60.5, then 30"
    assert listed["trained on"] == "CPU"
    assert listed["commit"] == "abcdef0"
    assert listed["checkpoint"] == "last"
    assert listed["classes of step 2"] == "cow"
    assert listed["predicts"] == "kproba: network; finetune: network; joint: network"
    links = {a["download"]: a["href"] for _, a in page.tags if "download" in a}
    content = base64.b64decode(links["kproba-step2-settings.json"].split(",")[1])
    assert json.loads(content) == read_json(settings[2])
    assert "base-step0-settings.json" in links


def test_facts_that_old_results_lack_are_left_out(page):
    for name in ("epochs", "batch size", "images per step"):
        assert name not in page.texts


def test_tables_of_the_experiment_can_be_downloaded(page, tmp_path):
    links = {a["download"]: a["href"] for _, a in page.tags if "download" in a}
    for name in ("summary", "classes", "pseudo_labels"):
        link = links[f"pets-1-1-overlap-{name}.csv"]
        path = tmp_path / f"downloaded-{name}.csv"
        path.write_bytes(base64.b64decode(link.split(",")[1]))
        original = pd.read_csv(tmp_path / f"{name}.csv")
        pd.testing.assert_frame_equal(pd.read_csv(path), original)


def test_page_shows_every_number(page):
    head, *lines = page.tables[STEPWISE]
    names = ["all", "old", "new", "hIoU", "avg", "forgetting"]
    assert head == ["method", "step", *names]
    assert [(line[0], line[1]) for line in lines] == [(m, str(s)) for m, s in STEPS]
    for line, key in zip(lines, STEPS, strict=True):
        old, new, every = MEAN_IOUS[step_owner(*key)]
        shown = ["–" if m is None else f"{m:.1f}" for m in (every, old, new)]
        assert line[2:5] == shown
    assert lines[2][5:] == ["–", "42.9", "8.3"]


def test_first_table_marks_the_best_and_keeps_joint_apart(page):
    head, *lines = page.tables[FINAL]
    assert head == [
        *("method", "all", "% of joint", "old", "new", "hIoU", "avg", "forgetting")
    ]
    assert lines == [
        ["kproba", "28.8", "43", "42.5", "15.0", "–", "42.9", "8.3"],
        ["finetune", "25.0", "37", "25.0", "25.0", "–", "39.4", "36.7"],
        ["joint", "67.5", "–", "70.0", "65.0", "–", "67.5", "–"],
    ]
    best = [
        [place for place, a in enumerate(line) if "best" in (a.get("class") or "")]
        for line in page.cells[FINAL][1:]
    ]
    assert best == [[1, 2, 3, 6, 7], [4], []]  # of forgetting the lowest
    assert page.texts.count("best") == 6
    assert page.cells[FINAL][1][1]["data-v"] == "28.75"


def test_methods_are_a_share_of_the_best_joint_training():
    """Of `joint` or `joint_softmax`, as in the verdict."""
    values = {"kproba": 40.0, "joint": 50.0, "joint_softmax": 80.0}
    names = [measure.name for measure in page_tables.result_measures()]
    last = pd.DataFrame(
        [
            {"method": method, "seed": seed, **dict.fromkeys(names, value)}
            for method, value in values.items()
            for seed in (0, 1)
        ]
    )
    table = page_tables.final_table(last, {"joint", "joint_softmax"})
    assert table.columns[2].title == "% of joint_softmax"
    shares = {row[0].text: row[2].text for row in table.rows}
    assert shares == {"kproba": "50", "joint": "–", "joint_softmax": "–"}


def test_one_method_has_no_best_and_no_share_of_joint(results, index, tmp_path):
    page = write_page(results[:3], tmp_path, experiment(index))
    assert "% of joint" not in page.tables[FINAL][0]
    assert "best" not in page.texts
    assert "After 3 steps kproba reaches 28.8 mIoU." in " ".join(page.texts)


def test_page_gives_mean_and_deviation_over_seeds(results, index, tmp_path):
    again = repeat_step(results[1], tmp_path / "other", "finetune", seed=5)
    page = write_page([*results, again], tmp_path, experiment(index))
    lines = page.tables[STEPWISE]
    deviation = np.std([40, 100 / 3], ddof=1)
    assert lines[2][2] == f"{np.mean([40, 100 / 3]):.1f} ± {deviation:.1f}"
    assert float(page.cells[STEPWISE][2][2]["data-sd"]) == pytest.approx(
        deviation, abs=1e-3
    )
    assert lines[1][2] == "60.0"  # one seed only has no deviation


def test_seeds_stand_side_by_side(results, index, tmp_path):
    again = repeat_step(results[2], tmp_path / "other", "finetune", seed=5)
    page = write_page([*results, again], tmp_path, experiment(index))
    head, *lines = page.tables["all after the last step, by seed, in percent"]
    assert head == ["method", "seed 0", "seed 5"]
    assert lines == [
        ["kproba", "28.8", "25.0"],
        ["finetune", "25.0", "–"],
        ["joint", "67.5", "–"],
    ]
    assert page.tables[FINAL][0][-1] == "seeds"


def test_classes_by_step_show_what_was_forgotten(page):
    caption = "kproba: IoU of every class in percent"
    head, *lines = page.tables[caption]
    assert head == ["class", "0", "1", "2", "lost"]
    assert lines == [
        ["background", "80", "70", "75", "5.0"],
        ["cat", "40", "30", "10", "30.0"],
        ["dog", "", "20", "30", "-10.0"],
        ["cow", "", "", "", "–"],
    ]
    styles = [[a.get("class") for a in line[1:]] for line in page.cells[caption][1:]]
    assert styles == [
        [None, "l4", "l2", None],  # 10 and 5 of 25 points lost
        [None, "l4", "l10", None],
        [None, None, "g4", None],
        [None, None, None, None],
    ]
    # Joint training has one step, so nothing is lost.
    assert page.tables["joint: IoU of every class in percent"][0] == ["class", "2"]


def test_confusions_of_classes_of_different_steps_are_listed(page):
    head, *lines = page.tables["kproba: largest confusions of old and new classes"]
    assert head == ["class", "taken for", "%", "steps"]
    assert sorted(lines) == [
        ["cat", "dog", "10.0", "0 → 1"],
        ["dog", "cow", "10.0", "1 → 2"],
    ]
    caption = "kproba: classes (rows) and what they are taken for, percent of pixels"
    assert page.tables[caption][2] == ["cat", "33", "57", "10", ""]
    styles = [a.get("class") for a in page.cells[caption][2][1:]]
    # The largest error, which has the strongest shade, is 33 of 90 cows.
    assert styles == ["h9", "hit", "h3 edge", "edge"]


def test_page_shows_how_good_the_pseudo_labels_are(page):
    _, *lines = page.tables[QUALITY]
    assert [line[:2] for line in lines] == [["kproba", "1"], ["kproba", "2"]]
    # Step 1: 5 of 10 cats recovered, and 5 pixels of the future taken for cats.
    iou = f"{100 * 5 / 15:.1f}"
    assert lines[0][2:] == ["50.0", "50.0", "50.0", iou, "0.0", "50.0"]
    # Step 2: 4 cats and 3 dogs of 10 each.
    iou = (100 * 4 / 15 + 100 * 3 / 10) / 2
    precision = (100 * 4 / 9 + 100) / 2
    assert lines[1][2:6] == ["35.0", f"{precision:.1f}", "35.0", f"{iou:.1f}"]
    of_classes = page.tables["kproba: pseudo labels of every class, in percent"]
    assert of_classes[1:] == [
        ["cat", "1", "50.0", "50.0", "33.3"],
        ["cat", "2", "40.0", "44.4", "26.7"],
        ["dog", "2", "30.0", "100.0", "30.0"],
    ]


def test_pseudo_labels_that_nobody_can_judge_have_no_numbers(results, index, tmp_path):
    confusion = torch.zeros(4, 4, dtype=torch.int64)
    confusion[0, 0], confusion[0, 1] = 80, 20  # the masks of step 2 name no old class
    path = Path(results[2].quality)
    quality_table(confusion, range(3), CLASS_NAMES[:3]).to_csv(path, index=False)
    page = write_page(results, tmp_path, experiment(index))
    lines = page.tables[QUALITY]
    assert lines[2] == ["kproba", "2", "–", "–", "–", "–", "–", "0.0"]
    assert lines[1][3] == "50.0"


def test_without_pseudo_labels_the_page_does_without(results, index, tmp_path):
    plain = [replace(r, quality=None) for r in results if r.method != "kproba"]
    page = write_page(plain, tmp_path, experiment(index))
    assert "Pseudo labels" not in page.texts


def test_page_lists_what_the_steps_cost(results, index, tmp_path):
    bank = tmp_path / "bank.safetensors"
    bank.write_bytes(bytes(2**18))
    benchmark = tmp_path / "prototypes.benchmark.tsv"
    benchmark.write_text("s\tmax_rss\n2.5\t-\n")
    times = {**results[1].times, "bank": str(benchmark)}
    results[1] = replace(results[1], bank=str(bank), times=times)
    page = write_page(results, tmp_path, experiment(index))
    head, *lines = page.tables[COSTS]
    names = ["training", "pseudo labels", "bank", "images/s", "memory", "model"]
    assert head == ["method", "step", *names, "bank size"]
    assert lines[0][2:] == ["10 s", "–", "–", "–", "537 MB", "524 kB", "–"]
    assert lines[1][2:] == ["10 s", "–", "2 s", "7.5", "1.1 GB", "524 kB", "262 kB"]
    totals = {line[0]: line[1:] for line in page.tables[TOTALS][1:]}
    assert totals["kproba"][:4] == ["10 s", "23 s", "33 s", "1.1 GB"]
    assert totals["joint"][:3] == ["–", "10 s", "10 s"]


def test_files_that_were_removed_have_no_size(results, index, tmp_path):
    for result in results[:2]:
        Path(result.model).unlink()
        Path(result.model).with_suffix(".json").unlink()
    page = write_page(results, tmp_path, experiment(index))
    sizes = [line[7] for line in page.tables[COSTS][1:]]
    assert sizes[:3] == ["–", "–", "524 kB"]


def test_published_numbers_are_not_those_of_a_task_with_additions(
    results, index, tmp_path
):
    added = tmp_path / "added.csv"
    pd.read_csv(index)[:0].to_csv(added, index=False)
    renamed = [replace(result, task="15-1") for result in results]
    settings = {"kind": "voc", "task": "15-1", "indices": [index, added]}
    page = write_page(renamed, tmp_path, experiment(index, **settings))
    assert NEAR not in page.tables


def test_published_numbers_begin_with_the_most_comparable(results, index, tmp_path):
    for result in results:
        path = Path(result.model).with_suffix(".json")
        content = read_json(path)
        write_json(path, {**content, "architecture": {"backbone": "resnet101"}})
    renamed = [replace(result, task="15-1") for result in results]
    voc = experiment(index, kind="voc", task="15-1")
    page = write_page(renamed, tmp_path, voc)
    head, *lines = page.tables[NEAR]
    assert head[:4] == ["method", "all", "old", "new"]  # numbers are visible first
    own, near = lines[:3], lines[3:]
    assert [line[0] for line in own] == [
        *("kproba (this run)", "finetune (this run)", "joint (this run)")
    ]
    assert own[0][1:7] == ["28.8", "42.5", "15.0", "R101", "no", "old and all"]
    assert len(near) == 10
    assert {tuple(line[4:7]) for line in near} == {("R101", "no", "old and all")}
    values = [float(line[1]) for line in near]
    assert values == sorted(values, reverse=True)
    [barm] = [line for line in near if line[0] == "BARM"]
    assert barm[1] == "70.0"
    others = page.tables[OTHERS][1:]
    assert len(others) == 30
    sources = [int(line[7]) for line in near + others]
    assert set(sources) == set(range(1, max(sources) + 1))


@pytest.mark.parametrize(
    "other", [{"setting": "disjoint"}, {"kind": "folder"}, {"task": "1-1"}]
)
def test_published_numbers_are_of_the_same_task(results, index, tmp_path, other):
    entry = experiment(index, **{"kind": "voc", "task": "15-1", **other})
    changed = [
        replace(result, task=entry.task, setting=entry.setting) for result in results
    ]
    lines = write_page(changed, tmp_path, entry).tables.get(NEAR, [])
    assert not [line for line in lines if line[0] == "BARM"]


@pytest.mark.parametrize("name", ["<i>mine</i>", "\"'&`", "{{ 7 * 7 }}", "</script>"])
def test_names_are_no_markup(results, index, tmp_path, name):
    renamed = [replace(r, method=name) if r.method != "joint" else r for r in results]
    kept = [r for place, r in enumerate(renamed) if place not in (3, 4, 5)]
    for result in kept:
        content = read_json(result.evaluation)
        content["classes"][1]["name"] = name
        write_json(result.evaluation, content)
    names = ("background", name, "dog", "cow")
    page = write_page(kept, tmp_path, experiment(index, names=names))
    assert "i" not in {tag for tag, _ in page.tags}
    assert page.tables[FINAL][1][0] == name
    assert page.tables[f"{name}: IoU of every class in percent"][2][0] == name


def test_every_link_of_the_page_has_a_place(page):
    ids = {a["id"] for _, a in page.tags if "id" in a}
    links = [a["href"][1:] for t, a in page.tags if t == "a" and a["href"][0] == "#"]
    assert len(links) > 10
    assert set(links) <= ids
    assert [tag for tag, _ in page.tags].count("h1") == 1
    assert {"main", "nav", "h1", "h2"} <= {tag for tag, _ in page.tags}


def test_experiments_have_a_section_each(results, index, tmp_path):
    joint = [result for result in results if result.method == "joint"]
    other = [replace(result, setting="disjoint") for result in joint]
    page = write_page(
        [*results, *other],
        tmp_path,
        experiment(index),
        experiment(index, setting="disjoint"),
    )
    headings = page.ids("h2")
    assert headings == ["pets-1-1-overlap", "pets-1-1-disjoint", "glossary"]
    words = " ".join(page.texts)
    verdict = "trained on everything at once, reaches 67.5 mIoU."
    assert words.count(verdict) == 2  # in the overview and in the section
    # The caption is the same in both sections, so their lines follow each other.
    assert [line[0] for line in page.tables[FINAL]] == [
        *("method", "kproba", "finetune", "joint", "method", "joint")
    ]


def test_classes_that_no_image_shows_are_named(results, index, tmp_path):
    content = read_json(results[2].evaluation)
    write_json(results[2].evaluation, {**content, "without_pixels": ["cow"]})
    page = write_page(results, tmp_path, experiment(index))
    note = "No validation image shows cow. Their IoU counts as 0 in the means."
    assert note in page.texts


def test_each_loss_term_has_a_chart_of_its_own(results, index, tmp_path):
    table = pd.read_csv(results[1].metrics)
    table.assign(bce=1.0, gkd=2.0, lr_backbone=0.1).to_csv(
        results[1].metrics, index=False
    )
    page = write_page(results, tmp_path, experiment(index))
    labels = [a["aria-label"] for tag, a in page.tags if tag == "svg" and a.get("role")]
    losses = [label for label in labels if label.startswith("Loss term")]
    assert losses == [
        f"Loss term {term} over the iterations of all steps: {methods}."
        for term, methods in (
            ("loss", "kproba, finetune, joint"),
            ("bce", "kproba"),
            ("gkd", "kproba"),
        )
    ]


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ((6, 2, 2), "10 classes in 3 steps: 6 first, then 2 and 2"),
        ((15, 1, 1, 1, 1, 1), "20 classes in 6 steps: 15 first, then 5 steps of 1"),
        ((5, 3, 2, 1), "11 classes in 4 steps: 5 first, then 3, 2 and 1"),
        ((19, 1), "20 classes in 2 steps: 19 first, then 1"),
        ((1,), "1 class in one step"),
    ],
)
def test_tasks_are_described_in_words(sizes, words):
    labels = iter(range(1, 99))
    groups = tuple(tuple(next(labels) for _ in range(size)) for size in sizes)
    shown = experiment(Path("index.csv"), groups=groups)
    assert shown.in_words() == words
    assert shown.introduced.count(len(sizes) - 1) == sizes[-1] + (len(sizes) == 1)


def test_sections_have_ids_without_spaces():
    assert experiment(Path("i"), dataset="my pets", task="a b").anchor == (
        "my-pets-a-b-overlap"
    )
