"""A packed step goes on without the old pictures, on a machine that has only it.

From `kproba pack` over a new step to `kproba predict`, as the guide says.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from snakemake_calls import snakemake
from whole_runs import write_config

from kproba.plan.errors import ConfigError
from kproba.runtime.files import read_json

pytestmark = pytest.mark.workflow
KNOWN = ("zero", "one", "two", "three", "four", "five", "six", "seven")


def kproba(folder: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "kproba.cli", *words],
        **{"cwd": folder, "capture_output": True, "text": True},
        check=True,
    )
    return done.stdout + done.stderr


def write_pictures(folder: Path, label: int, *, val: bool = True) -> Path:
    """Pictures of an orange disc that has a label, and classes.txt."""
    random = np.random.default_rng(label)
    for subset, count in (("train", 6), ("val", 2 if val else 0)):
        for number in range(count):
            picture = random.integers(60, 120, (64, 64, 3)).astype(np.uint8)
            row, column = random.integers(20, 44, 2)
            rows, columns = np.mgrid[:64, :64]
            disc = (rows - row) ** 2 + (columns - column) ** 2 < 200
            picture[disc] = (255, 140, 0)
            name = f"{subset}{label}_{number}.png"
            for what, pixels in (("images", picture), ("masks", label * disc)):
                path = folder / what / subset / name
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.astype(np.uint8)).save(path)
    names = ["background", *KNOWN, "ball", "cone"][: label + 1]
    (folder / "classes.txt").write_text("\n".join(names) + "\n")
    return folder


@pytest.fixture(scope="module")
def machine(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder with the archive of a step and pictures of a new class."""
    folder = tmp_path_factory.mktemp("machine")
    step = "results/tiny/6-2-overlap/kproba/seed0/step1"
    kproba(finished, "pack", step, "--out", str(folder / "step1.zip"))
    write_pictures(folder / "balls", label=9)
    configure(folder)
    return folder


def configure(folder: Path, **settings: object) -> None:
    dataset = {"kind": "packed", "path": "step1.zip", "additions": ["balls"]}
    experiment = {"dataset": "pets", "task": "6-2", "methods": ["kproba", "barm"]}
    write_config(folder, {"datasets": {}, "experiments": [experiment]})
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["datasets"] = {"pets": {**dataset, **settings}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


@pytest.fixture(scope="module")
def gone_on(machine: Path) -> Path:
    snakemake(machine)
    return machine


def test_the_new_step_is_tested_and_predicts(gone_on: Path) -> None:
    summary = pd.read_csv(gone_on / "results" / "summary.csv")
    assert summary[["method", "step"]].to_numpy().tolist() == [
        ["kproba", 2],
        ["barm", 2],
    ]
    step = "results/pets/6-2-overlap/kproba/seed0/step2"
    listed = kproba(gone_on, "info", step)
    assert "ball (9)" in listed and "zero (1)" in listed
    kproba(gone_on, "predict", step, "balls/images/val", "--out", "found")
    areas = pd.read_csv(gone_on / "found" / "areas.csv")
    assert areas["file"].nunique() == 2
    assert set(areas["class"]) <= {"background", *KNOWN, "ball"}


def test_classes_without_pictures_are_named_and_left_out(gone_on: Path) -> None:
    step = gone_on / "results" / "pets" / "6-2-overlap" / "kproba" / "seed0" / "step2"
    result = read_json(step / "evaluation.json")
    assert result["without_pixels"] == list(KNOWN)
    assert result["protocol"]["leave_out_absent"] is True
    iou = {entry["name"]: entry["iou"] for entry in result["classes"]}
    assert result["new"] == pytest.approx(iou["ball"])
    assert result["old"] == pytest.approx(iou["background"])
    page = (gone_on / "results" / "report.html").read_text()
    assert "No validation image shows zero, one" in page
    assert "left out of the means" in page


def test_the_step_starts_from_what_was_packed(gone_on: Path, finished: Path) -> None:
    received = gone_on / "results" / "data" / "pets" / "received"
    packed = (
        finished / "results" / "tiny" / "6-2-overlap" / "kproba" / "seed0" / "step1"
    )
    for name, file in (("step", "model"), ("bank", "prototypes")):
        for ending in ("safetensors", "json"):
            path = received / name / f"{file}.{ending}"
            assert path.read_bytes() == (packed / path.name).read_bytes()
    assert "Nothing to be done" in snakemake(gone_on, "--dry-run")


def test_the_new_step_can_be_packed_and_gone_on_with(
    gone_on: Path, tmp_path: Path
) -> None:
    step = "results/pets/6-2-overlap/kproba/seed0/step2"
    kproba(gone_on, "pack", step, "--out", str(tmp_path / "step1.zip"))
    write_pictures(tmp_path / "balls", label=10)
    configure(tmp_path)
    snakemake(tmp_path, "results/pets/6-2-overlap/kproba/seed0/step3/predictor.json")


def test_pictures_of_old_classes_may_take_part_in_the_test(
    machine: Path, finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(machine / "balls", tmp_path / "balls")
    shutil.copy(machine / "step1.zip", tmp_path)
    scenes = finished / "results" / "data" / "tiny" / "scenes"
    for what in ("images", "masks"):
        (tmp_path / "old" / what).mkdir(parents=True)
        for path in sorted((scenes / what / "val").iterdir())[:12]:
            target = tmp_path / "old" / what / path.name
            if what == "masks":  # of classes that the step knows
                labels = np.array(Image.open(path))
                Image.fromarray(np.where(labels > 8, 0, labels)).save(target)
            else:
                shutil.copy(path, target)
    configure(tmp_path, validation="old")
    target = "results/pets/6-2-overlap/barm/seed0/step2/evaluation.json"
    snakemake(tmp_path, target)
    result = read_json(tmp_path / target)
    assert result["images"] == 14
    assert set(result["without_pixels"]) < {*KNOWN}


WRONG = {
    "another task": ({}, {"task": "5-3"}, "expected '6-2', the task of the step"),
    "joint": ({}, {"methods": ["joint"]}, "needs the pictures of all classes"),
    "another head": ({}, {"methods": ["mib"]}, "the head 'branches'"),
    "nothing new": ({"additions": []}, {}, "expected at least one folder"),
    "no archive": ({"path": "balls"}, {}, "balls"),
    "missing": ({"path": "nowhere.zip"}, {}, "nowhere.zip"),
}


@pytest.mark.parametrize(
    ("dataset", "experiment", "message"), WRONG.values(), ids=WRONG
)
def test_what_cannot_go_on_is_refused(
    machine: Path, tmp_path: Path, dataset: dict, experiment: dict, message: str
) -> None:
    for name in ("balls", "step1.zip"):
        (tmp_path / name).symlink_to(machine / name)
    configure(tmp_path, **dataset)
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    config["experiments"][0] |= experiment
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    output = snakemake(tmp_path, "--dry-run", succeeds=False)
    assert message in output
    assert ConfigError.__name__ not in output
