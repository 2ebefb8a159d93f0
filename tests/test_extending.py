"""The recipes of docs/extending.md run as they stand in the document.

Recipes 1 to 4 share one run of Snakemake: their files lie in one folder and their
configurations are laid over a tiny one. Recipe 5 follows in the same folder.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from snakemake_calls import ROOT, jobs, snakemake

import kproba
from kproba.data.label_images import write_label_image
from kproba.plan.schema import merged

TEXT = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
FOCAL = "results/digits/8-2-overlap/focal/seed0/step1"
STREETS = "results/streets/13-6-overlap/kproba/seed0/step1"

pytestmark = pytest.mark.workflow


def blocks(language: str) -> list[tuple[str | None, str]]:
    """The fenced blocks of a language: title and content."""
    found = re.findall(
        rf'^```{language}(?: title="([^"]+)")?\n(.*?)^```$', TEXT, re.M | re.S
    )
    return [(title or None, content) for title, content in found]


def files() -> dict[str, str]:
    """The files of the user, by name."""
    return {title: content for title, content in blocks("python") if title}


def configuration() -> dict[str, Any]:
    """A tiny configuration with those of the recipes laid over it."""
    tiny = yaml.safe_load((ROOT / "config" / "test.yaml").read_text())
    tiny["datasets"] = {"digits": tiny["datasets"]["tiny"]}
    config: dict[str, Any] = {**tiny, "extensions": [], "experiments": []}
    for title, content in blocks("yaml"):
        if title is not None:
            recipe = yaml.safe_load(content)
            for key in ("extensions", "experiments"):
                config[key] += recipe.pop(key, [])
            config = merged(config, recipe)
    return config


def write_streets(folder: Path) -> None:
    """Two cities per subset; every mask has three train ids and pixels without one."""
    rng = np.random.default_rng(0)
    for subset, cities in (("train", ("aachen", "ulm")), ("val", ("bern", "trier"))):
        for city in cities:
            images = folder / "leftImg8bit" / subset / city
            masks = folder / "gtFine" / subset / city
            images.mkdir(parents=True)
            masks.mkdir(parents=True)
            for number in range(10):
                name = f"{city}_{number:06}_000019"
                mask = np.full((64, 64), 255, np.uint8)
                for place in range(3):
                    train_id = (number * 3 + place) % 19
                    mask[place * 20 : place * 20 + 20, 4:] = train_id
                noise = rng.integers(0, 40, (64, 64, 3), dtype=np.uint8)
                image = noise + (mask % 19)[..., None] * np.uint8(11)
                Image.fromarray(image).save(images / f"{name}_leftImg8bit.png")
                write_label_image(masks / f"{name}_gtFine_labelTrainIds.png", mask)


def call(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, as in the environment of this Python."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        words,
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the user after all recipes."""
    parent = tmp_path_factory.mktemp("extending")
    (parent / "kproba").symlink_to(ROOT)
    folder = parent / "study"
    folder.mkdir()
    for name, content in files().items():
        (folder / name).write_text(content)
    write_streets(folder / "data" / "cityscapes")
    (folder / "config.yaml").write_text(yaml.safe_dump(configuration()))
    for _, command in blocks("bash"):
        done = call(["bash", "-c", command], folder)
        assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    return folder


@pytest.fixture
def edited(study: Path, tmp_path: Path) -> Path:
    """A copy of that folder, for edits; times of files included."""
    copy = tmp_path / "study"
    shutil.copytree(study, copy, copy_function=shutil.copy2)
    (tmp_path / "kproba").symlink_to(ROOT)
    return copy


def recorded(path: Path) -> list[str]:
    """The files of extensions that settings.json or model.json names."""
    return [entry["path"] for entry in json.loads(path.read_text()).get("extensions")]


def test_document_has_five_recipes_with_a_file_each() -> None:
    assert list(files()) == [
        *("my_loss.py", "my_backbone.py", "my_dataset.py", "my_measure.py"),
        "Snakefile",
    ]
    assert len(re.findall(r"^## \d\. ", TEXT, re.M)) == 5


def test_method_trains_with_its_own_loss(study: Path) -> None:
    metrics = pd.read_csv(study / FOCAL / "metrics.csv")
    assert {"focal_ce", "kd"} <= set(metrics)
    assert np.isfinite(metrics["focal_ce"]).all()
    settings = study / FOCAL / "settings.json"
    assert recorded(settings) == ["my_backbone.py", "my_loss.py"]
    first = study / "results/digits/8-overlap/base_softmax/seed0/step0/settings.json"
    assert recorded(first) == ["my_backbone.py"]


