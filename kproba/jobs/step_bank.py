"""The prototype bank of a step, from files to a file."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from kproba.bank.bank import PrototypeBank, bank_features
from kproba.bank.build import FeatureBatch, build_bank, draw_sample, sampled_images
from kproba.bank.settings import BankSettings
from kproba.bank.views import views
from kproba.data.folders import Folders
from kproba.data.labels import IGNORE, UNSURE, LabelMap
from kproba.data.splits import read_index
from kproba.jobs.batches import cut_batch, image_batches, to_groups
from kproba.network.folding import fold_all, load_folded
from kproba.network.network import SegmentationNetwork
from kproba.runtime.compute import Compute
from kproba.runtime.distributed import Process
from kproba.runtime.provenance import fingerprint, provenance
from kproba.runtime.records import REMAKE, ArtifactError
from kproba.training.networks import build_first_network
from kproba.training.settings import read_settings

log = logging.getLogger("kproba")

OWN_SIZE = ({"factor": 1.0},)


@dataclass(frozen=True)
class BankFiles:
    """Inputs and output.

    Attributes:
        model: model.safetensors that the bank belongs to: the model of the step, or of
            step 0, or of the network before its training, if the prototypes always use
            that network.
        split: Images of the step.
        bank: Output; a .json goes beside it.
        previous: Bank of step t-1; None at step 0.
        pseudo_labels: Folder of the step's targets; None for the raw labels.
        network: Another model, if the prototypes use its features.
        untrained: settings.json of step 0, if the prototypes use the features of its
            network before training.
        weights: File with the backbone weights of that network, if there is one.
        folders: Folders of the pictures, by dataset or addition.
    """

    model: Path
    split: Path
    bank: Path
    previous: Path | None = None
    pseudo_labels: Path | None = None
    network: Path | None = None
    untrained: Path | None = None
    weights: Path | None = None
    folders: Mapping[str, Folders] = field(default_factory=dict)


def build_step_bank(
    files: BankFiles, job: dict[str, Any], compute: Compute, process: Process
) -> None:
    """Build the bank of step t from a model and the images of step t.

    Args:
        files: Inputs and output.
        job: `settings` of the bank; `groups`, the raw labels of the classes of the
            steps 0..t; `sequential`; `seed`; `keep_temperature`; and `sizes`, where
            the images are not read once at their own size (`scaled_rows`), and
            `network`, which network has the features, if it is not that of a step.
        compute: Compute options.
        process: This process of several.
    """
    network = _feature_network(files, process.device)
    setting = "sequential" if job["sequential"] else "overlap"
    label_map = LabelMap(to_groups(job["groups"]), setting)
    rows, table = _targets(files, label_map)
    settings = BankSettings(**job["settings"])
    sizes = job.get("sizes", OWN_SIZE)

    @torch.inference_mode()
    def features(chosen: pd.DataFrame, what: str) -> Iterator[FeatureBatch]:
        anchor = network.backbone.anchor
        for number, size in enumerate(sizes):
            scaled, first = scaled_rows(chosen, size), number * len(chosen)
            for batch in image_batches(scaled, table, compute, process, what, anchor):
                for part in cut_batch(batch):
                    images = part.images.to(process.device, non_blocking=True)
                    targets = part.targets.to(process.device, non_blocking=True)
                    for view in views(network, images, part.sizes):
                        maps = bank_features(view.outputs, settings)
                        # An image counts as another one at each size.
                        keys = (part.keys[view.place[0]] + first).tolist()
                        yield FeatureBatch(maps, targets[view.place], keys)

    chosen = rows.iloc[sampled_images(len(rows), settings)].reset_index(drop=True)
    sample = draw_sample(
        features(chosen, "sampling cells"),
        settings,
        images=len(chosen) * len(sizes),
        seed=job["seed"],
        process=process,
    )
    previous = None
    if files.previous is not None:
        previous = PrototypeBank.load(files.previous).to(process.device)
        _check_previous(previous, settings, label_map, files.previous)
    bank = build_bank(
        features(rows, "adding up class statistics"),
        sample,
        settings,
        classes=label_map.channels,
        seed=job["seed"],
        previous=previous,
        keep_temperature=job["keep_temperature"],
        process=process,
    )
    if process.first:
        about = {
            "labels": [0, *label_map.seen],
            "model": fingerprint(files.model),
            "provenance": provenance(),
            **({"network": job["network"]} if "network" in job else {}),
        }
        bank.save(files.bank, about=about)
        log.info(
            "built the bank from %d images and wrote it to %s", len(rows), files.bank
        )


def scaled_rows(rows: pd.DataFrame, size: Mapping[str, float]) -> pd.DataFrame:
    """Rows of a split whose images are read at another size.

    Args:
        rows: With the columns `width` and `height`.
        size: `factor` of both sides, or the length of the `shorter_side` in pixels, as
            the evaluation scales an image for its crop.
    """
    width, height = rows["width"], rows["height"]
    if "factor" in size:
        factor: Any = size["factor"]
        least = 1.0
    else:
        least = size["shorter_side"]
        factor = least / np.minimum(width, height)
    sides = {"width": factor * width, "height": factor * height}
    if (factor == np.ones(len(rows))).all():
        return rows
    scaled = {
        name: np.maximum(values.round(), least).astype(int)
        for name, values in sides.items()
    }
    return rows.assign(**scaled)


def _check_previous(
    bank: PrototypeBank, settings: BankSettings, label_map: LabelMap, path: Path
) -> None:
    """Refuse a bank of another step or with other maps.

    Raises:
        ArtifactError: It does not have the classes and maps of the previous step.
    """
    kind: tuple[str, ...] = ("feature", "context", "map", "scatter", "background")
    if settings.map != "identity":
        kind += ("dimension", "maps")
    found, expected = (
        {"classes": classes, **{key: getattr(each, key) for key in kind}}
        for classes, each in (
            (bank.classes, bank.settings),
            (label_map.first_new, settings),
        )
    )
    wrong = [key for key in found if found[key] != expected[key]]
    if wrong:
        raise ArtifactError(
            f"Expected {path} to be the bank of the previous step, with "
            f"{expected[wrong[0]]} for `{wrong[0]}`, but it has {found[wrong[0]]}. "
            f"{REMAKE}"
        )


def _targets(files: BankFiles, label_map: LabelMap) -> tuple[pd.DataFrame, np.ndarray]:
    """Rows with the masks to read, and the table (256,) from mask to target."""
    rows, table = read_index(files.split, files.folders), label_map.training_table()
    if files.pseudo_labels is not None:
        folder = files.pseudo_labels
        rows["mask"] = [str(folder / f"{name}.png") for name in rows["id"]]
        # Targets contain output indices, and are not in the folder of the dataset.
        rows["label_offset"], rows["mask_sha256"] = 0, ""
        table = np.arange(256, dtype=np.uint8)
        table[UNSURE] = IGNORE
    return rows, table


def _feature_network(files: BankFiles, device: str) -> SegmentationNetwork:
    """The network of the prototypes' features."""
    if files.untrained is None:
        return load_folded(files.network or files.model, device=device)
    network = build_first_network(read_settings(files.untrained), files.weights)
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return fold_all(network)
