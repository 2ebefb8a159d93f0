"""Pictures of the page: validation images by step, pseudo labels, their colours."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from torchvision.transforms.functional import to_pil_image

from kproba.data.drawing import class_colours
from kproba.data.label_images import read_label_image
from kproba.data.labels import UNSURE
from kproba.data.sources import Source
from kproba.data.splits import evenly_spaced, read_index, read_indices
from kproba.plan.results import StepResult
from kproba.results.cells import Picture
from kproba.results.experiment import Experiment, read_truth

SIDE = 256  # pixels of the longer side of a picture, at most
LABEL_PICTURES = 2  # training images per step that are shown with their pseudo labels
NAMED = 3  # classes in the caption of a picture


def embed(content: bytes, kind: str) -> str:
    """A data URI of a file's content.

    Args:
        content: The file.
        kind: MIME type, such as "image/png".
    """
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _draw_photograph(row: Mapping[Any, Any], title: str, alt: str) -> Picture:
    """The picture of a row of an index or a split."""
    small = to_pil_image(Source.from_row(row).read_image())
    small.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return Picture(title, embed(buffer.getvalue(), "image/jpeg"), alt)


def _draw_mask(labels: np.ndarray, names: Sequence[str], title: str) -> Picture:
    """Output indices in colours, with the largest classes in words."""
    image = Image.fromarray(labels)
    image.putpalette(_palette(names).ravel().tolist())
    scale = SIDE / max(image.size)
    if scale < 1:
        size = [max(1, round(scale * extent)) for extent in image.size]
        image = image.resize(size, Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    counts = np.bincount(labels.ravel(), minlength=256)
    largest = np.argsort(-counts[1 : len(names)], kind="stable")
    order = [int(index) + 1 for index in largest]
    parts = [
        f"{names[index]} {_percent(counts, index)}" for index in order if counts[index]
    ]
    if counts[UNSURE]:
        parts.append(f"unsure {_percent(counts, UNSURE)}")
    more = len(parts) - NAMED
    text = ", ".join(parts[:NAMED]) + (f" and {more} more" if more > 0 else "")
    text = text or "background"
    source = embed(buffer.getvalue(), "image/png")
    return Picture(title, source, f"{title}: {text}", text)


def _percent(counts: np.ndarray, index: int) -> str:
    share = 100 * counts[index] / counts.sum()
    return f"{share:.0f} %" if share >= 1 else "< 1 %"


def _palette(names: Sequence[str]) -> np.ndarray:
    palette = class_colours(len(names)).copy()
    palette[UNSURE] = 190
    return palette


def list_colours(names: Sequence[str]) -> list[tuple[str, str]]:
    """Colour, as CSS, and name of every class."""
    palette = _palette(names)
    return [
        (f"rgb({red},{green},{blue})", name)
        for name, (red, green, blue) in zip(names, palette[: len(names)], strict=True)
    ]


def draw_examples(
    experiment: Experiment, results: Sequence[StepResult]
) -> list[dict[str, Any]]:
    """The same validation images through the steps of every method.

    Args:
        experiment: Where images and masks are.
        results: One seed of every method.

    Returns:
        Per image its `name`, `image`, `truth` and `lines`: by method a picture per
        step, or None.
    """
    index = pd.concat(read_indices(experiment.indices, experiment.folders))
    names = {path.stem for r in results for path in Path(r.examples).glob("*.png")}
    shown = index[index["id"].isin(names)]  # of an index that may have a million rows
    images = {image["id"]: image for image in shown.to_dict("records")}
    examples = []
    for name in sorted(names):
        lines: dict[str, list[Picture | None]] = {}
        for result in results:
            line = lines.setdefault(result.method, [None] * len(experiment.groups))
            path = Path(result.examples) / f"{name}.png"
            if path.is_file():
                title = f"{result.method}, step {result.step}"
                labels = read_label_image(path)
                line[result.step] = _draw_mask(labels, experiment.names, title)
        truth = read_truth(images[name], experiment.groups)
        examples.append(
            {
                "name": name,
                "image": _draw_photograph(images[name], "image", f"image {name}"),
                "truth": _draw_mask(truth, experiment.names, "ground truth"),
                "lines": lines,
            }
        )
    return examples


def draw_labels(
    experiment: Experiment, results: Sequence[StepResult]
) -> list[tuple[int, list[list[Picture]]]]:
    """Per step a few training images with their hidden truth and pseudo labels.

    Args:
        experiment: Its classes.
        results: One seed of every method.

    Returns:
        Steps that have pseudo labels, with a line of pictures per image.
    """
    steps = []
    for step in range(1, len(experiment.groups)):
        labelled = [r for r in results if r.step == step and r.labels]
        folders: dict[str, str] = {}  # shared labels once
        for result in labelled:
            folders.setdefault(str(result.labels), result.method)
        if not folders:
            continue
        [split] = {str(result.split) for result in labelled}
        groups = experiment.groups[: step + 1]
        lines = []
        chosen = evenly_spaced(read_index(split, experiment.folders), LABEL_PICTURES)
        for image in chosen.to_dict("records"):
            alt = f"training image {image['id']}"
            truth = read_truth(image, groups)
            line = [
                _draw_photograph(image, "image", alt),
                _draw_mask(truth, experiment.names, "truth, hidden from the step"),
            ]
            for folder, method in folders.items():
                labels = read_label_image(Path(folder) / f"{image['id']}.png")
                title = f"targets of {method}"
                line.append(_draw_mask(labels, experiment.names, title))
            lines.append(line)
        steps.append((step, lines))
    return steps
