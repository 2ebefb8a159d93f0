"""Colours of classes."""

import itertools

import numpy as np
import pytest

from kproba.data.drawing import CLASS_COLOURS, class_colours
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
