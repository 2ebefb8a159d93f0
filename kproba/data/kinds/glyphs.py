"""A drawn dataset with up to 253 classes of very different frequency.

It is for checks of many classes and many steps without a download: the shares of the
classes span orders of magnitude, as those of ADE20K do. Every class is a family of
closed curves with a pattern (`kproba.data.kinds.glyph_shapes`), drawn from a seed.
Letters of a font would depend on the installed fonts and their version, and their
strokes are thinner than the cells of a feature map. The shapes are areas, as objects in
photographs are, and any number of them can be drawn.

A scene shows several glyphs of different classes over a part of a photograph, so
classes of earlier, current and later steps appear in one image. Every class is in at
least `least` training and validation scenes.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from kproba.data.kinds import glyph_shapes
from kproba.data.kinds.class_names import MOST_CLASSES
from kproba.data.kinds.folder import FOLDER
from kproba.data.kinds.glyph_counts import (
    class_counts,
    class_ranks,
    deal,
    height_factors,
)
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

DEALS = 2  # mark of the random streams that deal classes to scenes
VISIBLE = 0.8  # share of each glyph that a later glyph must leave visible
POSITIONS = 40  # attempts to place a glyph without hiding others
SMALLER = 0.95  # factor of all heights after an attempt without enough room
SMALLEST = 4  # pixels, the side of a glyph


@dataclass(frozen=True)
class GlyphScenes:
    """Size, classes and seed of the scenes.

    Attributes:
        train: Number of training scenes.
        val: Number of validation scenes.
        size: Side of a scene in pixels.
        classes: Number of classes.
        glyphs: Fewest and most glyphs in a scene.
        height: Smallest and largest height of a glyph of the most frequent class, as a
            share of `size`. The glyphs of other classes are smaller.
        rotation: Largest rotation to either side in degrees.
        imbalance: Ratio of the pixels of the most and the least frequent class.
        least: Fewest training scenes, and fewest validation scenes, with each class.
        order: "mixed" or "frequent_first", see `class_ranks`.
        seed: Seed of shapes and scenes.
        saliency: Whether to write saliency maps too.

    Raises:
        ValueError: A scene has fewer classes than glyphs, or there are too few scenes
            for all classes.
    """

    train: int
    val: int
    size: int
    classes: int
    glyphs: tuple[int, int]
    height: tuple[float, float]
    rotation: float
    imbalance: float
    least: int
    order: str
    seed: int
    saliency: bool = False

    def __post_init__(self) -> None:
        fewest, most = self.glyphs
        if most > self.classes:
            raise ValueError(
                f"Expected at most {self.classes} glyphs in a scene, because it shows "
                f"a class once, but got `glyphs: [{fewest}, {most}]` with `classes: "
                f"{self.classes}`. Lower `glyphs`, or raise `classes`."
            )
        needed = -(-self.classes * self.least // fewest)
        for subset in SUBSETS:
            if getattr(self, subset) < needed:
                raise ValueError(
                    f"Expected at least {needed} scenes in `{subset}`, so that each of "
                    f"{self.classes} classes is in {self.least} of them with {fewest} "
                    f"glyphs in a scene, but got `{subset}: {getattr(self, subset)}`. "
                    f"Raise `{subset}`, or lower `classes` or `least`."
                )

    @property
    def names(self) -> list[str]:
        """Names of the classes 1, 2, .."""
        return glyph_shapes.class_names(self.classes)

    def deal(self, subset: str) -> list[list[int]]:
        """Numbers of the classes of each scene, from 0.

        Args:
            subset: "train" or "val".
        """
        rng = np.random.default_rng([self.seed, DEALS, SUBSETS.index(subset)])
        scenes = getattr(self, subset)
        places = rng.integers(self.glyphs[0], self.glyphs[1] + 1, scenes)
        counts = class_counts(
            class_ranks(self.classes, self.order),
            self.imbalance,
            scenes=scenes,
            total=int(places.sum()),
            least=self.least,
        )
        return deal(rng, counts, places)


def write_glyphs(folder: str | Path, scenes: GlyphScenes, *, workers: int = 1) -> None:
    """Write images, palette masks and classes.txt in the form of a folder dataset.

    Args:
        folder: Output folder.
        scenes: Number, size and classes of the scenes.
        workers: Number of processes, which does not affect the scenes.
    """
    dealt = {subset: scenes.deal(subset) for subset in SUBSETS}
    files = SceneFiles(scenes.train, scenes.val, scenes.names, scenes.saliency)
    write_scenes(folder, files, partial(_draw_scenes, scenes, dealt), workers=workers)


def _draw_scenes(
    scenes: GlyphScenes,
    dealt: Mapping[str, list[list[int]]],
    subset: str,
    numbers: range,
) -> Iterator[Scene]:
    shapes = glyph_shapes.make_shapes(scenes.classes, scenes.seed)
    regions = load_regions(subset)
    ranks = class_ranks(scenes.classes, scenes.order)
    factors = height_factors(ranks, scenes.imbalance)
    for number in numbers:
        rng = np.random.default_rng([scenes.seed, SUBSETS.index(subset), number])
        glyphs = [(shapes[one], one + 1, factors[one]) for one in dealt[subset][number]]
        yield draw_scene(rng, scenes, glyphs, regions)


def draw_scene(
    rng: np.random.Generator,
    scenes: GlyphScenes,
    glyphs: Sequence[tuple[glyph_shapes.Shape, int, float]],
    regions: list[np.ndarray],
) -> Scene:
    """Draw one scene with all its glyphs.

    Where there is no room for all of them, another attempt draws them smaller.

    Args:
        rng: Source of all randomness.
        scenes: Size of the scene and of its glyphs.
        glyphs: Shape, label and factor of the height of each glyph.
        regions: Parts of photographs, (h, w, 3) uint8.

    Returns:
        Image (size, size, 3) uint8 and mask (size, size) uint8: 0 background, else the
        label.
    """
    for attempt in itertools.count():
        canvas = cut_background(rng, scenes.size, regions).astype(np.float32)
        mask = np.zeros((scenes.size, scenes.size), np.uint8)
        heights = scenes.size * rng.uniform(*scenes.height, len(glyphs))
        heights *= [factor * SMALLER**attempt for _, _, factor in glyphs]
        # Large glyphs first: small ones may lie on them, and stay visible themselves.
        order = np.argsort(-heights, kind="stable")
        areas: dict[int, int] = {}
        for shape, label, side in ((*glyphs[g][:2], heights[g]) for g in order):
            angle = rng.uniform(-scenes.rotation, scenes.rotation)
            drawn = glyph_shapes.render(rng, shape, max(SMALLEST, round(side)), angle)
            if not _place(rng, drawn, label, areas, (canvas, mask)):
                break
        else:
            return as_photograph(rng, canvas), mask
    raise AssertionError  # there is always another attempt


def _place(
    rng: np.random.Generator,
    drawn: tuple[np.ndarray, np.ndarray],
    label: int,
    areas: dict[int, int],
    scene: tuple[np.ndarray, np.ndarray],
) -> bool:
    """Draw a glyph at a random place where earlier glyphs stay visible.

    Args:
        rng: Source of all randomness.
        drawn: Result of `glyph_shapes.render`.
        label: Its label.
        areas: Pixels of the earlier glyphs by label; gets those of this one.
        scene: Canvas (S, S, 3) and mask (S, S); changed in place.

    Returns:
        Whether there was such a place.
    """
    (colour, cover), (canvas, mask) = drawn, scene
    inside, side, size = cover >= 0.5, len(cover), len(mask)
    if side > size:
        return False
    visible = np.bincount(mask.ravel(), minlength=256)
    for _ in range(POSITIONS):
        top, left = rng.integers(size - side + 1, size=2)
        window = (slice(top, top + side), slice(left, left + side))
        covered = np.bincount(mask[window][inside], minlength=256)
        if all(visible[o] - covered[o] >= VISIBLE * areas[o] for o in areas):
            areas[label] = int(inside.sum())
            mask[window][inside] = label
            canvas[window] += cover[..., None] * (colour - canvas[window])
            return True
    return False


def _class_names(
    given: Mapping[str, Any], folder: Path | None, listed: object
) -> list[str]:
    """Names of the classes.

    Raises:
        ValueError: The scenes cannot be drawn with these settings.
    """
    values = {
        field.name: given.get(field.name, SETTINGS[field.name]["default"])
        for field in fields(GlyphScenes)
    }
    return GlyphScenes(**values).names


def _configure(kind: DatasetKind, settings: Mapping[str, Any]) -> DatasetKind:
    return replace(kind, class_names=partial(_class_names, settings))


SETTINGS: dict[str, Any] = {
    **scene_settings(train=2400, val=400, size=128),
    "classes": {
        "description": "Number of classes.",
        "type": "integer",
        "minimum": 2,
        "maximum": MOST_CLASSES,
        "default": 150,
    },
    "glyphs": {
        "description": "Fewest and most glyphs in a scene, each of another class.",
        "type": "array",
        "minItems": 2,
        "maxItems": 2,
        "items": {"type": "integer", "minimum": 1, "maximum": 10},
        "default": [2, 4],
    },
    "height": {
        "description": (
            "Smallest and largest height of a glyph of the most frequent class, as a "
            "share of `size`. The glyphs of other classes are smaller."
        ),
        "type": "array",
        "minItems": 2,
        "maxItems": 2,
        "items": {"type": "number", "minimum": 0.1, "maximum": 0.9},
        "default": [0.5, 0.8],
    },
    "rotation": {
        "description": "Largest rotation of a glyph to either side, in degrees.",
        "type": "number",
        "minimum": 0,
        "maximum": 180,
        "default": 20,
    },
    "imbalance": {
        "description": (
            "How many times more pixels the most frequent class has than the least "
            "frequent one. The shares of the others lie between them, geometrically. "
            "The number of scenes with a class takes the exponent 2/3 of it, and the "
            "area of its glyphs 1/3. 1 makes all classes equal."
        ),
        "type": "number",
        "minimum": 1,
        "maximum": 10000,
        "default": 1000,
    },
    "least": {
        "description": (
            "Fewest training scenes, and fewest validation scenes, with each class. "
            "If there are few scenes, this makes the real imbalance smaller."
        ),
        "type": "integer",
        "minimum": 1,
        "maximum": 1000,
        "default": 3,
    },
    "order": {
        "description": "Order of the classes.",
        "enum": ["mixed", "frequent_first"],
        "x-values": {
            "mixed": "independent of frequency: every step has frequent and rare ones",
            "frequent_first": "from the most to the least frequent one, as in ADE20K",
        },
        "default": "mixed",
    },
    "seed": {
        "description": "Seed of the shapes and the scenes.",
        "type": "integer",
        "minimum": 0,
        "default": 0,
    },
    "saliency": {
        "description": (
            "Whether to draw saliency maps too, for the method ssul. A pixel is "
            "salient where any glyph is."
        ),
        "type": "boolean",
        "default": False,
    },
}

GLYPHS = DatasetKind(
    name="glyphs",
    title="the drawn glyphs",
    layout=FOLDER.layout,
    find_pairs=FOLDER.find_pairs,
    find_folders=FOLDER.find_folders,
    class_names=partial(_class_names, {}),
    find_saliency=FOLDER.find_saliency,
    configure=_configure,
    drawn=True,
    settings=SETTINGS,
)
