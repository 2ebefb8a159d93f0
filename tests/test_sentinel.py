"""Who gets the SIGTERM that SLURM sends to the sentinel alone."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from gloo_processes import wait_until

# Writes each SIGTERM to a file, and goes on.
LISTENER = """
import pathlib, signal, sys, time
me = pathlib.Path(sys.argv[1])
def note(*_):
    with me.open("a") as file:
        file.write("SIGTERM\\n")
signal.signal(signal.SIGTERM, note)
me.touch()
while True:
    time.sleep(0.05)
"""
# Starts listeners as torchrun starts its ranks, and one other process.
AGENT = """
import os, pathlib, signal, subprocess, sys, time
folder, listener = pathlib.Path(sys.argv[1]), sys.argv[2]
for name, extra in [("0", {"LOCAL_RANK": "0"}), ("1", {"LOCAL_RANK": "1"}), ("x", {})]:
    words = [sys.executable, "-c", listener, str(folder / name)]
    subprocess.Popen(words, env={**os.environ, **extra})
signal.signal(signal.SIGTERM, lambda *_: (folder / "agent").touch())
(folder / "ready").touch()
while True:
    time.sleep(0.05)
"""


@pytest.fixture
def start():
    """Starter of Python programs in sessions that end with the test."""
    started = []

    def call(*words: str) -> subprocess.Popen:
        process = subprocess.Popen([sys.executable, *words], start_new_session=True)
        started.append(process)
        return process

    yield call
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def watch(start, program: subprocess.Popen) -> subprocess.Popen:
    """A sentinel that has begun to listen."""
    sentinel = start("-m", "kproba.runtime.sentinel", str(program.pid))
    status = Path(f"/proc/{sentinel.pid}/status")

    def listens() -> bool:
        caught = int(status.read_text().split("SigCgt:")[1].split()[0], 16)
        return bool(caught >> (signal.SIGTERM - 1) & 1)

    wait_until(listens, 20)
    return sentinel


def test_a_program_gets_each_signal_and_its_end_ends_the_sentinel(start, tmp_path):
    notes = tmp_path / "notes"
    program = start("-c", LISTENER, str(notes))
    wait_until(notes.exists, 20)
    sentinel = watch(start, program)
    for count in (1, 2):
        sentinel.terminate()
        wait_until(lambda count=count: notes.read_text().count("SIGTERM") == count, 20)
    assert sentinel.poll() is None
    program.kill()  # and stays a zombie until it is waited for
    assert sentinel.wait(timeout=20) == 0


def test_ranks_get_the_signal_but_not_torchrun_or_other_children(start, tmp_path):
    agent = start("-c", AGENT, str(tmp_path), LISTENER)
    names = ("ready", "0", "1", "x")
    wait_until(lambda: all((tmp_path / name).exists() for name in names), 20)
    watch(start, agent).terminate()
    wait_until(
        lambda: all("SIGTERM" in (tmp_path / name).read_text() for name in "01"), 20
    )
    assert not (tmp_path / "agent").exists()
    assert (tmp_path / "x").read_text() == ""


def test_a_program_that_has_ended_is_no_error(start):
    gone = start("-c", "")
    gone.wait()
    assert start("-m", "kproba.runtime.sentinel", str(gone.pid)).wait(timeout=20) == 0
