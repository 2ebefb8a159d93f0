"""The example dataset: scenes of handwritten digits on photographs.

The glyphs are the 1,797 real handwritten digits of `sklearn.datasets.load_digits`. The
backgrounds are cut from the two photographs of `load_sample_images`. Both are part of
scikit-learn. Each scene has several digits of different classes: classes of earlier,
current and later steps appear in one image, which causes background shift. Training and
validation scenes share no glyph and no part of a photograph.
"""

import colorsys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from kproba.data.kinds.folder import FOLDER
from kproba.data.kinds.kind import DatasetKind
from kproba.data.kinds.scenes import (
    SUBSETS,
    Scene,
    SceneFiles,
    as_photograph,
    cut_background,
    load_regions,
    scene_settings,
    write_scenes,
)

CLASS_NAMES = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
)


GLYPH_SIZE = 8  # pixels, the side of a glyph of load_digits


INK = 0.3  # pixels with more than this share of full ink belong to the digit


CONTRAST = 150  # grey levels between a digit and its background, in RGB space


DISTINCT = 120  # grey levels between two digits of a scene


VISIBLE = 0.8  # share of each digit that a later digit must leave visible


LAYOUTS = 100  # attempts at a scene with enough digits


POSITIONS = 40  # attempts to place a digit without hiding others


@dataclass(frozen=True)
class DigitScenes:
    """Size and seed of the scenes.

    Attributes:
        train: Number of training scenes.
        val: Number of validation scenes.
        size: Side of a scene in pixels.
        digits: Fewest and most digits in a scene.
        height: Smallest and largest height of a digit as a share of `size`.
        rotation: Largest rotation to either side in degrees.
        seed: Each scene depends only on the settings, the subset and its number.
        saliency: Whether to write saliency maps too. A pixel is salient where any digit
            is, as a perfect detector of objects would say.
    """

    train: int
    val: int
    size: int
    digits: tuple[int, int]
    height: tuple[float, float]
    rotation: float
    seed: int
    saliency: bool = False


def write_digits(folder: str | Path, scenes: DigitScenes, *, workers: int = 1) -> None:
    """Write images, palette masks and classes.txt in the form of a folder dataset.

    Args:
        folder: Output folder.
        scenes: Number and size of the scenes.
        workers: Number of processes, which does not affect the scenes.
    """
    files = SceneFiles(scenes.train, scenes.val, CLASS_NAMES, scenes.saliency)
    write_scenes(folder, files, partial(_draw_scenes, scenes), workers=workers)


def _draw_scenes(scenes: DigitScenes, subset: str, numbers: range) -> Iterator[Scene]:
    glyphs, regions = _glyphs()[subset], load_regions(subset)
    for number in numbers:
        rng = np.random.default_rng([scenes.seed, SUBSETS.index(subset), number])
        yield draw_scene(rng, scenes, glyphs, regions)


