"""TODO results.page_pictures."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from kproba.data.drawing import class_colours
from kproba.data.label_images import read_label_image
from kproba.data.labels import UNSURE, LabelMap
from kproba.data.splits import evenly_spaced, read_index, read_indices
from kproba.results.cells import Picture
from kproba.results.experiment import Experiment
from kproba.results.tables import Row

SIDE = 256  # pixels of the longer side of a picture, at most


LABEL_PICTURES = 2  # training images per step that are shown with their pseudo labels


NAMED = 3  # classes in the caption of a picture


def _embedded(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _photograph(path: str | Path, title: str, alt: str) -> Picture:
    with Image.open(path) as image:
        small = image.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return Picture(title, _embedded(buffer.getvalue(), "image/jpeg"), alt)


def _mask(labels: np.ndarray, names: Sequence[str], title: str) -> Picture:
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
    found = [
        f"{names[index]} {_percent(counts, index)}" for index in order if counts[index]
    ]
    if counts[UNSURE]:
        found.append(f"unsure {_percent(counts, UNSURE)}")
    more = len(found) - NAMED
    text = ", ".join(found[:NAMED]) + (f" and {more} more" if more > 0 else "")
    text = text or "background"
    source = _embedded(buffer.getvalue(), "image/png")
    return Picture(title, source, f"{title}: {text}", text)


def _percent(counts: np.ndarray, index: int) -> str:
    share = 100 * counts[index] / counts.sum()
    return f"{share:.0f} %" if share >= 1 else "< 1 %"


def _palette(names: Sequence[str]) -> np.ndarray:
    palette = class_colours(len(names)).copy()
    palette[UNSURE] = 190
    return palette


def _legend(names: Sequence[str]) -> list[tuple[str, str]]:
    """Colour and name of every class."""
    palette = _palette(names)
    return [
        (f"rgb({red},{green},{blue})", name)
        for name, (red, green, blue) in zip(names, palette[: len(names)], strict=True)
    ]


def _pictures(experiment: Experiment, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The same validation images through the steps of every method, of one seed."""
    index = pd.concat(read_indices(experiment.indices))
    image_of = dict(zip(index["id"], index["image"], strict=True))
    mask_of = dict(zip(index["id"], index["mask"], strict=True))
    table = LabelMap(experiment.groups).evaluation_table()
    names = sorted({path.stem for row in rows for path in _examples(row)})
    shown = []
    for name in names:
        lines: dict[str, list[Picture | None]] = {}
        for row in rows:
            line = lines.setdefault(row["method"], [None] * len(experiment.groups))
            path = Path(row["examples"]) / f"{name}.png"
            if path.is_file():
                title = f"{row['method']}, step {row['step']}"
                labels = read_label_image(path)
                line[row["step"]] = _mask(labels, experiment.names, title)
        truth = table[read_label_image(mask_of[name])]
        shown.append(
            {
                "name": name,
                "image": _photograph(image_of[name], "image", f"image {name}"),
                "truth": _mask(truth, experiment.names, "ground truth"),
                "lines": lines,
            }
        )
    return shown


def _examples(row: Row) -> list[Path]:
    return sorted(Path(row["examples"]).glob("*.png"))


def _label_pictures(
    experiment: Experiment, rows: Sequence[Row]
) -> list[tuple[int, list[list[Picture]]]]:
    """Per step some training images with hidden truth and pseudo labels of one seed."""
    shown = []
    for step in range(1, len(experiment.groups)):
        folders: dict[str, str] = {}  # shared labels once
        for row in rows:
            if row["step"] == step and row["labels"]:
                folders.setdefault(row["labels"], row["method"])
        if not folders:
            continue
        [split] = {
            row["split"] for row in rows if row["step"] == step and row["labels"]
        }
        table = LabelMap(experiment.groups[: step + 1]).evaluation_table()
        lines = []
        for image in evenly_spaced(read_index(split), LABEL_PICTURES).itertuples():
            truth = table[read_label_image(str(image.mask))]
            line = [
                _photograph(str(image.image), "image", f"training image {image.id}"),
                _mask(truth, experiment.names, "truth, hidden from the step"),
            ]
            for folder, method in folders.items():
                labels = read_label_image(Path(folder) / f"{image.id}.png")
                line.append(_mask(labels, experiment.names, f"targets of {method}"))
            lines.append(line)
        shown.append((step, lines))
    return shown
