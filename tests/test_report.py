"""Tables, figures and the page."""

import base64
import io
import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_rgba_array
from PIL import Image

from kproba import report
from kproba.artifacts import label_palette, write_json, write_label_image
from kproba.drawing import CLASS_COLOURS
from kproba.indexing import index_dataset
from kproba.quality import quality_table
from kproba.report import (
    collect_quality,
    draw_figures,
    main,
    markdown_table,
    over_steps,
    read_summary,
    short_table,
    summarise,
    write_report,
)

NAMES = ("background", "cat", "dog", "cow")
GROUPS = ((1,), (2,), (3,))  # task 1-1

# IoU of background, cat, dog, cow after each step; None: nowhere to be seen.
IOUS = {
    ("base", 0): [80.0, 40.0],
    ("kproba", 1): [70.0, 30.0, 20.0],
    ("kproba", 2): [75.0, 10.0, 30.0, None],
    ("finetune", 1): [60.0, 0.0, 40.0],
    ("finetune", 2): [50.0, 0.0, 0.0, 50.0],
    ("joint", 2): [90.0, 50.0, 60.0, 70.0],
}
MEANS = {
    ("base", 0): (60.0, None, 60.0),
    ("kproba", 1): (50.0, 20.0, 40.0),
    ("kproba", 2): (42.5, 15.0, 28.75),
    ("finetune", 1): (30.0, 40.0, 33.333),
    ("finetune", 2): (25.0, 25.0, 25.0),
    ("joint", 2): (70.0, 65.0, 67.5),
}
HOME = {("kproba", 0): ("base", 0), ("finetune", 0): ("base", 0)}
COLOURS = np.array(CLASS_COLOURS)
STEPS = [
    *(("kproba", step) for step in range(3)),
    *(("finetune", step) for step in range(3)),
    ("joint", 2),
]


def _write_step(folder: Path, method: str, step: int) -> None:
    """What the test of a step and the benchmark of its training leave behind."""
    old, new, every = MEANS[method, step]
    classes = [
        {"index": k, "name": NAMES[k], "step": max(0, k - 1), "iou": iou, "pixels": 9}
        for k, iou in enumerate(IOUS[method, step])
    ]
    write_json(
        folder / "evaluation.json",
        # The shared step 0 says of itself that it is "base", in a task of its own.
        {
            **{"dataset": "pets", "task": "1", "setting": "overlap"},
            **{"method": method, "seed": "0", "step": str(step)},
            **{"old": old, "new": new, "all": every, "hiou": None},
            "protocol": {"policy": "ssul"},
            "classes": classes,
        },
    )
    (folder / "train.tsv").write_text("s\th:m:s\tmax_rss\n10.04\t0:00:10\t512\n")
    (folder / "examples").mkdir()
    for number, name in enumerate(("v1", "v2")):
        prediction = np.full((6, 8), (number + step) % 3, np.uint8)
        write_label_image(folder / "examples" / f"{name}.png", prediction)


def _write_quality(folder: Path, step: int) -> Path:
    """How good the pseudo labels of a step are: 50, 40 .. percent of a class found."""
    confusion = torch.zeros(step + 2, step + 2, dtype=torch.int64)
    for index in range(step + 1):
        confusion[index, index] = 6 - index - (step == 2)
        confusion[index, 0] += 4 + index + (step == 2)
    confusion[step + 1, 1] = 5  # future pixels taken for cats
    path = folder / "pseudo_label_quality.csv"
    quality_table(confusion, NAMES[: step + 1]).to_csv(path, index=False)
    return path


@pytest.fixture
def rows(tmp_path) -> list[dict[str, Any]]:
    """Rows of a tiny experiment with its result files."""
    for method, step in IOUS:
        _write_step(tmp_path / method / str(step), method, step)
    rows = []
    for method, step in STEPS:
        folder = Path(*map(str, HOME.get((method, step), (method, step))))
        row = {"dataset": "pets", "task": "1-1", "setting": "overlap"}
        row |= {"method": method, "seed": 0, "step": step}
        row["evaluation"] = str(tmp_path / folder / "evaluation.json")
        row["times"] = [str(tmp_path / folder / "train.tsv")]
        row["quality"] = ""
        if method == "kproba" and step > 0:
            row["quality"] = str(_write_quality(tmp_path / folder, step))
        rows.append(row)
    return rows


# --- tables ------------------------------------------------------------------------