def draw_scene(
    rng: np.random.Generator,
    scenes: DigitScenes,
    glyphs: list[np.ndarray],
    regions: list[np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one scene.

    Args:
        rng: Source of all randomness.
        scenes: Size of the scene and of its digits.
        glyphs: Ink of the glyphs of each digit, (n, 8, 8) float in [0, 1].
        regions: Parts of photographs, (h, w, 3) uint8.

    Returns:
        Image (size, size, 3) uint8 and mask (size, size) uint8: 0 background, 1..10
        for the digits zero..nine.

    Raises:
        ValueError: There is no room for the smallest number of digits.
    """
    for _ in range(LAYOUTS):
        canvas = cut_background(rng, scenes.size, regions).astype(np.float32)
        mask = np.zeros((scenes.size, scenes.size), np.uint8)
        placed = _place_digits(rng, scenes, glyphs, canvas, mask)
        if placed >= scenes.digits[0]:
            return as_photograph(rng, canvas), mask
    raise ValueError(
        f"Expected room for {scenes.digits[0]} digits with a height of "
        f"{scenes.height[0]} to {scenes.height[1]} of the scene, but they did not fit "
        f"in {LAYOUTS} attempts. Lower `height` or `digits`."
    )


def _place_digits(
    rng: np.random.Generator,
    scenes: DigitScenes,
    glyphs: list[np.ndarray],
    canvas: np.ndarray,
    mask: np.ndarray,
) -> int:
    """Draw digits into canvas (S, S, 3) and mask (S, S); returns their number."""
    size = scenes.size
    owner = np.zeros(
        (size, size), np.int16
    )  # number of the digit that a pixel shows, from 1
    areas: list[int] = []
    colours: list[np.ndarray] = []
    count = int(rng.integers(scenes.digits[0], scenes.digits[1] + 1))
    for digit in rng.choice(len(glyphs), size=count, replace=False):
        height = rng.uniform(*scenes.height) * size
        angle = rng.uniform(-scenes.rotation, scenes.rotation)
        glyph = glyphs[digit][rng.integers(len(glyphs[digit]))]
        ink = _render(glyph, height, angle)
        if max(ink.shape) > size:
            continue
        stroke = ink > INK
        visible = np.bincount(owner.ravel(), minlength=len(areas) + 1)[1:]
        for _ in range(POSITIONS):
            top, left = (int(rng.integers(size - side + 1)) for side in ink.shape)
            window = (slice(top, top + ink.shape[0]), slice(left, left + ink.shape[1]))
            covered = np.bincount(owner[window][stroke], minlength=len(areas) + 1)[1:]
            if (visible - covered >= VISIBLE * np.array(areas)).all():
                areas.append(int(stroke.sum()))
                owner[window][stroke] = len(areas)
                mask[window][stroke] = digit + 1
                alpha = np.clip((ink - INK) / 0.15 + 0.5, 0, 1)[..., None]
                behind = canvas[window][stroke].mean(axis=0)
                colours.append(_colour_against(rng, behind, colours))
                canvas[window] += alpha * (colours[-1] - canvas[window])
                break
    return len(areas)


def _glyphs() -> dict[str, list[np.ndarray]]:
    """Ink of the glyphs by subset and digit; every fourth glyph is for validation."""
    from sklearn.datasets import load_digits

    data = load_digits()
    by_digit = [data.images[data.target == digit] / 16 for digit in range(10)]
    validation = [np.arange(len(ink)) % 4 == 3 for ink in by_digit]
    return {
        "train": [ink[~val] for ink, val in zip(by_digit, validation, strict=True)],
        "val": [ink[val] for ink, val in zip(by_digit, validation, strict=True)],
    }


def _render(glyph: np.ndarray, height: float, angle: float) -> np.ndarray:
    """Ink (h, w) in [0, 1] of a glyph, enlarged to `height` pixels and rotated."""
    side = round(height)
    padded = np.pad(glyph, 1).astype(np.float32)  # room for rotated corners
    full = round(side * padded.shape[0] / GLYPH_SIZE)
    image = Image.fromarray(padded).resize((full, full), Image.Resampling.BICUBIC)
    ink = np.asarray(image.rotate(angle, Image.Resampling.BICUBIC, expand=True))
    rows, columns = np.nonzero(ink > INK / 2)
    return ink[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def _colour_against(
    rng: np.random.Generator, behind: np.ndarray, others: list[np.ndarray]
) -> np.ndarray:
    """A random colour far from the mean colour `behind` it and from those of others."""
    while True:
        hue, saturation, value = rng.random(), rng.uniform(0, 1), rng.uniform(0.05, 1)
        colour = 255 * np.array(colorsys.hsv_to_rgb(hue, saturation, value))
        if np.linalg.norm(colour - behind) >= CONTRAST and all(
            np.linalg.norm(colour - other) >= DISTINCT for other in others
        ):
            return colour


def _class_names(folder: Path | None, listed: Sequence[str] | None) -> list[str]:
    return list(CLASS_NAMES)


DIGITS = DatasetKind(
    name="digits",
    title="the embedded digits",
    layout=FOLDER.layout,
    find_pairs=FOLDER.find_pairs,
    find_folders=FOLDER.find_folders,
    class_names=_class_names,
    find_saliency=FOLDER.find_saliency,
    drawn=True,
    settings={
        **scene_settings(train=400, val=120, size=144),
        "digits": {
            "description": "Fewest and most digits in a scene.",
            "type": "array",
            "minItems": 2,
            "maxItems": 2,
            "items": {"type": "integer", "minimum": 1, "maximum": 10},
            "default": [2, 4],
        },
        "height": {
            "description": (
                "Smallest and largest height of a digit as a share of `size`."
            ),
            "type": "array",
            "minItems": 2,
            "maxItems": 2,
            "items": {"type": "number", "minimum": 0.1, "maximum": 0.9},
            "default": [0.36, 0.62],
        },
        "rotation": {
            "description": "Largest rotation of a digit to either side, in degrees.",
            "type": "number",
            "minimum": 0,
            "maximum": 180,
            "default": 25,
        },
        "seed": {
            "description": "Seed of the scenes.",
            "type": "integer",
            "minimum": 0,
            "default": 0,
        },
        "saliency": {
            "description": (
                "Whether to draw saliency maps too, for the method ssul. A pixel is "
                "salient where any digit is."
            ),
            "type": "boolean",
            "default": False,
        },
    },
)
