"""Masks and photos with classes drawn in colours, and legends below them."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage  # type: ignore[import-untyped]

from kproba.data.colours import STRIPES, WHITE, drawing_colours, stripes
from kproba.data.fonts import drawn_name, load_font
from kproba.data.labels import UNSURE

BAND = 2**22  # pixels of an overlay that are painted at once
OPACITY = 0.35  # of the fill of a region on a photo

# Lines are one pixel wider for so many pixels of the longer side of a picture.
PER_CONTOUR = 250
PER_HALO = 500
PER_OUTLINE = 160


def paint_labels(indices: np.ndarray, classes: int) -> np.ndarray:
    """A mask in flat colours, (H, W, 3) uint8.

    A white line separates the regions of classes, the background is white, and pixels
    of index 254 or 255, which are no classes, are striped in light grey.

    Args:
        indices: Output indices (H, W) uint8.
        classes: Number of classes, background included.
    """
    painted = drawing_colours(classes)[indices]
    painted[(indices >= UNSURE) & stripes(*indices.shape)] = STRIPES[1]
    regions = np.where(indices >= UNSURE, 0, indices)
    width = round(max(indices.shape) / PER_OUTLINE)
    highest = ndimage.maximum_filter(regions, 2 * width + 1)
    painted[(regions > 0) & (highest > regions)] = WHITE
    return painted


def overlay(
    image: Image.Image, indices: np.ndarray, names: Sequence[str]
) -> Image.Image:
    """A photo with the contours of its classes and a light fill, above a legend.

    Args:
        image: RGB image.
        indices: Output indices (H, W) uint8.
        names: Names of the classes by output index. One in a script for which there is
            no font is drawn as "class" and its index, and the log says so.
    """
    painted = paint_overlay(image, indices, len(names))
    return add_legend(painted, np.unique(indices), names)


def paint_overlay(image: Image.Image, indices: np.ndarray, classes: int) -> Image.Image:
    """A photo with the contours of its classes and a light fill.

    A contour has the pure colour of its class. Thin white lines on both sides make it
    visible on any photo.

    Args:
        image: RGB image.
        indices: Output indices (H, W) uint8. Index 0, the background, is not painted;
            254 and 255, which are no classes, are striped.
        classes: Number of classes, background included.
    """
    palette = drawing_colours(classes)
    painted = np.array(image)
    contour = max(1, round(max(image.size) / PER_CONTOUR))
    halo = max(1, round(max(image.size) / PER_HALO))
    margin = contour + 2 * halo  # rows around a band on which its lines depend
    rows = max(1, BAND // max(1, image.width))
    for top in range(0, image.height, rows):  # floats of a large image would be many
        above = min(top, margin)
        around = indices[top - above : top + rows + margin]
        inside, white = _find_lines(around, contour, halo)
        band = slice(above, above + len(painted[top : top + rows]))
        painted[top : top + rows] = _paint_band(
            painted[top : top + rows], around[band], palette, top, inside[band]
        )
        painted[top : top + rows][white[band]] = WHITE
    return Image.fromarray(painted)


def add_legend(
    picture: Image.Image,
    present: Sequence[int] | np.ndarray,
    names: Sequence[str],
    size: int | None = None,
) -> Image.Image:
    """A picture above a legend of classes.

    Args:
        picture: RGB image.
        present: Output indices that occur; the background and 254 and 255 are left out.
        names: Names of the classes by output index, as for `overlay`.
        size: Size of the font in pixels; None: one that fits the picture.
    """
    palette = drawing_colours(len(names))
    shown = [int(index) for index in present if 0 < index < UNSURE]
    entries = [
        (drawn_name(names[index], f"class {index}"), tuple(palette[index].tolist()))
        for index in shown
    ]
    return _with_legend(picture, entries, size or max(11, min(picture.size) // 24))


def _find_lines(
    indices: np.ndarray, contour: int, halo: int
) -> tuple[np.ndarray, np.ndarray]:
    """Where contours and their white lines are, two arrays (H, W) bool.

    Where two regions meet, the one with the lower index, such as the background, has
    the outer white line. So a region of one pixel is still visible.

    Args:
        indices: Output indices (H, W) uint8.
        contour: Width of a contour in pixels.
        halo: Width of a white line in pixels.
    """
    regions = np.where(indices >= UNSURE, 0, indices)

    def has_higher(distance: int) -> np.ndarray:
        found: np.ndarray = ndimage.maximum_filter(regions, 2 * distance + 1) > regions
        return found

    def has_lower(distance: int) -> np.ndarray:
        found: np.ndarray = ndimage.minimum_filter(regions, 2 * distance + 1) < regions
        return found

    outer = has_higher(halo)
    coloured = has_lower(contour) | has_higher(halo + contour)
    inner = has_lower(contour + halo) | has_higher(2 * halo + contour)
    coloured &= (regions > 0) & ~outer
    return coloured, outer | ((regions > 0) & inner & ~coloured)


def _paint_band(
    photo: np.ndarray,
    indices: np.ndarray,
    palette: np.ndarray,
    top: int,
    coloured: np.ndarray,
) -> np.ndarray:
    """Rows of a photo with the fill of regions and their contours.

    Args:
        photo: (H, W, 3) uint8.
        indices: Output indices (H, W) uint8.
        palette: Colours (256, 3) uint8.
        top: The first of the rows in the whole photo.
        coloured: Where contours are, (H, W) bool.
    """
    colours = palette[indices]
    height, width = indices.shape
    colours[(indices >= UNSURE) & stripes(height, width, top)] = STRIPES[1]
    pixels = photo.astype(np.float32)
    opacity = np.where(coloured, np.float32(1), np.float32(OPACITY)) * (indices > 0)
    mixed: np.ndarray = (pixels + opacity[..., None] * (colours - pixels)).round()
    return mixed.astype(np.uint8)


def _with_legend(
    picture: Image.Image, entries: Sequence[tuple[str, tuple[int, ...]]], size: int
) -> Image.Image:
    """Add rows of coloured squares with names below a picture."""
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
