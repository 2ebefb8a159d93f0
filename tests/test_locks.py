"""A job owns its log: orphans of a killed Snakemake stop, watched jobs do not."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes import wait_until

from kproba.runtime.locks import (
    Occupied,
    lives_here,
    lock_of,
    myself,
    own_log,
    read_holder,
    watched,
)

# The job ends in order when it is told to, as training does.
JOB = """
import signal, sys, time
from pathlib import Path
def end(*_):
    time.sleep(0.5)
    Path(sys.argv[1]).write_text("stopped in order")
    sys.exit()
signal.signal(signal.SIGTERM, end)
Path(sys.argv[1]).write_text("at work")
time.sleep(60)
"""


@pytest.fixture
def start(tmp_path):
    """Starts a job through the launcher; returns its process and its word."""
    (tmp_path / "sleeper.py").write_text(JOB)
    started = []

    def begin(log: Path, parent=()):
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        word = tmp_path / f"word{len(started)}"
        job = [
            sys.executable,
            "-m",
            "kproba.runtime.launch",
            "--log",
            str(log),
            "sleeper",
        ]
        process = subprocess.Popen(
            [*parent, *job, str(word)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process, word

    yield begin
    for process in started:
        process.kill()
        process.wait()


def at_work(word):
    wait_until(lambda: word.exists() and word.read_text() == "at work", seconds=30)


def test_an_orphan_saves_its_state_before_the_next_job_begins(start, tmp_path):
    log = tmp_path / "train.log"
    first, word = start(log)
    at_work(word)
    assert holder(log)["pid"] == first.pid
    second, next_word = start(log)
    at_work(next_word)
    assert first.poll() is not None
    assert word.read_text() == "stopped in order"
    assert second.poll() is None
    assert f"Stopped process {first.pid} on" in log.read_text()


def test_a_killed_job_leaves_no_lock(start, tmp_path):
    log = tmp_path / "train.log"
    first, word = start(log)
    at_work(word)
    first.kill()
    first.wait()
    _, next_word = start(log)
    at_work(next_word)
    assert "Stopped" not in log.read_text()


def test_a_job_of_a_living_snakemake_is_left_alone(start, tmp_path):
    log = tmp_path / "train.log"
    script = tmp_path / "snakemake"
    script.write_text('#!/bin/bash\n"$@" & wait\n')
    script.chmod(0o755)
    _, word = start(log, parent=["/bin/bash", str(script)])
    at_work(word)
    pid = holder(log)["pid"]
    assert watched(holder(log))
    said = log.read_text()
    second, _ = start(log)
    _, errors = second.communicate(timeout=30)
    assert second.returncode == 1
    assert f"process {pid} on" in errors
    assert "of another Snakemake does" in errors
    assert word.read_text() == "at work"
    assert log.read_text() == said  # still the first job's
    os.kill(pid, signal.SIGKILL)


def test_a_job_that_does_not_end_is_named(start, tmp_path):
    log = tmp_path / "train.log"
    first, word = start(log)
    at_work(word)
    first.send_signal(signal.SIGSTOP)  # cannot react
    told = f"train.log, but process {first.pid} on .* still does after 1 s"
    with pytest.raises(Occupied, match=told):
        own_log(log, grace=1)


def holder(log):
    with lock_of(log).open() as file:
        return read_holder(file.fileno())


def test_a_number_that_is_used_again_is_not_the_holder(tmp_path):
    own = {**myself(), "slurm_job": None}
    assert lives_here(own)
    assert not lives_here({**own, "started": own["started"] - 60})
    assert not lives_here({**own, "host": "elsewhere"})
    assert not lives_here({**own, "pid": 2**22 + 1})


def test_an_orphan_of_slurm_is_cancelled(start, tmp_path, monkeypatch):
    """With a stand-in for scancel; the real one is used in test_slurm.py."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "scancel").write_text(f"#!/bin/bash\necho $1 > {tools}/asked\nkill $PID\n")
    (tools / "scancel").chmod(0o755)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    log = tmp_path / "train.log"
    first, word = start(log)
    at_work(word)
    monkeypatch.setenv("SLURM_JOB_ID", "18")
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("PID", str(first.pid))
    _, next_word = start(log)
    at_work(next_word)
    assert (tools / "asked").read_text() == "17\n"
    assert "Stopped SLURM job 17, left behind" in log.read_text()
