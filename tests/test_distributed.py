"""Joining the processes of a job."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gloo_processes import wait_until

from kproba.runtime.distributed import process_group


@pytest.fixture(autouse=True)
def as_before():
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def two_devices(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    return chosen


@pytest.mark.parametrize(
    ("gpu", "deterministic", "repeats"),
    [
        (False, False, True),
        (False, True, True),
        (True, False, False),
        (True, True, True),
    ],
)
def test_algorithms_repeat_on_the_cpu_and_on_request(
    two_devices, monkeypatch, gpu, deterministic, repeats
):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with process_group(gpu=gpu, deterministic=deterministic) as process:
        assert torch.are_deterministic_algorithms_enabled() == repeats
        if repeats and gpu:  # an algorithm that does not is an error, not a warning
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert ("CUBLAS_WORKSPACE_CONFIG" in os.environ) == deterministic
    assert process.device == ("cuda:0" if gpu else "cpu")
    assert two_devices == (["cuda:0"] if gpu else [])


def test_a_process_without_a_device_says_so(two_devices, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "2")
    message = "Expected a CUDA device for process 2, but PyTorch sees 2"
    with pytest.raises(RuntimeError, match=message), process_group(gpu=True):
        pass


WORKER = """
import sys, time
from pathlib import Path
from kproba.runtime.distributed import process_group
with process_group(gpu=False) as process:
    import os
    Path(sys.argv[1], str(process.rank)).write_text(str(os.getpid()))
    time.sleep(60)
"""


def test_workers_end_when_torchrun_is_killed(tmp_path):
    (tmp_path / "worker.py").write_text(WORKER)
    started = subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node=2", str(tmp_path / "worker.py"), str(tmp_path)),
        ],
        stderr=subprocess.DEVNULL,
    )
    files = [tmp_path / "0", tmp_path / "1"]
    wait_until(lambda: all(file.exists() and file.read_text() for file in files))
    workers = [int(file.read_text()) for file in files]
    assert all(alive(pid) for pid in workers)
    started.send_signal(signal.SIGKILL)
    started.wait()
    wait_until(lambda: not any(alive(pid) for pid in workers))


def alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
