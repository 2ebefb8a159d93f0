"""A job owns its log: orphans of a killed Snakemake stop, watched jobs do not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kproba.locks import Occupied, holders, lock_of, own_log, watched

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
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    started = []

    def begin(log: Path, parent=()):
        word = tmp_path / f"word{len(started)}"
        job = [sys.executable, "-m", "kproba.launch", "--log", str(log), "sleeper"]
        process = subprocess.Popen([*parent, *job, str(word)], env=environment)
        started.append(process)
        return process, word

    yield begin
    for process in started:
        process.kill()
        process.wait()


def at_work(word, seconds=30):
    end = time.monotonic() + seconds
    while not (word.exists() and word.read_text() == "at work"):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_an_orphan_saves_its_state_before_the_next_job_begins(start, tmp_path):
    log = tmp_path / "train.log"
    first, word = start(log)
    at_work(word)
    assert holding(log) == [first.pid]
    second, next_word = start(log)
    at_work(next_word)
    assert first.poll() is not None
    assert word.read_text() == "stopped in order"
    assert second.poll() is None
    assert f"Stopping process {first.pid}, left behind" in log.read_text()


def test_a_killed_job_leaves_no_lock(start, tmp_path):
    log = tmp_path / "train.log"
    first, word = start(log)
    at_work(word)
    first.kill()
    first.wait()
    _, next_word = start(log)
    at_work(next_word)
    assert "Stopping" not in log.read_text()


def test_a_job_of_a_living_snakemake_is_left_alone(start, tmp_path):
    log = tmp_path / "train.log"
    script = tmp_path / "snakemake"
    script.write_text('#!/bin/bash\n"$@" & wait\n')
    script.chmod(0o755)
    _, word = start(log, parent=["/bin/bash", str(script)])
    at_work(word)
    [holder] = holding(log)
    assert watched(holder)
    second, _ = start(log)
    assert second.wait(30) == 1
    assert f"process {holder} of another Snakemake" in log.read_text()
    assert word.read_text() == "at work"
    os.kill(holder, signal.SIGKILL)


def test_a_job_that_does_not_end_is_named(start, tmp_path):
    log = tmp_path / "train.log"
    first, word = start(log)
    at_work(word)
    first.send_signal(signal.SIGSTOP)  # cannot react
    told = f"train.log, but process {first.pid} still does after 1 s"
    with pytest.raises(Occupied, match=told):
        own_log(log, grace=1)


def holding(log):
    with lock_of(log).open() as file:
        return holders(file.fileno())
