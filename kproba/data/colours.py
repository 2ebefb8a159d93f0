"""Colours of classes: in mask files, and in pictures that are drawn for people.

The palette of mask files follows VOC's habits and never changes. Drawings have colours
of their own: each class has a contrast of at least 3:1 against white, and every drawing
puts white around a region, so that no class can be overlooked.
"""

import itertools
from functools import cache

import numpy as np

from kproba.data.label_images import label_palette
from kproba.data.labels import IGNORE, UNSURE

# Colours of mask files. The first ones are those of Okabe and Ito. Each later one is as
# far as possible, in CIELAB, from all colours before it and from grey, for normal,
# protanopic and deuteranopic vision (Machado et al. 2009).
CLASS_COLOURS = [
    (0, 0, 0),
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
    (255, 255, 255),
    (148, 103, 189),
    (140, 86, 75),
    (0, 0, 255),
    (0, 0, 136),
    (0, 255, 153),
    (170, 85, 255),
    (51, 0, 68),
    (0, 51, 0),
    (119, 17, 68),
    (187, 170, 85),
    (170, 255, 119),
    (136, 68, 0),
    (17, 68, 170),
    (136, 0, 119),
    (85, 0, 204),
    (0, 238, 255),
    (136, 153, 255),
    (153, 119, 68),
    (136, 204, 153),
    (136, 0, 34),
    (255, 255, 0),
    (204, 238, 204),
    (119, 85, 119),
]

WHITE = (255, 255, 255)  # the background in a drawing
LIGHTEST = 0.30  # luminance of a class in a drawing: a contrast of 3:1 against white
DARKEST = 0.02  # darker colours are hard to tell apart
LEAST_CHROMA = 30  # in CIELAB: greys are for pixels without a class
WEIGHT_OF_NORMAL = 0.6  # of a distance in normal vision, against the other two

# Pixels without a class (ignored in the truth, left open by a rule) are striped.
STRIPES = ((232, 232, 232), (184, 184, 184))
STRIPE = 2  # pixels, measured along a row

# Colours of drawings. White and four colours of Okabe and Ito come first; the others
# were chosen by `continue_colours`, which also continues the list for more classes.
DRAWING_COLOURS = [
    (255, 255, 255),
    (0, 114, 178),
    (213, 94, 0),
    (0, 158, 115),
    (204, 121, 167),
    (0, 0, 255),
    (0, 17, 136),
    (85, 17, 0),
    (68, 17, 68),
    (170, 85, 255),
    (204, 34, 51),
    (153, 0, 68),
    (153, 17, 136),
    (136, 136, 238),
    (0, 0, 187),
    (238, 0, 204),
    (51, 102, 34),
    (136, 153, 85),
    (0, 68, 221),
    (136, 51, 102),
    (85, 0, 34),
    (85, 0, 102),
    (136, 34, 0),
    (34, 170, 34),
    (119, 34, 170),
    (170, 85, 85),
    (255, 34, 119),
    (153, 17, 255),
    (136, 102, 153),
    (170, 34, 204),
    (68, 17, 170),
    (119, 17, 34),
]

# Linear sRGB to XYZ, and what readers without red or without green cones see of linear
# sRGB (Machado et al. 2009, severity 1).
TO_XYZ = [
    [0.4124, 0.3576, 0.1805],
    [0.2126, 0.7152, 0.0722],
    [0.0193, 0.1192, 0.9505],
]
WITHOUT_RED = [
    [0.1523, 1.0526, -0.2049],
    [0.1145, 0.7863, 0.0992],
    [-0.0039, -0.0481, 1.0520],
]
WITHOUT_GREEN = [
    [0.3673, 0.8606, -0.2280],
    [0.2801, 0.6725, 0.0474],
    [-0.0118, 0.0429, 0.9689],
]


def class_colours(classes: int) -> np.ndarray:
    """Colours of output indices in mask files, (256, 3) uint8.

    Up to 32 classes get colours that can be told apart, also by colour-blind readers,
    and that stay the same when classes are added. More than 32 get VOC's colour map.
    Index 255 is grey.

    Args:
        classes: Number of classes, background included.
    """
    palette = np.array(label_palette(), np.uint8).reshape(256, 3)
    if classes <= len(CLASS_COLOURS):
        palette[: len(CLASS_COLOURS)] = CLASS_COLOURS
    palette[IGNORE] = 128
    return palette


