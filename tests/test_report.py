"""The page that shows all results: what stands on it, and in a browser."""

import base64
import io
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from playwright.sync_api import Page, sync_playwright
from small_experiment import (
    CLASS_NAMES,
    GROUPS,
    MEAN_IOUS,
    STEPS,
    repeat_step,
    step_owner,
    write_tables,
)

from kproba.data.drawing import CLASS_COLOURS
from kproba.data.label_images import read_label_image, write_label_image
from kproba.data.labels import UNSURE
from kproba.methods.quality import quality_table
from kproba.plan.results import StepResult
from kproba.results.cells import heat_cell, luminance
from kproba.results.experiment import Experiment
from kproba.results.page import write_report

COLOURS = np.array(CLASS_COLOURS)
RED = (255, 0, 0)


class ParsedPage(HTMLParser):
    """Tags, tables and texts of a page.

    Attributes:
        tags: Every tag with its attributes.
        tables: By caption the lines of a table, the headings first.
        texts: All texts.
    """

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        """Note a tag."""
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.lines.append([])
        if tag in ("th", "td"):
            self.lines[-1].append("")

    def handle_data(self, data):
        """Note a text, in its cell if it is in a table."""
        tag, text = self.tags[-1][0] if self.tags else "", data.strip()
        if not text:
            return
        self.texts.append(text)
        if tag == "caption":
            self.lines = self.tables.setdefault(text, [])
        if tag in ("th", "td", "button") and getattr(self, "lines", None):
            self.lines[-1][-1] += text

    @property
    def images(self) -> dict[str, Image.Image]:
        """Decoded pictures by their text for the blind."""
        pictures = {}
        for tag, attributes in self.tags:
            if tag == "img" and attributes["alt"]:
                kind, content = attributes["src"].split(",", 1)
                assert kind in ("data:image/png;base64", "data:image/jpeg;base64")
                decoded = io.BytesIO(base64.b64decode(content, validate=True))
                pictures[attributes["alt"]] = Image.open(decoded)
        return pictures


def experiment(folder: Path, index: Path, **changes: Any) -> Experiment:
    """The small experiment, with red figures."""
    figures = {name: folder / f"{name}.png" for name in ("miou", "training")}
    for path in figures.values():
        Image.new("RGB", (4, 3), RED).save(path)
    settings = {
        **{"dataset": "pets", "kind": "folder", "task": "1-1", "setting": "overlap"},
        **{
            "groups": GROUPS,
            "names": CLASS_NAMES,
            "indices": [index],
            "figures": figures,
        },
    }
    return Experiment(**{**settings, **changes})


def write_page(results, folder: Path, *experiments: Experiment) -> ParsedPage:
    """Write the page of one or more experiments and read it back."""
    summary, classes, quality = write_tables(results, folder)
    tables = {"summary": summary, "classes": classes, "pseudo_labels": quality}
    write_report(results, experiments, folder / "report.html", **tables)
    return ParsedPage((folder / "report.html").read_text(encoding="utf-8"))


@pytest.fixture
def labelled(results, index, tmp_path) -> list[StepResult]:
    """Results whose steps of kproba have pseudo labels of one training image."""
    split = tmp_path / "split.csv"
    table = pd.read_csv(index, dtype=str)
    table[table["subset"] == "train"].to_csv(split, index=False)
    for place, result in enumerate(results):
        if result.method == "kproba" and result.step:
            folder = Path(result.evaluation).with_name("labels")
            labels = np.full((6, 8), result.step, np.uint8)
            labels[:3] = UNSURE
            folder.mkdir()
            write_label_image(folder / "t.png", labels)
            results[place] = replace(result, labels=str(folder), split=str(split))
    return results


@pytest.fixture
def page(labelled, index, tmp_path) -> ParsedPage:
    """The page of the small experiment."""
    return write_page(labelled, tmp_path, experiment(tmp_path, index))