def _tables(rows, folder: Path) -> tuple[Path, Path, Path]:
    names = ("summary", "classes", "pseudo_labels")
    summary, classes, quality = (folder / f"{name}.csv" for name in names)
    summarise(rows, summary, classes)
    collect_quality(rows, quality)
    return summary, classes, quality


@pytest.fixture
def tables(rows, tmp_path) -> tuple[Path, Path, Path]:
    """summary.csv, classes.csv and pseudo_labels.csv of the tiny experiment."""
    return _tables(rows, tmp_path)


def test_summary_has_a_row_for_every_run_and_step(tables):
    summary = read_summary(tables[0])
    assert list(zip(summary["method"], summary["step"], strict=True)) == STEPS
    assert set(summary["task"]) == {"1-1"}  # not the task of the shared step 0
    for (method, step), line in zip(STEPS, summary.to_dict("records"), strict=True):
        expected = MEANS[HOME.get((method, step), (method, step))]
        numbers = [np.nan if number is None else number for number in expected]
        measured = [line["old"], line["new"], line["all"]]
        assert measured == pytest.approx(numbers, nan_ok=True)
        assert np.isnan(line["hiou"])


def test_seconds_are_summed_over_the_jobs_of_a_step(rows, tmp_path):
    more = tmp_path / "bank.tsv"
    more.write_text("s\th:m:s\n1.5\t0:00:01\n2.5\t0:00:02\n")
    rows[1]["times"].append(str(more))
    rows[2]["times"] = []
    summarise(rows, tmp_path / "summary.csv", tmp_path / "classes.csv")
    assert list(read_summary(tmp_path / "summary.csv")["seconds"][:3]) == [10, 14, 0]


def test_class_table_has_a_row_for_every_class_of_every_step(tables):
    classes = pd.read_csv(tables[1])
    assert len(classes) == sum(len(IOUS[HOME.get(key, key)]) for key in STEPS)
    own = classes[(classes["method"] == "kproba") & (classes["step"] == 2)]
    assert list(own["class"]) == list(NAMES)
    assert list(own["index"]) == [0, 1, 2, 3]
    assert list(own["introduced"]) == [0, 0, 1, 2]
    np.testing.assert_array_equal(own["iou"], [75, 10, 30, np.nan])


@pytest.mark.parametrize("name", ["007", "1e3", "null", "None"])
def test_names_stay_text(rows, tmp_path, name):
    renamed = [{**row, "dataset": name, "method": name} for row in rows]
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
    monkeypatch.setattr(sys, "argv", ["report", str(tables[0])])
    assert main() == 0
    assert capsys.readouterr().out == short_table(read_summary(tables[0])) + "\n"


def test_command_without_a_file_says_how_to_use_it(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["report"])
    assert main() == 2
    assert "usage:" in capsys.readouterr().err


# --- figures -----------------------------------------------------------------------


@pytest.fixture
def index(folder_dataset, tmp_path) -> Path:
    """Index of two validation images that hold all classes."""
    mask = np.repeat(np.array([0, 1, 2, 3], np.uint8), 12).reshape(6, 8)
    mask[-1, -1] = 255
    masks = {"train": {"t": mask}, "val": {"v1": mask, "v2": mask}}
    path = tmp_path / "index.csv"
    index_dataset(
        path,
        tmp_path / "index.json",
        kind="folder",
        folder=folder_dataset(masks, NAMES),
        class_count=3,
    )
    return path


@pytest.fixture
def open_figures(monkeypatch) -> Iterator[list]:
    """The figures as they were when saved, to look at their parts."""
    figures: list = []
    close = report.plt.close
    monkeypatch.setattr(report.plt, "close", figures.append)
    # Drawing every pixel takes most of the time and is the matter of another test.
    monkeypatch.setattr(report.Figure, "savefig", lambda _, path, **__: path.touch())
    yield figures
    for figure in figures:
        close(figure)


def _draw(rows, index, folder: Path, groups=GROUPS) -> dict[str, Path]:
    names = ("miou", "classes", "pseudo_labels", "examples")
    paths = {name: folder / f"{name}.png" for name in names}
    draw_figures(rows, index, groups=groups, **paths)
    return paths


def test_figures_are_pictures_with_something_on_them(rows, index, tmp_path):
    open_before = report.plt.get_fignums()
    for path in _draw(rows, index, tmp_path / "figures").values():
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert min(image.size) > 100
            assert len(np.unique(np.asarray(image.convert("L")))) > 10
    assert report.plt.get_fignums() == open_before


