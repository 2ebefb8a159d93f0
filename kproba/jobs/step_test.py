"""The evaluation of a step, from files to files."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from kproba.bank.decision import Decision
from kproba.bank.description import SeenClass, StepDescription, write_description
from kproba.bank.predictor import load_predictor
from kproba.data.folders import Folders
from kproba.data.label_images import write_label_image
from kproba.data.labels import IGNORE, LabelMap
from kproba.data.splits import evenly_spaced, parse_classes, read_indices
from kproba.data.whole_images import whole_image_loader
from kproba.jobs.batches import image_batches, to_groups
from kproba.network.record import read_model_record
from kproba.results.evaluation import (
    EvaluationSettings,
    Predictor,
    channel_order,
    evaluate,
    ground_truth_table,
    predicted_labels,
    select_rows,
    step_of_class,
    write_results,
)
from kproba.runtime.compute import Compute
from kproba.runtime.distributed import Process
from kproba.runtime.files import atomic_directory

log = logging.getLogger("kproba")


@dataclass(frozen=True)
class TestFiles:
    """Inputs and outputs.

    Attributes:
        model: model.safetensors of the network that is evaluated.
        indices: Index of the dataset and of the additions that are available at this
            step.
        evaluation: Output JSON.
        confusion: Output CSV.
        examples: Output folder: predictions of the example images, in output indices.
        predictor: Output JSON for `kproba.load`, with the evaluated files.
        bank: Bank of the step, if network and bank are combined.
        feature_network: model.safetensors of the bank's features, if not `model`.
        folders: Folders of the pictures, by dataset or addition.
    """

    __test__ = False  # not for pytest

    model: Path
    indices: tuple[Path, ...]
    evaluation: Path
    confusion: Path
    examples: Path
    predictor: Path
    bank: Path | None = None
    feature_network: Path | None = None
    folders: Mapping[str, Folders] = field(default_factory=dict)


def test_step(
    files: TestFiles, job: dict[str, Any], compute: Compute, process: Process
) -> None:
    """Evaluate a model, alone or with its bank, on all classes of the steps 0..t.

    Args:
        files: Inputs and outputs.
        job: `run`, the names of run and step, for the JSON; `settings` of the
            evaluation and the number of `examples`; `groups`, the raw labels of the
            classes of the steps 0..t; `names` of S_t; `decision`, how network and bank
            are combined, None for the network alone; and, where they are not the usual
            ones, `label_offset` of the dataset, `values`, the mask value of each raw
            label, `long_side` of the pictures, and `leave_out_absent`.
        compute: Compute options.
        process: This process of several.

    Raises:
        ValueError: The bank was built with another model, or there is a decision and no
            bank.
    """
    decision = job["decision"] and Decision.from_dict(job["decision"])
    predictor = load_predictor(
        files.model,
        bank=files.bank,
        feature_network=files.feature_network,
        decision=decision,
        device=process.device,
    )
    groups = to_groups(job["groups"])
    protocol = {k: v for k, v in job["settings"].items() if k != "examples"}
    settings = EvaluationSettings(
        **protocol, leave_out_absent=job.get("leave_out_absent", False)
    )
    truth = ground_truth_table(groups, settings)
    parts = read_indices(files.indices, files.folders)
    seen = LabelMap(groups).seen
    order = channel_order(read_model_record(files.model).labels, seen, files.model)
    rows = select_rows(pd.concat(parts, ignore_index=True), groups, settings.policy)
    # With a crop, all images have one size, but only after loading.
    anchor = predictor.network.backbone.anchor if settings.crop is None else None
    confusion = evaluate(
        predictor,
        image_batches(rows, truth, compute, process, "evaluating", anchor),
        settings,
        channel_order=order,
        process=process,
    )
    if not process.first:
        return
    prediction = "network" if decision is None else f"fused ({decision.rule})"
    write_results(
        confusion,
        files.evaluation,
        files.confusion,
        names=job["names"],
        step_of_class=step_of_class(groups),
        settings=settings,
        images=len(rows),
        about={
            **job["run"],
            "class_order": list(seen),
            "prediction": prediction,
            "without_training_images": _untrained(parts, job),
        },
    )
    log.info(
        "evaluated on %d validation images; wrote the results to %s",
        len(rows),
        files.evaluation,
    )
    _describe(files, job, order)
    examples = example_rows(parts, job["settings"]["examples"])
    _write_examples(files.examples, predictor, examples, truth, order, process.device)


test_step.__test__ = False  # type: ignore[attr-defined]  # not for pytest


def _untrained(parts: Sequence[pd.DataFrame], job: dict[str, Any]) -> list[str]:
    """Names of the classes that no training image shows.

    Empty for a packed step, because its training images are not available.
    """
    if job.get("leave_out_absent", False):
        return []
    shown: set[int] = set()
    for index in parts:
        for cell in index[index["subset"] == "train"]["classes"]:
            shown |= parse_classes(cell)
    seen = LabelMap(to_groups(job["groups"])).seen
    named = zip(seen, job["names"][1:], strict=True)
    return [name for label, name in named if label not in shown]


def _describe(files: TestFiles, job: dict[str, Any], order: Sequence[int]) -> None:
    """Write predictor.json, whose labels are the values in the dataset's own masks.

    With a label offset, the masks have no value for the background: it is 255 here.
    """
    groups = to_groups(job["groups"])
    offset = job.get("label_offset", 0)
    background = IGNORE if offset else 0
    values = job.get("values", {})
    seen = [0, *LabelMap(groups).seen]
    labels = [values.get(str(label), label - offset) for label in seen]
    labels[0] = values.get("0", background)
    classes = zip(labels, job["names"], step_of_class(groups), strict=True)
    both = job["decision"] is not None
    description = StepDescription(
        network=files.model,
        bank=files.bank if both else None,
        feature_network=files.feature_network if both else None,
        decision=job["decision"],
        classes=tuple(SeenClass(*entry) for entry in classes),
        channels=tuple(order),
        about=job["run"],
        long_side=job.get("long_side"),
    )
    write_description(files.predictor, description)


def _write_examples(
    folder: Path,
    predictor: Predictor,
    rows: pd.DataFrame,
    truth: np.ndarray,
    order: Sequence[int],
    device: str,
) -> None:
    """Write the predictions of the example images."""
    with atomic_directory(folder) as temporary, torch.inference_mode():
        for batch in whole_image_loader(rows, truth, batch_size=1):
            images = batch.images.to(device)
            labels = torch.zeros(batch.targets.shape, dtype=torch.uint8)
            for place, predicted in predicted_labels(predictor, images, order):
                labels[place] = predicted.to(torch.uint8).cpu()
            write_label_image(temporary / f"{batch.ids[0]}.png", labels[0].numpy())


def example_rows(parts: Sequence[pd.DataFrame], count: int) -> pd.DataFrame:
    """Validation images for the report: evenly spaced in the order of their ids.

    Args:
        parts: Index of the dataset and of each addition that is available at this step.
        count: Images of each.
    """
    validation = [index[index["subset"] == "val"] for index in parts]
    chosen = [evenly_spaced(rows, count) for rows in validation]
    return pd.concat(chosen, ignore_index=True)
