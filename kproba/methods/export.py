"""Writes the training targets of a step: true labels and pseudo labels."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from kproba.data.label_images import write_label_image
from kproba.data.labels import UNSURE, LabelMap
from kproba.data.loaders import Batch
from kproba.methods.labels import Labeller
from kproba.methods.quality import hidden_confusion, quality_table
from kproba.methods.rules import RULES
from kproba.runtime.distributed import ALONE, Process
from kproba.runtime.files import atomic_directory, atomic_path
from kproba.runtime.references import resolve

STRIP = 2**22  # pixels that are counted at once


@dataclass(frozen=True)
class LabelFiles:
    """Outputs of the export.

    Attributes:
        folder: Gets one palette PNG per image, named by its id: the target, with old
            classes where the rule replaced a 0.
        table: Gets a CSV: per image the number of background pixels, of recovered and
            of unsure pixels, and of pixels of each old class (by name).
        quality: Gets a CSV with the quality of the labels, see
            `kproba.methods.quality`.
    """

    folder: Path
    table: Path
    quality: Path


def export_labels(
    labeller: Labeller,
    batches: Iterable[Batch],
    files: LabelFiles,
    *,
    label_map: LabelMap,
    names: Sequence[str] = (),
    process: Process = ALONE,
) -> None:
    """Write the training target of every image of a step.

    Args:
        labeller: Network of step t-1, with its bank where the rule reads one.
        batches: This process's images with their raw labels, read twice by the rule
            `entropy`; the table is in the order of their keys.
        files: Outputs.
        label_map: Raw labels to the outputs of step t.
        names: Names of S_t for the tables, background first; empty: labels are used.
        process: This process of several that share the work; the networks and the bank
            are on its device.
    """
    prepare = RULES[labeller.settings.rule].prepare
    if prepare is not None:
        thresholds = resolve(prepare)(labeller.network, batches, label_map, process)
        labeller = replace(labeller, thresholds=thresholds)
    to_target = torch.from_numpy(label_map.training_table())
    side = label_map.first_new + 1
    old = (0, *label_map.seen[: label_map.first_new - 1])
    titles = list(names[: len(old)]) or [f"label {label}" for label in old]
    confusion = torch.zeros(side, side, dtype=torch.int64)
    rows: dict[int, dict[str, Any]] = {}  # of the table, by key
    with atomic_directory(files.folder, process) as temporary:
        for batch in batches:
            targets = to_target[batch.targets.int()]
            hidden = targets == 0
            images = batch.images.to(process.device, non_blocking=True)
            where = hidden.to(process.device, non_blocking=True)
            labels = labeller.label(images, where, batch.sizes).cpu()
            merged = torch.where(hidden, labels, targets)
            for rows_of_image in _strips(batch.targets):
                raw, given = (x[:, rows_of_image] for x in (batch.targets, labels))
                confusion += hidden_confusion(raw, given, label_map)
            places = batch.places
            for number, key in enumerate(batch.keys.tolist()):
                name, place = batch.ids[number], places[number]
                target = merged[place][0].numpy()
                write_label_image(temporary / f"{name}.png", target)
                of_hidden = labels[place][hidden[place]].numpy()
                rows[key] = _table_row(name, target.size, of_hidden, titles)
        for part in process.gather(rows):
            rows.update(part)
        confusion = torch.stack(process.gather(confusion)).sum(dim=0)
        if process.first:
            with atomic_path(files.quality) as temporary_table:
                quality = quality_table(confusion, old, titles)
                quality.to_csv(temporary_table, index=False, float_format="%.4f")
            with atomic_path(files.table) as temporary_table:
                table = pd.DataFrame([rows[key] for key in sorted(rows)])
                table.to_csv(temporary_table, index=False)


def _strips(labels: torch.Tensor) -> Iterator[slice]:
    """Rows of labels (B, H, W) that have at most `STRIP` pixels together."""
    images, height, width = labels.shape
    step = max(1, STRIP // (images * width))
    for top in range(0, height, step):
        yield slice(top, min(top + step, height))


def _table_row(
    name: str, pixels: int, labels: np.ndarray, titles: Sequence[str]
) -> dict[str, Any]:
    """A row of the table.

    Args:
        name: Id of the image.
        pixels: Pixels of the whole image.
        labels: Pseudo labels (n,) uint8 of its background pixels.
        titles: Names of S_{t-1}, background first.
    """
    counts = np.bincount(labels, minlength=256).tolist()
    recovered = counts[1 : len(titles)]
    row: dict[str, Any] = {
        "id": name,
        "pixels": pixels,
        "background": sum(counts),
        "recovered": sum(recovered),
        "unsure": counts[UNSURE],
    }
    for title, count in zip(titles[1:], recovered, strict=True):
        row[title if title not in row else f"{title} (class)"] = count
    return row
