"""Colours of classes, and legends in any script."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from kproba.bank.description import SeenClass
from kproba.data import drawing, fonts
from kproba.data.colours import (
    CLASS_COLOURS,
    DRAWING_COLOURS,
    STRIPES,
    WHITE,
    class_colours,
    continue_colours,
    contrast,
    drawing_colours,
    seen_colours,
    stripes,
)
from kproba.data.drawing import overlay, paint_labels
from kproba.data.fonts import drawn_name, find_font
from kproba.data.label_images import label_palette
from kproba.predict.segmentation import Segmentation
from kproba.predict.writers import make_writers


@pytest.mark.parametrize("classes", [2, 11, 12, 21, 32])
def test_a_further_class_changes_no_colour_of_a_mask(classes):
    colours = class_colours(classes)
    np.testing.assert_array_equal(colours[:classes], CLASS_COLOURS[:classes])
    assert (colours[255] == 128).all()


def test_masks_of_very_many_classes_have_the_colours_of_voc():
    colours = class_colours(len(CLASS_COLOURS) + 1)
    expected = np.reshape(label_palette(), (256, 3))
    np.testing.assert_array_equal(colours[:255], expected[:255])


@pytest.mark.parametrize("classes", [2, 11, 21, 32, 33, 151])
def test_a_further_class_changes_no_colour_of_a_drawing(classes):
    colours, most = drawing_colours(classes), drawing_colours(254)
    np.testing.assert_array_equal(colours[:classes], most[:classes])
    assert len(np.unique(most[:254], axis=0)) == 254
    assert (colours[classes:] == STRIPES[0]).all()


def test_colours_of_drawings_are_what_the_rule_gives():
    given = [tuple(colour) for colour in DRAWING_COLOURS]
    assert list(continue_colours(27, first=5)) == given[5:]


@pytest.mark.parametrize("classes", [11, 21, 32, 151, 254])
def test_every_class_of_a_drawing_has_a_contrast_of_three(classes):
    colours = drawing_colours(classes)
    assert tuple(colours[0]) == WHITE
    assert contrast(colours[1:classes], np.array(WHITE)).min() >= 3


def test_contrast_is_that_of_wcag():
    """Values of the guideline: black on white, and #777 on white, which is 4.48."""
    assert contrast(np.zeros(3), np.array(WHITE)) == pytest.approx(21)
    assert contrast(np.full(3, 0x77), np.array(WHITE)) == pytest.approx(4.48, abs=0.01)


# Smallest distance in CIELAB for any kind of vision; 2.3 is just noticeable.
@pytest.mark.parametrize(("classes", "least"), [(11, 16), (21, 13), (32, 9), (151, 4)])
def test_colours_of_drawings_are_far_apart(classes, least):
    seen = seen_colours(drawing_colours(classes)[:classes])
    one, other = np.triu_indices(classes, k=1)
    assert np.linalg.norm(seen[one] - seen[other], axis=-1).min() > least


@pytest.mark.parametrize("view", range(3))
def test_colours_of_masks_stay_apart(view):
    """VOC's own colour map has a distance of 1.0 among its 21."""
    seen = seen_colours(np.array(CLASS_COLOURS[:21]))[:, view]
    one, other = np.triu_indices(21, k=1)
    assert np.linalg.norm(seen[one] - seen[other], axis=-1).min() > 4


def test_lab_of_known_colours():
    """Values of CIELAB for white, and for the red of sRGB, with D65."""
    white, red = seen_colours(np.array([WHITE, (255, 0, 0)]))[:, 0]
    np.testing.assert_allclose(white, [100, 0, 0], atol=0.1)
    np.testing.assert_allclose(red, [53.2, 80.1, 67.2], atol=0.1)


def test_stripes_are_neither_background_nor_a_class():
    greys = seen_colours(np.array(STRIPES))
    others = seen_colours(drawing_colours(151)[:151])
    apart = np.linalg.norm(greys[:, None] - others[None], axis=-1)
    assert apart.min() > 6
    drawn = stripes(4, 8)
    assert drawn.mean() == 0.5
    np.testing.assert_array_equal(drawn[1:], stripes(3, 8, top=1))


