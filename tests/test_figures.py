"""Figures of an experiment."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import matplotlib.text
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba_array
from PIL import Image
from small_experiment import (
    CLASS_IOUS,
    CLASS_NAMES,
    GROUPS,
    MEAN_IOUS,
    STEPS,
    repeat_step,
    step_owner,
    step_result,
    write_step,
)

from kproba.artifacts import FIGURE_NAMES
from kproba.data.colours import DRAWING_COLOURS, STRIPES, drawing_colours
from kproba.data.fonts import find_font
from kproba.data.index import index_dataset
from kproba.data.label_images import write_label_image
from kproba.plan.results import StepResult
from kproba.results import figures
from kproba.results.figures import draw_figures
from kproba.runtime.files import write_json

COLOURS = np.array(DRAWING_COLOURS)


@pytest.fixture
def open_figures(monkeypatch) -> Iterator[list]:
    """The figures as they were when saved, to look at their parts."""
    drawn: list = []
    close = figures.plt.close
    monkeypatch.setattr(figures.plt, "close", drawn.append)
    # Drawing every pixel takes most of the time and is the matter of another test.
    monkeypatch.setattr(figures.Figure, "savefig", lambda _, path, **__: path.touch())
    yield drawn
    for figure in drawn:
        close(figure)


def _draw(results, index, folder: Path, groups=GROUPS) -> dict[str, Path]:
    paths = {name: folder / f"{name}.png" for name in FIGURE_NAMES}
    draw_figures(results, [index], paths, groups=groups)
    return paths


def test_figures_are_pictures_with_something_on_them(results, index, tmp_path):
    open_before = figures.plt.get_fignums()
    for path in _draw(results, index, tmp_path / "figures").values():
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert min(image.size) > 100
            assert len(np.unique(np.asarray(image.convert("L")))) > 10
    assert figures.plt.get_fignums() == open_before


def test_curves_follow_the_means_of_methods(results, index, tmp_path, open_figures):
    _draw(results, index, tmp_path / "figures")
    axes = open_figures[0].axes
    assert [axis.get_title() for axis in axes] == ["old", "new", "all", "hIoU"]
    for measure, axis in enumerate(axes[:3]):
        curves = {curve.get_label(): curve[0] for curve in axis.containers}
        assert curves.keys() == {"kproba", "finetune"}
        for method, line in curves.items():
            points = [
                (step, MEAN_IOUS[step_owner(method, step)][measure])
                for step in range(3)
            ]
            expected = [point for point in points if point[1] is not None]
            np.testing.assert_allclose(line.get_xydata(), expected)
        [level] = [line for line in axis.lines if line.get_label() == "joint"]
        assert set(level.get_ydata()) == {MEAN_IOUS["joint", 2][measure]}
    legend = [text.get_text() for text in open_figures[0].legends[0].get_texts()]
    assert legend == ["kproba", "finetune", "joint"]


def test_of_two_steps_every_method_keeps_its_point(
    results, index, tmp_path, open_figures
):
    """`new` has one point per method then; only joint, which has one step, is level."""
    last = replace(results[-1], step=1)  # joint
    two_steps = [result for result in results if result.step < 2]
    _draw([*two_steps, last], index, tmp_path / "figures")
    axes = open_figures[0].axes
    assert axes[0].get_ylabel() == "percent"
    for measure, axis in enumerate(axes[:3]):
        levels = [line for line in axis.lines if line.get_linestyle() == "--"]
        assert [line.get_label() for line in levels] == ["joint"]
        points = {curve.get_label(): curve[0] for curve in axis.containers}
        assert points.keys() == {"kproba", "finetune"}
        for method, line in points.items():
            assert line.get_ydata()[-1] == MEAN_IOUS[method, 1][measure]
    colours = {curve[0].get_color() for curve in axes[1].containers}
    assert len(colours) == 2


def test_of_one_step_no_method_is_level(results, index, tmp_path, open_figures):
    offline = [replace(results[-1], method=method) for method in ("kproba", "joint")]
    _draw(offline, index, tmp_path / "figures")
    for axis in open_figures[0].axes[:3]:
        names = [curve.get_label() for curve in axis.containers]
        assert names == ["kproba", "joint"]


def test_heat_maps_hold_every_iou(results, index, tmp_path, open_figures):
    _draw(results, index, tmp_path / "figures")
    axes = open_figures[2].axes
    assert [axis.get_title() for axis in axes] == ["kproba", "finetune", "joint"]
    names = [label.get_text() for label in axes[0].get_yticklabels()]
    assert names == list(CLASS_NAMES)
    for axis in axes:
        matrix = np.full((4, 3), np.nan)
        for method, step in STEPS:
            if method == axis.get_title():
                ious = CLASS_IOUS[step_owner(method, step)]
                matrix[: len(ious), step] = [
                    np.nan if iou is None else iou for iou in ious
                ]
        np.testing.assert_array_equal(axis.images[0].get_array(), matrix)
        assert len(axis.texts) == np.isfinite(matrix).sum()


def test_curves_and_heat_maps_average_seeds(results, index, tmp_path, open_figures):
    again = repeat_step(results[1], tmp_path / "other", "finetune", seed=1)
    _draw([*results, again], index, tmp_path / "figures")
    curves = {c.get_label(): c[0] for c in open_figures[0].axes[0].containers}
    assert curves["kproba"].get_ydata()[1] == pytest.approx((50 + 30) / 2)
    matrix = open_figures[2].axes[0].images[0].get_array()
    np.testing.assert_allclose(matrix[:3, 1], [65, 15, 30])


def test_examples_show_truth_and_predictions(results, index, tmp_path, open_figures):
    _draw(results, index, tmp_path / "figures")
    axes = np.reshape(open_figures[3].axes, (2, -1))
    titles = [axis.get_title() for axis in axes[0]]
    assert titles == [
        *("image", "truth", "step 0"),
        *("kproba\nstep 1", "kproba\nstep 2"),
        *("finetune\nstep 1", "finetune\nstep 2", "joint\nstep 2"),
    ]
    for number, line in enumerate(axes):
        pictures = [axis.images[0].get_array() for axis in line]
        assert len(np.unique(pictures[0])) > 16  # a photograph, here noise
        assert tuple(pictures[1][0, 0]) == (255, 255, 255)  # background
        for picture, title in zip(pictures[2:], titles[2:], strict=True):
            label = (number + int(title[-1])) % 3
            assert picture.shape == (6, 8, 3)
            assert (picture == COLOURS[label]).all()


def example_titles(results, index, folder: Path, open_figures: list) -> list[str]:
    """Titles of the columns of predictions."""
    _draw(results, index, folder / "figures")
    titles = [axis.get_title() for axis in open_figures[3].axes]
    return list(filter(None, titles))[2:]


def without_kproba(results, tmp_path: Path) -> list[StepResult]:
    """without_bfd, whose step 0 was tested with a bank for kproba, then finetune."""
    folder = tmp_path / "kproba" / "seed0" / "step0"
    write_step(folder, "base", 0)
    fused = replace(step_result(folder, "without_bfd", 0), bank="bank.safetensors")
    later = [replace(result, method="without_bfd") for result in results[1:3]]
    return [fused, *later, *results[3:6]]


def test_step_0_with_a_bank_is_named_by_its_method(
    results, index, tmp_path, open_figures
):
    listed = without_kproba(results, tmp_path)
    assert example_titles(listed, index, tmp_path, open_figures) == [
        *("without_bfd\nstep 0", "without_bfd\nstep 1", "without_bfd\nstep 2"),
        *("step 0", "finetune\nstep 1", "finetune\nstep 2"),
    ]


def test_step_0_with_a_shared_bank_is_shown_once(
    results, index, tmp_path, open_figures
):
    listed = without_kproba(results, tmp_path)
    other = replace(listed[0], method="without_gkd")
    titles = example_titles([*listed, other], index, tmp_path, open_figures)
    assert [title for title in titles if title.endswith("step 0")] == [
        *("without_bfd\nstep 0", "step 0")
    ]


def test_second_step_0_of_the_network_alone_is_named_by_its_method(
    results, index, tmp_path, open_figures
):
    """Two kinds of output, two trainings: only the first needs no name."""
    folder = tmp_path / "base_softmax"
    write_step(folder, "base", 0)
    other = [step_result(folder, method, 0) for method in ("mib", "plop")]
    titles = example_titles([*results[:4], *other], index, tmp_path, open_figures)
    assert titles == [*("step 0", "kproba\nstep 1", "kproba\nstep 2", "mib\nstep 0")]


def test_of_many_columns_first_and_last_step_stay(
    results, index, tmp_path, open_figures
):
    """Steps that end alike, such as 2 and 12, are not confused."""
    many = []
    for number in range(5):
        for result in results[1:3]:
            folder = tmp_path / f"m{number}" / str(result.step)
            write_step(folder, "kproba", result.step)
            step = {1: 2, 2: 12}[result.step]
            many.append(step_result(folder, f"m{number}", step))
    titles = example_titles([results[0], *many], index, tmp_path, open_figures)
    assert titles == ["step 0", *(f"m{number}\nstep 12" for number in range(5))]


def test_pictures_of_an_addition_are_shown_from_its_step_on(
    results, index, tmp_path, open_figures
):
    added = Path(results[2].examples)
    (added / "v2.png").rename(added / "w.png")
    table = pd.read_csv(index, dtype=str)
    table["id"] = table["id"].replace("v2", "w")
    table.to_csv(index, index=False)
    for folder in {result.examples for result in results} - {str(added)}:
        (Path(folder) / "v2.png").unlink()
    _draw(results, index, tmp_path / "figures")
    axes = np.reshape(open_figures[3].axes, (2, -1))
    drawn = [bool(axis.images) for axis in axes[1]]
    # image, truth, step 0, kproba's steps 1 and 2, ..
    assert drawn == [True, True, False, False, True, False, False, False]


def test_truth_of_examples_is_in_output_order(results, index, tmp_path, open_figures):
    _draw(results, index, tmp_path / "figures", groups=[[3], [1], [2]])
    truth = open_figures[3].axes[1].images[0].get_array()
    outputs = np.array([0, 2, 3, 1]).repeat(12).reshape(6, 8)
    expected = COLOURS[outputs]
    expected[-1, -1] = STRIPES[1]  # ignored
    np.testing.assert_array_equal(truth, expected)


def test_legend_explains_the_colours_of_every_picture(
    folder_dataset, tmp_path, open_figures
):
    """More classes than are listed: the colours of the others are made."""
    names = ("background", *(f"class{number}" for number in range(1, 41)))
    masks = {"v1": np.full((6, 8), 1, np.uint8), "v2": np.full((6, 8), 40, np.uint8)}
    data = folder_dataset({"train": masks, "val": {"v": masks["v1"]}}, names)
    files = tmp_path / "index.csv", tmp_path / "index.json"
    index_dataset(*files, kind="folder", folder=data, class_count=40)
    (tmp_path / "run" / "examples").mkdir(parents=True)
    for name, mask in masks.items():
        write_label_image(tmp_path / "run" / "examples" / f"{name}.png", mask)
    content = {"old": 1.0, "new": 1.0, "all": 1.0, "hiou": 1.0, "images": 2}
    content["protocol"] = {"policy": "ssul"}
    content["classes"] = [
        {"index": k, "name": name, "step": 0, "iou": 1.0, "pixels": 1}
        for k, name in enumerate(names)
    ]
    evaluation = tmp_path / "run" / "evaluation.json"
    write_json(evaluation, content)
    metrics = pd.DataFrame({"iteration": [1], "loss": [1.0]})
    metrics.to_csv(tmp_path / "run" / "metrics.csv", index=False)
    single = step_result(tmp_path / "run", "kproba", 0)
    _draw([single], tmp_path / "index.csv", tmp_path, groups=(tuple(range(1, 41)),))
    figure = open_figures[3]
    patches = figure.legends[0].get_patches()
    legend = [tuple(to_rgba_array(patch.get_facecolor())[0, :3]) for patch in patches]
    np.testing.assert_allclose(
        np.array(legend) * 255, drawing_colours(41)[:41], atol=1e-6
    )
    for line, label in zip(np.reshape(figure.axes, (2, 3)), (1, 40), strict=True):
        for axis in line[1:]:
            colour = axis.images[0].get_array()[0, 0] / 255
            np.testing.assert_allclose(colour, legend[label])


def test_losses_have_a_panel_per_step_and_a_line_per_training(
    results, index, tmp_path, open_figures
):
    _draw(results, index, tmp_path / "figures")
    axes = open_figures[1].axes
    assert [axis.get_title() for axis in axes] == ["step 0", "step 1", "step 2"]
    lines = [{line.get_label(): line for line in axis.lines} for axis in axes]
    assert lines[0].keys() == {"kproba"}  # one training for both
    assert lines[1].keys() == {"kproba", "finetune"}
    assert lines[2].keys() == {"kproba", "finetune", "joint"}
    for step, curves in enumerate(lines):
        for line in curves.values():
            expected = [(1, 1), (2, 2 / 4), (3, (step + 1) / 4)]
            np.testing.assert_allclose(line.get_xydata(), expected)


def test_many_methods_are_ranked_by_their_last_step(
    results, index, tmp_path, open_figures
):
    many = [replace(r, method=f"m{k}") for k in range(11) for r in results[:3]]
    _draw(many, index, tmp_path / "figures")
    [axis] = open_figures[0].axes
    assert [label.get_text() for label in axis.get_yticklabels()] == [
        f"m{k}" for k in range(11)
    ]
    [points] = axis.containers
    expected = [(MEAN_IOUS["kproba", 2][2], place) for place in range(11)]
    np.testing.assert_allclose(points[0].get_xydata(), expected)


@pytest.mark.parametrize(
    "name", ["$5_{$", "US$ and CA$ coins", r"$\alpha$", "{x}", "100 %", "日本", "Möwe"]
)
def test_names_are_drawn_as_they_are_written(
    results, index, tmp_path, open_figures, name
):
    for result in results:
        content = json.loads(Path(result.evaluation).read_text())
        content["classes"][1]["name"] = name
        write_json(result.evaluation, content)
    _draw(results, index, tmp_path / "figures")
    shown = name if find_font(name) else "class 1"
    texts = [
        text
        for figure in open_figures
        for text in figure.findobj(matplotlib.text.Text)
        if text.get_text()
    ]
    assert not any(text.get_parse_math() for text in texts)
    for wanted in (shown, f"{shown} (step 0)"):
        assert wanted in {text.get_text() for text in texts}
    for figure in open_figures:
        figure.canvas.draw()


def test_logarithmic_axes_have_plain_numbers(results, index, tmp_path, open_figures):
    _draw(results, index, tmp_path / "figures")
    training = open_figures[1]
    training.canvas.draw()
    labels = [
        label.get_text()
        for axis in training.axes
        for label in axis.get_yticklabels(which="both")
        if label.get_text()
    ]
    assert labels and all(float(label) > 0 for label in labels)
