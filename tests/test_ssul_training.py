"""Steps 0 and 1 of SSUL: what they train, and that they are resumed and shared."""

import os
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file
from small_networks import ARCHITECTURE
from snakemake_calls import jobs, snakemake
from training_runs import SMALL_RATES, STATE, trained
from training_steps import (
    command,
    interrupt,
    largest_relative_difference,
    launch,
    step_settings,
    write_data,
)
from whole_runs import write_config

from kproba.data.label_images import read_label_image, write_label_image
from kproba.data.labels import UNKNOWN, LabelMap
from kproba.data.loaders import Batch
from kproba.data.splits import read_index
from kproba.data.tasks import parse_task
from kproba.network import SegmentationNetwork
from kproba.training.files import Files
from kproba.training.inputs import read_split
from kproba.training.settings import StepSettings
from kproba.training.targets import prepare


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes with saliency maps, and targets of step 1 with old classes."""
    folder = write_data(tmp_path_factory.mktemp("scenes"), saliency=True)
    (folder / "pseudo_labels").mkdir()
    table = LabelMap(parse_task("6-2", 10)[:2]).training_table()
    random = np.random.default_rng(0)
    for row in read_index(folder / "step1.csv").itertuples():
        labels = table[read_label_image(row.mask)]
        found = random.choice([0, 3], labels.shape, p=[0.9, 0.1]).astype(np.uint8)
        write_label_image(
            folder / "pseudo_labels" / f"{row.id}.png",
            np.where(labels == 0, found, labels),
        )
    return folder


@pytest.fixture(scope="module")
def step_0(scenes: Path) -> Path:
    out = scenes / "step_0"
    return launch(scenes, out, step_settings(0, "ssul"), *with_maps(scenes))


def with_maps(scenes: Path, step: int = 0) -> list[str]:
    words = ["--saliency", str(scenes / "saliency.csv")]
    labels = ["--pseudo-labels", str(scenes / "pseudo_labels")]
    return words + (labels if step else [])


def test_an_increment_trains_new_unknown_and_background_alone(
    scenes: Path, step_0: Path, tmp_path: Path
) -> None:
    previous = step_0 / "model.safetensors"
    settings = step_settings(1, "ssul")
    words = with_maps(scenes, 1)
    out = launch(scenes, tmp_path / "out", settings, *words, previous=previous)
    before, after = load_file(previous), load_file(out / "model.safetensors")
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {
        *(f"branches.0.{part}_block.0.weight" for part in ("unknown", "background")),
        *(f"branches.0.{part}_classifier.{name}" for part in ("unknown", "background")
          for name in ("weight", "bias")),
    }  # fmt: skip
    assert {key for key in after if key not in before} == {
        key for key in after if key.startswith("branches.1.")
    }
    metrics = pd.read_csv(out / "metrics.csv")
    rates = metrics.filter(like="lr_").iloc[0]
    assert set(rates.index) == {"lr_branch", "lr_background"}
    assert rates["lr_background"] == pytest.approx(1e-4 * rates["lr_branch"])
    moved = {
        key: (before[key] - after[key]).norm() / before[key].norm() for key in changed
    }
    unknown, background = (
        moved[f"branches.0.{part}_block.0.weight"] for part in ("unknown", "background")
    )
    assert background < 0.01 * unknown


def test_step_0_learns_what_the_maps_show(
    scenes: Path, step_0: Path, tmp_path: Path
) -> None:
    """Without a salient pixel, the weights are others."""
    table = pd.read_csv(scenes / "saliency.csv", dtype=str)
    maps = {name: tmp_path / f"{name}.png" for name in table["id"]}
    for path in maps.values():
        write_label_image(path, np.zeros((48, 48), np.uint8))
    empty = table.assign(saliency=[str(maps[name]) for name in table["id"]])
    empty.assign(saliency_sha256="").to_csv(tmp_path / "empty.csv", index=False)
    words = ["--saliency", str(tmp_path / "empty.csv")]
    other = launch(scenes, tmp_path / "out", step_settings(0, "ssul"), *words)
    one, two = (load_file(path / "model.safetensors") for path in (step_0, other))
    key = "branches.0.unknown_classifier.bias"
    assert one[key] > two[key]  # fewer unknown pixels there
    assert any(not torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("step", [0, 1])
def test_processes_and_micro_batches_give_the_weights_of_one_process(
    scenes: Path, step_0: Path, tmp_path: Path, step: int
) -> None:
    # Rounding grows where batch norms train, more with large rates or random weights.
    gentle = {"weights": "imagenet", "learning_rate": SMALL_RATES, "epochs": 1}
    more = {"epochs": 2} if step else gentle
    settings = step_settings(step, "ssul", batch_size=12, **more)
    inputs: dict = {"saliency": (scenes / "saliency.csv",)}
    if step:
        inputs["pseudo_labels"] = scenes / "pseudo_labels"
    base = step_0 / "model.safetensors" if step else None
    one, two = (
        trained(
            scenes,
            tmp_path / f"{processes}",
            settings,
            base=base,
            processes=processes,
            inputs=inputs,
            # Step 0 trains batch norms, which see one micro-batch.
            accumulation=accumulation if step else 1,
        )
        for processes, accumulation in ((1, 1), (2, 3))
    )
    assert largest_relative_difference(one, two) < (1e-5 if step else 1e-3)


@pytest.mark.parametrize("step", [0, 1])
def test_a_stopped_training_goes_on_with_the_same_bytes(
    scenes: Path, step_0: Path, tmp_path: Path, step: int
) -> None:
    settings = step_settings(step, "ssul", epochs=6)
    previous = step_0 / "model.safetensors" if step else None
    words = with_maps(scenes, step)
    whole = launch(scenes, tmp_path / "whole", settings, *words, previous=previous)
    out = tmp_path / "stopped"
    stopping = command(
        scenes, out, settings, *words, previous=previous, state_minutes=0.001
    )
    state = out / STATE
    code, output = interrupt(stopping, signal.SIGTERM, state.exists)
    assert code == 143, output
    assert state.exists() and not (out / "model.safetensors").exists()
    subprocess.run(stopping, check=True, capture_output=True)
    for name in ("model.safetensors", "metrics.csv"):
        assert (whole / name).read_bytes() == (out / name).read_bytes()


def test_the_maps_are_part_of_the_mark_of_a_saved_state(
    scenes: Path, tmp_path: Path
) -> None:
    table = scenes / "saliency.csv"
    files = files_of(scenes, tmp_path, (table,))
    assert files.inputs() == [scenes / "step0.csv", table]
    assert files_of(scenes, tmp_path, ()).inputs() == [scenes / "step0.csv"]
    split = read_split(StepSettings.from_dict(step_settings(0, "ssul")), files)
    assert split["saliency"].str.endswith(".png").all()
    plain = read_split(StepSettings.from_dict(step_settings(0)), files)
    assert "saliency" not in plain


def test_a_training_without_tables_names_the_other_method(
    scenes: Path, tmp_path: Path
) -> None:
    settings = StepSettings.from_dict(step_settings(0, "ssul"))
    with pytest.raises(ValueError, match=r"--saliency, or use the method ssul_light"):
        read_split(settings, files_of(scenes, tmp_path, ()))


def files_of(scenes: Path, out: Path, saliency: tuple[Path, ...]) -> Files:
    return Files(
        split=scenes / "step0.csv",
        model=out / "model.safetensors",
        metrics=out / "metrics.csv",
        usage=out / "usage.json",
        tensorboard=out / "tensorboard",
        saliency=saliency,
    )


def test_masks_take_unknown_objects_for_background(scenes: Path) -> None:
    """For a term that a configuration adds, or one of an extension."""
    settings = StepSettings.from_dict(step_settings(1, "ssul"))
    network = SegmentationNetwork(replace(ARCHITECTURE, head="unknown"), [6, 2], seed=0)
    targets = torch.zeros(1, 48, 48, dtype=torch.uint8)
    targets[:, :, 16:32], targets[:, 32:] = 8, 3
    targets[:, :16, 32:] = 255
    keys = torch.zeros(1, dtype=torch.int64)
    plain = Batch(torch.zeros(1, 3, 48, 48, dtype=torch.uint8), targets, ["a"], keys)
    marked = targets.masked_fill(targets == 0, UNKNOWN)
    assert (marked == UNKNOWN).any()
    found = prepare(plain._replace(targets=marked), network, settings)
    expected = prepare(plain, network, settings)
    assert torch.equal(found.batch.targets, marked)
    assert found.masks is not None and expected.masks is not None
    for mask, other in zip(found.masks, expected.masks, strict=True):
        assert torch.equal(mask, other) and mask.any()


# The workflow


@pytest.mark.workflow
def test_the_workflow_lists_the_maps_for_the_trainings_that_read_them(
    tmp_path: Path,
) -> None:
    write_config(tmp_path)
    experiment = {"dataset": "tiny", "task": "6-2", "methods": ["ssul", "finetune"]}
    change = {"experiments": [experiment], "datasets": {}}
    write_config(tmp_path, change)
    output = snakemake(tmp_path, "--dry-run", succeeds=False)
    assert "datasets.tiny.saliency: expected true" in output
    assert "ssul_light" in output
    scenes = dict(read_tiny(tmp_path), saliency=True)
    write_config(tmp_path, change | {"datasets": {"tiny": scenes}})
    planned = jobs(tmp_path)
    assert planned["list_saliency"] == 1 and planned["train_base"] == 2
    folder = "results/tiny/6-2-overlap/ssul/seed0/step1"
    snakemake(tmp_path, f"{folder}/evaluation.json")
    assert (tmp_path / "results/data/tiny/saliency.csv").is_file()
    quality = pd.read_csv(tmp_path / folder / "pseudo_label_quality.csv")
    assert len(quality) == 7
    # New maps train this method again, and no other.
    snakemake(tmp_path, "results/tiny/6-overlap/base/seed0/step0/model.safetensors")
    table = tmp_path / "results/data/tiny/saliency.csv"
    table.write_text(table.read_text() + "\n")
    os.utime(table)
    again = jobs(tmp_path, f"{folder}/model.safetensors")
    assert again["train_base"] == again["train_step"] == 1
    other = "results/tiny/6-overlap/base/seed0/step0/model.safetensors"
    assert jobs(tmp_path, other) == {}


def read_tiny(folder: Path) -> dict:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    return config["datasets"]["tiny"]
