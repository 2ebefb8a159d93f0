"""Figures of an experiment."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from experiment import GROUPS, HOME, IOUS, MEANS, NAMES, STEPS, files_of, write_step
from matplotlib.colors import to_rgba_array
from PIL import Image

from kproba.data.drawing import CLASS_COLOURS
from kproba.data.index import index_dataset
from kproba.data.label_images import label_palette, write_label_image
from kproba.results import figures
from kproba.results.figures import draw_figures
from kproba.runtime.files import write_json

COLOURS = np.array(CLASS_COLOURS)


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


def _draw(rows, index, folder: Path, groups=GROUPS) -> dict[str, Path]:
    names = ("miou", "training", "classes", "pseudo_labels", "examples")
    paths = {name: folder / f"{name}.png" for name in names}
    draw_figures(rows, [index], groups=groups, **paths)
    return paths


def test_figures_are_pictures_with_something_on_them(rows, index, tmp_path):
    open_before = figures.plt.get_fignums()
    for path in _draw(rows, index, tmp_path / "figures").values():
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert min(image.size) > 100
            assert len(np.unique(np.asarray(image.convert("L")))) > 10
    assert figures.plt.get_fignums() == open_before


def test_curves_follow_the_means_of_every_method(rows, index, tmp_path, open_figures):
    _draw(rows, index, tmp_path / "figures")
    axes = open_figures[0].axes
    assert [axis.get_title() for axis in axes] == ["old", "new", "all", "hIoU"]
    for measure, axis in enumerate(axes[:3]):
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
    legend = [text.get_text() for text in open_figures[0].legends[0].get_texts()]
    assert legend == ["kproba", "finetune", "joint"]


def test_heat_maps_hold_every_iou(rows, index, tmp_path, open_figures):
    _draw(rows, index, tmp_path / "figures")
    axes = open_figures[2].axes
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
    write_step(other, "finetune", 1)
    again = {**rows[1], "seed": 1, **files_of(other)}
    _draw([*rows, again], index, tmp_path / "figures")
    curves = {c.get_label(): c[0] for c in open_figures[0].axes[0].containers}
    assert curves["kproba"].get_ydata()[1] == pytest.approx((50 + 30) / 2)
    matrix = open_figures[2].axes[0].images[0].get_array()
    np.testing.assert_allclose(matrix[:3, 1], [65, 15, 30])


def test_examples_show_image_truth_and_predictions(rows, index, tmp_path, open_figures):
    _draw(rows, index, tmp_path / "figures")
    axes = np.reshape(open_figures[3].axes, (2, -1))
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


def test_pictures_of_an_addition_are_shown_from_its_step_on(
    rows, index, tmp_path, open_figures
):
    added = Path(rows[2]["examples"])
    (added / "v2.png").rename(added / "w.png")
    table = pd.read_csv(index, dtype=str)
    table["id"] = table["id"].replace("v2", "w")
    table.to_csv(index, index=False)
    for folder in {row["examples"] for row in rows} - {str(added)}:
        (Path(folder) / "v2.png").unlink()
    _draw(rows, index, tmp_path / "figures")
    axes = np.reshape(open_figures[3].axes, (2, -1))
    shown = [bool(axis.images) for axis in axes[1]]
    # image, truth, step 0, kproba's steps 1 and 2, ..
    assert shown == [True, True, False, False, True, False, False, False]


def test_truth_of_the_examples_is_in_output_order(rows, index, tmp_path, open_figures):
    _draw(rows, index, tmp_path / "figures", groups=[[3], [1], [2]])
    truth = open_figures[3].axes[1].images[0].get_array()
    outputs = np.array([0, 2, 3, 1]).repeat(12).reshape(6, 8)
    expected = COLOURS[outputs]
    expected[-1, -1] = 128  # ignored
    np.testing.assert_array_equal(truth, expected)


def test_legend_explains_the_colours_of_every_picture(
    folder_dataset, tmp_path, open_figures
):
    """More classes than clear colours: all pictures change to VOC's map together."""
    names = ("background", *(f"class{number}" for number in range(1, 41)))
    masks = {"v1": np.full((6, 8), 1, np.uint8), "v2": np.full((6, 8), 40, np.uint8)}
    data = folder_dataset({"train": masks, "val": {"v": masks["v1"]}}, names)
    files = tmp_path / "index.csv", tmp_path / "index.json"
    index_dataset(*files, kind="folder", folder=data, class_count=40)
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
    metrics = pd.DataFrame({"iteration": [1], "loss": [1.0]})
    metrics.to_csv(tmp_path / "run" / "metrics.csv", index=False)
    row = {"method": "kproba", "seed": 0, "step": 0, **files_of(tmp_path / "run")}
    _draw([row], tmp_path / "index.csv", tmp_path, groups=(tuple(range(1, 41)),))
    figure = open_figures[3]
    patches = figure.legends[0].get_patches()
    legend = [tuple(to_rgba_array(patch.get_facecolor())[0, :3]) for patch in patches]
    np.testing.assert_allclose(
        np.ravel(legend) * 255, label_palette()[: 3 * len(names)], atol=1e-6
    )
    for line, label in zip(np.reshape(figure.axes, (2, 3)), (1, 40), strict=True):
        for axis in line[1:]:
            shown = axis.images[0].get_array()[0, 0] / 255
            np.testing.assert_allclose(shown, legend[label])


def test_losses_have_a_panel_per_step_and_a_line_per_training(
    rows, index, tmp_path, open_figures
):
    _draw(rows, index, tmp_path / "figures")
    axes = open_figures[1].axes
    assert [axis.get_title() for axis in axes] == ["step 0", "step 1", "step 2"]
    lines = [{line.get_label(): line for line in axis.lines} for axis in axes]
    assert lines[0].keys() == {"kproba"}  # one training for both
    assert lines[1].keys() == {"kproba", "finetune"}
    assert lines[2].keys() == {"kproba", "finetune", "joint"}
    for step, of_step in enumerate(lines):
        for line in of_step.values():
            expected = [(1, 4), (2, 2), (3, step + 1)]
            np.testing.assert_allclose(line.get_xydata(), expected)


def test_many_methods_are_ranked_by_their_last_step(
    rows, index, tmp_path, open_figures
):
    many = [{**row, "method": f"m{k}"} for k in range(11) for row in rows[:3]]
    _draw(many, index, tmp_path / "figures")
    [axis] = open_figures[0].axes
    assert [label.get_text() for label in axis.get_yticklabels()] == [
        f"m{k}" for k in range(11)
    ]
    [points] = axis.containers
    expected = [(MEANS["kproba", 2][2], place) for place in range(11)]
    np.testing.assert_allclose(points[0].get_xydata(), expected)
