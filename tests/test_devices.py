"""No two jobs share a device, none is lost, and the choice of the user is kept."""

import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from kproba.runtime.devices import hold_devices, lock_file, try_devices, visible_devices

# Locks a further file for each visible device: a second job on a device fails.
JOB = """
import fcntl, os, sys, time
from pathlib import Path
folder, seconds = Path(sys.argv[1]), float(sys.argv[2])
for device in os.environ["CUDA_VISIBLE_DEVICES"].split(","):
    fcntl.flock(open(folder / f"device{device}", "w"), fcntl.LOCK_EX | fcntl.LOCK_NB)
time.sleep(seconds)
print("devices", os.environ["CUDA_VISIBLE_DEVICES"])
"""


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """A machine of four devices."""
    monkeypatch.setenv("KPROBA_LOCKS", str(tmp_path / "locks"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    (tmp_path / "gpu_job.py").write_text(JOB)
    return tmp_path


def start(folder, gpus=1, seconds=0.0):
    words = [
        sys.executable,
        "-m",
        "kproba.runtime.launch",
        f"--gpus={gpus}",
        "--device=cpu",
    ]
    words += ["gpu_job", str(folder), str(seconds)]
    if gpus > 1:  # one process with several devices: torchrun would start more
        words = [sys.executable, "-c", HOLDING, str(gpus), str(folder), str(seconds)]
    return subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


HOLDING = """
import os, sys
from kproba.runtime.devices import hold_devices
gpus, *rest = sys.argv[1:]
words = [sys.executable, "-m", "gpu_job", *rest]
os.execve(words[0], words, {**os.environ, **hold_devices(int(gpus))})
"""


def test_200_jobs_on_4_devices_never_share_one_and_lose_none(machine):
    chance = random.Random(0)
    plans = [
        {
            "gpus": chance.choice([1, 1, 1, 1, 2, 3]),
            "seconds": chance.uniform(0, 0.1),
            "kill": chance.choice([None, None, chance.uniform(0, 0.4)]),
        }
        for _ in range(200)
    ]

    def run(plan):
        job = start(machine, plan["gpus"], plan["seconds"])
        if plan["kill"] is not None:
            time.sleep(plan["kill"])
            job.kill()
        output, errors = job.communicate(timeout=120)
        return job.returncode, output, errors

    with ThreadPoolExecutor(12) as pool:
        results = list(pool.map(run, plans))
    used_devices = set()
    for plan, (status, output, errors) in zip(plans, results, strict=True):
        if status == -signal.SIGKILL:
            assert plan["kill"] is not None
            continue
        assert status == 0, errors
        devices = output.split()[-1].split(",")
        assert len(set(devices)) == plan["gpus"]
        used_devices.update(devices)
    assert used_devices == {"0", "1", "2", "3"}
    assert sum(status == -signal.SIGKILL for status, *_ in results) > 20
    assert try_devices(4, ["0", "1", "2", "3"])


def test_a_job_waits_for_a_device_and_says_so(machine, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    first = start(machine, seconds=30)
    assert first.stderr.readline() == "Using GPU 2 of 2\n"
    second = start(machine)
    assert (
        second.stderr.readline()
        == "Waiting for 1 of the GPUs 2, which other jobs are using\n"
    )
    first.kill()
    assert second.communicate(timeout=30)[0].endswith("devices 2\n")


@pytest.mark.parametrize(
    ("value", "devices"),
    [
        ("0,1", ["0", "1"]),
        ("3", ["3"]),
        (" 1 , 0", ["1", "0"]),
        ("", []),
        ("NoDevFiles", []),
        ("1,-1,2", ["1"]),
        ("GPU-8932f937-d72c,MIG-1/2", ["GPU-8932f937-d72c", "MIG-1/2"]),
    ],
)
def test_devices_are_those_of_the_caller(monkeypatch, value, devices):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert visible_devices() == devices
    if devices:
        held = hold_devices(len(devices))
        assert held == {"CUDA_VISIBLE_DEVICES": ",".join(devices)}
        assert not try_devices(1, devices)


def test_without_a_choice_pytorch_counts_the_devices(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert visible_devices() == ["0", "1"]


def test_too_few_devices_are_an_error(machine):
    job = start(machine, gpus=5)
    assert job.wait(30) == 1
    message = (
        "Expected 5 GPU(s) for this job, but CUDA_VISIBLE_DEVICES names 4 (0, 1, 2, 3)"
    )
    assert message in job.stderr.read()


def test_a_pretended_job_without_devices_holds_none(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert hold_devices(2, required=False) == {}


def test_lock_files_of_slurm_jobs_differ(monkeypatch):
    files = {lock_file("0")}
    for job, node in (("7", "n1"), ("7", "n2"), ("8", "n1")):
        monkeypatch.setenv("SLURM_JOB_ID", job)
        monkeypatch.setenv("SLURMD_NODENAME", node)
        files.add(lock_file("0"))
    assert len(files) == 4


def test_a_folder_of_another_user_is_refused(monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: 4711)
    with pytest.raises(PermissionError, match="KPROBA_LOCKS"):
        lock_file("0")
