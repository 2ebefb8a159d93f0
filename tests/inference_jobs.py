"""Bank, pseudo labels and test on a device, and pictures of many sizes for them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from training_steps import step_settings

from kproba.bank.decision import Decision
from kproba.data.index import index_dataset
from kproba.data.kinds.digits import DigitScenes, write_digits
from kproba.data.label_images import read_label_image, write_label_image
from kproba.data.splits import read_index, select_images
from kproba.data.tasks import parse_task
from kproba.runtime.compute import Compute
from kproba.runtime.files import read_json

BANK = {
    **{"feature": "backbone", "map": "rff", "dimension": 64, "maps": 2},
    **{"gamma": "median", "scatter": True, "ridge": 0.01},
    "calibration_cells": 200,
}
KLDA = Decision("klda").to_dict()
RUN = {
    **{"dataset": "tiny", "task": "6-2", "setting": "overlap"},
    **{"method": "kproba", "seed": 0, "step": 0},
}


def bank_job() -> dict[str, Any]:
    """Settings of the bank of step 0."""
    return {
        "settings": BANK,
        "groups": step_settings(1)["groups"][:1],
        "sequential": False,
        "seed": 0,
        "keep_temperature": False,
    }


def write_many_sizes(folder: Path) -> Path:
    """What `training_steps.write_data` writes, with scenes of some thirty sizes."""
    scenes = DigitScenes(
        train=40,
        val=24,
        size=80,
        digits=(2, 3),
        height=(0.4, 0.6),
        rotation=10,
        seed=1,
    )
    write_digits(folder / "scenes", scenes)
    for number, path in enumerate(sorted((folder / "scenes/images").rglob("*.png"))):
        height, width = 80 - number % 7, 80 - 3 * (number % 5)
        Image.open(path).crop((0, 0, width, height)).save(path)
        mask = folder / "scenes/masks" / path.relative_to(folder / "scenes/images")
        write_label_image(mask, read_label_image(mask)[:height, :width])
    index = folder / "index.csv"
    index_dataset(
        *(index, folder / "i.json"),
        kind="digits",
        folder=folder / "scenes",
        class_count=10,
    )
    for step in (0, 1):
        groups = parse_task("6-2", 10)[: step + 1]
        chosen = select_images(read_index(index), groups, "overlap")
        chosen.to_csv(folder / f"step{step}.csv", index=False)
    return folder


def infer(data: Path, base: Path, out: Path, gpus: int) -> None:
    """Bank of step 0, pseudo labels of step 1 and test of step 0."""
    groups = step_settings(1)["groups"]
    names = ["background", *(f"class {label}" for label in groups[0])]
    bank = out / "prototypes.safetensors"
    labels = {"rule": "klda", "score_threshold": 0.0, "decision": KLDA}
    test = {"policy": "ssul", "ignore_background": False, "crop": None, "examples": 2}
    jobs = {
        "build_bank": (bank_job(), *("--split", data / "step0.csv", "--bank", bank)),
        "export_labels": (
            {"settings": labels, "sequential": False, "groups": groups},
            *("--split", data / "step1.csv", "--bank", bank),
            *("--labels", out / "labels", "--table", out / "labels.csv"),
            *("--quality", out / "quality.csv"),
        ),
        "evaluate": (
            {
                **{"settings": test, "run": RUN, "decision": KLDA},
                **{"groups": groups[:1], "names": names},
            },
            *("--bank", bank, "--indices", data / "index.csv"),
            *("--confusion", out / "confusion.csv", "--examples", out / "examples"),
            *("--evaluation", out / "evaluation.json"),
            *("--predictor", out / "predictor.json"),
        ),
    }
    compute = Compute(gpus=gpus, batch_size=4)
    for name, (job, *files) in jobs.items():
        words = [sys.executable, "-m", "kproba.runtime.launch"]
        words += [f"--compute={compute.to_json()}", f"kproba.jobs.{name}"]
        words += ["--job", json.dumps(job), "--model", base, *files]
        done = subprocess.run(
            list(map(str, words)), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]


def assert_same_inference(one: Path, other: Path) -> None:
    """Whether two folders of `infer` hold the same but for rounding."""
    banks = [load_file(folder / "prototypes.safetensors") for folder in (one, other)]
    for key, tensor in banks[0].items():
        torch.testing.assert_close(banks[1][key], tensor, rtol=0.02, atol=0.02)
    assert torch.equal(banks[0]["count"], banks[1]["count"])
    for kind in ("labels", "examples"):
        images = sorted((one / kind).glob("*.png"))
        assert images
        same = [
            (read_label_image(i) == read_label_image(other / kind / i.name)).mean()
            for i in images
        ]
        assert np.mean(same) > 0.99, kind
    tests = [read_json(folder / "evaluation.json")["all"] for folder in (one, other)]
    assert abs(tests[0] - tests[1]) < 0.5
