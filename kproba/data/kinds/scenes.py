"""Datasets that a rule draws: what the kinds of drawn scenes share.

The scenes have the form of a folder dataset. Their backgrounds are cut from the two
photographs of `sklearn.datasets.load_sample_images`. Training and validation scenes
share no part of a photograph.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from PIL import Image

from kproba.data.label_images import write_label_image
from kproba.runtime.files import atomic_directory

SUBSETS = ("train", "val")
NOISE = 4  # of the sensor, in grey levels

Scene = tuple[np.ndarray, np.ndarray]
# Gets a subset and numbers of its scenes, and yields each image (S, S, 3) uint8 with
# its mask (S, S) uint8.
DrawScenes = Callable[[str, range], Iterator[Scene]]


@dataclass(frozen=True)
class SceneFiles:
    """What is written of a drawn dataset.

    Attributes:
        train: Number of training scenes.
        val: Number of validation scenes.
        names: Names of the classes 1, 2, ..
        saliency: Whether to write saliency maps too. A pixel is salient where any
            object is, as a perfect detector of objects would say.
    """

    train: int
    val: int
    names: Sequence[str]
    saliency: bool


def write_scenes(
    folder: str | Path, files: SceneFiles, draw: DrawScenes, *, workers: int = 1
) -> None:
    """Write images, palette masks and classes.txt in the form of a folder dataset.

    Args:
        folder: Output folder.
        files: Numbers of the scenes, names of the classes, and whether to write
            saliency maps.
        draw: Draws some scenes. It runs in other processes if there are several
            workers, so a scene must depend only on its subset and number.
        workers: Number of processes, which does not affect the scenes.
    """
    with atomic_directory(folder) as temporary:
        names = "\n".join(("background", *files.names))
        (temporary / "classes.txt").write_text(names + "\n")
        kinds = ("images", "masks", *(("saliency",) if files.saliency else ()))
        for subset in SUBSETS:
            for kind in kinds:
                (temporary / kind / subset).mkdir(parents=True)
        parts = [
            (subset, range(first, getattr(files, subset), workers))
            for subset in SUBSETS
            for first in range(workers)
        ]
        Parallel(workers)(
            delayed(_write_part)(temporary, draw, subset, numbers, files.saliency)
            for subset, numbers in parts
        )


def _write_part(
    folder: Path, draw: DrawScenes, subset: str, numbers: range, saliency: bool
) -> None:
    scenes = draw(subset, numbers)
    for number, (image, mask) in zip(numbers, scenes, strict=True):
        name = f"{subset}_{number:05d}.png"
        Image.fromarray(image).save(folder / "images" / subset / name)
        write_label_image(folder / "masks" / subset / name, mask)
        if saliency:
            salient = np.where(mask > 0, 255, 0).astype(np.uint8)
            Image.fromarray(salient).save(folder / "saliency" / subset / name)


def load_regions(subset: str) -> list[np.ndarray]:
    """The parts of the photographs for a subset, each (h, w, 3) uint8.

    The left 70 % of a photograph are for training, the right 28 % for validation.

    Args:
        subset: "train" or "val".
    """
    from sklearn.datasets import load_sample_images  # slow to import

    return [_region(picture, subset) for picture in load_sample_images().images]


def _region(photograph: np.ndarray, subset: str) -> np.ndarray:
    width = photograph.shape[1]
    if subset == "train":
        return photograph[:, : int(0.70 * width)]
    return photograph[:, int(0.72 * width) :]


def cut_background(
    rng: np.random.Generator, size: int, regions: list[np.ndarray]
) -> np.ndarray:
    """A square cut of 60 to 100 % of a region's shorter side, at size (size, size).

    Args:
        rng: Source of all randomness.
        size: Side of the result in pixels.
        regions: Parts of photographs, (h, w, 3) uint8.
    """
    region = regions[rng.integers(len(regions))]
    side = int(rng.uniform(0.6, 1.0) * min(region.shape[:2]))
    top, left = (int(rng.integers(extent - side + 1)) for extent in region.shape[:2])
    cut = Image.fromarray(region[top : top + side, left : left + side])
    if rng.random() < 0.5:
        cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(cut.resize((size, size), Image.Resampling.BICUBIC))


def as_photograph(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """A canvas (S, S, 3) float32 with the noise of a sensor, as uint8.

    Args:
        rng: Source of all randomness.
        canvas: Grey levels; changed in place.
    """
    canvas += rng.normal(0, NOISE, canvas.shape)
    return np.clip(canvas, 0, 255).astype(np.uint8)


def scene_settings(train: int, val: int, size: int) -> dict[str, Any]:
    """Schemas of the configuration keys that all kinds of drawn scenes have.

    Args:
        train: Default number of training scenes.
        val: Default number of validation scenes.
        size: Default side of a scene in pixels.
    """
    return {
        "train": {
            "description": "Number of training scenes.",
            "type": "integer",
            "minimum": 10,
            "maximum": 100000,
            "default": train,
        },
        "val": {
            "description": "Number of validation scenes.",
            "type": "integer",
            "minimum": 10,
            "maximum": 100000,
            "default": val,
        },
        "size": {
            "description": "Side of a scene in pixels.",
            "type": "integer",
            "minimum": 48,
            "maximum": 1024,
            "default": size,
        },
    }
