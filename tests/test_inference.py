"""Bank, pseudo labels and test of a step: every number of processes, one result."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from gloo_processes import finished_within, in_processes
from safetensors.torch import load_file

import kproba
from kproba.bank.decision import Decision
from kproba.bank.description import read_description
from kproba.data.splits import read_index
from kproba.data.whole_images import equal_sizes, whole_image_loader
from kproba.jobs.step_bank import BankFiles, build_step_bank
from kproba.jobs.step_labels import LabelInputs, label_step
from kproba.jobs.step_test import TestFiles, test_step
from kproba.methods.export import LabelFiles
from kproba.network.architecture import Architecture
from kproba.network.files import load_model, save_model
from kproba.network.network import SegmentationNetwork
from kproba.runtime.compute import Compute
from kproba.runtime.distributed import Process
from kproba.runtime.files import read_json

GROUPS = [[1, 2], [3]]
NAMES = ["background", "cat", "dog", "cow"]
KLDA = Decision("klda", posterior_weight=1.0).to_dict()
BANK = {
    "settings": {
        "feature": "block",
        "map": "rff",
        "dimension": 32,
        "maps": 2,
        "gamma": "median",
        "scatter": True,
        "ridge": 1e-3,
        "calibration_cells": 200,
    },
    "groups": GROUPS[:1],
    "names": NAMES[:3],
    "sequential": False,
    "seed": 0,
    "keep_temperature": False,
}
LABELS = {
    "settings": {"rule": "klda", "score_threshold": 0.0, "decision": KLDA},
    "groups": GROUPS[:2],
    "names": NAMES[:4],
    "sequential": False,
}
TEST = {
    "run": {
        **{"dataset": "pets", "task": "2-1", "setting": "overlap"},
        **{"method": "kproba", "seed": 0, "step": 0},
    },
    "settings": {
        **{"policy": "ssul", "ignore_background": False, "crop": None},
        "examples": 2,
    },
    "groups": GROUPS[:1],
    "names": NAMES[:3],
    "decision": KLDA,
}
ALONE = Process()
PLAIN = Compute()


@pytest.fixture
def step(folder_dataset, index_of, tmp_path):
    """Writer of a step: images of two sizes, and a model of `cat` and `dog`."""

    def write(images: int) -> Path:
        random = np.random.default_rng(images)

        def masks(prefix: str) -> dict[str, np.ndarray]:
            shapes = [(48, 64) if k % 3 else (64, 48) for k in range(images)]
            return {
                f"{prefix}{k}": random.choice([0, 1, 2, 3, 255], shape).astype(np.uint8)
                for k, shape in enumerate(shapes)
            }

        folder = folder_dataset({"train": masks("t"), "val": masks("v")})
        index = read_index(index_of(folder)[0])
        index.to_csv(tmp_path / "index.csv", index=False)
        train = index[index["subset"] == "train"]
        train.to_csv(tmp_path / "split.csv", index=False)
        architecture = Architecture("efficientnet_lite0", 16, (1, 2), 16, 0.1, 0.01)
        network = SegmentationNetwork(architecture, [2], weights="imagenet", seed=3)
        classes = [{"label": label} for label in range(3)]
        save_model(network, tmp_path / "model.safetensors", about={"classes": classes})
        return tmp_path

    return write


def outputs_of_labels(folder: Path, name: str = "labels") -> LabelFiles:
    paths = (folder / f"{name}{end}" for end in ("", ".csv", "_quality.csv"))
    return LabelFiles(*paths)


def files_of_test(step: Path, out: Path, **more: Any) -> TestFiles:
    """Of the test of step 0; `more` replaces some."""
    files = TestFiles(
        model=step / "model.safetensors",
        indices=(step / "index.csv",),
        evaluation=out / "evaluation.json",
        confusion=out / "confusion.csv",
        examples=out / "examples",
        predictor=out / "predictor.json",
    )
    return replace(files, **more)


def all_jobs(process: Process, step: Path, out: Path, batch_size: int = 2) -> None:
    """Bank of step 0, pseudo labels of step 1, test of step 0."""
    torch.set_num_threads(1)
    compute = Compute(batch_size=batch_size)
    model, split = step / "model.safetensors", step / "split.csv"
    bank = out / "prototypes.safetensors"
    build_step_bank(BankFiles(model, split, bank), BANK, compute, process)
    process.wait()
    inputs = LabelInputs(model, split, bank)
    label_step(inputs, outputs_of_labels(out), LABELS, compute, process)
    test_step(files_of_test(step, out, bank=bank), TEST, compute, process)


def same_results(one: Path, other: Path) -> None:
    """All equal to the byte, but the bank's sums, which are equal to rounding."""
    files = {str(path.relative_to(one)) for path in one.rglob("*") if path.is_file()}
    assert files == {
        str(path.relative_to(other)) for path in other.rglob("*") if path.is_file()
    }
    assert len(files) > 6
    # predictor.json has the digests of the bank.
    contents = [read_json(folder / "predictor.json") for folder in (one, other)]
    for content in contents:
        content.pop("digests")
    assert contents[0] == contents[1]
    bank = {"prototypes.safetensors", "prototypes.json"}
    for name in files - {*bank, "predictor.json"}:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    banks = [load_file(folder / "prototypes.safetensors") for folder in (one, other)]
    for key, tensor in banks[0].items():
        torch.testing.assert_close(tensor, banks[1][key], rtol=1e-9, atol=1e-12)
    for key in ("count", "centre", "spread"):
        assert torch.equal(banks[0][key], banks[1][key])
    about = [read_json(folder / "prototypes.json") for folder in (one, other)]
    temperatures = [part.pop("temperature") for part in about]
    assert temperatures[0] == pytest.approx(temperatures[1], rel=1e-3)
    assert about[0] == about[1]


