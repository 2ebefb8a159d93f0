"""The real chain on the tiny configuration: what is built, and what is built again.

One run of the whole DAG is shared; every test works on its own copy of it.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from snakemake_calls import ROOT, command, jobs, snakemake
from whole_runs import write_config

import kproba
from kproba.data.kinds.digits import CLASS_NAMES
from kproba.data.label_images import read_label_image, write_label_image
from kproba.runtime.files import read_json
from kproba.runtime.locks import lock_path

CHAIN = "results/tiny/6-2-overlap"
BASE = "results/tiny/6-overlap/base/seed0/step0"
PRETRAINED = "results/tiny/6-overlap/pretrained/seed0/step0"
TINY = yaml.safe_load((ROOT / "config" / "test.yaml").read_text())["datasets"]["tiny"]
LAST = f"{CHAIN}/kproba/seed0/step2/model.safetensors"

pytestmark = pytest.mark.workflow


def test_everything_is_built_and_a_second_call_does_nothing(run: Path) -> None:
    for method in ("kproba", "finetune"):
        for step in (1, 2):
            step_folder = run / CHAIN / method / "seed0" / f"step{step}"
            for name in ("model.safetensors", "model.json", "metrics.csv"):
                assert (step_folder / name).is_file()
            assert list((step_folder / "tensorboard").glob("events*"))
            for name in ("evaluation.json", "predictor.json"):
                assert (step_folder / name).is_file()
    for step in (1, 2):
        step_folder = run / CHAIN / "kproba" / "seed0" / f"step{step}"
        assert (step_folder / "prototypes.safetensors").is_file()
        assert list((step_folder / "pseudo_labels").glob("*.png"))
    assert "http" not in re.sub(
        r"data:[^\"]*", "", (run / "results" / "report.html").read_text()
    )
    assert jobs(run) == {}


def test_summary_has_one_row_per_step_and_method(run: Path) -> None:
    summary = pd.read_csv(run / "results" / "summary.csv")
    rows = summary[["method", "step"]].to_numpy().tolist()
    chains = [[method, step] for method in ("kproba", "finetune") for step in range(3)]
    assert rows == [*chains, ["joint", 2]]
    columns = "dataset task setting method seed step old new all hiou"
    over_steps = ["avg", "forgetting", "seconds", "folder", "without_pixels"]
    assert list(summary) == [*columns.split(), *over_steps]
    for folder in summary["folder"]:
        assert (run / folder / "predictor.json").is_file()
    later = summary["step"] > 0  # step 0, which all share, is apart
    assert (summary["seconds"][later] > 0).all()
    assert summary["seconds"][~later].isna().all()


def test_step_0_is_trained_once_for_all_methods(run: Path) -> None:
    models = {str(path.relative_to(run)) for path in run.glob("**/model.safetensors")}
    assert models == {
        f"{BASE}/model.safetensors",
        f"{PRETRAINED}/model.safetensors",  # before that training, for the bank
        f"{CHAIN}/joint/seed0/step2/model.safetensors",
        *(
            f"{CHAIN}/{method}/seed0/step{step}/model.safetensors"
            for method in ("kproba", "finetune")
            for step in (1, 2)
        ),
    }


def test_deleted_model_is_rebuilt_with_the_same_bytes(run: Path) -> None:
    model = run / CHAIN / "kproba" / "seed0" / "step2" / "model.safetensors"
    before = model.read_bytes()
    model.unlink()
    target = str(model.relative_to(run))
    assert jobs(run, target) == {"train_step": 1}
    snakemake(run, target)
    assert model.read_bytes() == before


def test_whole_chain_again_gives_the_same_bytes(run: Path, finished: Path) -> None:
    shutil.rmtree(run / "results")
    target = f"{CHAIN}/kproba/seed0/step1/model.safetensors"
    write_config(run, {"compute": {"workers": 2}})
    snakemake(run, target)
    names = [
        f"{BASE}/model.safetensors",
        "results/tiny/6-overlap/kproba/seed0/step0/prototypes.json",
        f"{CHAIN}/kproba/seed0/step1/pseudo_labels.csv",
        target,
        f"{CHAIN}/kproba/seed0/step1/metrics.csv",
    ]
    for name in names:
        assert (run / name).read_bytes() == (finished / name).read_bytes(), name


def test_evaluation_setting_runs_evaluation_alone(run: Path) -> None:
    write_config(run, {"evaluation": {"policy": "plop"}})
    again = jobs(run)
    assert again.pop("evaluate") == 7  # of step 0 by the network, and with the bank
    assert again.pop("write_card") == 7
    assert set(again) == {"summarise", "draw_figures", "write_report", "publish", "all"}


def test_a_changed_machine_runs_nothing_again(run: Path) -> None:
    write_config(
        run,
        {"compute": {"workers": 1, "threads": 2, "state_minutes": 1, "batch_size": 2}},
    )
    assert jobs(run) == {}


def test_bank_dimension_keeps_step_0_and_finetuning(run: Path) -> None:
    write_config(run, {"bank": {"dimension": 32}})
    again = jobs(run)
    assert again["build_prototypes"] == 3
    assert again["export_pseudo_labels"] == 2
    assert again["train_step"] == 2  # kproba's, not finetune's
    assert "train_base" not in again
    snakemake(run, f"{CHAIN}/kproba/seed0/step1/model.safetensors")
    bank = load_file(
        run / "results/tiny/6-overlap/kproba/seed0/step0/prototypes.safetensors"
    )
    assert bank["means.0"].shape == (7, 32)


def test_prototypes_of_the_network_before_training(run: Path) -> None:
    write_config(run, {"bank": {"network": "before"}})
    again = jobs(run)
    assert again["build_prototypes"] == 3
    assert "train_base" not in again
    banks = [
        "results/tiny/6-overlap/kproba/seed0/step0/prototypes.safetensors",
        f"{CHAIN}/kproba/seed0/step1/prototypes.safetensors",
    ]
    before = [load_file(run / bank) for bank in banks]
    snakemake(run, *banks)
    for old, bank in zip(before, banks, strict=True):
        new = load_file(run / bank)
        assert torch.equal(old["count"][:7], new["count"][:7])  # the same pixels
        # The default are the features before step 0, at every step.
        is_first = "/step0/" in bank
        assert torch.equal(old["means.0"], new["means.0"]) == is_first


def test_other_methods_have_their_own_step_0_and_the_same_rules(run: Path) -> None:
    methods = [
        "kproba",
        "barm",
        "ssul_light",
        "plop",
        "mib",
        "lwf",
        "finetune",
        "joint",
    ]
    experiment = {"dataset": "tiny", "task": "6-2", "methods": methods}
    write_config(run, {"experiments": [experiment]})
    planned = jobs(run)
    assert planned["train_base"] == 1  # with a softmax, for plop, mib and lwf
    assert planned["train_step"] == 2 * 5
    # Those of step 1 follow from step 0: barm's serve ssul_light too.
    assert planned["export_pseudo_labels"] == 2 * 3 - 1
    assert "build_prototypes" not in planned
    chain = f"{CHAIN}/plop/seed0"
    snakemake(run, f"{chain}/step1/evaluation.json")
    quality = pd.read_csv(run / chain / "step1/pseudo_label_quality.csv")
    assert len(quality) == 7 and quality["unsure"].sum() > 0
    assert (run / "results/tiny/6-overlap/base_softmax/seed0/step0").is_dir()


def test_methods_trained_alike_share_their_models(run: Path) -> None:
    def planned(methods_used: list[str], **changes: Any) -> dict[str, int]:
        experiment = {"dataset": "tiny", "task": "6-2", "methods": methods_used}
        write_config(run, {"experiments": [experiment], **changes})
        return jobs(run)

    alone = {"alone": {"based_on": "kproba", "prediction": "network"}}
    again = planned(["kproba", "alone"], methods=alone)
    assert again.pop("evaluate") == again.pop("write_card") == 2
    assert set(again) == {"summarise", "draw_figures", "write_report", "publish", "all"}
    chain = f"{CHAIN}/alone/seed0/step2"
    snakemake(run, f"{chain}/evaluation.json")
    loaded, fused = (
        kproba.load(run / CHAIN / method / "seed0/step2")
        for method in ("alone", "kproba")
    )
    assert read_json(run / chain / "predictor.json")["network"] == (
        "../../../kproba/seed0/step2/model.safetensors"
    )
    for path in sorted((run / chain / "examples").glob("*.png")):
        image = run / f"results/data/tiny/scenes/images/val/{path.name}"
        labels = loaded.predict(image).indices
        assert np.array_equal(labels, read_label_image(path))
        assert not np.array_equal(labels, fused.predict(image).indices)
    # barm is trained as kproba in step 1, unless kproba's labels come by another rule.
    labels = {"pseudo_labels": {"rule": "confidence"}}
    both = planned(["kproba", "barm"], **labels)
    assert (both["train_step"], both["export_pseudo_labels"]) == (3, 2)
    assert both["build_prototypes"] == 3
    assert planned(["kproba", "barm"])["train_step"] == 2  # kproba's are there


def test_banks_of_earlier_steps_teach_the_next_one(run: Path) -> None:
    network_alone = {"based_on": "kproba", "teacher": "network"}
    methods = {
        "no_bank_teacher": network_alone,
        "alone": {**network_alone, "prediction": "network"},
    }
    names = [*methods, "kproba"]
    experiment = {"dataset": "tiny", "task": "6-2", "methods": names}
    write_config(run, {"experiments": [experiment], "methods": methods})
    planned = jobs(run)
    assert planned["train_step"] == 1  # step 2: no bank corrects the teacher in step 1
    # The labels of step 2 are those of step 1's model, and so the bank of step 2 is.
    assert "build_prototypes" not in planned
    assert "export_pseudo_labels" not in planned
    snakemake(run, f"{CHAIN}/no_bank_teacher/seed0/step2/model.safetensors")
    chain = f"{CHAIN}/kproba/seed0"
    for step in (1, 2):
        (run / chain / f"step{step}/model.safetensors").unlink()
    model = f"{chain}/step2/model.safetensors"
    output = snakemake(run, "--printshellcmds", "--", model)
    calls = {
        step: line
        for step in (1, 2)
        for line in output.splitlines()
        if f"kproba.jobs.train {chain}/step{step}/settings.json" in line
    }
    assert "--bank  --feature-network  --statistics  " in calls[1]
    assert f"--bank {chain}/step1/prototypes.safetensors" in calls[2]
    assert f"--feature-network {PRETRAINED}/model.safetensors" in calls[2]
    decisions = [
        read_json(run / chain / f"step{step}/settings.json")["decision"]
        for step in (1, 2)
    ]
    assert decisions[0] is None
    assert decisions[1]["rule"] == "klda"
    models = [
        load_file(run / CHAIN / f"{method}/seed0/step2/model.safetensors")
        for method in ("kproba", "no_bank_teacher")
    ]
    assert models[0].keys() == models[1].keys()
    assert any(not torch.equal(models[0][key], models[1][key]) for key in models[0])


def test_increment_setting_keeps_step_0(run: Path) -> None:
    write_config(run, {"increment": {"epochs": 2, "batch_size": 4}})
    again = jobs(run)
    assert again["train_step"] == 4
    assert again["train_joint"] == 1  # it has as many iterations as the chain
    assert "train_base" not in again


def test_base_setting_trains_all_again(run: Path) -> None:
    write_config(run, {"base": {"epochs": 2}})
    again = jobs(run)
    assert again["train_base"] == again["train_joint"] == 1
    assert again["train_step"] == 4
    assert "make_split" not in again


def test_added_step_trains_that_step_alone(tmp_path: Path) -> None:
    two = [["zero", "one", "two", "three"], ["four"]]
    experiment = {"dataset": "tiny", "task": "mine", "methods": ["kproba"]}
    change: dict[str, Any] = {"experiments": [experiment], "tasks": {"mine": two}}
    write_config(tmp_path, change)
    chain = "results/tiny/mine-overlap/kproba/seed0"
    snakemake(tmp_path, f"{chain}/step1/evaluation.json")
    change["tasks"] = {"mine": [*two, ["five"]]}
    write_config(tmp_path, change)
    again = jobs(tmp_path, f"{chain}/step2/model.safetensors")
    assert again == {
        "export_pseudo_labels": 1,
        "make_split": 1,
        "train_step": 1,
        "write_settings": 1,
    }


def write_addition(folder: Path, names: list[str]) -> None:
    """Pictures of a cross, the last of `names`, over noise."""
    rng = np.random.default_rng(0)
    for subset, count in (("train", 6), ("val", 3)):
        for kind in ("images", "masks"):
            (folder / kind / subset).mkdir(parents=True)
        for number in range(count):
            mask = np.zeros((64, 64), np.uint8)
            mask[20:44, 28:36] = mask[28:36, 20:44] = len(names)
            image = rng.integers(0, 128, (64, 64, 3), dtype=np.uint8)
            image[mask > 0] = (255, 0, 255)
            name = f"cross{subset}{number}.png"
            Image.fromarray(image).save(folder / "images" / subset / name)
            write_label_image(folder / "masks" / subset / name, mask)
    listed = "\n".join(["background", *names])
    (folder / "classes.txt").write_text(f"{listed}\n")


def test_class_is_added_with_pictures_and_nothing_before_is_made_again(
    run: Path,
) -> None:
    write_addition(run / "more", [*CLASS_NAMES, "cross"])
    change = {
        "datasets": {"tiny": {**TINY, "additions": ["more"]}},
        "experiments": [{"dataset": "tiny", "task": "6-2", "methods": ["kproba"]}],
    }
    write_config(run, change)
    assert jobs(run) == {
        "prepare_dataset": 1,
        "make_split": 1,
        "list_classes": 1,
        "write_settings": 1,
        "export_pseudo_labels": 1,
        "train_step": 1,
        "build_prototypes": 1,
        "evaluate": 1,
        "write_card": 1,
        "summarise": 1,
        "draw_figures": 1,
        "write_report": 1,
        "publish": 1,
        "all": 1,
    }
    before = (run / LAST).read_bytes()
    snakemake(run)
    assert (run / LAST).read_bytes() == before
    assert jobs(run) == {}
    step = run / CHAIN / "kproba" / "seed0" / "step3"
    segmenter = kproba.load(step)
    assert segmenter.classes[-1].name == "cross"
    assert len(list((step / "examples").glob("*.png"))) == 4  # two of each part
    segmenter.predict(run / "more" / "images" / "val" / "crossval0.png")


@pytest.fixture(scope="session")
def undisturbed(finished: Path) -> Path:
    """A run whose increments last long enough to be caught in the middle."""
    copy = finished.with_name("undisturbed")
    shutil.copytree(finished, copy, copy_function=shutil.copy2)
    # A state after every row of metrics.
    settings = {"increment": {"epochs": 10}, "compute": {"state_minutes": 0.0001}}
    write_config(copy, settings)
    snakemake(copy, LAST)
    return copy


@pytest.mark.parametrize("killed", ["everything", "Snakemake alone"])
def test_killed_run_goes_on_and_ends_with_the_same_bytes(
    undisturbed: Path, tmp_path: Path, killed: str
) -> None:
    run, target = tmp_path / "run", LAST
    shutil.copytree(undisturbed, run, copy_function=shutil.copy2)
    state = run / Path(target).with_name("training-state.pt")
    (run / target).unlink()
    process = subprocess.Popen(
        command(run, target),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    for _ in range(1200):
        if state.exists() or process.poll() is not None:
            break
        time.sleep(0.1)
    log = (run / target).with_name("train.log")
    if killed == "everything":
        kill_session(process.pid)
    else:
        process.kill()  # its job goes on, and would write beside the next one
        hold_until_stopped(log)
    process.wait()
    assert state.exists(), "the run was not caught in the middle"
    assert not (run / target).exists()

    snakemake(run, "--unlock")
    snakemake(run, "--rerun-incomplete", target)
    text = log.read_text()
    assert "resumed after" in text
    assert ("its Snakemake was killed" in text) == (killed != "everything")
    assert (run / target).read_bytes() == (undisturbed / target).read_bytes()
    metrics = Path(target).with_name("metrics.csv")
    assert (run / metrics).read_bytes() == (undisturbed / metrics).read_bytes()
    assert not state.exists()


def test_jobs_of_one_gpu_side_by_side_get_different_ones(
    run: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    monkeypatch.setenv("KPROBA_LOCKS", str(run.parent / "locks"))
    write_config(run, {"compute": {"gpus": 1, "device": "cpu"}})
    models = [
        f"{CHAIN}/{method}/seed0/step1/model.safetensors"
        for method in ("kproba", "finetune")
    ]
    for model in models:
        (run / model).unlink()
    snakemake(run, "--resources", "gpu=2", "--", *models)
    devices = []
    for model in models:
        log = (run / model).with_name("train.log").read_text()
        devices += re.findall(r"^Using GPU (\d) of 5, 7$", log, re.MULTILINE)
        assert (run / model).read_bytes() == (finished / model).read_bytes()
    assert sorted(devices) == ["5", "7"]


def test_a_job_takes_as_many_gpus_as_resources_allow(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("KPROBA_LOCKS", str(run.parent / "locks"))
    write_config(run, {"compute": {"gpus": 2, "device": "cpu"}})
    target = f"{CHAIN}/finetune/seed0/step1/model.safetensors"
    for allowed in (1, 2):
        (run / target).unlink()
        snakemake(run, "--resources", f"gpu={allowed}", "--", target)
        log = (run / target).with_name("train.log").read_text()
        assert f"= {allowed} process(es) x 1" in log
        assert len(re.findall(r"^Using GPU 0(, 1)? of 0, 1$", log, re.MULTILINE)) == 1


def hold_until_stopped(log: Path) -> None:
    """Let the job that writes a log stand still until the next one wants its place."""
    job = json.loads(lock_path(log).read_text())["pid"]
    os.kill(job, signal.SIGSTOP)

    def go_on() -> None:
        while not was_stopped(job):
            time.sleep(0.1)
        with contextlib.suppress(ProcessLookupError):
            os.kill(job, signal.SIGCONT)

    def was_stopped(pid: int) -> bool:
        """Whether a SIGTERM waits for a process that stands still, or ended it."""
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except FileNotFoundError:
            return True
        waiting = int(re.findall(r"ShdPnd:\s*(\w+)", status)[0], 16)
        return bool(waiting >> (signal.SIGTERM - 1) & 1)

    threading.Thread(target=go_on, daemon=True).start()


def kill_session(leader: int) -> None:
    """SIGKILL every process of a session, torchrun's children included."""
    listed = subprocess.run(
        ["ps", "-eo", "pid=,ppid=,sid="], capture_output=True, text=True, check=True
    )
    rows = [list(map(int, line.split())) for line in listed.stdout.splitlines()]
    doomed = {pid for pid, _, session in rows if session == leader}
    grown = True
    while grown:
        children = {pid for pid, parent, _ in rows if parent in doomed} - doomed
        doomed |= children
        grown = bool(children)
    for pid in doomed:
        subprocess.run(["kill", f"-{signal.SIGKILL.value}", str(pid)], check=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bse": {"epochs": 1}}, "did you mean 'base'"),
        ({"base": {"epochs": "many"}}, "base.epochs: expected number"),
        (
            {"experiments": [{"dataset": "tiny", "task": "6-3"}]},
            "experiments.0.task: .*divide the dataset's 10 classes",
        ),
        (
            {"experiments": [{"dataset": "tinny", "task": "6-2"}]},
            "did you mean 'tiny'",
        ),
        (
            {"compute": {"processes": 3}},
            "base.batch_size: expected a multiple of 3 process",
        ),
        (
            {
                "datasets": {"mine": {"kind": "folder", "path": "nowhere"}},
                "experiments": [{"dataset": "mine", "task": "6-2"}],
            },
            "datasets.mine: .*nowhere with images/train/",
        ),
    ],
)
def test_wrong_configuration_stops_before_any_work(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    write_config(tmp_path, change)
    output = snakemake(tmp_path, succeeds=False)
    assert re.search(message, output), output
    assert "Traceback" not in output
    assert not (tmp_path / "results").exists()


def test_default_configuration_is_a_valid_dag(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text((ROOT / "config/config.yaml").read_text())
    planned = jobs(tmp_path)
    assert planned["train_base"] == 2  # step 0, and joint, which is as long
    assert planned["train_step"] == 4
