"""The tiny chain on a real SLURM: what is asked for, which devices, scancel.

Needs a SLURM whose GPUs may be pretended ones: jobs hold them and compute on the CPU.
"""

import os
import re
import shutil
import subprocess
from datetime import datetime
from pathlib import Path

import pytest
import yaml
from calls import ROOT, command, snakemake
from processes import wait_until
from test_workflow import CHAIN, hold_until_told_to_stop, write_config

pytestmark = [pytest.mark.workflow, pytest.mark.slurm]

KPROBA, FINETUNE = (
    f"{CHAIN}/{method}/seed0/step1/model.safetensors"
    for method in ("kproba", "finetune")
)
BASE = "results/tiny/6-overlap/base/seed0/step0/model.safetensors"
COMPUTE = {"gpus": 1, "device": "cpu", "workers": 1, "state_minutes": 0.0001}


@pytest.fixture(scope="session", autouse=True)
def slurm() -> None:
    """Submit nothing unasked; once asked, a SLURM that is not there is a failure."""
    if not os.environ.get("KPROBA_TEST_SLURM"):
        pytest.skip("submits jobs to SLURM: make test-slurm, see CONTRIBUTING.md")
    nodes = shell("sinfo --noheader --format=%G", timeout=20)
    counts = [int(count) for count in re.findall(r"gpu[^,]*?:(\d+)", nodes)]
    if not counts or max(counts) < 2:
        pytest.fail(f"Expected a SLURM with 2 GPUs on a node, but sinfo tells {nodes}")


def shell(command: str, timeout: float = 60) -> str:
    done = subprocess.run(
        command.split(), capture_output=True, text=True, check=True, timeout=timeout
    )
    return done.stdout