# --- masks ---------------------------------------------------------------------------


def test_regions_of_a_mask_have_white_between_them():
    """At 320 pixels a line is 2 pixels wide, taken from the lower index."""
    labels = np.zeros((9, 320), np.uint8)
    labels[:, 100:200], labels[:, 200:300] = 1, 2
    row = paint_labels(labels, 3)[4]
    colours = drawing_colours(3)
    expected = colours[labels[4]]
    expected[198:200] = WHITE
    np.testing.assert_array_equal(row, expected)


def test_pixels_without_a_class_are_striped():
    labels = np.full((8, 8), 255, np.uint8)
    labels[:, :4] = 254
    painted = paint_labels(labels, 3)
    drawn = stripes(8, 8)
    assert (painted[drawn] == STRIPES[1]).all()
    assert (painted[~drawn] == STRIPES[0]).all()


# --- overlays ------------------------------------------------------------------------


def test_a_contour_is_pure_and_between_white_lines():
    """At 500 pixels: a contour of 2, and white lines of 1."""
    labels = np.zeros((500, 500), np.uint8)
    labels[200:300, 200:300] = 1
    photo = Image.new("RGB", (500, 500), (10, 20, 30))
    drawn = np.asarray(overlay(photo, labels, ["background", "cat"]))[250, 195:210]
    colour = drawing_colours(2)[1]
    fill = np.round([10, 20, 30] + 0.35 * (colour - np.array([10.0, 20, 30])))
    expected = [(10, 20, 30)] * 4 + [WHITE] + [tuple(colour)] * 2 + [WHITE]
    np.testing.assert_array_equal(drawn[:8], expected)
    np.testing.assert_array_equal(drawn[8:], np.tile(fill, (7, 1)))


def test_where_regions_meet_both_contours_are_pure():
    labels = np.ones((500, 500), np.uint8)
    labels[:, 250:] = 2
    photo = Image.new("RGB", (500, 500), "grey")
    row = np.asarray(overlay(photo, labels, ["background", "cat", "dog"]))[250]
    one, two = (tuple(colour) for colour in drawing_colours(3)[1:3])
    line = [tuple(pixel) for pixel in row[246:253].tolist()]
    assert line == [WHITE, one, one, WHITE, two, two, WHITE]


def test_a_region_of_one_pixel_is_visible():
    labels = np.zeros((60, 60), np.uint8)
    labels[30, 30] = 1
    photo = Image.new("RGB", (60, 60), "grey")
    drawn = np.asarray(overlay(photo, labels, ["background", "cat"]))
    assert tuple(drawn[30, 30]) == tuple(drawing_colours(2)[1])
    assert (drawn[29, 29:32] == 255).all()


def test_overlays_have_contours_in_the_colours_of_the_classes():
    """Masks keep their own palette, in which a class has another colour."""
    classes = [SeenClass(0, "background", 0), SeenClass(7, "cat", 1)]
    indices = np.zeros((375, 500), np.uint8)
    indices[100:200, 100:200] = 1
    result = Segmentation(tuple(classes), indices, np.ones((375, 500)), None, "whole")
    writers = make_writers(
        classes, overlays=True, confidence=False, probabilities=False
    )
    photo = Image.new("RGB", (500, 375), "green")
    drawn = Image.open(io.BytesIO(writers["overlays"](photo, result)))
    pixels = np.asarray(drawn).astype(int)
    colour = drawing_colours(2)[1].astype(int)
    assert np.abs(pixels[150, 100:102] - colour).max() < 30
    assert pixels[150, 99].min() > 200 and pixels[150, 102].min() > 200  # white lines
    assert np.abs(pixels[150, 150] - (0.35 * colour + 0.65 * pixels[50, 50])).max() < 9
    assert drawn.height > 375  # the legend
    mask = Image.open(io.BytesIO(writers["masks"](photo, result)))
    assert mask.getpixel((150, 150)) == 7
    palette = np.reshape(mask.getpalette(), (-1, 3))
    assert tuple(palette[7]) == tuple(class_colours(2)[1])