@pytest.mark.parametrize("images", [1, 5, 6, 7, 8])
@pytest.mark.parametrize("processes", [2, 3, 4])
def test_processes_give_the_results_of_one(step, tmp_path, images, processes):
    folder = step(images)
    all_jobs(ALONE, folder, tmp_path / "one")
    in_processes(processes, all_jobs, folder, tmp_path / "several")
    same_results(tmp_path / "one", tmp_path / "several")
    counted = pd.read_csv(tmp_path / "several" / "confusion.csv", index_col=0)
    rows = read_index(folder / "index.csv")
    masks = whole_image_loader(
        rows[rows["subset"] == "val"], np.arange(256, dtype=np.uint8), batch_size=1
    )
    # Raw label 3 is of an unseen class and ignored.
    valid = sum(int((batch.targets < 3).sum()) for batch in masks)
    assert counted.to_numpy().sum() == valid


def test_network_predicts_alone_or_with_its_bank(step, tmp_path):
    folder = step(3)
    all_jobs(ALONE, folder, tmp_path)
    fused = read_json(tmp_path / "evaluation.json")
    assert fused["prediction"] == "fused (klda)"

    def test(decision, **files):
        out = tmp_path / "again"
        job = {**TEST, "decision": decision}
        test_step(files_of_test(folder, out, **files), job, PLAIN, ALONE)
        return read_json(out / "evaluation.json")

    bank = tmp_path / "prototypes.safetensors"
    alone = test(None)
    assert alone["prediction"] == "network"
    assert alone["all"] != fused["all"]
    again = test(KLDA, bank=bank)
    assert again["classes"] == fused["classes"]
    # With no weight for the bank the network decides, whatever the bank says.
    ignored = test(KLDA | {"posterior_weight": 0.0, "image_prior": 0}, bank=bank)
    assert ignored["classes"] == alone["classes"]
    # At step 0 both networks are the same one.
    mean = {"rule": "step0_mean", "foreground": "both", "image_prior": 0}
    ensemble = test(mean, bank=bank)
    assert ensemble["prediction"] == "fused (step0_mean)"
    assert ensemble["classes"] == alone["classes"]
    with pytest.raises(ValueError, match="bank to predict with, but got none"):
        test(KLDA)
    about = read_json(bank.with_suffix(".json"))
    bank.with_suffix(".json").write_text(json.dumps(about | {"model": "another"}))
    with pytest.raises(ValueError, match="built with another model"):
        test(KLDA, bank=bank)


def test_described_labels_are_the_values_of_the_masks(step, tmp_path):
    """With a label offset the first class is 0 in the masks, and nothing background."""
    folder = step(1)

    def described(**offset):
        job = {**TEST, "decision": None, **offset}
        test_step(files_of_test(folder, tmp_path), job, PLAIN, ALONE)
        classes = read_description(tmp_path).classes
        return {entry.name: entry.label for entry in classes}

    plain = {"background": 0, "cat": 1, "dog": 2}
    assert described() == described(label_offset=0) == plain
    assert described(label_offset=1) == {"background": 255, "cat": 0, "dog": 1}
    picture = np.zeros((48, 64, 3), np.uint8)
    assert set(np.unique(kproba.load(tmp_path).predict(picture).labels)) <= {0, 1, 255}


def test_bank_of_step_0_serves_a_later_model(step, tmp_path):
    """It reads the features of step 0's network, whatever has become of the later."""
    folder = step(3)
    all_jobs(ALONE, folder, tmp_path)
    base, bank = folder / "model.safetensors", tmp_path / "prototypes.safetensors"
    later = tmp_path / "later.safetensors"
    network = load_model(base)
    with torch.no_grad():
        for parameter in network.backbone.parameters():
            parameter.mul_(0.5)
    about = {"classes": [{"label": label} for label in range(3)]}
    save_model(network, later, about=about)

    def test(name, **more):
        files = files_of_test(folder, tmp_path / name, model=later, bank=bank, **more)
        test_step(files, TEST, PLAIN, ALONE)

    def label(name, model=later, **more):
        decision = KLDA | {"foreground": "both", "probability_weight": 0.0}
        settings = LABELS["settings"] | {"decision": decision}
        inputs = LabelInputs(model, folder / "split.csv", bank, **more)
        outputs = outputs_of_labels(tmp_path, name)
        label_step(inputs, outputs, LABELS | {"settings": settings}, PLAIN, ALONE)

    for job in (test, label):
        with pytest.raises(ValueError, match="built with another model"):
            job("refused")
        job(job.__name__, feature_network=base)
    # The labels of the bank alone are those that step 0's own network would get.
    label("own", base)
    for name in ("own.csv", "own_quality.csv"):
        same = name.replace("own", "label")
        assert (tmp_path / name).read_bytes() == (tmp_path / same).read_bytes()