@pytest.fixture(scope="session")
def profile(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags that name the project's profile, made to fit a small machine."""
    content = yaml.safe_load((ROOT / "profiles/slurm/profile.yaml").read_text())
    resources = [content["default-resources"], *content["set-resources"].values()]
    for entry in resources:
        entry["mem_mb"] = re.sub(r"\d+(?= \* attempt)", "1500", entry["mem_mb"])
        entry["runtime"] = re.sub(r"\d+(?= \* attempt)", "20", entry["runtime"])
    content["slurm-status-command"] = "squeue"
    content["slurm-init-seconds-before-status-checks"] = 3
    content["jobs"] = 4
    folder = tmp_path_factory.mktemp("profile")
    (folder / "profile.yaml").write_text(yaml.safe_dump(content))
    return ["--profile", str(folder)]


def jobs_of(folder: Path) -> list[dict[str, str]]:
    """What SLURM knows of the jobs that ran in a folder."""
    rows = []
    for line in shell("scontrol show jobs --oneliner").splitlines():
        row = dict(re.findall(r"(\S+?)=(.*?)(?= \S+?=|$)", line))
        if row.get("WorkDir") == str(folder):
            rows.append(row)
    return rows


def state_of(number: str) -> str:
    """State of a job."""
    shown = shell(f"scontrol show job {number} --oneliner")
    return re.search(r"JobState=(\w+)", shown)[1]


def of_rule(rule: str, rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [row for row in rows if f"rule_{rule}" in row.get("Comment", "")]


@pytest.fixture(scope="session")
def finished(profile: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both methods' first increments, side by side."""
    folder = tmp_path_factory.mktemp("slurm") / "run"
    folder.mkdir()
    write_config(folder, {"compute": COMPUTE, "increment": {"epochs": 6}})
    snakemake(folder, *profile, KPROBA, FINETUNE)
    return folder


def test_jobs_ask_for_what_the_profile_and_the_configuration_say(finished: Path):
    rows = jobs_of(finished)
    for rule, count in [("train_base", 1), ("train_step", 2), ("build_prototypes", 1)]:
        found = of_rule(rule, rows)
        assert len(found) == count, rule
        for row in found:
            assert row["JobState"] == "COMPLETED"
            assert row["Partition"] == "gpu"
            assert re.search(r"gpu:?\S*[:=]1\b", row["TresPerJob"]), row["TresPerJob"]
            assert (row["NumTasks"], row["NumNodes"]) == ("1", "1")
            assert row["CPUs/Task"] == "1"
            assert row["MinMemoryNode"] in ("1500M", "1.46484G")
            assert row["TimeLimit"] == "00:20:00"
            assert row["Requeue"] == "1"
    [index] = of_rule("prepare_dataset", rows)
    assert index["Partition"] == "cpu"
    assert "gpu" not in index.get("TresPerJob", "")
    # Settings and splits are too small for a job.
    assert {row["Comment"] for row in rows} == {
        row["Comment"]
        for rule in (
            *("write_digits", "prepare_dataset", "train_base", "train_step"),
            *("build_prototypes", "export_pseudo_labels"),
        )
        for row in of_rule(rule, rows)
    }


def test_two_jobs_of_one_gpu_run_at_once_on_different_devices(finished: Path):
    """Fine-tuning does not wait for the bank: both follow step 0."""
    rows = jobs_of(finished)
    bank, training = (
        "build_prototypes",
        "train_step_wildcards_tiny_6-2_overlap_finetune",
    )
    starts, ends, devices = [], [], []
    logs = {
        bank: finished / "results/tiny/6-overlap/kproba/seed0/step0/prototypes.log",
        training: (finished / FINETUNE).with_name("train.log"),
    }
    for rule, log in logs.items():
        [row] = of_rule(rule, rows)
        starts.append(datetime.fromisoformat(row["StartTime"]))
        ends.append(datetime.fromisoformat(row["EndTime"]))
        devices += re.findall(r"^GPU (\S+) of", log.read_text(), re.M)
    assert max(starts) < min(ends)
    assert sorted(devices) == ["0", "1"]


@pytest.mark.parametrize("how", ["job cancelled", "job requeued", "Snakemake killed"])
def test_a_step_that_is_stopped_goes_on_and_ends_with_the_same_bytes(
    finished: Path, profile: list[str], tmp_path: Path, how: str
):
    run = tmp_path / "run"
    shutil.copytree(finished, run, copy_function=shutil.copy2)
    target, state = run / KPROBA, (run / KPROBA).with_name("training-state.pt")
    target.unlink()
    process = subprocess.Popen(
        command(run, *profile, "--retries", "0", KPROBA),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: state.exists() or process.poll() is not None)
        [job] = of_rule("train_step", jobs_of(run))
        number = job["JobId"]
        if how == "job cancelled":
            shell(f"scancel {number}")
            assert process.wait(timeout=300) != 0
            assert state.exists(), "the step was not caught in the middle"
            assert "the state is saved" in target.with_name("train.log").read_text()
            snakemake(run, *profile, KPROBA)
        elif how == "job requeued":  # as after a pre-emption: Snakemake waits
            shell(f"scontrol requeue {number}")
            wait_until(lambda: state_of(number) == "PENDING")
            shell(f"scontrol update JobId={number} StartTime=now")  # not in 2 minutes
            assert process.wait(timeout=300) == 0
        else:  # its job goes on until the next one wants its place
            process.kill()
            hold_until_told_to_stop(target.with_name("train.log"))
            snakemake(run, *profile, "--unlock")
            snakemake(run, *profile, KPROBA)
            [first, _] = of_rule("train_step", jobs_of(run))
            assert (first["JobId"], first["JobState"]) == (number, "CANCELLED")
            told = f"Stopped SLURM job {number}, left behind"
            assert told in target.with_name("train.log").read_text()
    finally:
        process.kill()
        process.wait()
        for row in jobs_of(run):
            shell(f"scancel {row['JobId']}")
    assert "resumed after" in target.with_name("train.log").read_text()
    for name in ("model.safetensors", "model.json", "metrics.csv"):
        assert target.with_name(name).read_bytes() == (
            (finished / KPROBA).with_name(name).read_bytes()
        ), name
    assert not state.exists()
