"""TODO jobs.evaluate."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from kproba.bank.description import SeenClass, describe
from kproba.bank.predictor import load_predictor
from kproba.data.label_images import write_label_image
from kproba.data.labels import LabelMap
from kproba.data.loaders import whole_image_loader
from kproba.data.splits import evenly_spaced, read_indices
from kproba.jobs.images import Classes, Reading, _tuples
from kproba.results.evaluation import (
    EvaluationSettings,
    channel_order,
    evaluate,
    ground_truth_table,
    select_rows,
    step_of_class,
    write_results,
)
from kproba.runtime.files import atomic_directory, read_json

log = logging.getLogger("kproba")


def evaluate_step(
    model: str | Path,
    indices: Sequence[str | Path],
    evaluation: str | Path,
    confusion: str | Path,
    examples: str | Path,
    predictor_file: str | Path,
    *,
    settings: dict[str, Any],
    groups: Classes,
    names: list[str],
    about: dict[str, Any],
    rule: dict[str, Any] | None = None,
    bank: str | Path | None = None,
    source: str | Path | None = None,
    reading: Reading = Reading(),
) -> None:
    """Test a model, alone or with its bank, on all classes of the steps 0..t.

    Args:
        model: model.safetensors.
        indices: Index of the dataset and of the additions that have come so far.
        evaluation: Output JSON.
        confusion: Output CSV.
        examples: Output folder: predictions of the example images, in output indices.
        predictor_file: Output JSON: what was tested, for `kproba.load`.
        settings: `EvaluationSettings` as a dictionary, and the number of `examples`.
        groups: Raw labels of the classes of the steps 0..t.
        names: Names of S_t, background first.
        about: Which run; goes into the JSON.
        rule: `PseudoLabelSettings` as a dictionary: how network and bank decide
            together; None: the network alone.
        bank: Bank of the step, for that.
        source: model.safetensors of the bank's features, if not `model`.
        reading: Batches, workers, processes.

    Raises:
        ValueError: The bank was built with another model, or there is a rule and no
            bank.
    """
    process = reading.process
    predictor = load_predictor(
        model, bank=bank, source=source, rule=rule, device=process.device
    )
    seen = _tuples(groups)
    protocol = {key: value for key, value in settings.items() if key != "examples"}
    how = EvaluationSettings(**protocol)
    truth = ground_truth_table(seen, how)
    parts = read_indices(indices)
    rows = pd.concat(parts, ignore_index=True)
    described = read_json(Path(model).with_suffix(".json"))["classes"]
    order = channel_order([entry["label"] for entry in described], LabelMap(seen).seen)
    tested = select_rows(rows, seen, how.policy)
    counts = evaluate(
        predictor,
        reading.batches(tested, truth, "testing"),
        how,
        channel_order=order,
        process=process,
    )
    if not process.first:
        return
    write_results(
        counts,
        evaluation,
        confusion,
        names=names,
        step_of_class=step_of_class(seen),
        settings=how,
        images=len(tested),
        about={
            **about,
            "class_order": list(LabelMap(seen).seen),
            "prediction": "network" if rule is None else f"fused ({rule['rule']})",
        },
    )
    log.info("tested on %d images, result in %s", len(tested), evaluation)
    known = zip((0, *LabelMap(seen).seen), names, step_of_class(seen), strict=True)
    describe(
        predictor_file,
        network=model,
        bank=bank if rule is not None else None,
        source=source if rule is not None else None,
        rule=rule,
        classes=[SeenClass(*entry) for entry in known],
        channels=order,
        about=about,
    )
    shown = example_rows(parts, settings["examples"])
    with atomic_directory(examples) as folder, torch.inference_mode():
        for batch in whole_image_loader(shown, truth, batch_size=1):
            scores = predictor.predict_logits(batch.images.to(process.device))
            labels = scores[:, order].argmax(dim=1)[0].to(torch.uint8).cpu()
            write_label_image(folder / f"{batch.ids[0]}.png", labels.numpy())


def example_rows(parts: Sequence[pd.DataFrame], count: int) -> pd.DataFrame:
    """Validation images shown in reports: evenly spaced in the order of their ids.

    Args:
        parts: Index of the dataset and of its additions so far.
        count: Images of each.
    """
    validation = [index[index["subset"] == "val"] for index in parts]
    shown = [evenly_spaced(rows, count) for rows in validation]
    return pd.concat(shown, ignore_index=True)
