"""A job owns its log: orphans of a killed Snakemake stop, other jobs do not."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from gloo_processes import wait_until

from kproba.runtime.locks import (
    LogInUseError,
    describe_this_process,
    has_snakemake,
    hold_log,
    lock_path,
    read_holder,
    runs_here,
)

# On SIGTERM the job saves something before it ends, as training does.
JOB = """
import signal, sys, time
from pathlib import Path
def end(*_):
    time.sleep(0.5)
    Path(sys.argv[1]).write_text("stopped after SIGTERM")
    sys.exit()
signal.signal(signal.SIGTERM, end)
Path(sys.argv[1]).write_text("at work")
time.sleep(60)
"""


@pytest.fixture
def start(tmp_path):
    """Starts a job through the launcher; returns its process and its status file."""
    (tmp_path / "sleeper.py").write_text(JOB)
    started = []

    def begin(log: Path, parent=()):
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        status = tmp_path / f"status{len(started)}"
        job = [
            sys.executable,
            "-m",
            "kproba.runtime.launch",
            "--log",
            str(log),
            "sleeper",
        ]
        process = subprocess.Popen(
            [*parent, *job, str(status)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process, status

    yield begin
    for process in started:
        process.kill()
        process.wait()


def wait_until_at_work(status):
    wait_until(lambda: status.exists() and status.read_text() == "at work", seconds=30)


def test_an_orphan_saves_its_state_before_the_next_job_begins(start, tmp_path):
    log = tmp_path / "train.log"
    first, status = start(log)
    wait_until_at_work(status)
    assert holder(log)["pid"] == first.pid
    second, next_status = start(log)
    wait_until_at_work(next_status)
    assert first.poll() is not None
    assert status.read_text() == "stopped after SIGTERM"
    assert second.poll() is None
    assert f"Stopped process {first.pid} on" in log.read_text()


def test_a_killed_job_leaves_no_lock(start, tmp_path):
    log = tmp_path / "train.log"
    first, status = start(log)
    wait_until_at_work(status)
    first.kill()
    first.wait()
    _, next_status = start(log)
    wait_until_at_work(next_status)
    assert "Stopped" not in log.read_text()


def test_a_job_of_a_living_snakemake_is_left_alone(start, tmp_path):
    log = tmp_path / "train.log"
    script = tmp_path / "snakemake"
    script.write_text('#!/bin/bash\n"$@" & wait\n')
    script.chmod(0o755)
    _, status = start(log, parent=["/bin/bash", str(script)])
    wait_until_at_work(status)
    pid = holder(log)["pid"]
    assert has_snakemake(holder(log))
    text = log.read_text()
    second, _ = start(log)
    _, errors = second.communicate(timeout=30)
    assert second.returncode == 1
    assert f"process {pid} on" in errors
    assert "which another Snakemake started, is writing it" in errors
    assert status.read_text() == "at work"
    assert log.read_text() == text  # still the first job's
    os.kill(pid, signal.SIGKILL)


def test_a_job_that_does_not_end_is_named(start, tmp_path):
    log = tmp_path / "train.log"
    first, status = start(log)
    wait_until_at_work(status)
    first.send_signal(signal.SIGSTOP)  # cannot react
    message = f"train.log, but process {first.pid} on .* is still writing it after 1 s"
    with pytest.raises(LogInUseError, match=message):
        hold_log(log, grace=1)


def holder(log):
    with lock_path(log).open() as file:
        return read_holder(file.fileno())


def test_a_reused_process_number_is_not_the_holder():
    here = {**describe_this_process(), "slurm_job": None}
    assert runs_here(here)
    assert not runs_here({**here, "started": here["started"] - 60})
    assert not runs_here({**here, "host": "elsewhere"})
    assert not runs_here({**here, "pid": 2**22 + 1})


def test_an_orphan_of_slurm_is_cancelled(start, tmp_path, monkeypatch):
    """With a stand-in for scancel; the real one is used in test_slurm.py."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "scancel").write_text(
        f"#!/bin/bash\necho $1 > {tools}/cancelled\nkill $PID\n"
    )
    (tools / "scancel").chmod(0o755)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    log = tmp_path / "train.log"
    first, status = start(log)
    wait_until_at_work(status)
    monkeypatch.setenv("SLURM_JOB_ID", "18")
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("PID", str(first.pid))
    _, next_status = start(log)
    wait_until_at_work(next_status)
    assert (tools / "cancelled").read_text() == "17\n"
    assert "Stopped SLURM job 17; its Snakemake was killed" in log.read_text()