def test_curves_follow_the_means_of_every_method(rows, index, tmp_path, open_figures):
    _draw(rows, index, tmp_path / "figures")
    axes = open_figures[0].axes
    assert [axis.get_title() for axis in axes] == ["old", "new", "all"]
    for measure, axis in enumerate(axes):
        curves = {curve.get_label(): curve[0] for curve in axis.containers}
        assert curves.keys() == {"kproba", "finetune"}
        for method, line in curves.items():
            points = [
                (step, MEANS[HOME.get((method, step), (method, step))][measure])
                for step in range(3)
            ]
            expected = [point for point in points if point[1] is not None]
            np.testing.assert_allclose(line.get_xydata(), expected)
        [level] = [line for line in axis.lines if line.get_label() == "joint"]
        assert set(level.get_ydata()) == {MEANS["joint", 2][measure]}
    legend = [text.get_text() for text in axes[-1].get_legend().get_texts()]
    assert sorted(legend) == ["finetune", "joint", "kproba"]


def test_heat_maps_hold_every_iou(rows, index, tmp_path, open_figures):
    _draw(rows, index, tmp_path / "figures")
    axes = open_figures[1].axes
    assert [axis.get_title() for axis in axes] == ["kproba", "finetune", "joint"]
    names = [label.get_text() for label in axes[0].get_yticklabels()]
    assert names == list(NAMES)
    for axis in axes:
        matrix = np.full((4, 3), np.nan)
        for method, step in STEPS:
            if method == axis.get_title():
                ious = IOUS[HOME.get((method, step), (method, step))]
                matrix[: len(ious), step] = [
                    np.nan if iou is None else iou for iou in ious
                ]
        np.testing.assert_array_equal(axis.images[0].get_array(), matrix)
        assert len(axis.texts) == np.isfinite(matrix).sum()


def test_curves_and_heat_maps_average_seeds(rows, index, tmp_path, open_figures):
    other = tmp_path / "other"
    _write_step(other, "finetune", 1)
    again = {**rows[1], "seed": 1, "evaluation": str(other / "evaluation.json")}
    _draw([*rows, again], index, tmp_path / "figures")
    curves = {c.get_label(): c[0] for c in open_figures[0].axes[0].containers}
    assert curves["kproba"].get_ydata()[1] == pytest.approx((50 + 30) / 2)
    matrix = open_figures[1].axes[0].images[0].get_array()
    np.testing.assert_allclose(matrix[:3, 1], [65, 15, 30])


def test_examples_show_image_truth_and_predictions(rows, index, tmp_path, open_figures):
    _draw(rows, index, tmp_path / "figures")
    axes = np.reshape(open_figures[2].axes, (2, -1))
    titles = [axis.get_title() for axis in axes[0]]
    assert titles == [
        *("image", "truth", "step 0"),
        *("kproba\nstep 1", "kproba\nstep 2"),
        *("finetune\nstep 1", "finetune\nstep 2", "joint\nstep 2"),
    ]
    for number, line in enumerate(axes):
        shown = [axis.images[0].get_array() for axis in line]
        assert len(np.unique(shown[0])) > 16  # a photograph, here noise
        assert tuple(shown[1][0, 0]) == (0, 0, 0)  # background
        for picture, title in zip(shown[2:], titles[2:], strict=True):
            label = (number + int(title[-1])) % 3
            assert picture.shape == (6, 8, 3)
            assert (picture == COLOURS[label]).all()


def test_truth_of_the_examples_is_in_output_order(rows, index, tmp_path, open_figures):
    _draw(rows, index, tmp_path / "figures", groups=[[3], [1], [2]])
    truth = open_figures[2].axes[1].images[0].get_array()
    outputs = np.array([0, 2, 3, 1]).repeat(12).reshape(6, 8)
    expected = COLOURS[outputs]
    expected[-1, -1] = 128  # ignored
    np.testing.assert_array_equal(truth, expected)


