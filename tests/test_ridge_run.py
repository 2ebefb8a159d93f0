"""The whole chain of `ridge` on the tiny configuration, and what follows from it."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file
from snakemake_calls import jobs, snakemake
from test_going_on import kproba, write_pictures
from whole_runs import write_config

import kproba as package
from kproba.predict.export import export
from kproba.runtime.files import read_json

pytestmark = pytest.mark.workflow
CHAIN = "results/tiny/6-2-overlap/ridge/seed0"
FIRST = "results/tiny/6-overlap/ridge/seed0/step0"
EXPERIMENT = {"dataset": "tiny", "task": "6-2", "methods": ["ridge"]}


@pytest.fixture(scope="module")
def ridge(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `ridge` alone, which finds step 0 trained."""
    folder = tmp_path_factory.mktemp("ridge") / "run"
    shutil.copytree(finished, folder, copy_function=shutil.copy2)
    write_config(folder, {"experiments": [EXPERIMENT]})
    planned = jobs(folder)
    assert planned["train_step"] == 2 and "train_base" not in planned
    assert planned["build_prototypes"] == planned["evaluate"] == 3
    snakemake(folder)
    return folder


def test_tables_and_page_show_it_like_a_method_that_trains(ridge: Path) -> None:
    summary = pd.read_csv(ridge / "results" / "summary.csv")
    assert summary["method"].tolist() == ["ridge"] * 3
    assert summary["all"].notna().all()
    for step in (1, 2):
        folder = ridge / CHAIN / f"step{step}"
        assert pd.read_csv(folder / "metrics.csv").empty
        assert read_json(folder / "evaluation.json")["prediction"] == "fused (ridge)"
        assert "| prediction | prototype bank, rule `ridge` |" in (
            folder / "card.md"
        ).read_text(encoding="utf-8")
        assert "prediction: bank (ridge)" in kproba(ridge, "info", str(folder))
    quality = pd.read_csv(ridge / "results" / "pseudo_labels.csv")
    assert set(quality["step"]) == {1, 2} and set(quality["method"]) == {"ridge"}
    page = (ridge / "results" / "report.html").read_text(encoding="utf-8")
    assert "ridge" in page
    for name in ("training", "miou", "pseudo_labels"):
        picture = ridge / f"results/tiny/6-2-overlap/figures/{name}.png"
        with Image.open(picture) as image:
            assert min(image.size) > 40
    assert jobs(ridge) == {}


def test_statistics_grow_from_step_to_step(ridge: Path) -> None:
    """The background comes in every step, and its cells add up."""
    paths = [ridge / FIRST, *(ridge / CHAIN / f"step{step}" for step in (1, 2))]
    banks = [load_file(path / "prototypes.safetensors") for path in paths]
    counts = [bank["count"] for bank in banks]
    assert counts[0][0] < counts[1][0] < counts[2][0]
    assert [len(count) for count in counts] == [7, 9, 11]
    for path, count in zip(paths, counts, strict=True):
        record = read_json(path / "prototypes.json")
        assert record["scatter_count"] == float(count.sum())
        assert record["temperature"] > 0


def test_what_is_deleted_is_made_again_with_the_same_bytes(
    ridge: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(ridge, run, copy_function=shutil.copy2)
    names = ("model.safetensors", "prototypes.safetensors", "metrics.csv")
    step = run / CHAIN / "step2"
    before = {name: (step / name).read_bytes() for name in names}
    for name in names:
        (step / name).unlink()
    write_config(
        run, {"experiments": [EXPERIMENT], "compute": {"processes": 2, "batch_size": 3}}
    )
    snakemake(run, *(f"{CHAIN}/step2/{name}" for name in names))
    again = {name: (step / name).read_bytes() for name in names}
    for name in ("model.safetensors", "metrics.csv"):
        assert again[name] == before[name]
    # Two processes round the sums of the features in another order.
    first = load_file(ridge / CHAIN / "step2" / "prototypes.safetensors")
    for key, tensor in load_file(step / "prototypes.safetensors").items():
        np.testing.assert_allclose(tensor, first[key], rtol=1e-4, atol=1e-4)


def test_a_changed_increment_or_threshold_trains_no_network(ridge: Path) -> None:
    try:
        write_config(ridge, {"experiments": [EXPERIMENT], "increment": {"epochs": 9}})
        assert jobs(ridge) == {}
        mine = {"based_on": "ridge", "pseudo_labels": {"score_threshold": 0.9}}
        experiment = {**EXPERIMENT, "methods": ["ridge", "mine"]}
        write_config(ridge, {"experiments": [experiment], "methods": {"mine": mine}})
        planned = jobs(ridge)
        assert planned["build_prototypes"] == 2  # that of step 0 has no pseudo labels
        assert not {"train_step", "train_base"} & planned.keys()
    finally:
        write_config(ridge, {"experiments": [EXPERIMENT]})


def test_a_model_file_gives_the_same_probabilities(ridge: Path, tmp_path: Path) -> None:
    segmenter = package.load(ridge / CHAIN / "step2")
    for ending in ("onnx", "pt"):
        assert export(segmenter, tmp_path / f"model.{ending}") < 1e-3


def test_a_packed_step_goes_on(ridge: Path, tmp_path: Path) -> None:
    """Its exact statistics are in the archive, and the network of step 0."""
    kproba(ridge, "pack", f"{CHAIN}/step1", "--out", str(tmp_path / "step1.zip"))
    write_pictures(tmp_path / "balls", label=9)
    experiment = {"dataset": "pets", "task": "6-2", "methods": ["ridge"]}
    write_config(tmp_path, {"datasets": {}, "experiments": [experiment]})
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    packed = {"kind": "packed", "path": "step1.zip", "additions": ["balls"]}
    config["datasets"] = {"pets": packed}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    step = "results/pets/6-2-overlap/ridge/seed0/step2"
    snakemake(tmp_path, f"{step}/predictor.json")
    before = load_file(ridge / CHAIN / "step1" / "prototypes.safetensors")
    after = load_file(tmp_path / step / "prototypes.safetensors")
    assert (after["count"][:9] >= before["count"]).all() and after["count"][9] > 0
    assert "ball (9)" in kproba(tmp_path, "info", step)