def test_page_opens_alone(page, tmp_path):
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|@import|url\(", html)
    assert not {tag for tag, _ in page.tags} & {"iframe", "object", "embed"}
    for _, attributes in page.tags:
        for name in ("src", "srcset", "href", "data", "poster"):
            link = attributes.get(name, "#")
            assert link.startswith(("data:", "#"))


def test_page_lists_what_was_run(page):
    facts = dict(zip(page.texts, page.texts[1:], strict=False))
    assert facts["task, setting"] == "1-1, overlap"
    assert facts["classes of step 2"] == "cow"
    assert facts["tested on"] == "2 images, policy ssul"
    assert facts["size in the test"] == "whole images"
    assert facts["checkpoint"] == "last"
    assert facts["backbone"] == "resnet50"
    assert facts["commit"] == "abcdef0"
    assert facts["predicts"] == "kproba: network; finetune: network; joint: network"


def test_page_shows_every_number(page):
    head, *lines = page.tables["mIoU in percent after every step"]
    measures = ["old", "new", "all", "hIoU", "avg", "forgetting", "time"]
    assert head == ["method", "step", *measures]
    assert [(line[0], line[1]) for line in lines] == [(m, str(s)) for m, s in STEPS]
    for line, key in zip(lines, STEPS, strict=True):
        means = MEAN_IOUS[step_owner(*key)]
        assert line[2:5] == ["–" if mean is None else f"{mean:.1f}" for mean in means]
    assert lines[2][5:] == ["–", "42.9", "8.3", "20 s"]
    ended = page.tables["mIoU after the last step"][1:]
    assert [line[0] for line in ended] == ["kproba", "finetune", "joint"]
    assert ended[0][1:] == [*lines[2][2:], "1"]  # and the number of seeds


def test_page_gives_mean_and_deviation_over_seeds(results, index, tmp_path):
    again = repeat_step(results[1], tmp_path / "other", "finetune", seed=5)
    page = write_page([*results, again], tmp_path, experiment(tmp_path, index))
    lines = page.tables["mIoU in percent after every step"]
    assert (
        lines[2][4]
        == f"{np.mean([40, 100 / 3]):.1f} ± {np.std([40, 100 / 3], ddof=1):.1f}"
    )
    assert lines[1][4] == "60.0"  # one seed only has no deviation
    assert "Mean ± standard deviation over the seeds 0, 5." in page.texts


def test_seeds_stand_side_by_side(results, index, tmp_path):
    again = repeat_step(results[2], tmp_path / "other", "finetune", seed=5)
    page = write_page([*results, again], tmp_path, experiment(tmp_path, index))
    head, *lines = page.tables["mIoU of all classes after the last step, by seed"]
    assert head == ["method", "seed 0", "seed 5"]
    assert lines == [
        ["kproba", "28.8", "25.0"],
        ["finetune", "25.0", "–"],
        ["joint", "67.5", "–"],
    ]


def test_numbers_on_colours_have_contrast():
    """At least 4.5 to 1 between ink and ground (WCAG 2.2, 1.4.3)."""
    for value in range(101):
        cell = heat_cell(pd.Series([value]))
        red, green, blue = map(int, re.findall(r"\d+", cell.style)[:3])
        ground = luminance([red / 255, green / 255, blue / 255])
        ink = 0.0 if cell.style.endswith("#000") else 1.0
        light, dark = max(ground, ink), min(ground, ink)
        assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_classes_by_step_show_what_was_forgotten(page):
    head, *lines = page.tables["kproba: IoU of every class in percent"]
    assert head == ["class", "step 0", "step 1", "step 2", "forgotten"]
    assert lines == [
        ["background", "80", "70", "75", "5.0"],
        ["cat", "40", "30", "10", "30.0"],
        ["dog", "", "20", "30", "-10.0"],
        ["cow", "", "", "", "–"],
    ]


def test_confusions_of_classes_of_different_steps_are_listed(page):
    head, *lines = page.tables["kproba: old and new classes confused"]
    assert head == ["class", "of step", "taken for", "of step", "percent"]
    assert sorted(lines) == [
        ["cat", "0", "dog", "1", "10.0"],
        ["dog", "1", "cow", "2", "10.0"],
    ]
    caption = "kproba: classes (rows) and what they are taken for, percent of pixels"
    assert page.tables[caption][2] == ["cat", "33", "57", "10", "0"]


def test_page_shows_how_good_the_pseudo_labels_are(page):
    _, *lines = page.tables["Pseudo labels against the hidden ground truth"]
    assert [line[:2] for line in lines] == [["kproba", "1"], ["kproba", "2"]]
    # Step 1: 5 of 10 cats recovered, and 5 pixels of the future taken for cats.
    assert lines[0][2:] == [
        "50.0",
        "50.0",
        "50.0",
        f"{100 * 5 / 15:.1f}",
        "0.0",
        "50.0",
    ]
    # Step 2: 4 cats and 3 dogs of 10 each.
    iou = (100 * 4 / 15 + 100 * 3 / 10) / 2
    precision = (100 * 4 / 9 + 100) / 2
    assert lines[1][2:6] == ["35.0", f"{precision:.1f}", "35.0", f"{iou:.1f}"]
    of_classes = page.tables["kproba: pseudo labels of every class, in percent"]
    assert of_classes[1:] == [
        ["cat", "1", "50", "50", "33"],
        ["cat", "2", "40", "44", "27"],
        ["dog", "2", "30", "100", "30"],
    ]


def test_pseudo_labels_that_nobody_can_judge_have_no_numbers(results, index, tmp_path):
    confusion = torch.zeros(4, 4, dtype=torch.int64)
    confusion[0, 0], confusion[0, 1] = 80, 20  # the masks of step 2 name no old class
    path = Path(results[2].quality)
    quality_table(confusion, range(3), CLASS_NAMES[:3]).to_csv(path, index=False)
    page = write_page(results, tmp_path, experiment(tmp_path, index))
    lines = page.tables["Pseudo labels against the hidden ground truth"]
    assert lines[2] == ["kproba", "2", "–", "–", "–", "–", "–", "0.0"]
    assert lines[1][3] == "50.0"


def test_without_pseudo_labels_the_page_does_without(results, index, tmp_path):
    plain = [replace(r, quality=None) for r in results if r.method != "kproba"]
    page = write_page(plain, tmp_path, experiment(tmp_path, index))
    assert "Pseudo labels" not in page.texts


def test_page_lists_what_the_steps_cost(results, index, tmp_path):
    bank = tmp_path / "bank.safetensors"
    bank.write_bytes(bytes(2**18))
    benchmark = tmp_path / "prototypes.benchmark.tsv"
    benchmark.write_text("s\tmax_rss\n2.5\t-\n")
    times = {**results[1].times, "bank": str(benchmark)}
    results[1] = replace(results[1], bank=str(bank), times=times)
    page = write_page(results, tmp_path, experiment(tmp_path, index))
    caption = "Costs per step; shared jobs are listed for every method that uses them"
    head, *lines = page.tables[caption]
    names = ["training", "pseudo labels", "bank", "images/s", "memory", "model"]
    assert head == ["method", "step", *names, "bank size"]
    assert lines[0][2:] == ["10 s", "–", "–", "–", "512.0", "0.5", "–"]
    assert lines[1][2:] == ["10 s", "–", "2 s", "7.5", "1024.0", "0.5", "0.2"]


def test_files_that_were_removed_have_no_size(results, index, tmp_path):
    for result in results[:2]:
        Path(result.model).unlink()
        Path(result.model).with_suffix(".json").unlink()
    page = write_page(results, tmp_path, experiment(tmp_path, index))
    caption = "Costs per step; shared jobs are listed for every method that uses them"
    sizes = [line[7] for line in page.tables[caption][1:]]
    assert sizes[:3] == ["–", "–", "0.5"]


def test_published_numbers_are_not_those_of_a_task_with_additions(
    results, index, tmp_path
):
    added = tmp_path / "added.csv"
    pd.read_csv(index)[:0].to_csv(added, index=False)
    renamed = [replace(result, task="15-1") for result in results]
    settings = {"kind": "voc", "task": "15-1", "indices": [index, added]}
    page = write_page(renamed, tmp_path, experiment(tmp_path, index, **settings))
    caption = "Published numbers of this task, and those of this run"
    assert caption not in page.tables


def test_published_numbers_stand_beside_those_of_the_task(results, index, tmp_path):
    renamed = [replace(result, task="15-1") for result in results]
    voc = experiment(tmp_path, index, kind="voc", task="15-1")
    page = write_page(renamed, tmp_path, voc)
    head, *lines = page.tables["Published numbers of this task, and those of this run"]
    assert lines[0][head.index("all")] == "28.8"
    assert [line[0] for line in lines[:3]] == [
        *("kproba (here)", "finetune (here)", "joint (here)")
    ]
    chosen = {name: lines[0][head.index(name)] for name in head[1:3] + head[6:]}
    assert chosen == {
        "backbone": "resnet50",
        "exemplars": "no",
        "background": "old and all",
        "source": "this run",
        "note": "policy ssul, whole images, checkpoint last",
    }
    [barm] = [line for line in lines if line[0] == "BARM"]
    assert barm[head.index("all")] == "70.0"
    assert all(line[head.index("source")] for line in lines[3:])
    for other in ({"setting": "disjoint"}, {"kind": "folder"}, {"task": "1-1"}):
        entry = experiment(tmp_path, index, **{"kind": "voc", "task": "15-1", **other})
        changed = [
            replace(result, task=entry.task, setting=entry.setting)
            for result in results
        ]
        tables = write_page(changed, tmp_path, entry).tables
        lines = tables.get("Published numbers of this task, and those of this run", [])
        assert not [line for line in lines if line[0] == "BARM"]


# --- pictures ------------------------------------------------------------------------


def pixels(page: ParsedPage, alt: str) -> np.ndarray:
    return np.asarray(page.images[alt].convert("RGB"))


def test_figures_are_embedded_with_a_text_for_the_blind(page):
    charts = [image for alt, image in page.images.items() if alt.startswith("Curves")]
    assert len(charts) == 2
    assert {chart.convert("RGB").getpixel((0, 0)) for chart in charts} == {RED}


def test_pictures_show_image_truth_and_every_step(page):
    photograph = pixels(page, "image v1")
    assert photograph.shape == (6, 8, 3)
    assert len(np.unique(photograph)) > 16
    for method, step in STEPS:
        for number, _ in enumerate(("v1", "v2")):
            label = (number + step) % 3
            text = f"{CLASS_NAMES[label]} 100 %" if label else "background"
            picture = pixels(page, f"{method}, step {step}: {text}")
            assert (picture == COLOURS[label]).all()


def test_truth_is_in_output_order_with_its_classes_in_words(labelled, index, tmp_path):
    names = ("background", "cow", "cat", "dog")
    other = experiment(tmp_path, index, groups=((3,), (1,), (2,)), names=names)
    page = write_page(labelled, tmp_path, other)
    truth = pixels(page, "ground truth: cat 25 %, dog 25 %, cow 23 %")
    outputs = np.array([0, 2, 3, 1]).repeat(12).reshape(6, 8)
    expected = COLOURS[outputs]
    expected[-1, -1] = 128  # ignored
    np.testing.assert_array_equal(truth, expected)


def test_truth_has_the_label_offset_of_its_index(labelled, index, tmp_path):
    table = pd.read_csv(index, dtype=str)
    for mask in table["mask"]:
        labels = read_label_image(mask)
        labels[labels == 0] = 1  # with an offset no mask can hold background
        write_label_image(mask, np.where(labels < 255, labels - 1, 255))
    splits = {result.split for result in labelled if result.split}
    for path in (index, *splits):  # of the masks as they are now
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        table.assign(label_offset="1", mask_sha256="").to_csv(path, index=False)
    page = write_page(labelled, tmp_path, experiment(tmp_path, index))
    truth = pixels(page, "ground truth: cat 50 %, dog 25 %, cow 23 %")
    assert (truth[0] == COLOURS[1]).all()


def test_pseudo_labels_stand_beside_the_hidden_truth(page):
    targets = pixels(page, "targets of kproba: cat 50 %, unsure 50 %")
    assert (targets[:3] == 190).all()
    assert (targets[3:] == COLOURS[1]).all()
    # After step 1 the cow, which comes later, is ignored.
    assert "truth, hidden from the step: cat 25 %, dog 25 %" in page.images
    assert "training image t" in page.images


def test_large_pictures_are_embedded_small(results, index, tmp_path):
    table = pd.read_csv(index, dtype=str)
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (600, 300, 3), dtype=np.uint8)
    Image.fromarray(noise).save(table["image"][1])
    labels = np.repeat(np.arange(4, dtype=np.uint8), 150)[:, None].repeat(300, 1)
    write_label_image(table["mask"][1], labels)
    table = table.assign(image_sha256="", mask_sha256="")
    table.loc[1, ["width", "height"]] = ["300", "600"]
    table.to_csv(index, index=False)
    page = write_page(results, tmp_path, experiment(tmp_path, index))
    assert page.images[f"image {table['id'][1]}"].size == (128, 256)
    truth = page.images["ground truth: cat 25 %, dog 25 %, cow 25 %"]
    assert truth.size == (128, 256)
    assert {tuple(c) for c in np.asarray(truth.convert("RGB"))[:, 0]} == {
        tuple(colour) for colour in COLOURS[:4]
    }


