"""TODO jobs.export_labels."""

import logging
from pathlib import Path
from typing import Any

import numpy as np

from kproba.bank.bank import bank_of_model
from kproba.bank.fusion import PseudoLabelSettings
from kproba.data.labels import LabelMap
from kproba.data.splits import read_index
from kproba.jobs.images import Classes, Reading, _tuples
from kproba.methods.export import export
from kproba.network.files import load_model

log = logging.getLogger("kproba")


def pseudo_labels_of_step(
    model: str | Path,
    bank: str | Path | None,
    split: str | Path,
    labels: str | Path,
    table: str | Path,
    quality: str | Path,
    *,
    settings: dict[str, Any],
    groups: Classes,
    names: list[str],
    setting: str,
    source: str | Path | None = None,
    reading: Reading = Reading(),
) -> None:
    """Write the targets of step t with model and bank of step t-1.

    Args:
        model: model.safetensors of step t-1.
        bank: Bank of step t-1; None for the rules without.
        split: Images of step t.
        labels: Output folder, one palette PNG per image.
        table: Output CSV of what was found in every image.
        quality: Output CSV of how good it is, per class.
        settings: `PseudoLabelSettings` as a dictionary.
        groups: Raw labels of the classes of the steps 0..t.
        names: Names of S_t, background first.
        setting: "overlap", "disjoint" or "sequential".
        source: model.safetensors of the bank's features, if not `model`.
        reading: Batches, workers, processes.

    Raises:
        ValueError: The bank was built with another model.
    """
    process = reading.process
    loaded = other = None
    if bank is not None:
        loaded = bank_of_model(bank, source or model, process.device)
    if source is not None:
        other = load_model(source, device=process.device)
    rows = read_index(split)
    label_map = LabelMap(_tuples(groups), setting)
    export(
        load_model(model, device=process.device),
        loaded,
        reading.batches(rows, np.arange(256, dtype=np.uint8), "labelling"),
        labels,
        table,
        quality,
        settings=PseudoLabelSettings(**settings),
        names=names[: label_map.first_new],
        label_map=label_map,
        source=other,
        process=process,
    )
    if process.first:
        log.info("targets of %d images written to %s", len(rows), labels)