def test_legend_explains_the_colours_of_every_picture(
    folder_dataset, tmp_path, open_figures
):
    """More classes than clear colours: all pictures change to VOC's map together."""
    names = ("background", *(f"class{number}" for number in range(1, 15)))
    masks = {"v1": np.full((6, 8), 1, np.uint8), "v2": np.full((6, 8), 14, np.uint8)}
    data = folder_dataset({"train": masks, "val": {"v": masks["v1"]}}, names)
    files = tmp_path / "index.csv", tmp_path / "index.json"
    index_dataset(*files, kind="folder", folder=data, class_count=14)
    (tmp_path / "run" / "examples").mkdir(parents=True)
    for name, mask in masks.items():
        write_label_image(tmp_path / "run" / "examples" / f"{name}.png", mask)
    result = {"old": 1.0, "new": 1.0, "all": 1.0, "hiou": 1.0}
    result["classes"] = [
        {"index": k, "name": name, "step": 0, "iou": 1.0, "pixels": 1}
        for k, name in enumerate(names)
    ]
    evaluation = tmp_path / "run" / "evaluation.json"
    write_json(evaluation, result)
    row = {"method": "kproba", "seed": 0, "step": 0, "quality": ""}
    row["evaluation"] = str(evaluation)
    _draw([row], tmp_path / "index.csv", tmp_path, groups=(tuple(range(1, 15)),))
    figure = open_figures[2]
    patches = figure.legends[0].get_patches()
    legend = [tuple(to_rgba_array(patch.get_facecolor())[0, :3]) for patch in patches]
    np.testing.assert_allclose(
        np.ravel(legend) * 255, label_palette()[: 3 * len(names)], atol=1e-6
    )
    for line, label in zip(np.reshape(figure.axes, (2, 3)), (1, 14), strict=True):
        for axis in line[1:]:
            shown = axis.images[0].get_array()[0, 0] / 255
            np.testing.assert_allclose(shown, legend[label])


# --- page --------------------------------------------------------------------------