def test_names_are_no_markup(results, index, tmp_path):
    renamed = [replace(result, method="<i>mine</i>") for result in results]
    page = write_page(renamed, tmp_path, experiment(tmp_path, index))
    assert "i" not in {tag for tag, _ in page.tags}


def test_experiments_have_a_section_each(results, index, tmp_path):
    joint = [result for result in results if result.method == "joint"]
    other = [replace(result, setting="disjoint") for result in joint]
    page = write_page(
        [*results, *other],
        tmp_path,
        experiment(tmp_path, index),
        experiment(tmp_path, index, setting="disjoint"),
    )
    links = [a["href"] for tag, a in page.tags if tag == "a"]
    headings = [f"#{a['id']}" for tag, a in page.tags if tag == "h2"]
    assert links == headings == ["#pets-1-1-overlap", "#pets-1-1-disjoint"]
    assert "pets 1-1 disjoint" in page.texts
    # The caption is the same in both sections, so their lines follow each other.
    lines = page.tables["mIoU after the last step"]
    assert [line[0] for line in lines] == [
        *("method", "kproba", "finetune", "joint", "method", "joint")
    ]


# --- in a browser --------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window."""
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip("needs Chromium: apt install chromium")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox"]
        )
        yield opened
        opened.close()


@pytest.fixture(params=[1280, 390], ids=["desktop", "phone"])
def opened(browser, request, page, tmp_path) -> Iterator[tuple[Page, list[str]]]:
    """The page from its file, and the messages of console and network."""
    tab = browser.new_page(viewport={"width": request.param, "height": 800})
    messages: list[str] = []
    tab.on("console", lambda message: messages.append(message.text))
    tab.on("pageerror", lambda error: messages.append(str(error)))
    local = ("file:", "data:")
    tab.on("request", lambda r: r.url.startswith(local) or messages.append(r.url))
    tab.goto(f"file://{tmp_path}/report.html")
    yield tab, messages
    tab.close()