def test_commands_of_two_processes_give_the_results_of_one(step, tmp_path):
    folder = step(5)
    all_jobs(ALONE, folder, tmp_path / "one")
    out = tmp_path / "several"
    split, bank = folder / "split.csv", out / "prototypes.safetensors"
    labels, test = outputs_of_labels(out), files_of_test(folder, out)
    jobs = {
        "build_bank": (
            BANK,
            *("--split", split, "--bank", bank),
            # As the rules write inputs that are empty.
            *("--previous", "--pseudo-labels", "--network", "--untrained", "--weights"),
        ),
        "export_labels": (
            LABELS,
            *("--split", split, "--bank", bank, "--feature-network"),
            *("--labels", labels.folder, "--table", labels.table),
            *("--quality", labels.quality),
        ),
        "evaluate": (
            TEST,
            *("--bank", bank, "--feature-network"),
            *("--indices", *test.indices, "--confusion", test.confusion),
            *("--evaluation", test.evaluation, "--examples", test.examples),
            *("--predictor", test.predictor),
        ),
    }
    compute = Compute(processes=2, batch_size=2)
    for name, (job, *files) in jobs.items():
        words = [sys.executable, "-m", "kproba.runtime.launch"]
        words += [f"--compute={compute.to_json()}", f"kproba.jobs.{name}"]
        words += ["--job", json.dumps(job), "--model", folder / "model.safetensors"]
        words += files
        subprocess.run(list(map(str, words)), check=True, capture_output=True)
    same_results(tmp_path / "one", out)


@pytest.mark.parametrize("processes", [1, 2])
def test_jobs_killed_at_any_moment_leave_whole_results_or_none(
    step, tmp_path, processes
):
    folder, out = step(9), tmp_path / "killed"
    whole = tmp_path / "whole"
    started = time.monotonic()
    in_processes(processes, all_jobs, folder, whole, 1)
    seconds = time.monotonic() - started
    expected = contents(whole)
    random = np.random.default_rng(0)
    for moment in random.uniform(0.1, 1.0, size=10) * seconds:
        done = finished_within(moment, processes, all_jobs, folder, out, 1)
        left = contents(out)
        assert not done or left == expected
        for name, content in left.items():
            # Of a folder that is being replaced, nothing is there for a moment.
            assert content == expected[name], name
    in_processes(processes, all_jobs, folder, out, 1)
    assert contents(out) == expected
    assert not [path for path in out.rglob(".*")]


def contents(folder: Path) -> dict[str, bytes]:
    """Bytes of all files under their final names."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }


@pytest.mark.parametrize("images", range(1, 10))
@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_every_image_is_in_one_batch_of_one_process(images, batch_size, processes):
    rows = pd.DataFrame({"width": [4 + k % 2 for k in range(images)], "height": 4})
    batches = equal_sizes(rows, batch_size)
    assert sorted(number for batch in batches for number in batch) == [*range(images)]
    for batch in batches:
        assert len(batch) <= batch_size
        assert len({rows["width"][number] for number in batch}) == 1
    parts = [batch for rank in range(processes) for batch in batches[rank::processes]]
    assert sorted(parts) == sorted(batches)


def test_a_bank_of_another_model_is_refused(step, tmp_path):
    folder = step(2)
    all_jobs(ALONE, folder, tmp_path / "one")
    bank = tmp_path / "one" / "prototypes.safetensors"
    description = bank.with_suffix(".json")
    about = read_json(description)
    description.write_text(json.dumps({**about, "model": "another"}))
    inputs = LabelInputs(folder / "model.safetensors", folder / "split.csv", bank)
    with pytest.raises(ValueError, match="built with another model"):
        label_step(inputs, outputs_of_labels(tmp_path), LABELS, PLAIN, ALONE)
    assert not (tmp_path / "labels").exists()


def test_a_rule_that_reads_a_bank_is_refused_without_one(step, tmp_path):
    folder = step(2)
    inputs = LabelInputs(folder / "model.safetensors", folder / "split.csv")
    with pytest.raises(ValueError, match="prototype bank for the rule 'klda'"):
        label_step(inputs, outputs_of_labels(tmp_path), LABELS, PLAIN, ALONE)
    assert not (tmp_path / "labels").exists()
