"""The page that shows all results: what stands on it, and in a browser."""

import base64
import io
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from experiment import (
    GROUPS,
    HOME,
    MEANS,
    NAMES,
    STEPS,
    files_of,
    write_step,
    write_tables,
)
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from kproba.data.drawing import CLASS_COLOURS
from kproba.data.label_images import write_label_image
from kproba.data.labels import UNSURE
from kproba.methods.quality import quality_table
from kproba.results.cells import _heat, luminance
from kproba.results.experiment import Experiment
from kproba.results.page import write_report

COLOURS = np.array(CLASS_COLOURS)
RED = (255, 0, 0)


class Read(HTMLParser):
    """What stands on a page.

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
        found = {}
        for tag, attributes in self.tags:
            if tag == "img" and attributes["alt"]:
                kind, content = attributes["src"].split(",", 1)
                assert kind in ("data:image/png;base64", "data:image/jpeg;base64")
                decoded = io.BytesIO(base64.b64decode(content, validate=True))
                found[attributes["alt"]] = Image.open(decoded)
        return found


def experiment(folder: Path, index: Path, **changes: Any) -> Experiment:
    """The tiny experiment, with red figures."""
    figures = {name: folder / f"{name}.png" for name in ("miou", "training")}
    for path in figures.values():
        Image.new("RGB", (4, 3), RED).save(path)
    settings = {
        **{"dataset": "pets", "kind": "folder", "task": "1-1", "setting": "overlap"},
        **{"groups": GROUPS, "names": NAMES, "indices": [index], "figures": figures},
    }
    return Experiment(**{**settings, **changes})


def read(rows, folder: Path, *experiments: Experiment) -> Read:
    """The page of some experiments."""
    summary, classes, quality = write_tables(rows, folder)
    tables = {"summary": summary, "classes": classes, "pseudo_labels": quality}
    write_report(rows, experiments, folder / "report.html", **tables)
    return Read((folder / "report.html").read_text(encoding="utf-8"))


@pytest.fixture
def labelled(rows, index, tmp_path) -> list[dict[str, Any]]:
    """Rows whose steps of kproba have pseudo labels of one training image."""
    split = tmp_path / "split.csv"
    table = pd.read_csv(index, dtype=str)
    table[table["subset"] == "train"].to_csv(split, index=False)
    for row in rows:
        if row["method"] == "kproba" and row["step"]:
            row["labels"] = str(Path(row["evaluation"]).with_name("labels"))
            row["split"] = str(split)
            labels = np.full((6, 8), row["step"], np.uint8)
            labels[:3] = UNSURE
            Path(row["labels"]).mkdir()
            write_label_image(Path(row["labels"]) / "t.png", labels)
    return rows


@pytest.fixture
def page(labelled, index, tmp_path) -> Read:
    """The page of the tiny experiment."""
    return read(labelled, tmp_path, experiment(tmp_path, index))


def test_page_opens_alone(page, tmp_path):
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|@import|url\(", html)
    assert not {tag for tag, _ in page.tags} & {"iframe", "object", "embed"}
    for _, attributes in page.tags:
        for name in ("src", "srcset", "href", "data", "poster"):
            link = attributes.get(name, "#")
            assert link.startswith(("data:", "#"))


def test_page_tells_what_was_run(page):
    told = dict(zip(page.texts, page.texts[1:], strict=False))
    assert told["task, setting"] == "1-1, overlap"
    assert told["classes of step 2"] == "cow"
    assert told["tested on"] == "2 images, policy ssul"
    assert told["size in the test"] == "whole images"
    assert told["checkpoint"] == "last"
    assert told["backbone"] == "resnet50"
    assert told["commit"] == "abcdef0"
    assert told["predicts"] == "kproba: network; finetune: network; joint: network"


def test_page_shows_every_number(page):
    head, *lines = page.tables["mIoU in percent after every step"]
    measures = ["old", "new", "all", "hIoU", "avg", "forgetting", "seconds"]
    assert head == ["method", "step", *measures]
    assert [(line[0], line[1]) for line in lines] == [(m, str(s)) for m, s in STEPS]
    for line, key in zip(lines, STEPS, strict=True):
        means = MEANS[HOME.get(key, key)]
        assert line[2:5] == ["–" if mean is None else f"{mean:.1f}" for mean in means]
    assert lines[2][5:] == ["–", "42.9", "8.3", "10.0"]
    ended = page.tables["mIoU after the last step"][1:]
    assert [line[0] for line in ended] == ["kproba", "finetune", "joint"]
    assert ended[0][1:] == [*lines[2][2:], "1"]  # and the number of seeds


def test_page_gives_mean_and_deviation_over_seeds(rows, index, tmp_path):
    write_step(tmp_path / "other", "finetune", 1)
    again = {**rows[1], "seed": 5, **files_of(tmp_path / "other")}
    page = read([*rows, again], tmp_path, experiment(tmp_path, index))
    lines = page.tables["mIoU in percent after every step"]
    assert (
        lines[2][4]
        == f"{np.mean([40, 100 / 3]):.1f} ± {np.std([40, 100 / 3], ddof=1):.1f}"
    )
    assert lines[1][4] == "60.0"  # one seed only has no deviation
    assert "Mean ± standard deviation over the seeds 0, 5." in page.texts


def test_seeds_stand_side_by_side(rows, index, tmp_path):
    write_step(tmp_path / "other", "finetune", 2)
    again = {**rows[2], "seed": 5, **files_of(tmp_path / "other")}
    page = read([*rows, again], tmp_path, experiment(tmp_path, index))
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
        cell = _heat(pd.Series([value]))
        red, green, blue = map(int, re.findall(r"\d+", cell.style)[:3])
        ground = luminance([red / 255, green / 255, blue / 255])
        ink = 0.0 if cell.style.endswith("#000") else 1.0
        light, dark = max(ground, ink), min(ground, ink)
        assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_classes_by_step_tell_where_what_was_forgotten(page):
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
    # Step 1: 5 of 10 cats found, and 5 pixels of the future taken for cats.
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


def test_pseudo_labels_that_nobody_can_judge_have_no_numbers(rows, index, tmp_path):
    confusion = torch.zeros(4, 4, dtype=torch.int64)
    confusion[0, 0], confusion[0, 1] = 80, 20  # the masks of step 2 name no old class
    path = Path(rows[2]["quality"])
    quality_table(confusion, NAMES[:3]).to_csv(path, index=False)
    page = read(rows, tmp_path, experiment(tmp_path, index))
    lines = page.tables["Pseudo labels against the hidden ground truth"]
    assert lines[2] == ["kproba", "2", "–", "–", "–", "–", "–", "0.0"]
    assert lines[1][3] == "50.0"


def test_without_pseudo_labels_the_page_does_without(rows, index, tmp_path):
    plain = [{**row, "quality": ""} for row in rows if row["method"] != "kproba"]
    page = read(plain, tmp_path, experiment(tmp_path, index))
    assert "Pseudo labels" not in page.texts


def test_page_tells_what_the_steps_cost(rows, index, tmp_path):
    bank = tmp_path / "bank.safetensors"
    bank.write_bytes(bytes(2**18))
    (tmp_path / "prototypes.benchmark.tsv").write_text("s\tmax_rss\n2.5\t-\n")
    rows[1]["bank"] = str(bank)
    rows[1]["times"].append(str(tmp_path / "prototypes.benchmark.tsv"))
    page = read(rows, tmp_path, experiment(tmp_path, index))
    caption = "What the steps cost; what methods share stands with each of them"
    head, *lines = page.tables[caption]
    names = ["training", "pseudo labels", "bank", "images/s", "memory", "model"]
    assert head == ["method", "step", *names, "bank size"]
    assert lines[0][2:] == ["10.0", "–", "–", "–", "512.0", "0.5", "–"]
    assert lines[1][2:] == ["10.0", "–", "2.5", "7.5", "1024.0", "0.5", "0.2"]


def test_files_that_were_removed_have_no_size(rows, index, tmp_path):
    for row in rows[:2]:
        Path(row["model"]).unlink()
        Path(row["model"]).with_suffix(".json").unlink()
    page = read(rows, tmp_path, experiment(tmp_path, index))
    caption = "What the steps cost; what methods share stands with each of them"
    sizes = [line[7] for line in page.tables[caption][1:]]
    assert sizes[:3] == ["–", "–", "0.5"]


def test_published_numbers_are_not_those_of_a_task_with_additions(
    rows, index, tmp_path
):
    added = tmp_path / "added.csv"
    pd.read_csv(index)[:0].to_csv(added, index=False)
    renamed = [{**row, "task": "15-1"} for row in rows]
    settings = {"kind": "voc", "task": "15-1", "indices": [index, added]}
    page = read(renamed, tmp_path, experiment(tmp_path, index, **settings))
    caption = "Published numbers of this task, and those of this run"
    assert caption not in page.tables


def test_published_numbers_stand_beside_those_of_the_same_task(rows, index, tmp_path):
    renamed = [{**row, "task": "15-1"} for row in rows]
    voc = experiment(tmp_path, index, kind="voc", task="15-1")
    page = read(renamed, tmp_path, voc)
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
            {**row, "task": entry.task, "setting": entry.setting} for row in rows
        ]
        tables = read(changed, tmp_path, entry).tables
        shown = tables.get("Published numbers of this task, and those of this run", [])
        assert not [line for line in shown if line[0] == "BARM"]


# --- pictures ------------------------------------------------------------------------


def shown(page: Read, alt: str) -> np.ndarray:
    return np.asarray(page.images[alt].convert("RGB"))


def test_figures_are_embedded_with_a_text_for_the_blind(page):
    charts = [image for alt, image in page.images.items() if alt.startswith("Curves")]
    assert len(charts) == 2
    assert {chart.convert("RGB").getpixel((0, 0)) for chart in charts} == {RED}


def test_pictures_show_image_truth_and_every_step(page):
    photograph = shown(page, "image v1")
    assert photograph.shape == (6, 8, 3)
    assert len(np.unique(photograph)) > 16
    for method, step in STEPS:
        for number, _ in enumerate(("v1", "v2")):
            label = (number + step) % 3
            text = f"{NAMES[label]} 100 %" if label else "background"
            picture = shown(page, f"{method}, step {step}: {text}")
            assert (picture == COLOURS[label]).all()


def test_truth_is_in_output_order_with_its_classes_in_words(labelled, index, tmp_path):
    names = ("background", "cow", "cat", "dog")
    other = experiment(tmp_path, index, groups=((3,), (1,), (2,)), names=names)
    page = read(labelled, tmp_path, other)
    truth = shown(page, "ground truth: cat 25 %, dog 25 %, cow 23 %")
    outputs = np.array([0, 2, 3, 1]).repeat(12).reshape(6, 8)
    expected = COLOURS[outputs]
    expected[-1, -1] = 128  # ignored
    np.testing.assert_array_equal(truth, expected)


def test_pseudo_labels_stand_beside_the_hidden_truth(page):
    targets = shown(page, "targets of kproba: cat 50 %, unsure 50 %")
    assert (targets[:3] == 190).all()
    assert (targets[3:] == COLOURS[1]).all()
    # After step 1 the cow, which comes later, is ignored.
    assert "truth, hidden from the step: cat 25 %, dog 25 %" in page.images
    assert "training image t" in page.images


def test_large_pictures_are_embedded_small(rows, index, tmp_path):
    table = pd.read_csv(index, dtype=str)
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (600, 300, 3), dtype=np.uint8)
    Image.fromarray(noise).save(table["image"][1])
    labels = np.repeat(np.arange(4, dtype=np.uint8), 150)[:, None].repeat(300, 1)
    write_label_image(table["mask"][1], labels)
    page = read(rows, tmp_path, experiment(tmp_path, index))
    assert page.images[f"image {table['id'][1]}"].size == (128, 256)
    truth = page.images["ground truth: cat 25 %, dog 25 %, cow 25 %"]
    assert truth.size == (128, 256)
    assert {tuple(c) for c in np.asarray(truth.convert("RGB"))[:, 0]} == {
        tuple(colour) for colour in COLOURS[:4]
    }


def test_names_are_no_markup(rows, index, tmp_path):
    renamed = [{**row, "method": "<i>mine</i>"} for row in rows]
    page = read(renamed, tmp_path, experiment(tmp_path, index))
    assert "i" not in {tag for tag, _ in page.tags}


def test_experiments_have_a_section_each(rows, index, tmp_path):
    other = [{**row, "setting": "disjoint"} for row in rows if row["method"] == "joint"]
    page = read(
        [*rows, *other],
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
    """The page from its file, and what the console and the network were told."""
    tab = browser.new_page(viewport={"width": request.param, "height": 800})
    told: list[str] = []
    tab.on("console", lambda message: told.append(message.text))
    tab.on("pageerror", lambda error: told.append(str(error)))
    local = ("file:", "data:")
    tab.on("request", lambda r: r.url.startswith(local) or told.append(r.url))
    tab.goto(f"file://{tmp_path}/report.html")
    yield tab, told
    tab.close()


def test_browser_shows_all_pictures_and_has_nothing_to_complain(opened):
    tab, told = opened
    tab.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    sizes = tab.evaluate(
        "Promise.all([...document.images].filter(i => i.alt).map("
        "i => i.decode().then(() => i.naturalWidth)))"
    )
    assert len(sizes) > 20
    assert min(sizes) > 0
    width = tab.evaluate("document.documentElement.scrollWidth")
    assert width <= tab.viewport_size["width"]
    assert told == []


def column(tab: Page, number: int) -> list[str]:
    """The cells of a column of the first table."""
    cells = tab.locator("table").first.locator(f"tbody tr > :nth-child({number})")
    return cells.all_inner_texts()


def test_tables_are_sorted_by_their_headings(opened):
    tab, told = opened
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
    assert told == []


def test_a_picture_opens_larger_with_its_text(opened):
    tab, told = opened
    tab.get_by_role("button", name="enlarge: image v1").click()
    dialog = tab.get_by_role("dialog")
    assert dialog.is_visible()
    assert dialog.inner_text().startswith("image v1")
    assert dialog.locator("img").evaluate("image => image.naturalWidth") == 8
    dialog.get_by_role("button").click()
    assert not dialog.is_visible()
    assert told == []
