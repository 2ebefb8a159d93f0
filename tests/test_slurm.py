"""The tiny chain on a real SLURM: what is requested, which devices, scancel.

Needs a SLURM whose GPUs may be pretended ones: jobs hold them and compute on the CPU.
"""

import itertools
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import pytest
import yaml
import yte
from gloo_processes import wait_until
from snakemake_calls import ROOT, command, snakemake
from test_workflow import CHAIN, hold_until_stopped
from whole_runs import write_config

pytestmark = [pytest.mark.workflow, pytest.mark.slurm]

KPROBA, FINETUNE = (
    f"{CHAIN}/{method}/seed0/step1/model.safetensors"
    for method in ("kproba", "finetune")
)
NETWORKS = {  # jobs that run a network, by rule
    "train_base": 1,
    "write_pretrained": 1,
    "train_joint": 1,
    "build_prototypes": 3,
    "export_pseudo_labels": 2,
    "train_step": 4,
    "evaluate": 7,
}
LOGS = {
    "train_base": "train",
    "write_pretrained": "train",
    "train_joint": "train",
    "train_step": "train",
    "build_prototypes": "prototypes",
    "export_pseudo_labels": "pseudo_labels",
    "evaluate": "evaluation",
}
STEP_FOLDER = re.compile(r"results/(.+)/(.+)-(\w+)/(.+)/seed(\d+)/step(\d+)/")
COMPUTE = {"gpus": 1, "device": "cpu", "workers": 1, "state_minutes": 0.0001}


@pytest.fixture(scope="session", autouse=True)
def slurm() -> None:
    """Submit only on request; then a SLURM that is not there is a failure."""
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
    content = yte.process_yaml((ROOT / "profiles/slurm/profile.yaml").read_text())
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
    """The whole chain of the tiny configuration."""
    folder = tmp_path_factory.mktemp("slurm") / "run"
    folder.mkdir()
    write_config(folder, {"compute": COMPUTE, "increment": {"epochs": 6}})
    snakemake(folder, *profile)
    return folder


def test_jobs_ask_for_what_the_profile_and_the_configuration_say(finished: Path):
    rows = jobs_of(finished)
    for rule, count in NETWORKS.items():
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
    others = [*of_rule("draw_scenes", rows), *of_rule("prepare_dataset", rows)]
    for row in others:
        assert row["Partition"] == "cpu"
        assert "gpu" not in row.get("TresPerJob", "")
    # Settings, splits, summary, figures and report are too small for a job.
    assert len(rows) == sum(NETWORKS.values()) + len(others) == 21
    assert (finished / "results" / "report.html").is_file()


def test_jobs_of_one_gpu_run_at_once_on_different_devices(finished: Path):
    """Which ones meet is chance, as they start when a core is free; some always do."""
    jobs = []
    for row in jobs_of(finished):
        if "gpu" in row.get("TresPerJob", ""):
            [device] = re.findall(
                r"^Using GPU (\S+) of", log_of(row, finished).read_text(), re.M
            )
            start, end = (
                datetime.fromisoformat(row[key]) for key in ("StartTime", "EndTime")
            )
            jobs.append((start, end, device))
    assert len(jobs) == sum(NETWORKS.values())
    met = [
        (one[2], other[2])
        for one, other in itertools.combinations(jobs, 2)
        if max(one[0], other[0]) < min(one[1], other[1])
    ]
    assert met
    assert all({one, other} == {"0", "1"} for one, other in met)


def log_of(row: dict[str, str], folder: Path) -> Path:
    """The log of a job that runs a network, named by the comment of its rule."""
    rule, wildcards = re.fullmatch(
        r"rule_(.+)_wildcards_(\S+)\s*", row["Comment"]
    ).groups()
    [log] = [
        path
        for path in folder.glob(f"results/*/*/*/*/*/{LOGS[rule]}.log")
        if "_".join(STEP_FOLDER.search(str(path)).groups()) == wildcards
    ]
    return log


def test_a_job_of_two_gpus_is_one_task_that_torchrun_splits(
    finished: Path, profile: list[str], tmp_path: Path
):
    """It is signalled as where processes are tracked by cgroups: not itself."""
    run = copy_of(finished, tmp_path)
    write_config(run, {"compute": {**COMPUTE, "gpus": 2}, "increment": {"epochs": 6}})
    target, log = run / FINETUNE, (run / FINETUNE).with_name("train.log")
    target.unlink()
    with submitted(run, profile, target) as process:
        [row] = of_rule("train_step", jobs_of(run))
        steps = shell("scontrol show steps --oneliner")
        pattern = rf"StepId=({row['JobId']}\.\d+) .*Name=kproba-sentinel "
        [sentinel] = re.findall(pattern, steps)
        shell(f"scancel --signal=TERM {sentinel}")
        assert process.wait(timeout=300) != 0
    assert re.search(r"gpu:?\S*[:=]2\b", row["TresPerJob"])
    assert (row["NumTasks"], row["NumNodes"], row["CPUs/Task"]) == ("1", "1", "2")
    assert re.search(r"^Using GPU 0, 1 of 0, 1$", log.read_text(), re.MULTILINE)
    assert log.read_text().count("= 2 process(es) x 1") == 1
    assert "the state is saved" in log.read_text()
    snakemake(run, *profile, FINETUNE)
    assert "resumed after" in log.read_text()


def copy_of(finished: Path, folder: Path) -> Path:
    """A copy of a finished run, times of files included."""
    run = folder / "run"
    shutil.copytree(finished, run, copy_function=shutil.copy2)
    return run


@contextmanager
def submitted(
    run: Path, profile: list[str], target: Path
) -> Iterator[subprocess.Popen]:
    """A Snakemake that trains one step, of which a state is saved already."""
    process = subprocess.Popen(
        command(run, *profile, "--retries", "0", str(target.relative_to(run))),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    state = target.with_name("training-state.pt")
    try:
        wait_until(lambda: state.exists() or process.poll() is not None)
        yield process
    finally:
        process.kill()
        process.wait()
        for row in jobs_of(run):
            shell(f"scancel {row['JobId']}")


@pytest.mark.parametrize("how", ["job cancelled", "job requeued", "Snakemake killed"])
def test_a_step_that_is_stopped_goes_on_and_ends_with_the_same_bytes(
    finished: Path, profile: list[str], tmp_path: Path, how: str
):
    run = copy_of(finished, tmp_path)
    target, state = run / KPROBA, (run / KPROBA).with_name("training-state.pt")
    target.unlink()
    with submitted(run, profile, target) as process:
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
            hold_until_stopped(target.with_name("train.log"))
            snakemake(run, *profile, "--unlock")
            snakemake(run, *profile, KPROBA)
            [first, _] = of_rule("train_step", jobs_of(run))
            assert (first["JobId"], first["JobState"]) == (number, "CANCELLED")
            stopped = f"Stopped SLURM job {number}; its Snakemake was killed"
            assert stopped in target.with_name("train.log").read_text()
    assert "resumed after" in target.with_name("train.log").read_text()
    for name in ("model.safetensors", "model.json", "metrics.csv"):
        assert target.with_name(name).read_bytes() == (
            (finished / KPROBA).with_name(name).read_bytes()
        ), name
    assert not state.exists()