class _Page(HTMLParser):
    """Tags, attributes and table cells of a page."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] == "td" and data.strip():
            self.cells.append(data.strip())

    @property
    def images(self) -> list[dict[str, str | None]]:
        """Attributes of all img tags."""
        return [attributes for tag, attributes in self.tags if tag == "img"]


def _figures(folder: Path, colour: str = "red") -> list[Path]:
    """Figures of one colour in the folder of an experiment."""
    paths = [folder / "figures" / f"{name}.png" for name in ("miou", "classes")]
    folder.joinpath("figures").mkdir(parents=True)
    for path in (*paths, folder / "figures" / "examples.png"):
        Image.new("RGB", (4, 3), colour).save(path)
    return [*paths, folder / "figures" / "examples.png"]


def _decoded(image: dict[str, str | None]) -> Image.Image:
    kind, content = image["src"].split(",", 1)
    assert kind == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(content, validate=True)))


@pytest.fixture
def html(tables, tmp_path) -> str:
    """The page of the tiny experiment."""
    figures = _figures(tmp_path / "results" / "pets" / "1-1-overlap")
    write_report(*tables[::2], figures, tmp_path / "report.html")
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def test_page_opens_alone(html):
    page = _Page(html)
    assert not re.search(r"https?://|@import|url\(", html)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object"}
    for _, attributes in page.tags:
        for name in ("src", "srcset", "href", "data", "poster"):
            assert attributes.get(name, "data:").startswith("data:")


def test_page_shows_every_figure_with_a_text_for_the_blind(html):
    images = _Page(html).images
    assert len(images) == 3
    for image in images:
        assert image["alt"].strip()
        assert _decoded(image).convert("RGB").getpixel((0, 0)) == (255, 0, 0)
    assert len({image["alt"] for image in images}) == 3


def test_page_shows_every_number(html):
    cells = _Page(html).cells
    lines = [cells[i : i + 9] for i in range(0, 9 * len(STEPS), 9)]
    assert [(line[0], line[1]) for line in lines] == [
        (method, str(step)) for method, step in STEPS
    ]
    assert " ".join(lines[0]) == "kproba 0 60.0 – 60.0 – 60.0 – 10.0"
    assert " ".join(lines[2]) == "kproba 2 42.5 15.0 28.8 – 42.9 8.3 10.0"
    assert "pets 1-1 overlap" in html
    assert "Seed 0." in html


def test_page_shows_how_good_the_pseudo_labels_are(html):
    cells = _Page(html).cells[9 * len(STEPS) :]
    assert [cells[i : i + 2] for i in (0, 7)] == [["kproba", "1"], ["kproba", "2"]]
    # Step 1: 5 of 10 cats found, and 5 pixels of the future taken for cats.
    assert cells[2:7] == ["50.0", "50.0", f"{100 * 5 / 15:.1f}", "0.0", "50.0"]
    # Step 2: 4 cats and 3 dogs of 10 each.
    iou = (100 * 4 / 15 + 100 * 3 / 10) / 2
    assert cells[9:12] == [f"{(100 * 4 / 9 + 100) / 2:.1f}", "35.0", f"{iou:.1f}"]


def test_markdown_has_the_last_step_with_deviations(rows, tmp_path):
    other = tmp_path / "other"
    _write_step(other, "finetune", 2)
    again = {**rows[2], "seed": 1, "evaluation": str(other / "evaluation.json")}
    summary, *_ = _tables([*rows, again], tmp_path)
    lines = markdown_table(read_summary(summary)).splitlines()
    assert lines[0] == "pets 1-1 overlap, after the last step:"
    cells = {line.split(" | ")[0][2:]: line.split(" | ") for line in lines[4:]}
    assert list(cells) == ["kproba", "finetune", "joint"]
    deviation = np.std([28.75, 25.0], ddof=1)
    mean = np.mean([28.75, 25.0])
    assert cells["kproba"][1:3] == ["2", f"33.8 ± {np.std([42.5, 25], ddof=1):.1f}"]
    assert cells["kproba"][4] == f"{mean:.1f} ± {deviation:.1f}"
    # Seconds of both increments of seed 0, and of the one of seed 1, averaged.
    assert cells["kproba"][-1] == "15 |"
    assert cells["joint"][-1] == "10 |"


def test_table_of_pseudo_labels_has_a_row_per_class(tables):
    table = read_summary(tables[2])
    assert set(table["method"]) == {"kproba"}
    assert list(table["class"]) == [*NAMES[:2], *NAMES[:3]]
    assert table.loc[1, "of_future"] == 5


def test_without_pseudo_labels_the_tables_and_figures_say_so(rows, index, tmp_path):
    plain = [{**row, "quality": ""} for row in rows if row["method"] != "kproba"]
    summary, _, quality = _tables(plain, tmp_path)
    assert quality.read_text().count("\n") == 1
    figures = _draw(plain, index, tmp_path / "results/pets/1-1-overlap/figures")
    write_report(summary, quality, list(figures.values()), tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Pseudo labels" not in html and len(_Page(html).images) == 3


# --- numbers over the steps ----------------------------------------------------------


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
    own = classes[(classes["method"] == "kproba") & (classes["step"] == 2)]
    np.testing.assert_allclose(own["forgetting"], [5, 30, -10, np.nan])


def test_forgetting_leaves_out_a_background_that_is_not_counted():
    def result(policy: str, *ious: float) -> dict[str, Any]:
        classes = [{"index": k, "iou": iou} for k, iou in enumerate(ious)]
        return {"all": 1.0, "protocol": {"policy": policy}, "classes": classes}

    for policy, expected in (("ssul", {0: 40, 1: 5}), ("mib", {1: 5})):
        steps = [result(policy, 90.0, 40.0), result(policy, 50.0, 35.0, 7.0)]
        assert over_steps(steps)[1] == expected


def test_page_gives_mean_and_deviation_over_seeds(rows, tmp_path):
    other = tmp_path / "other"
    _write_step(other, "finetune", 1)
    again = {**rows[1], "seed": 5, "evaluation": str(other / "evaluation.json")}
    summary, _, quality = _tables([*rows, again], tmp_path)
    page = tmp_path / "report.html"
    write_report(summary, quality, [], page)
    html = page.read_text(encoding="utf-8")
    assert "over the seeds\n0, 5." in html
    cells = _Page(html).cells
    deviation = np.std([50, 30], ddof=1)
    assert cells[cells.index("1") + 1] == f"40.0 ± {deviation:.1f}"
    assert cells[2] == "60.0"  # one seed only has no deviation


def test_names_are_no_markup(rows, tmp_path):
    renamed = [{**row, "method": "<i>mine</i>"} for row in rows]
    summary, _, quality = _tables(renamed, tmp_path)
    page = tmp_path / "report.html"
    write_report(summary, quality, [], page)
    assert "i" not in {tag for tag, _ in _Page(page.read_text("utf-8")).tags}


def test_figures_go_to_their_own_experiment(rows, tmp_path):
    """The folder of one experiment may be the end of another one's."""
    datasets = {"voc": "red", "my-voc": "blue"}
    figures, all_rows = [], []
    for dataset, colour in datasets.items():
        figures += _figures(tmp_path / "results" / dataset / "1-1-overlap", colour)
        all_rows += [{**row, "dataset": dataset} for row in rows]
    summary, _, quality = _tables(all_rows, tmp_path)
    page = tmp_path / "report.html"
    write_report(summary, quality, figures, page)
    images = _Page(page.read_text(encoding="utf-8")).images
    shown = [_decoded(image).convert("RGB").getpixel((0, 0)) for image in images]
    assert shown == 3 * [(255, 0, 0)] + 3 * [(0, 0, 255)]
