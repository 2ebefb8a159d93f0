"""The pseudo labels of a step, from files to files."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kproba.bank.fusion import Combination
from kproba.data.folders import Folders
from kproba.data.labels import LabelMap
from kproba.data.splits import read_index
from kproba.extensions import load_recorded
from kproba.jobs.batches import image_batches, to_groups
from kproba.methods.export import LabelFiles, export_labels
from kproba.methods.labels import Labeller, LabelSettings
from kproba.network.folding import load_folded
from kproba.network.record import read_model_record
from kproba.runtime.compute import Compute
from kproba.runtime.distributed import Process
from kproba.runtime.records import REMAKE, ArtifactError

log = logging.getLogger("kproba")


@dataclass(frozen=True)
class LabelInputs:
    """The input files, and names of classes.

    Attributes:
        model: model.safetensors of step t-1.
        split: Images of step t.
        bank: Bank of step t-1; None for the rules without.
        feature_network: model.safetensors of the bank's features, if not `model`.
        folders: Folders of the pictures, by dataset or addition.
        names: Names of the classes so far, for the tables; empty: use labels instead.
    """

    model: Path
    split: Path
    bank: Path | None = None
    feature_network: Path | None = None
    folders: Mapping[str, Folders] = field(default_factory=dict)
    names: Sequence[str] = ()


def label_step(
    inputs: LabelInputs,
    outputs: LabelFiles,
    job: dict[str, Any],
    compute: Compute,
    process: Process,
) -> None:
    """Write the targets of step t with model and bank of step t-1.

    Args:
        inputs: Input files.
        outputs: Output files.
        job: `settings` of the labels; `groups`, the raw labels of the classes of the
            steps 0..t; `sequential`; `extensions`, if there are any.
        compute: Compute options.
        process: This process of several.

    Raises:
        ValueError: The bank was built with another model, or the rule needs one.
    """
    load_recorded(job.get("extensions", []))
    settings = LabelSettings.from_dict(job["settings"])
    network, combination = load_folded(inputs.model, device=process.device), None
    if inputs.bank is not None and settings.decision is not None:
        combination = Combination.load(
            inputs.bank,
            settings.decision,
            network=inputs.model,
            feature_network=inputs.feature_network,
            device=process.device,
        ).beside(network)
    rows = read_index(inputs.split, inputs.folders)
    setting = "sequential" if job["sequential"] else "overlap"
    label_map = LabelMap(to_groups(job["groups"]), setting)
    seen = [0, *label_map.seen[: label_map.first_new - 1]]
    if not read_model_record(inputs.model).has_labels(seen):
        raise ArtifactError(
            f"Expected {inputs.model} to be the model of the previous step with the "
            f"labels {', '.join(map(str, seen))}, but it has other labels. It belongs "
            f"to another step or task. {REMAKE}"
        )
    raw = np.arange(256, dtype=np.uint8)
    export_labels(
        Labeller(network, settings, combination),
        image_batches(
            rows, raw, compute, process, "labelling", network.backbone.anchor
        ),
        outputs,
        label_map=label_map,
        names=inputs.names,
        process=process,
    )
    if process.first:
        log.info(
            "wrote the training targets of %d images to %s", len(rows), outputs.folder
        )
