"""TODO jobs.build_bank."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from kproba.bank.bank import PrototypeBank, bank_features
from kproba.bank.build import FeatureBatch, build_bank, draw_sample, sampled_images
from kproba.bank.settings import BankSettings
from kproba.data.labels import IGNORE, UNSURE, LabelMap
from kproba.data.splits import read_index
from kproba.jobs.images import Classes, Reading, _tuples
from kproba.network.files import load_model
from kproba.network.network import SegmentationNetwork
from kproba.runtime.files import read_json
from kproba.runtime.provenance import fingerprint, provenance
from kproba.training.networks import first_network
from kproba.training.settings import StepSettings

log = logging.getLogger("kproba")


def bank_of_step(
    model: str | Path,
    split: str | Path,
    bank: str | Path,
    *,
    settings: dict[str, Any],
    groups: Classes,
    names: list[str],
    setting: str,
    seed: int,
    previous: str | Path | None = None,
    pseudo_labels: str | Path | None = None,
    network: str | Path | None = None,
    weights: str | Path | None = None,
    keep_temperature: bool = False,
    reading: Reading = Reading(),
) -> None:
    """Build the bank of step t from a model and the images of step t.

    Args:
        model: model.safetensors of the step, or of step 0 for a bank whose prototypes
            are of that network at every step.
        split: Images of the step.
        bank: Output; a .json goes beside it.
        settings: `BankSettings` as a dictionary.
        groups: Raw labels of the classes of the steps 0..t.
        names: Names of S_t, background first.
        setting: "overlap", "disjoint" or "sequential".
        seed: Of maps and sample.
        previous: Bank of step t-1; None at step 0.
        pseudo_labels: Folder of the step's targets; None for the raw labels.
        network: Whose features the prototypes are of, if not the model's: another
            model, or the settings.json of step 0 for the network before its training.
        weights: Of the backbone of that, if they come from a file.
        keep_temperature: See `kproba.bank.build.build_bank`.
        reading: Batches, workers, processes.
    """
    process = reading.process
    source = bank_network(network or model, weights, process.device)
    rows = read_index(split)
    label_map = LabelMap(_tuples(groups), setting)
    table = label_map.training_table()
    if pseudo_labels is not None:
        rows["mask"] = [str(Path(pseudo_labels) / f"{name}.png") for name in rows["id"]]
        table = np.arange(256, dtype=np.uint8)
        table[UNSURE] = IGNORE
    how = BankSettings(**settings)

    @torch.inference_mode()
    def features(of: pd.DataFrame, what: str) -> Iterator[FeatureBatch]:
        for batch in reading.batches(of, table, what):
            images = batch.images.to(process.device, non_blocking=True)
            targets = batch.targets.to(process.device, non_blocking=True)
            found = bank_features(source(images), how)
            yield FeatureBatch(found, targets, batch.keys.tolist())

    some = rows.iloc[sampled_images(len(rows), how)].reset_index(drop=True)
    sample = draw_sample(
        *(features(some, "drawing a sample of cells"), how),
        images=len(some),
        seed=seed,
        process=process,
    )
    before = None if previous is None else PrototypeBank.load(previous)
    built = build_bank(
        features(rows, "adding up the bank"),
        sample,
        how,
        classes=label_map.channels,
        seed=seed,
        previous=before and before.to(process.device),
        keep_temperature=keep_temperature,
        process=process,
    )
    if process.first:
        about = {
            "classes": names,
            "model": fingerprint(Path(model)),
            "provenance": provenance(),
        }
        built.save(bank, about=about)
        log.info("bank of %d images written to %s", len(rows), bank)


def bank_network(
    path: str | Path, weights: str | Path | None, device: str
) -> SegmentationNetwork:
    """A trained network, or from the settings of step 0 an untrained one."""
    if Path(path).suffix != ".json":
        return load_model(path, device=device)
    settings = StepSettings.from_dict(read_json(path))
    network = first_network(settings, weights)
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network.eval()
