"""The jobs of a step that run a trained network forward: bank, pseudo labels, test.

Each reads artifacts, calls the method's functions and writes artifacts.
"""

from collections.abc import Iterator, Sequence
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
from kproba.data import whole_image_loader
from kproba.evaluation import (
    EvaluationSettings,
    channel_order,
    evaluate,
    ground_truth_table,
    select_rows,
    write_results,
)
from kproba.model import load_model
from kproba.prototypes import BankSettings, PrototypeBank, bank_features, build_bank
from kproba.pseudo_labels import PseudoLabelSettings, export
from kproba.splits import Groups, LabelMap, read_index

Classes = Sequence[Sequence[int]]

CELLS_PER_IMAGE = 64  # of the sample that standardises and calibrates a bank


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
    gpu: bool = False,
    threads: int = 1,
    batch_size: int = 8,
    workers: int = 0,
) -> None:
    """Build the bank of step t from model t and the images of step t.

    Args:
        model: model.safetensors of the step.
        split: Images of the step.
        bank: Output; a .json goes beside it.
        settings: `BankSettings` as a dictionary.
        groups: Raw labels of the classes of the steps 0..t.
        names: Names of S_t, background first.
        setting: "overlap", "disjoint" or "sequential".
        seed: Of maps and sample.
        previous: Bank of step t-1; None at step 0.
        pseudo_labels: Folder of the step's targets; None for the raw labels.
        gpu: Use the GPU.
        threads: CPU threads.
        batch_size: Images per forward pass.
        workers: Loader processes.
    """
    device = _prepare(gpu, threads)
    network = load_model(model, device=device)
    rows = read_index(split)
    label_map = LabelMap(_tuples(groups), setting)
    table = label_map.training_table()
    if pseudo_labels is not None:
        rows["mask"] = [str(Path(pseudo_labels) / f"{name}.png") for name in rows["id"]]
        table = np.arange(256, dtype=np.uint8)
    bank_settings = BankSettings(**settings)
    # Enough images for the sample of cells, spread over the step.
    wanted = min(len(rows), -(-bank_settings.calibration_cells // CELLS_PER_IMAGE))
    some = rows.iloc[np.linspace(0, len(rows) - 1, wanted).round().astype(int)]

    @torch.inference_mode()
    def batches(of: pd.DataFrame = rows) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for batch in whole_image_loader(
            of, table, batch_size=batch_size, workers=workers
        ):
            features = bank_features(network(batch.images.to(device)), bank_settings)
            yield features, batch.targets.to(device)

    before = None if previous is None else PrototypeBank.load(previous).to(device)
    built = build_bank(
        batches,
        bank_settings,
        classes=label_map.channels,
        seed=seed,
        images=wanted,
        sample=batches(some),
        previous=before,
    )
    built.save(
        bank,
        about={
            "classes": names,
            "model": fingerprint(Path(model)),
            "provenance": provenance(),
        },
    )


def pseudo_labels_of_step(
    model: str | Path,
    bank: str | Path | None,
    split: str | Path,
    labels: str | Path,
    table: str | Path,
    *,
    settings: dict[str, Any],
    groups: Classes,
    names: list[str],
    setting: str,
    gpu: bool = False,
    threads: int = 1,
    batch_size: int = 8,
    workers: int = 0,
) -> None:
    """Write the targets of step t with model and bank of step t-1.

    Args:
        model: model.safetensors of step t-1.
        bank: Its bank; None for the rules without.
        split: Images of step t.
        labels: Output folder, one palette PNG per image.
        table: Output CSV.
        settings: `PseudoLabelSettings` as a dictionary.
        groups: Raw labels of the classes of the steps 0..t.
        names: Names of S_t, background first.
        setting: "overlap", "disjoint" or "sequential".
        gpu: Use the GPU.
        threads: CPU threads.
        batch_size: Images per forward pass.
        workers: Loader processes.

    Raises:
        ValueError: The bank was built with another model.
    """
    device = _prepare(gpu, threads)
    loaded = None
    if bank is not None:
        made_with = read_json(Path(bank).with_suffix(".json"))["model"]
        if made_with != fingerprint(Path(model)):
            raise ValueError(
                f"Expected {bank} to be built with {model}, but it was built with "
                f"another model: features would not be comparable. Delete the bank "
                f"and run again."
            )
        loaded = PrototypeBank.load(bank).to(device)
    rows = read_index(split)
    label_map = LabelMap(_tuples(groups), setting)
    export(
        load_model(model, device=device),
        loaded,
        whole_image_loader(
            rows, label_map.training_table(), batch_size=batch_size, workers=workers
        ),
        labels,
        table,
        settings=PseudoLabelSettings(**settings),
        names=names[: label_map.first_new],
        device=device,
    )


def evaluate_step(
    model: str | Path,
    index: str | Path,
    evaluation: str | Path,
    confusion: str | Path,
    examples: str | Path,
    *,
    settings: dict[str, Any],
    groups: Classes,
    names: list[str],
    about: dict[str, Any],
    gpu: bool = False,
    threads: int = 1,
    batch_size: int = 8,
    workers: int = 0,
) -> None:
    """Test a model on all classes of the steps 0..t.

    Args:
        model: model.safetensors.
        index: Index of the dataset.
        evaluation: Output JSON.
        confusion: Output CSV.
        examples: Output folder: predictions of the example images, in output indices.
        settings: `EvaluationSettings` as a dictionary, and the number of `examples`.
        groups: Raw labels of the classes of the steps 0..t.
        names: Names of S_t, background first.
        about: Which run; goes into the JSON.
        gpu: Use the GPU.
        threads: CPU threads.
        batch_size: Images per forward pass.
        workers: Loader processes.
    """
    device = _prepare(gpu, threads)
    network = load_model(model, device=device)
    seen = _tuples(groups)
    protocol = {key: value for key, value in settings.items() if key != "examples"}
    how = EvaluationSettings(**protocol)
    rows = read_index(index)
    described = read_json(Path(model).with_suffix(".json"))["classes"]
    order = channel_order([entry["label"] for entry in described], LabelMap(seen).seen)
    tested = select_rows(rows, seen, how.policy)
    loader = whole_image_loader(
        tested,
        ground_truth_table(seen, how),
        batch_size=batch_size,
        workers=workers,
    )
    counts = evaluate(network, loader, how, channel_order=order, device=device)
    write_results(
        counts,
        evaluation,
        confusion,
        names=names,
        step_of_class=step_of_class(seen),
        settings=how,
        images=len(tested),
        about={**about, "class_order": list(LabelMap(seen).seen)},
    )
    shown = whole_image_loader(
        example_rows(rows, settings["examples"]),
        ground_truth_table(seen, how),
        batch_size=1,
    )
    with atomic_directory(examples) as folder, torch.inference_mode():
        for batch in shown:
            logits = network.predict_logits(batch.images.to(device))[:, order]
            labels = logits.argmax(dim=1)[0].to(torch.uint8).cpu()
            write_label_image(folder / f"{batch.ids[0]}.png", labels.numpy())


def example_rows(index: pd.DataFrame, count: int) -> pd.DataFrame:
    """Validation images shown in reports: evenly spaced in the order of their ids."""
    rows = index[index["subset"] == "val"].sort_values("id", ignore_index=True)
    places = np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)
    return rows.iloc[places].reset_index(drop=True)


def step_of_class(groups: Groups) -> list[int]:
    """Per output index the step that introduced it; background belongs to step 0."""
    return [0, *(step for step, group in enumerate(groups) for _ in group)]


def _tuples(groups: Classes) -> Groups:
    return tuple(tuple(group) for group in groups)


def _prepare(gpu: bool, threads: int) -> str:
    torch.set_num_threads(threads)
    if gpu and not torch.cuda.is_available():
        raise RuntimeError(
            "Expected a CUDA device, but PyTorch sees none. Set compute.gpus to 0 for "
            "the CPU, or check the driver and CUDA_VISIBLE_DEVICES."
        )
    return "cuda" if gpu else "cpu"
