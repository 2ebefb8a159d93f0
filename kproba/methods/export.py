"""TODO methods.export."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from kproba.bank.bank import PrototypeBank
from kproba.bank.fusion import PseudoLabelSettings
from kproba.data.label_images import write_label_image
from kproba.data.labels import UNSURE, LabelMap
from kproba.data.loaders import Batch
from kproba.methods.labels import entropy_thresholds, pseudo_label
from kproba.methods.quality import hidden_confusion, quality_table
from kproba.network.network import SegmentationNetwork
from kproba.runtime.distributed import ALONE, Process
from kproba.runtime.files import atomic_directory, atomic_path


def export(
    teacher: SegmentationNetwork,
    bank: PrototypeBank | None,
    batches: Iterable[Batch],
    folder: str | Path,
    table: str | Path,
    quality: str | Path,
    *,
    settings: PseudoLabelSettings,
    names: list[str],
    label_map: LabelMap,
    source: SegmentationNetwork | None = None,
    process: Process = ALONE,
) -> None:
    """Write the training target of every image of a step.

    Args:
        teacher: Network of step t-1.
        bank: Bank of that step; None for the rules without.
        batches: This process's images with their raw labels, read twice by the rule
            `entropy`; the table is in the order of their keys.
        folder: Gets one palette PNG per image, named by its id: the target with old
            classes in place of those 0 that the rule recognised.
        table: Gets a CSV: per image its background pixels, how many were recovered or
            are unsure, and per old class (by name) how many.
        quality: Gets a CSV: how good the labels are, see `kproba.methods.quality`.
        settings: The rule.
        names: Names of S_{t-1}, background first.
        label_map: Raw labels to the outputs of step t.
        source: Network of the bank's features, if not the teacher.
        process: This one of several that share the work; networks and bank are on its
            device.
    """
    thresholds = None
    if settings.rule == "entropy":
        thresholds = entropy_thresholds(teacher, batches, label_map, process)
    to_target = torch.from_numpy(label_map.training_table())
    side = label_map.first_new + 1
    confusion = torch.zeros(side, side, dtype=torch.int64)
    own: dict[int, dict[str, Any]] = {}  # rows of the table by key
    with atomic_directory(folder, process) as temporary:
        for batch in batches:
            images = batch.images.to(process.device, non_blocking=True)
            targets = to_target[batch.targets.long()]
            hidden = targets == 0
            found = pseudo_label(
                *(teacher, bank, images, settings, thresholds, source),
                hidden=hidden.to(process.device),
            ).cpu()
            merged = torch.where(hidden, found, targets)
            confusion += hidden_confusion(batch.targets, found, label_map)
            for key, name, target, label, zero in zip(
                batch.keys.tolist(), batch.ids, merged, found, hidden, strict=True
            ):
                write_label_image(temporary / f"{name}.png", target.numpy())
                counts = torch.bincount(label[zero], minlength=256)
                own[key] = _table_row(name, target.numel(), counts.tolist(), names)
        rows = {key: row for part in process.gather(own) for key, row in part.items()}
        confusion = torch.stack(process.gather(confusion)).sum(dim=0)
        if process.first:
            with atomic_path(quality) as temporary_table:
                judged = quality_table(confusion, names)
                judged.to_csv(temporary_table, index=False, float_format="%.4f")
            with atomic_path(table) as temporary_table:
                lines = [rows[key] for key in sorted(rows)]
                pd.DataFrame(lines).to_csv(temporary_table, index=False)


def _table_row(
    name: str, pixels: int, counts: list[int], names: list[str]
) -> dict[str, Any]:
    """One image: what its background pixels were taken for, class by class."""
    found = counts[1 : len(names)]
    row: dict[str, Any] = {
        "id": name,
        "pixels": pixels,
        "background": sum(counts),
        "recovered": sum(found),
        "unsure": counts[UNSURE],
    }
    for label, count in zip(names[1:], found, strict=True):
        row[label if label not in row else f"{label} (class)"] = count
    return row
