"""Pictures of the page: validation images by step, pseudo labels, their colours.

A mask is embedded once, as a small PNG in the colours of its classes. The script of the
page (templates/pictures.js) reads the classes back from these colours and draws the
views: labels, overlay and errors. Without the script the PNG itself is shown.
"""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from torchvision.transforms.functional import to_pil_image

from kproba.data.colours import STRIPES, drawing_colours, stripes
from kproba.data.label_images import read_label_image
from kproba.data.labels import UNSURE
from kproba.data.sources import Source
from kproba.data.splits import evenly_spaced, read_index, read_indices
from kproba.data.tasks import Groups
from kproba.plan.results import StepResult
from kproba.results.experiment import Experiment, read_truth

SIDE = 256  # pixels of the longer side of a picture, at most
LABEL_PICTURES = 2  # training images per step that are shown with their pseudo labels
NAMED = 3  # classes in the caption of a picture


@dataclass(frozen=True)
class Drawn:
    """An embedded picture with a text for those who do not see it.

    Attributes:
        title: What it is, such as "kproba, step 1".
        source: The picture as a data URI.
        alt: The text.
        caption: The largest classes in words; empty for a photo.
        errors: Shares of right and wrong pixels in words; empty for photo and truth.
        step: The last step whose classes count as errors.
    """

    title: str
    source: str
    alt: str
    caption: str = ""
    errors: str = ""
    step: int = 0


@dataclass(frozen=True)
class ClassList:
    """Colours, names and steps of the classes, for the legend and for the script.

    Attributes:
        names: Names by output index, "background" first.
        groups: Raw labels of the classes, per step.
    """

    names: Sequence[str]
    groups: Groups

    @property
    def steps(self) -> np.ndarray:
        """Step of each output index, (C,) int64; the background counts as step 0."""
        sizes = [len(group) for group in self.groups]
        return np.concatenate([[0], np.repeat(np.arange(len(sizes)), sizes)])

    @property
    def legend(self) -> list[tuple[str, str, int | None]]:
        """Colour, name and step of every class."""
        return list_colours(self.names, self.groups)

    @property
    def script(self) -> str:
        """JSON for the script: red, green, blue and step by index; colours of none."""
        colours = drawing_colours(len(self.names))[: len(self.names)].tolist()
        pairs = zip(colours, self.steps.tolist(), strict=True)
        classes = [[*colour, step] for colour, step in pairs]
        return json.dumps({"classes": classes, "none": STRIPES}, separators=(",", ":"))


def embed(content: bytes, kind: str) -> str:
    """A data URI of a file's content.

    Args:
        content: The file.
        kind: MIME type, such as "image/png".
    """
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def list_colours(
    names: Sequence[str], groups: Groups = ()
) -> list[tuple[str, str, int | None]]:
    """Colour, as CSS, name and step of every class.

    Args:
        names: Names by output index, "background" first.
        groups: Raw labels of the classes, per step; empty: the steps are None.
    """
    palette = drawing_colours(len(names))[: len(names)].tolist()
    steps: list[int | None] = [None] * len(names)
    if groups:
        steps = ClassList(names, groups).steps.tolist()
    return [
        (f"rgb({red},{green},{blue})", name, step)
        for name, (red, green, blue), step in zip(names, palette, steps, strict=True)
    ]


def _draw_photograph(row: Mapping[Any, Any], title: str, alt: str) -> Drawn:
    """The picture of a row of an index or a split."""
    small = to_pil_image(Source.from_row(row).read_image())
    small.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80, optimize=True)
    return Drawn(title, embed(buffer.getvalue(), "image/jpeg"), alt)


def encode_mask(labels: np.ndarray, classes: int) -> bytes:
    """A small PNG of a mask in the colours of its classes, with stripes for no class.

    Args:
        labels: Output indices (H, W) uint8.
        classes: Number of classes, background included.
    """
    image = Image.fromarray(labels)
    scale = SIDE / max(image.size)
    if scale < 1:
        size = [max(1, round(scale * extent)) for extent in image.size]
        image = image.resize(size, Image.Resampling.NEAREST)
    small = np.array(image)
    without = small >= UNSURE
    small[without] = np.where(stripes(*small.shape), 255, UNSURE)[without]
    palette = drawing_colours(classes)
    palette[255] = STRIPES[1]
    # Only the colours that occur: a palette of 256 is larger than most of the masks.
    present, places = np.unique(small, return_inverse=True)
    compact = Image.fromarray(places.reshape(small.shape).astype(np.uint8))
    compact.putpalette(palette[present].ravel().tolist())
    buffer = io.BytesIO()
    compact.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _draw_mask(
    labels: np.ndarray, classes: ClassList, title: str, errors: str = "", step: int = 0
) -> Drawn:
    """Output indices in colours, with the largest classes in words."""
    names = classes.names
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
    source = embed(encode_mask(labels, len(names)), "image/png")
    return Drawn(title, source, f"{title}: {text}", text, errors, step)


def _percent(counts: np.ndarray, index: int) -> str:
    return _percentage(counts[index] / counts.sum())


