"""Colours of classes, and legends in any script."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from kproba.data import drawing, fonts
from kproba.data.drawing import CLASS_COLOURS, class_colours, overlay
from kproba.data.fonts import drawn_name, find_font
from kproba.data.label_images import label_palette


@pytest.mark.parametrize("classes", [2, 11, 12, 21, 32])
def test_a_further_class_changes_no_colour(classes):
    colours = class_colours(classes)
    np.testing.assert_array_equal(colours[:classes], CLASS_COLOURS[:classes])
    assert (colours[255] == 128).all()


def test_very_many_classes_have_the_colours_of_voc():
    colours = class_colours(len(CLASS_COLOURS) + 1)
    expected = np.reshape(label_palette(), (256, 3))
    np.testing.assert_array_equal(colours[:255], expected[:255])


# Machado et al. 2009, a reader without red or without green cones, in linear RGB.
WITHOUT = {
    "red": [
        [0.1523, 1.0526, -0.2049],
        [0.1145, 0.7863, 0.0992],
        [-0.0039, -0.0481, 1.052],
    ],
    "green": [
        [0.3673, 0.8606, -0.2280],
        [0.2801, 0.6725, 0.0474],
        [-0.0118, 0.0429, 0.9689],
    ],
}


def lab(linear: np.ndarray) -> np.ndarray:
    """CIELAB of linear sRGB."""
    to_xyz = [
        [0.4124, 0.3576, 0.1805],
        [0.2126, 0.7152, 0.0722],
        [0.0193, 0.1192, 0.9505],
    ]
    xyz = linear @ np.transpose(to_xyz) / [0.9505, 1.0, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz.clip(0)), 7.787 * xyz + 16 / 116)
    x, y, z = np.moveaxis(f, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


@pytest.mark.parametrize("without", ["", *WITHOUT])
def test_colours_of_voc_many_classes_stay_apart(without):
    """A difference of 2.3 is just noticeable; VOC's map has 1.0 among its 21."""
    srgb = np.array(CLASS_COLOURS[:21]) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    if without:
        linear = (linear @ np.transpose(WITHOUT[without])).clip(0, 1)
    seen = lab(linear)
    apart = [np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)]
    assert min(apart) > 4


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
    assert caplog.text.count("No font of this system") == 1
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


def test_an_overlay_is_the_same_whatever_is_painted_at_once(monkeypatch):
    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(0, 256, (50, 70, 3), dtype=np.uint8))
    labels = random.integers(0, 3, (50, 70)).astype(np.uint8)
    whole = np.asarray(overlay(image, labels, ["a", "b", "c"]))
    monkeypatch.setattr(drawing, "BAND", 7 * 70)
    assert np.array_equal(whole, np.asarray(overlay(image, labels, ["a", "b", "c"])))


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
