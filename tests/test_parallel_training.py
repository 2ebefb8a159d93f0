"""Processes, micro-batches and nodes give the weights of one process."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from training_runs import SHARED, SMALL_RATES, train_with, trained
from training_steps import largest_relative_difference, step_settings

from kproba.bank.decision import Decision
from kproba.data.label_images import read_label_image, write_label_image
from kproba.data.labels import UNSURE, LabelMap
from kproba.data.splits import read_index
from kproba.data.tasks import parse_task
from kproba.jobs.step_bank import BankFiles, build_step_bank
from kproba.runtime.compute import Compute
from kproba.runtime.distributed import Process
from kproba.runtime.launch import free_port


@pytest.mark.parametrize(
    ("processes", "accumulation"), [(1, 2), (2, 1), (2, 3), (3, 1), (3, 4), (4, 1)]
)
def test_processes_and_micro_batches_give_the_weights_of_one_process(
    data: Path,
    base: Path,
    alone: Path,
    tmp_path: Path,
    processes: int,
    accumulation: int,
) -> None:
    shared = trained(
        data,
        tmp_path / "shared",
        step_settings(1, **SHARED),
        base=base,
        processes=processes,
        accumulation=accumulation,
    )
    assert largest_relative_difference(alone, shared) < 3e-5
    columns = [pd.read_csv(path / "metrics.csv")["loss"] for path in (alone, shared)]
    losses = [torch.tensor(column.to_numpy()) for column in columns]
    torch.testing.assert_close(*losses, rtol=1e-6, atol=1e-6)
    ranks = [load_file(shared / f"rank{r}.safetensors") for r in range(processes)]
    assert all(torch.equal(ranks[0][k], rank[k]) for rank in ranks for k in ranks[0])
    start = load_file(base)
    assert any(not torch.equal(ranks[0][key], start[key]) for key in start)


@pytest.fixture(scope="module")
def targets(data: Path) -> Path:
    """Targets of step 1 with old classes and unsure pixels in the background."""
    folder = data / "pseudo_labels"
    folder.mkdir()
    random = np.random.default_rng(0)
    table = LabelMap(parse_task("6-2", 10)[:2]).training_table()
    for row in read_index(data / "step1.csv").itertuples():
        labels = table[read_label_image(row.mask)]
        found = random.choice([0, 3, UNSURE], labels.shape, p=[0.5, 0.2, 0.3])
        labels = np.where(labels == 0, found, labels).astype(np.uint8)
        write_label_image(folder / f"{row.id}.png", labels)
    return folder


def trained_twice(
    data: Path,
    out: Path,
    settings: dict,
    base: Path,
    inputs: dict[str, Path] | None = None,
) -> Path:
    """Step 1 by one process; two with three micro-batches give the same weights."""
    one, two = (
        trained(
            data,
            out / f"{processes}",
            settings,
            base=base,
            processes=processes,
            inputs=inputs,
            accumulation=accumulation,
        )
        for processes, accumulation in ((1, 1), (2, 3))
    )
    assert largest_relative_difference(one, two) < 3e-5
    return one


TERMS = {
    "kproba": {"bce", "bga_ce", "bga_t", "gkd", "bfd"},
    "barm": {"bce", "bga_ce", "bga_t", "gkd", "bfd"},
    "ssul_light": {"bce"},
    "plop": {"ce", "pod", "pod_logits"},
    "mib": {"ce", "unbiased_kd"},
    "lwf": {"ce", "kd"},
    "dkd": {"bce", "auxiliary", "class_kd", "positive_kd", "negative_kd"},
    "finetune": {"bce"},
}
ALL_TERMS = set().union(*TERMS.values())


@pytest.mark.parametrize("method", TERMS)
def test_every_method_gives_the_same_weights_by_two_processes(
    data: Path, targets: Path, tmp_path: Path, method: str
) -> None:
    first = trained(data, tmp_path / "base", step_settings(0, method))
    base = first / "model.safetensors"
    settings = step_settings(1, method, **SHARED)
    inputs = {}
    if method in ("kproba", "barm", "ssul_light", "plop"):
        inputs = {"pseudo_labels": targets}
    one = trained_twice(data, tmp_path, settings, base, inputs)
    before, after = load_file(base), load_file(one / "model.safetensors")
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert bool(changed) == (method != "ssul_light")  # there only the new branch learns
    new = {key for key in after if key.startswith("branches.1")}
    assert set(after) - set(before) == new
    plain = method in ("plop", "mib", "lwf", "dkd")  # a classifier without a block
    assert len(new) == (2 if plain else 8)
    metrics = pd.read_csv(one / "metrics.csv")
    assert TERMS[method] == {name for name in metrics if name in ALL_TERMS}
    assert np.isfinite(metrics.to_numpy()).all()


def test_backbone_stays_and_serves_the_teacher_if_the_heads_train_alone(
    data: Path, base: Path, targets: Path, tmp_path: Path
) -> None:
    settings = step_settings(1, **SHARED)
    settings["method"]["trains"] = "heads"
    inputs = {"pseudo_labels": targets}
    one = trained_twice(data, tmp_path, settings, base, inputs)
    before, after = load_file(base), load_file(one / "model.safetensors")
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert {key.split(".")[0] for key in changed} == {"aspp", "branches"}
    # The teacher that runs its own backbone says the same.
    settings["method"]["trains"] = "all"
    settings["optimisation"]["learning_rate"]["backbone"] = 0.0
    settings["optimisation"]["floor"] = 0.0
    slow = trained(data, tmp_path / "slow", settings, base=base, inputs=inputs)
    assert largest_relative_difference(one, slow) < 1e-5


def test_a_bank_teaches_an_increment(
    data: Path, base: Path, alone: Path, tmp_path: Path
) -> None:
    bank, groups = tmp_path / "prototypes.safetensors", parse_task("6-2", 10)[:1]
    corrected = step_settings(1, **SHARED)
    job = {
        "settings": {
            **{"feature": "backbone", "map": "identity", "scatter": True},
            **{"ridge": 0.01, "calibration_cells": 500},
        },
        "groups": groups,
        **{"sequential": False, "seed": 0, "keep_temperature": False},
    }
    files = BankFiles(base, data / "step0.csv", bank)
    build_step_bank(files, job, Compute(), Process())
    assert corrected["decision"] is None
    corrected["decision"] = Decision(posterior_weight=0.5, image_prior=1).to_dict()
    one = trained_twice(data, tmp_path, corrected, base, {"bank": bank})
    assert largest_relative_difference(one, alone) > 1e-4
    terms = [pd.read_csv(path / "metrics.csv").iloc[0] for path in (one, alone)]
    for name in ("bce", "bfd"):  # of the first iteration: the same network
        assert terms[0][name] == pytest.approx(terms[1][name], rel=1e-5)
    assert terms[0]["gkd"] != pytest.approx(terms[1]["gkd"], rel=1e-3)
    # Features of another network, here the same one, come from a pass of their own.
    inputs = {"bank": bank, "feature_network": base}
    again = trained(data, tmp_path / "again", corrected, base=base, inputs=inputs)
    assert largest_relative_difference(one, again) < 1e-5
    with pytest.raises(ValueError, match="Expected the bank and the model of the prev"):
        train_with(Process(), data, again, base, Compute())


def test_two_nodes_give_the_weights_of_one_process(
    data: Path, base: Path, alone: Path, tmp_path: Path
) -> None:
    """Two agents on two addresses of this machine, two processes each."""
    (tmp_path / "settings.json").write_text(json.dumps(step_settings(1, **SHARED)))
    job = ["--nodes=2", "--processes=4", f"--rendezvous=127.0.0.2:{free_port()}"]
    files = {
        "split": data / "step1.csv",
        "previous": base,
        "model": tmp_path / "model.safetensors",
        "metrics": tmp_path / "metrics.csv",
        "usage": tmp_path / "usage.json",
        "tensorboard": tmp_path / "tensorboard",
    }
    words = ["kproba.jobs.train", str(tmp_path / "settings.json")]
    words += [f"--{name}={path}" for name, path in files.items()]
    agents = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "kproba.runtime.launch", *job),
                *(f"--address=127.0.0.{number}", *words),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in (2, 3)
    ]
    outputs = [agent.communicate(timeout=300)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], outputs
    assert sum("= 4 process(es) x 1" in output for output in outputs) == 1
    assert largest_relative_difference(alone, tmp_path) < 3e-5


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_step_0_of_several_processes_has_the_batch_norm_of_one(
    data: Path, tmp_path: Path, processes: int
) -> None:
    settings = step_settings(
        0, weights="imagenet", batch_size=12, epochs=2, learning_rate=SMALL_RATES
    )
    one = trained(data, tmp_path / "one", settings)
    several = trained(data, tmp_path / "several", settings, processes=processes)
    # Rounding grows where statistics are taken anew: more than in an increment.
    assert largest_relative_difference(one, several) < 1e-3
    ranks = [load_file(several / f"rank{r}.safetensors") for r in range(processes)]
    assert all(torch.equal(ranks[0][k], rank[k]) for rank in ranks for k in ranks[0])


def test_batches_of_one_image_do_not_break_batch_norm(
    data: Path, tmp_path: Path
) -> None:
    settings = step_settings(0, batch_size=4, learning_rate=SMALL_RATES)
    one = trained(data, tmp_path / "one", settings, accumulation=4)
    several = trained(data, tmp_path / "several", settings, processes=4)
    for folder in (one, several):
        weights = load_file(folder / "model.safetensors")
        assert all(
            t.isfinite().all() for t in weights.values() if t.is_floating_point()
        )