def drawing_colours(classes: int) -> np.ndarray:
    """Colours of output indices in drawings, (256, 3) uint8.

    The background is white. Colours stay the same when classes are added, whatever
    their number. Indices 254 and 255, which are no classes, are light grey: `stripes`
    says where a drawing has the second grey.

    Args:
        classes: Number of classes, background included.
    """
    palette = np.full((256, 3), STRIPES[0], np.uint8)
    count = min(classes, UNSURE)
    colours = DRAWING_COLOURS
    if count > len(colours):
        colours = [*colours, *continue_colours(UNSURE - len(colours))]
    palette[:count] = colours[:count]
    return palette


def stripes(height: int, width: int, top: int = 0) -> np.ndarray:
    """Where diagonal stripes are, (H, W) bool.

    Args:
        height: Rows.
        width: Columns.
        top: The first row, of a picture that is drawn in bands.
    """
    rows = np.arange(top, top + height)[:, None]
    found: np.ndarray = (rows + np.arange(width)) % (2 * STRIPE) < STRIPE
    return found


def luminance(colours: np.ndarray) -> np.ndarray:
    """Relative luminance (WCAG 2.2), from 0 to 1.

    Args:
        colours: sRGB (..., 3) from 0 to 255.

    Returns:
        (...) float64.
    """
    found: np.ndarray = _linear(colours) @ np.array(TO_XYZ[1])
    return found


def contrast(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Contrast ratio of colours (WCAG 2.2), from 1 to 21.

    Args:
        one: sRGB (..., 3) from 0 to 255.
        other: The same.
    """
    pair = np.stack(np.broadcast_arrays(luminance(one), luminance(other)))
    found: np.ndarray = (pair.max(0) + 0.05) / (pair.min(0) + 0.05)
    return found


def seen_colours(colours: np.ndarray) -> np.ndarray:
    """CIELAB of colours as readers see them.

    Args:
        colours: sRGB (..., 3) from 0 to 255.

    Returns:
        (..., 3, 3): normal vision, without red cones, without green cones.
    """
    views = np.stack([np.eye(3), WITHOUT_RED, WITHOUT_GREEN])
    linear = np.einsum("vij,...j->...vi", views, _linear(colours)).clip(0, 1)
    xyz = linear @ np.transpose(TO_XYZ) / [0.9505, 1.0, 1.089]  # white is D65
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    x, y, z = np.moveaxis(f, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def _linear(colours: np.ndarray) -> np.ndarray:
    srgb = np.asarray(colours, np.float64) / 255
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def _distances(colours: np.ndarray, one: np.ndarray) -> np.ndarray:
    """The smallest distance over all kinds of vision, of colours (N, 3, 3) from one."""
    weights = [WEIGHT_OF_NORMAL, 1, 1]
    found: np.ndarray = (np.linalg.norm(colours - one, axis=-1) * weights).min(-1)
    return found


@cache
def continue_colours(
    count: int, first: int = len(DRAWING_COLOURS)
) -> tuple[tuple[int, int, int], ...]:
    """Colours that follow those of `DRAWING_COLOURS`, always the same.

    Each one is as far as possible, in CIELAB and for normal, protanopic and
    deuteranopic vision, from all colours before it and from two greys. All have a
    contrast of at least 3:1 against white.

    Args:
        count: How many.
        first: How many of `DRAWING_COLOURS` come before them.
    """
    levels = range(0, 256, 17)
    grid = np.array(list(itertools.product(levels, repeat=3)))
    seen, light = seen_colours(grid), luminance(grid)
    chroma = np.linalg.norm(seen[:, 0, 1:], axis=-1)
    usable = (light <= LIGHTEST) & (light >= DARKEST) & (chroma >= LEAST_CHROMA)
    grid, seen = grid[usable], seen[usable]
    greys = [(128, 128, 128), (160, 160, 160)]
    before = seen_colours(np.array([*DRAWING_COLOURS[1:first], *greys]))
    apart = np.min([_distances(seen, one) for one in before], axis=0)
    chosen = []
    for _ in range(count):
        best = int(np.argmax(apart))
        red, green, blue = grid[best].tolist()
        chosen.append((red, green, blue))
        apart = np.minimum(apart, _distances(seen, seen[best]))
    return tuple(chosen)
