"""The jobs of a step that run a trained network forward: bank, pseudo labels, test.

    kproba-launch --processes 2 kproba.inference bank --job '{..}' --model ..

Each reads artifacts, calls the method's functions and writes artifacts. Several
processes share the images: the batches of a single process are dealt out in turn, so
every number of processes sees every image once, in the same company.
"""

import argparse
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from kproba.artifacts import (
    atomic_directory,
    fingerprint,
    provenance,
    read_json,
    write_label_image,
)
from kproba.data import Batch, whole_image_loader
from kproba.distributed import ALONE, Process
from kproba.evaluation import (
    EvaluationSettings,
    channel_order,
    evaluate,
    ground_truth_table,
    select_rows,
    step_of_class,
    write_results,
)
from kproba.job import add_machine_arguments, job_process
from kproba.model import SegmentationNetwork, load_model
from kproba.prediction import load_predictor
from kproba.progress import Stage
from kproba.prototypes import (
    BankSettings,
    FeatureBatch,
    PrototypeBank,
    bank_features,
    bank_of_model,
    build_bank,
    draw_sample,
    sampled_images,
)
from kproba.pseudo_labels import PseudoLabelSettings, export
from kproba.segmenter import SeenClass, describe
from kproba.splits import (
    IGNORE,
    UNSURE,
    Groups,
    LabelMap,
    evenly_spaced,
    read_index,
    read_indices,
)
from kproba.training import StepSettings, first_network

log = logging.getLogger("kproba")

Classes = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Reading:
    """How a process reads and passes images; changes speed, never the result.

    Attributes:
        batch_size: Images per forward pass.
        workers: Loader processes.
        process: This one of several that share the images.
    """

    batch_size: int = 8
    workers: int = 0
    process: Process = ALONE

    def batches(self, rows: pd.DataFrame, table: np.ndarray, what: str) -> Stage[Batch]:
        """This process's part of whole images with mapped masks, and how far it is."""
        loader = whole_image_loader(
            rows,
            table,
            batch_size=self.batch_size,
            workers=self.workers,
            process=self.process,
        )
        own: list[list[int]] = loader.batch_sampler  # type: ignore[assignment]
        return Stage(
            loader,
            what,
            sum(map(len, own)),
            size=lambda batch: len(batch.ids),
            shown=self.process.first,
        )


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
        keep_temperature: See `kproba.prototypes.build_bank`.
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


def _tuples(groups: Classes) -> Groups:
    return tuple(tuple(group) for group in groups)


# --- command line ------------------------------------------------------------------

# Per job its function, the files that it needs and those that it may have.
JOBS: dict[str, tuple[Any, tuple[str, ...], tuple[str, ...]]] = {
    "bank": (
        bank_of_step,
        ("model", "split", "bank"),
        ("previous", "pseudo_labels", "network", "weights"),
    ),
    "pseudo-labels": (
        pseudo_labels_of_step,
        ("model", "split", "labels", "table", "quality"),
        ("bank", "source"),
    ),
    "evaluation": (
        evaluate_step,
        ("model", "indices", "evaluation", "confusion", "examples", "predictor_file"),
        ("bank", "source"),
    ),
}


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="kproba.inference", description="Bank, pseudo labels or test of a step."
    )
    jobs = parser.add_subparsers(dest="name", required=True)
    for name, (_, needed, optional) in JOBS.items():
        job = jobs.add_parser(name)
        job.add_argument(
            "--job", type=json.loads, required=True, help="settings as JSON"
        )
        for file in (*needed, *optional):
            flag = f"--{file.replace('_', '-')}"
            if file == "indices":
                job.add_argument(flag, type=Path, nargs="+", required=True)
            elif file in needed:
                job.add_argument(flag, type=Path, required=True)
            else:
                job.add_argument(flag, type=Path, nargs="?", help="or nothing")
        job.add_argument("--batch-size", type=int, default=8)
        add_machine_arguments(job)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Do one job; exit status 1 with a message when it cannot be done."""
    options = arguments(argv)
    function, needed, optional = JOBS[options.name]
    with job_process(options) as process:
        function(
            **{file: getattr(options, file) for file in (*needed, *optional)},
            **options.job,
            reading=Reading(options.batch_size, options.workers, process),
        )


if __name__ == "__main__":
    main()