def test_browser_shows_all_pictures_and_has_nothing_to_complain(opened):
    tab, messages = opened
    tab.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    sizes = tab.evaluate(
        "Promise.all([...document.images].filter(i => i.alt).map("
        "i => i.decode().then(() => i.naturalWidth)))"
    )
    assert len(sizes) > 20
    assert min(sizes) > 0
    width = tab.evaluate("document.documentElement.scrollWidth")
    assert width <= tab.viewport_size["width"]
    assert messages == []


def column(tab: Page, number: int) -> list[str]:
    """The cells of a column of the first table."""
    cells = tab.locator("table").first.locator(f"tbody tr > :nth-child({number})")
    return cells.all_inner_texts()


def test_tables_are_sorted_by_their_headings(opened):
    tab, messages = opened
    heads = tab.locator("table").first.locator("thead button")
    heads.nth(3).click()  # all
    assert column(tab, 4) == ["67.5", "28.8", "25.0"]
    heads.nth(3).click()
    assert column(tab, 4) == ["25.0", "28.8", "67.5"]
    assert tab.locator("th[aria-sort]").all_inner_texts() == ["all"]
    heads.nth(0).click()
    assert column(tab, 1) == ["finetune", "joint", "kproba"]
    heads.nth(6).click()  # forgetting, which joint does not have
    assert column(tab, 7)[2] == "–"
    heads.nth(6).click()
    assert column(tab, 7)[2] == "–"
    assert messages == []


def test_a_picture_opens_larger_with_its_text(opened):
    tab, messages = opened
    tab.get_by_role("button", name="enlarge: image v1").click()
    dialog = tab.get_by_role("dialog")
    assert dialog.is_visible()
    assert dialog.inner_text().startswith("image v1")
    assert dialog.locator("img").evaluate("image => image.naturalWidth") == 8
    dialog.get_by_role("button").click()
    assert not dialog.is_visible()
    assert messages == []