def test_dataset_is_indexed_with_labels_from_1(study: Path) -> None:
    index = pd.read_csv(study / "results/data/streets/index.csv")
    assert index["subset"].value_counts().to_dict() == {"train": 20, "val": 20}
    labels = {int(word) for cell in index["classes"] for word in cell.split()}
    assert labels == {*range(1, 20), 255}
    classes = json.loads(
        (study / "results/splits/streets/13-6-overlap/classes.json").read_text()
    )["classes"]
    assert [entry["name"] for entry in classes[:3]] == [
        "background",
        "road",
        "sidewalk",
    ]
    report = json.loads((study / "results/data/streets/integrity.json").read_text())
    assert report["warnings_by_kind"]["no background"] == 1


def test_measure_is_in_the_tables_and_on_the_page(study: Path) -> None:
    summary = pd.read_csv(study / "results" / "summary.csv")
    assert summary["worst"].between(0, 100).all()
    assert "worst class" in (study / "results" / "report.html").read_text()


def test_every_step_has_the_file_of_the_added_rule(study: Path) -> None:
    for model in study.glob("results/**/model.safetensors"):
        table = pd.read_csv(model.with_name("weights.csv"), header=None, index_col=0)
        assert (table > 0).all().all()
        assert {"backbone", "aspp", "branches"} == set(table.index)
    assert jobs(study) == {}


def test_prediction_finds_the_backbone_from_any_folder(
    study: Path, tmp_path: Path
) -> None:
    [picture, *_] = sorted(study.glob("data/**/val/**/*_leftImg8bit.png"))
    words = ["kproba", "predict", str(study / STREETS), str(picture), "--out", "found"]
    done = call(words, tmp_path)
    assert done.returncode == 0, done.stderr
    masks = sorted((tmp_path / "found" / "masks").glob("**/*.png"))
    assert masks
    # The dataset's own values: train ids from 0, and no 19.
    train_ids = {*range(19), 255}
    for mask in masks:
        assert set(np.unique(np.asarray(Image.open(mask)))) <= train_ids
    classes = json.loads((study / STREETS / "predictor.json").read_text())["classes"]
    labels = {entry["name"]: entry["label"] for entry in classes}
    assert (labels["background"], labels["road"], labels["bicycle"]) == (255, 0, 18)

    moved = tmp_path / "moved"
    shutil.copytree(study / "results", moved / "results")
    words[2] = str(moved / STREETS)
    done = call(words, tmp_path)
    assert done.returncode == 1
    assert "Expected my_backbone.py, the file of extensions that" in done.stderr
    assert "Traceback" not in done.stderr
    done = call(["kproba", "info", str(moved / STREETS)], tmp_path)
    assert "network: plain_cnn" in done.stdout


def test_load_needs_no_file_of_a_loss(study: Path, tmp_path: Path) -> None:
    shutil.copytree(study / "results", tmp_path / "results")
    shutil.copy(study / "my_backbone.py", tmp_path)
    segmenter = kproba.load(tmp_path / FOCAL)
    assert [entry.step for entry in segmenter.classes] == [0] * 9 + [1] * 2


EDIT = "\nANOTHER_LINE = True\n"


@pytest.mark.parametrize(
    ("file", "again"),
    [
        (
            "my_measure.py",
            {"summarise", "draw_figures", "write_report", "publish", "all"},
        ),
        (
            "my_loss.py",
            {"write_settings", "train_step", "evaluate", "write_card"}
            | {"summarise", "draw_figures", "write_report", "publish", "all"},
        ),
    ],
)
def test_edited_file_runs_again_exactly_what_uses_it(
    edited: Path, file: str, again: set[str]
) -> None:
    with (edited / file).open("a") as text:
        text.write(EDIT)
    planned = jobs(edited)
    assert set(planned) == again
    if file == "my_loss.py":
        assert planned["write_settings"] == planned["train_step"] == 1
        assert planned["evaluate"] == 1


def test_edited_kind_makes_the_index_of_its_dataset_again(edited: Path) -> None:
    with (edited / "my_dataset.py").open("a") as text:
        text.write(EDIT)
    output = snakemake(edited, "--dry-run", "--", "results/data/streets/index.csv")
    assert "prepare_dataset" in output
    digits = jobs(edited, "--", f"{FOCAL}/evaluation.json")
    assert digits == {}


def test_wrong_extension_stops_before_any_job(edited: Path) -> None:
    (edited / "my_loss.py").write_text("import nothing_like_this\n")
    output = snakemake(edited, "--dry-run", succeeds=False)
    assert "my_loss.py, line 1 raised ModuleNotFoundError" in output
    assert "Traceback" not in output
