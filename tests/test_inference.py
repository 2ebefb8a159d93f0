"""Bank, pseudo labels and test of a step: every number of processes, one result."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from gloo_processes import finished_within, in_processes
from safetensors.torch import load_file

from kproba.data.loaders import equal_sizes, whole_image_loader
from kproba.data.splits import read_index
from kproba.jobs.build_bank import bank_of_step
from kproba.jobs.evaluate import evaluate_step
from kproba.jobs.export_labels import pseudo_labels_of_step
from kproba.jobs.images import Reading
from kproba.network.files import load_model, save_model
from kproba.network.network import Architecture, SegmentationNetwork
from kproba.runtime.distributed import Process
from kproba.runtime.files import read_json

GROUPS = [[1, 2], [3]]
NAMES = ["background", "cat", "dog", "cow"]
BANK = {
    "feature": "block",
    "map": "rff",
    "dimension": 32,
    "maps": 2,
    "gamma": "median",
    "scatter": True,
    "momentum": 0.9,
    "ridge": 1e-3,
    "calibration_cells": 200,
}
KLDA = {
    "rule": "klda",
    "threshold": 0.7,
    "score_threshold": 0.0,
    "foreground": "network",
    "probability_weight": 1.0,
    "posterior_weight": 1.0,
    "foreground_bias": 0.0,
    "image_prior": 1,
    "temperature": 1.0,
    "metric": "euclidean",
}
TEST = {"policy": "ssul", "ignore_background": False, "crop": None, "examples": 2}


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


def all_jobs(process: Process, step: Path, out: Path, batch_size: int = 2) -> None:
    """Bank of step 0, pseudo labels of step 1, test of step 0."""
    torch.set_num_threads(1)
    reading = Reading(batch_size, 0, process)
    model, bank = step / "model.safetensors", out / "prototypes.safetensors"
    bank_of_step(
        model,
        step / "split.csv",
        bank,
        settings=BANK,
        groups=GROUPS[:1],
        names=NAMES[:3],
        setting="overlap",
        seed=0,
        reading=reading,
    )
    process.wait()
    pseudo_labels_of_step(
        model,
        bank,
        step / "split.csv",
        out / "labels",
        out / "labels.csv",
        out / "quality.csv",
        settings=KLDA,
        groups=GROUPS[:2],
        names=NAMES[:4],
        setting="overlap",
        reading=reading,
    )
    evaluate_step(
        model,
        [step / "index.csv"],
        out / "evaluation.json",
        out / "confusion.csv",
        out / "examples",
        out / "predictor.json",
        settings=TEST,
        groups=GROUPS[:1],
        names=NAMES[:3],
        about={"seed": 0},
        rule=KLDA,
        bank=bank,
        reading=reading,
    )


def same_results(one: Path, other: Path) -> None:
    """All equal to the byte, but the bank's sums, which are equal to rounding."""
    files = {str(path.relative_to(one)) for path in one.rglob("*") if path.is_file()}
    assert files == {
        str(path.relative_to(other)) for path in other.rglob("*") if path.is_file()
    }
    assert len(files) > 6
    for name in files - {"prototypes.safetensors", "prototypes.json"}:
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
    all_jobs(Process(), folder, tmp_path / "one")
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
    all_jobs(Process(), folder, tmp_path)
    fused = read_json(tmp_path / "evaluation.json")
    assert fused["prediction"] == "fused (klda)"

    def test(**how):
        evaluate_step(
            folder / "model.safetensors",
            [folder / "index.csv"],
            *(tmp_path / name for name in ("e.json", "c.csv", "e", "p.json")),
            settings=TEST,
            groups=GROUPS[:1],
            names=NAMES[:3],
            about={},
            **how,
        )
        return read_json(tmp_path / "e.json")

    bank = tmp_path / "prototypes.safetensors"
    alone = test()
    assert alone["prediction"] == "network"
    assert alone["all"] != fused["all"]
    again = test(rule=KLDA, bank=bank)
    assert again["classes"] == fused["classes"]
    # With no weight for the bank the network decides, whatever the bank says.
    ignored = test(rule=KLDA | {"posterior_weight": 0.0, "image_prior": 0}, bank=bank)
    assert ignored["classes"] == alone["classes"]
    with pytest.raises(ValueError, match="bank to predict with, but got none"):
        test(rule=KLDA)
    about = read_json(bank.with_suffix(".json"))
    bank.with_suffix(".json").write_text(json.dumps(about | {"model": "another"}))
    with pytest.raises(ValueError, match="built with another model"):
        test(rule=KLDA, bank=bank)


