"""What a job starts: one process by itself, several through torchrun."""

import os

import pytest

from kproba.launch import command, main


@pytest.mark.parametrize(("gpus", "processes"), [(0, 1), (1, 1), (1, 4)])
def test_one_process_starts_by_itself(gpus, processes):
    words = command("some.module", ["a"], gpus=gpus, processes=processes, threads=3)
    assert words[1:] == ["-m", "some.module", "a", f"--gpus={gpus}", "--threads=3"]


@pytest.mark.parametrize(
    ("gpus", "processes", "count"), [(0, 2, 2), (4, 1, 4), (2, 3, 2)]
)
def test_several_processes_start_through_torchrun(gpus, processes, count):
    words = command("some.module", [], gpus=gpus, processes=processes, threads=1)
    assert words[1:3] == ["-m", "torch.distributed.run"]
    assert f"--nproc-per-node={count}" in words
    assert "--standalone" in words  # a free port, chosen anew


@pytest.mark.parametrize("policy", [None, "active"])
def test_threads_are_set_and_the_users_own_environment_wins(monkeypatch, policy):
    started = []
    monkeypatch.setattr(os, "execve", lambda *call: started.append(call))
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if policy:
        monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    main(["--threads", "3", "--processes", "2", "some.module", "a", "--own", "b"])
    [(program, words, environment)] = started
    assert program == words[0]
    assert words[-5:] == ["a", "--own", "b", "--gpus=0", "--threads=3"]
    assert environment["OMP_NUM_THREADS"] == "3"
    assert environment["OMP_WAIT_POLICY"] == (policy or "passive")
    assert environment["PATH"] == os.environ["PATH"]
