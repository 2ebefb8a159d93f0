"""Colours of classes, and overlays with legends."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from kproba.data.fonts import drawn_name, load_font
from kproba.data.label_images import label_palette
from kproba.data.labels import IGNORE

BAND = 2**22  # pixels of an overlay that are painted at once

# Colours that can be told apart in a small picture. The first ones are those of Okabe
# and Ito. Each later one is as far as possible, in CIELAB, from all colours before it
# and from grey, for normal, protanopic and deuteranopic vision (Machado et al. 2009).
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


def class_colours(classes: int) -> np.ndarray:
    """Colours of output indices, (256, 3) uint8.

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


def overlay(
    image: Image.Image, indices: np.ndarray, names: Sequence[str], opacity: float = 0.6
) -> Image.Image:
    """An image painted with the colours of its classes, above a legend.

    Args:
        image: RGB image.
        indices: Output indices (H, W) uint8. Index 0, the background, is not painted.
        names: Names of the classes by output index. One in a script for which there is
            no font is drawn as "class" and its index, and the log says so.
        opacity: Opacity of the colours, from 0 to 1.
    """
    palette = class_colours(len(names))
    painted = np.array(image)
    rows = max(1, BAND // max(1, image.width))
    for top in range(0, image.height, rows):  # floats of a large image would be many
        band = slice(top, top + rows)
        pixels = painted[band].astype(np.float32)
        mixed = pixels + opacity * (palette[indices[band]] - pixels)
        mixed = np.where(indices[band, :, None] > 0, mixed, pixels)
        painted[band] = mixed.round().astype(np.uint8)
    present = [int(index) for index in np.unique(indices) if index > 0]
    return _with_legend(
        Image.fromarray(painted),
        [
            (drawn_name(names[index], f"class {index}"), tuple(palette[index].tolist()))
            for index in present
        ],
    )


def _with_legend(
    picture: Image.Image, entries: Sequence[tuple[str, tuple[int, ...]]]
) -> Image.Image:
    """Add rows of coloured squares with names below a picture."""
    size = max(11, min(picture.size) // 24)
    fonts, gap = [load_font(name, size) for name, _ in entries], size // 2
    widths = [
        3 * gap + size + round(font.getlength(name))
        for font, (name, _) in zip(fonts, entries, strict=True)
    ]
    width = max([picture.width, *widths])
    places, left, row = [], 0, 0
    for entry in widths:
        if left and left + entry > width:
            left, row = 0, row + 1
        places.append((left, row))
        left += entry
    line = size + 2 * gap
    height = picture.height + (line * (row + 1) if entries else 0)
    sheet = Image.new("RGB", (width, height), "white")
    sheet.paste(picture)
    draw = ImageDraw.Draw(sheet)
    for (name, colour), font, (left, row) in zip(entries, fonts, places, strict=True):
        x, y = left + gap, picture.height + row * line + gap
        draw.rectangle((x, y, x + size, y + size), fill=colour, outline="black")
        draw.text((x + size + gap, y + size / 2), name, "black", font, anchor="lm")
    return sheet
