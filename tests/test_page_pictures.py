"""Pictures of the report: what is embedded."""

import base64
import io
import re
from typing import Any

import numpy as np
import pytest
from picture_page import (
    CLASSES,
    COLOURS,
    ERRORS,
    GROUPS,
    NAMES,
    SIDE,
    TEMPLATES,
    environment,
    prediction,
    render,
    truth,
    write_results,
)
from PIL import Image

from kproba.data.colours import STRIPES, drawing_colours, seen_colours, stripes
from kproba.plan.results import StepResult
from kproba.results.experiment import Experiment
from kproba.results.page_pictures import (
    count_errors,
    draw_examples,
    draw_labels,
    encode_mask,
    list_colours,
)


@pytest.fixture(scope="module")
def shown(tmp_path_factory) -> tuple[Experiment, list[StepResult]]:
    return write_results(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def page(shown) -> str:
    return render(*shown)


def decode(source: str) -> np.ndarray:
    kind, content = source.split(";base64,")
    assert kind in ("data:image/png", "data:image/jpeg")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB"))


def test_a_mask_is_embedded_in_the_colours_of_its_classes():
    labels = np.arange(4, dtype=np.uint8).repeat(16).reshape(8, 8)
    labels[:, 6], labels[:, 7] = 254, 255
    image = np.asarray(Image.open(io.BytesIO(encode_mask(labels, 4))).convert("RGB"))
    np.testing.assert_array_equal(image[:, :6], COLOURS[labels[:, :6]])
    expected = np.where(stripes(8, 8)[..., None], STRIPES[1], STRIPES[0])
    np.testing.assert_array_equal(image[:, 6:], expected[:, 6:])


def test_a_mask_of_a_photo_is_small():
    labels = np.zeros((375, 500), np.uint8)
    labels[100:200, 100:300], labels[200:300, 50:150] = 15, 20
    content = encode_mask(labels, 21)
    assert len(content) < 300
    assert Image.open(io.BytesIO(content)).size == (256, 192)


@pytest.mark.parametrize("classes", [4, 21, 151, 254])
def test_many_classes_in_one_mask_keep_their_colours(classes):
    labels = np.arange(classes, dtype=np.uint8)[None]
    image = np.asarray(
        Image.open(io.BytesIO(encode_mask(labels, classes))).convert("RGB")
    )
    np.testing.assert_array_equal(image[0], drawing_colours(classes)[:classes])


def test_errors_are_counted_where_the_truth_counts():
    """Of 4 x 15 x 59 pixels, 4 of 60 columns; by hand for step 1."""
    shares = count_errors(truth(), prediction(1), CLASSES, 1)
    counted = 3 * 15 * 59  # cow comes later, a column is ignored
    assert shares["missed"] == pytest.approx(15 * 6 / counted)
    assert shares["confused"] == pytest.approx(15 * 6 / counted)
    assert shares["invented"] == pytest.approx(15 * 6 / counted)
    assert sum(shares.values()) == pytest.approx(1)
    nothing = count_errors(np.full((2, 2), 255, np.uint8), truth()[:2, :2], CLASSES, 2)
    assert all(np.isnan(share) for share in nothing.values())


def test_pixels_that_labels_leave_open_do_not_count():
    labels = prediction(2)
    labels[:30] = 254
    assert count_errors(truth(), labels, CLASSES, 2)["right"] == 1


def test_examples_hold_image_truth_and_every_step(shown):
    first, second = draw_examples(*shown)
    assert (first["name"], second["name"]) == ("v1", "v2")
    assert first["columns"] == ["step 0", "step 1", "step 2"]
    filled = {m: [p is not None for p in line] for m, line in first["lines"].items()}
    assert filled == {
        "kproba": [True, True, True],
        "finetune": [True, True, False],
        "joint": [False, False, True],
    }
    picture = first["lines"]["kproba"][1]
    np.testing.assert_array_equal(decode(picture.source), COLOURS[prediction(1)])
    assert picture.alt == "kproba, step 1: dog 27 %, cat 22 %"
    assert picture.errors == "right 90 %, missed 3 %, invented 3 %, confused 3 %"
    assert decode(first["image"].source).shape == (SIDE, SIDE, 3)
    assert first["truth"].caption == "cat 25 %, dog 25 %, cow 25 %"


def test_targets_are_shown_with_the_truth_of_their_step(shown):
    [(one, [image]), (two, _)] = draw_labels(*shown)
    assert (one, two) == (1, 2)
    assert list(image["lines"]) == ["kproba"]
    [target] = image["lines"]["kproba"]
    assert target.alt == "targets of kproba: dog 15 %, cat 10 %, unsure 50 %"
    hidden = decode(image["truth"].source)
    assert set(map(tuple, hidden[45:].reshape(-1, 3).tolist())) == set(STRIPES)


def test_legend_has_the_step_of_each_class():
    entries = list_colours(NAMES, GROUPS)
    assert [step for _, _, step in entries] == [0, 0, 1, 2]
    assert entries[0] == ("rgb(255,255,255)", "background", 0)
    assert [step for _, _, step in list_colours(NAMES)] == [None] * 4
    module: Any = environment().get_template("pictures.html.jinja").module
    html = str(module.legend(entries))
    assert re.findall(r'class="px-step">(.*?)<', html) == ["step 0", "step 1", "step 2"]
    assert "<details" not in html
    many = [f"class {number}" for number in range(41)]
    assert "<summary>Colours of the 41 classes" in module.legend(list_colours(many))


def test_colours_of_errors_can_be_told_apart():
    css = (TEMPLATES / "pictures.css").read_text()
    found = [re.search(rf"--px-{kind}: #(\w{{6}})", css)[1] for kind in ERRORS]
    colours = np.array([[int(c[k : k + 2], 16) for k in (0, 2, 4)] for c in found])
    seen = seen_colours(colours)
    one, other = np.triu_indices(4, k=1)
    assert np.linalg.norm(seen[one] - seen[other], axis=-1).min() > 30


def test_every_picture_has_a_text_and_nothing_is_requested(page):
    images = re.findall(r"<img [^>]*>", page)
    assert len(images) == 2 * (1 + 1 + 6) + 2 * 3
    assert all(re.search(r'alt="[^"]+"', image) for image in images)
    assert set(re.findall(r'src="(.*?)[:"]', page)) == {"data"}
    assert not re.search(r"https?://", page)


def test_pictures_of_voc_with_six_methods_stay_small():
    """Eight images of 500 x 375 with regions as a network draws them."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:375, :500]
    total = 0
    for _ in range(8):
        labels = np.zeros((375, 500), np.uint8)
        for index in random.integers(1, 21, 4):  # wavy blobs
            y, x = random.integers(0, 375), random.integers(0, 500)
            angle = np.arctan2(rows - y, columns - x)
            radius = 60 + 8 * np.sin(9 * angle) + 5 * np.sin(23 * angle)
            labels[np.hypot(rows - y, columns - x) < radius] = index
        total += len(encode_mask(labels, 21))
    # 288 pictures, as base64, with 400 bytes of HTML each, below 0.8 MB.
    assert 288 * (total / 8 * 4 / 3 + 400) < 8e5