def test_bank_of_step_0_serves_a_later_model(step, tmp_path):
    """Its features are asked of step 0's network, whatever the later one has become."""
    folder = step(3)
    all_jobs(Process(), folder, tmp_path)
    base, bank = folder / "model.safetensors", tmp_path / "prototypes.safetensors"
    later = tmp_path / "later.safetensors"
    network = load_model(base)
    with torch.no_grad():
        for parameter in network.backbone.parameters():
            parameter.mul_(0.5)
    about = {"classes": [{"label": label} for label in range(3)]}
    save_model(network, later, about=about)

    def test(name, **files):
        evaluate_step(
            later,
            [folder / "index.csv"],
            *(tmp_path / f"{name}{end}" for end in (".json", ".csv", "", "_p.json")),
            settings=TEST,
            groups=GROUPS[:1],
            names=NAMES[:3],
            about={},
            rule=KLDA,
            bank=bank,
            **files,
        )

    def label(name, model=later, **files):
        pseudo_labels_of_step(
            model,
            bank,
            folder / "split.csv",
            *(tmp_path / f"{name}{end}" for end in ("", ".csv", "_q.csv")),
            settings=KLDA | {"foreground": "both", "probability_weight": 0.0},
            groups=GROUPS[:2],
            names=NAMES[:4],
            setting="overlap",
            **files,
        )

    for job in (test, label):
        with pytest.raises(ValueError, match="built with another model"):
            job("refused")
        job(job.__name__, source=base)
    # The labels of the bank alone are those that step 0's own network would get.
    label("own", base)
    for name in ("own.csv", "own_q.csv"):
        same = name.replace("own", "label")
        assert (tmp_path / name).read_bytes() == (tmp_path / same).read_bytes()


def test_commands_of_two_processes_give_the_results_of_one(step, tmp_path):
    folder = step(5)
    all_jobs(Process(), folder, tmp_path / "one")
    out = tmp_path / "several"
    split, bank = folder / "split.csv", out / "prototypes.safetensors"
    jobs = {
        "bank": (
            {"settings": BANK, "groups": GROUPS[:1], "names": NAMES[:3], "seed": 0},
            *("--split", split, "--bank", bank),
            *("--previous", "--pseudo-labels"),
        ),
        "pseudo-labels": (
            {"settings": KLDA, "groups": GROUPS[:2], "names": NAMES[:4]},
            *("--split", split, "--bank", bank),
            *("--labels", out / "labels", "--table", out / "labels.csv"),
            *("--quality", out / "quality.csv"),
        ),
        "evaluation": (
            {
                "settings": TEST,
                "groups": GROUPS[:1],
                "names": NAMES[:3],
                "about": {"seed": 0},
                "rule": KLDA,
            },
            *("--bank", bank),
            *("--indices", folder / "index.csv", "--confusion", out / "confusion.csv"),
            *("--evaluation", out / "evaluation.json", "--examples", out / "examples"),
            *("--predictor-file", out / "predictor.json"),
        ),
    }
    for name, (job, *files) in jobs.items():
        if name != "evaluation":
            job["setting"] = "overlap"
        words = [sys.executable, "-m", "kproba.runtime.launch", "--processes", "2"]
        words += ["kproba.jobs.inference", name, "--job", json.dumps(job)]
        words += ["--model", folder / "model.safetensors", "--batch-size", "2", *files]
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
    dealt = [batch for rank in range(processes) for batch in batches[rank::processes]]
    assert sorted(dealt) == sorted(batches)


def test_a_bank_of_another_model_is_refused(step, tmp_path):
    folder = step(2)
    all_jobs(Process(), folder, tmp_path / "one")
    description = tmp_path / "one" / "prototypes.json"
    about = read_json(description)
    description.write_text(json.dumps({**about, "model": "another"}))
    with pytest.raises(ValueError, match="built with another model"):
        pseudo_labels_of_step(
            folder / "model.safetensors",
            tmp_path / "one" / "prototypes.safetensors",
            folder / "split.csv",
            tmp_path / "labels",
            tmp_path / "labels.csv",
            tmp_path / "quality.csv",
            settings=KLDA,
            groups=GROUPS[:2],
            names=NAMES[:4],
            setting="overlap",
        )
    assert not (tmp_path / "labels").exists()