def _percentage(share: float) -> str:
    if 0 < share < 0.01:
        return "< 1 %"
    return f"{100 * share:.0f} %"


def count_errors(
    truth: np.ndarray, labels: np.ndarray, classes: ClassList, step: int
) -> dict[str, float]:
    """Shares of right and wrong pixels.

    Pixels do not count if the truth is ignored or a class of a later step, or if the
    labels leave them open.

    Args:
        truth: Output indices (H, W) uint8 of the whole task.
        labels: Output indices (H, W) uint8.
        classes: The classes with their steps.
        step: The step after which the labels were made.

    Returns:
        By name, from 0 to 1 (NaN if no pixel counts): `right`, with the background;
        `missed`, a class in the truth alone; `invented`, a class in the labels alone;
        `confused`, another class in the labels.
    """
    steps = np.full(256, step + 1)
    steps[: len(classes.steps)] = classes.steps
    counted = (steps[truth] <= step) & (labels < UNSURE)
    true, found = truth[counted], labels[counted]
    kinds = {
        "right": true == found,
        "missed": (true > 0) & (found == 0),
        "invented": (true == 0) & (found > 0),
        "confused": (true != found) & (true > 0) & (found > 0),
    }
    total = int(counted.sum())
    return {
        kind: float(mask.sum()) / total if total else float("nan")
        for kind, mask in kinds.items()
    }


def _describe_errors(shares: Mapping[str, float]) -> str:
    if any(np.isnan(share) for share in shares.values()):
        return "no pixel counts"
    return ", ".join(f"{kind} {_percentage(share)}" for kind, share in shares.items())


def draw_examples(
    experiment: Experiment, results: Sequence[StepResult]
) -> list[dict[str, Any]]:
    """The same validation images through the steps of every method.

    Args:
        experiment: Where images and masks are.
        results: One seed of every method.

    Returns:
        Per image its `name`, `image`, `truth`, `lines`: by method a picture per step,
        or None; `columns`: their headings; and `classes`.
    """
    index = pd.concat(read_indices(experiment.indices, experiment.folders))
    names = {path.stem for r in results for path in Path(r.examples).glob("*.png")}
    shown = index[index["id"].isin(names)]  # of an index that may have a million rows
    images = {image["id"]: image for image in shown.to_dict("records")}
    classes = ClassList(experiment.names, experiment.groups)
    columns = [f"step {step}" for step in range(len(experiment.groups))]
    examples = []
    for name in sorted(names):
        truth = read_truth(images[name], experiment.groups)
        lines: dict[str, list[Drawn | None]] = {}
        for result in results:
            line = lines.setdefault(result.method, [None] * len(columns))
            path = Path(result.examples) / f"{name}.png"
            if path.is_file():
                title = f"{result.method}, step {result.step}"
                labels = read_label_image(path)
                shares = count_errors(truth, labels, classes, result.step)
                errors = _describe_errors(shares)
                line[result.step] = _draw_mask(
                    labels, classes, title, errors, result.step
                )
        examples.append(
            {
                "name": name,
                "image": _draw_photograph(images[name], "image", f"image {name}"),
                "truth": _draw_mask(truth, classes, "ground truth"),
                "lines": lines,
                "columns": columns,
                "classes": classes,
            }
        )
    return examples


def draw_labels(
    experiment: Experiment, results: Sequence[StepResult]
) -> list[tuple[int, list[dict[str, Any]]]]:
    """Per step a few training images with their hidden truth and pseudo labels.

    Args:
        experiment: Its classes.
        results: One seed of every method.

    Returns:
        Steps that have pseudo labels, with images as `draw_examples` returns them. A
        line has one picture, the targets that the method trains on.
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
        chosen = evenly_spaced(read_index(split, experiment.folders), LABEL_PICTURES)
        images = [
            _draw_targets(image, step, folders, experiment)
            for image in chosen.to_dict("records")
        ]
        steps.append((step, images))
    return steps


def _draw_targets(
    image: Mapping[Any, Any],
    step: int,
    folders: Mapping[str, str],
    experiment: Experiment,
) -> dict[str, Any]:
    """One training image of a step with its truth and the targets in some folders.

    Args:
        image: Row of the split.
        step: The step.
        folders: The method by folder of pseudo labels.
        experiment: Its classes.
    """
    name = image["id"]
    classes = ClassList(experiment.names, experiment.groups)
    truth = read_truth(image, experiment.groups[: step + 1])
    lines = {}
    for folder, method in folders.items():
        labels = read_label_image(Path(folder) / f"{name}.png")
        errors = _describe_errors(count_errors(truth, labels, classes, step))
        title = f"targets of {method}"
        lines[method] = [_draw_mask(labels, classes, title, errors, step)]
    return {
        "name": name,
        "image": _draw_photograph(image, "image", f"training image {name}"),
        "truth": _draw_mask(truth, classes, "truth, hidden from the step"),
        "lines": lines,
        "columns": ["targets"],
        "classes": classes,
    }