# --- names in legends ----------------------------------------------------------------


def legend(*names: str) -> np.ndarray:
    """Grey values of the legend of an overlay that shows all classes."""
    labels = np.tile(np.arange(1 + len(names), dtype=np.uint8), (40, 60))
    sheet = overlay(
        Image.new("RGB", labels.shape[::-1]), labels, ["background", *names]
    )
    return np.asarray(sheet.convert("L"))[40:]


@pytest.mark.parametrize(
    "name",
    ["cat", "Möwe", "Mo\u0308we", "żółw", "кошка", "γάτα", "קטה", "$5_{$", "a\nb"],
)
def test_letters_that_dejavu_has_are_drawn(name, caplog):
    assert find_font(name).name == "DejaVuSans.ttf"
    assert drawn_name(name, "another") != "another"
    assert not np.array_equal(legend(name), legend(" " * len(name)))
    assert caplog.text == ""


def test_equal_names_in_other_forms_look_equal():
    assert np.array_equal(legend("Mo\u0308we"), legend("Möwe"))
    assert np.array_equal(legend("a\tb"), legend("a b"))


def test_a_name_in_a_script_without_a_font_is_replaced(monkeypatch, caplog):
    monkeypatch.setattr(fonts, "_system_fonts", lambda: ())
    fonts._find_font.cache_clear()
    fonts._say_replaced.cache_clear()
    name = "\U00012000\U00012001"  # cuneiform
    for _ in range(2):
        assert drawn_name(name, "label 7") == "label 7"
        assert drawn_name("cat", "label 8") == "cat"
    assert caplog.text.count("No font on this system") == 1
    assert np.array_equal(legend(name), legend("class 1"))
    fonts._find_font.cache_clear()


def test_a_font_of_the_system_is_used_where_it_has_the_letters(monkeypatch, tmp_path):
    """The font here is DejaVu Sans under another name; the other file is damaged."""
    found = find_font("cat")
    (tmp_path / "fonts").mkdir()
    other = tmp_path / "fonts" / "other-Regular.ttf"
    other.write_bytes(found.read_bytes())
    (tmp_path / "fonts" / "a-regular.ttf").write_bytes(b"no font")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setattr(fonts, "_font_of_matplotlib", lambda: None)
    for cached in (fonts._system_fonts, fonts._find_font):
        cached.cache_clear()
    try:
        assert find_font("кошка") is not None
        assert other in fonts._system_fonts()
        assert fonts._letters(other) >= {ord("к")}
        assert fonts._letters(other.with_name("a-regular.ttf")) == frozenset()
    finally:
        for cached in (fonts._system_fonts, fonts._find_font):
            cached.cache_clear()


@pytest.mark.parametrize("rows", [1, 7, 50])
def test_an_overlay_is_the_same_whatever_is_painted_at_once(monkeypatch, rows):
    """Contours are 3 pixels wide here, so a band depends on the rows around it."""
    random = np.random.default_rng(0)
    photo = Image.fromarray(random.integers(0, 256, (100, 700, 3), dtype=np.uint8))
    labels = random.integers(0, 4, (10, 70)).astype(np.uint8)
    labels[labels == 3] = 255
    labels = labels.repeat(10, 0).repeat(10, 1)
    whole = np.asarray(overlay(photo, labels, ["a", "b", "c"]))
    monkeypatch.setattr(drawing, "BAND", rows * 700)
    assert np.array_equal(whole, np.asarray(overlay(photo, labels, ["a", "b", "c"])))


def test_legends_do_not_import_matplotlib():
    script = (
        "import sys, numpy as np; from PIL import Image\n"
        "from kproba.data.drawing import overlay\n"
        "overlay(Image.new('RGB', (9, 9)), np.ones((9, 9), np.uint8), ['a', 'ö'])\n"
        "print('matplotlib' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
