"""What a job starts: one process by itself, several through torchrun, several nodes."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from kproba.runtime.compute import Compute
from kproba.runtime.launch import (
    Launch,
    command,
    free_port,
    launcher_arguments,
    main,
    threads_per_process,
)


def compute_in(words: list[str]) -> Compute:
    """The last argument of a job."""
    name, _, value = words[-1].partition("=")
    assert name == "--compute"
    return Compute.from_json(value)


@pytest.mark.parametrize(("gpus", "processes"), [(0, 1), (1, 1), (1, 4)])
def test_one_process_starts_by_itself(gpus, processes):
    compute = Compute(gpus=gpus, processes=processes, threads=3, val_times=7)
    words = command(Launch("some.module", ("a",), compute))
    assert words[1:] == ["-m", "some.module", "a", f"--compute={compute.to_json()}"]


@pytest.mark.parametrize(
    ("gpus", "processes", "count"), [(0, 2, 2), (4, 1, 4), (2, 3, 2)]
)
def test_several_processes_start_through_torchrun(gpus, processes, count):
    compute = Compute(gpus=gpus, processes=processes)
    words = command(Launch("some.module", compute=compute))
    assert words[1:3] == ["-m", "torch.distributed.run"]
    assert f"--nproc-per-node={count}" in words
    assert "--standalone" in words  # a free port, chosen anew


def test_a_job_for_gpus_computes_on_the_cpu_with_as_many_processes():
    words = command(Launch("some.module", compute=Compute(gpus=2, device="cpu")))
    assert "--nproc-per-node=2" in words
    assert compute_in(words).gpus == 0


@pytest.mark.parametrize(
    ("cores", "threads", "processes", "expected"),
    [(None, 4, 2, 4), (8, 4, 2, 4), (4, 4, 2, 2), (1, 4, 2, 1), (16, 4, 1, 4)],
)
def test_threads_never_exceed_the_cores(cores, threads, processes, expected):
    job = Launch(
        "m", compute=Compute(processes=processes, threads=threads), cores=cores
    )
    assert threads_per_process(job) == expected
    assert compute_in(command(job)).threads == expected


@pytest.mark.parametrize("policy", [None, "active"])
def test_threads_are_set_and_the_environment_of_the_user_wins(monkeypatch, policy):
    started = []
    monkeypatch.setattr(os, "execvpe", lambda *call: started.append(call))
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if policy:
        monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    words = ["--threads", "3", "--processes", "2", "some.module", "a", "--key", "b"]
    main(words)
    [(program, words, environment)] = started
    assert program == words[0]
    assert words[-4:-1] == ["a", "--key", "b"]
    assert compute_in(words) == Compute(processes=2, threads=3)
    assert environment["OMP_NUM_THREADS"] == "3"
    assert environment["OMP_WAIT_POLICY"] == (policy or "passive")
    assert environment["PATH"] == os.environ["PATH"]


def test_a_single_option_wins_over_the_options_of_the_configuration(monkeypatch):
    started = []
    monkeypatch.setattr(os, "execvpe", lambda *call: started.append(call))
    section = Compute(processes=4, threads=1, batch_size=3, val_images=9)
    options = [f"--compute={section.to_json()}", "--processes=1", "--threads=2"]
    main([*options, "some.module", "a"])
    [(_, words, _)] = started
    assert words[-2] == "a"
    assert compute_in(words) == Compute(threads=2, batch_size=3, val_images=9)


def test_nodes_of_a_job_get_the_whole_of_its_options():
    compute = Compute(gpus=4, nodes=2, device="cpu", workers=3, cache_gib=0.5)
    job = Launch("m", ("a",), compute, cores=6, rendezvous="n:1", address="b")
    words = launcher_arguments(job)
    assert words[1:] == ["--cores=6", "--rendezvous=n:1", "--address=b", "m", "a"]
    assert compute_in(words[:1]) == compute


REPORTS = """
import logging
from kproba.runtime.logs import PROGRESS, Terminal, log_to_stderr
Terminal.__init__.__defaults__ = (0.0,)  # seconds
log_to_stderr(first=True)
log = logging.getLogger("kproba")
log.info("a line for the log")
log.info("half done", extra=PROGRESS)
"""


@pytest.mark.parametrize("processes", [1, 2])
def test_progress_appears_where_the_job_was_started(tmp_path, processes):
    (tmp_path / "reports.py").write_text(REPORTS)
    (tmp_path / "results/step1").mkdir(parents=True)
    words = [
        sys.executable,
        "-m",
        "kproba.runtime.launch",
        "--log",
        "results/step1/train.log",
    ]
    done = subprocess.run(
        [*words, "--processes", str(processes), "reports"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == "step1/train: half done\n" * processes
    log = (tmp_path / "results/step1/train.log").read_text()
    assert "a line for the log" in log
    assert "half done" in log


def test_progress_and_other_lines_share_a_file(tmp_path):
    """As with `snakemake > all.log 2>&1`, whose own lines come before and after."""
    (tmp_path / "reports.py").write_text(REPORTS)
    words = [
        sys.executable,
        "-m",
        "kproba.runtime.launch",
        "--log",
        "train.log",
        "reports",
    ]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with (tmp_path / "all.log").open("w") as file:
        for line in ("before", "between"):
            os.write(file.fileno(), f"{line}\n".encode())
            subprocess.run(
                words, env=environment, cwd=tmp_path, stderr=file, check=True
            )
    lines = (tmp_path / "all.log").read_text().splitlines()
    assert lines == ["before", "train: half done", "between", "train: half done"]


# Several nodes


def test_nodes_share_processes_evenly_or_not_at_all():
    compute = Compute(gpus=4, nodes=2)
    job = Launch("m", compute=compute, rendezvous="node1:1234", address="node2")
    words = command(job)
    assert {"--nnodes=2", "--nproc-per-node=2", "--local-addr=node2"} <= set(words)
    assert "--rdzv-endpoint=node1:1234" in words
    assert compute_in(words).gpus == 2
    message = "Expected a number of GPUs that is a multiple of the 2 nodes, but got 3"
    with pytest.raises(ValueError, match=message):
        command(Launch("m", compute=Compute(gpus=3, nodes=2)))


RANKS = """
import os, sys
import torch.distributed as dist
dist.init_process_group("gloo")
names = [None] * dist.get_world_size()
dist.all_gather_object(names, (dist.get_rank(), os.environ["LOCAL_RANK"]))
if dist.get_rank() == 0:
    print("ranks", names)
dist.destroy_process_group()
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module for jobs to run."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def write(name, text):
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return write


def launch(*words, **more):
    return subprocess.Popen(
        [sys.executable, "-m", "kproba.runtime.launch", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **more,
    )


FOUR = "ranks [(0, '0'), (1, '1'), (2, '0'), (3, '1')]"


def test_two_agents_on_two_addresses_are_one_job(module):
    name = module("ranks", RANKS)
    nodes = ["--nodes=2", "--processes=4", f"--rendezvous=127.0.0.2:{free_port()}"]
    agents = [launch(*nodes, f"--address=127.0.0.{number}", name) for number in (2, 3)]
    outputs = [agent.communicate(timeout=120)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], outputs
    assert sum(FOUR in output for output in outputs) == 1


# What srun does, on one machine: its command once per node.
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do [[ $1 == --nodes=* ]] && nodes=${1#*=}; shift; done
for ((i = 0; i < nodes; i++)); do SLURM_NODEID=$i "$@" & children+=($!); done
for child in "${children[@]}"; do wait "$child" || exit 1; done
"""


def test_in_a_slurm_job_srun_starts_every_node(module, tmp_path, monkeypatch):
    name = module("ranks", RANKS)
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "srun").write_text(SRUN)
    (tools / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURMD_NODENAME", "127.0.0.1")
    job = launch("--nodes=2", "--processes=4", "--cores=3", name)
    output, _ = job.communicate(timeout=120)
    assert job.returncode == 0, output
    assert FOUR in output
    first = output.splitlines()[0]
    options = {"--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--cpus-per-task=3"}
    assert options <= set(first.split())
    assert re.search(r"--rendezvous=127\.0\.0\.1:\d+ ", first)


def test_several_nodes_without_slurm_need_a_rendezvous(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    job = launch("--nodes=2", "--processes=2", "some.module")
    output, _ = job.communicate(timeout=60)
    assert job.returncode == 1
    assert "Expected to run in a SLURM job" in output
    assert "--rendezvous HOST:PORT" in output


# Failure and signals

FAILING = """
import time
import torch
from kproba.runtime.compute import Compute
from kproba.runtime.job import job_process
with job_process(Compute()) as process:
    process.wait()
    if process.rank == 1:
        raise KeyError("a fault of this rank")
    process.sum([1.0])  # waits for the other
"""


def test_a_failing_rank_ends_the_job_at_once_with_its_traceback(module):
    job = launch("--processes=2", module("failing", FAILING))
    output, _ = job.communicate(timeout=60)
    assert job.returncode != 0
    assert "Process 1 of 2 failed" in output
    assert "KeyError: 'a fault of this rank'" in output
    assert output.index("Process 1 of 2 failed") == output.index("Process ")


STOPPING = """
import signal, sys, time
from kproba.runtime.compute import Compute
from kproba.runtime.job import job_process
signals = []
signal.signal(signal.SIGTERM, lambda *_: signals.append(1))
signal.signal(signal.SIGINT, lambda *_: signals.append(1))
with job_process(Compute()) as process:
    process.wait()
    sys.stdout.write(f"ready {process.rank}\\n")  # whole, beside other processes
    sys.stdout.flush()
    while not signals:
        time.sleep(0.05)
    sys.stdout.write(f"saved {process.rank}\\n")
    sys.stdout.flush()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("processes", [1, 2])
def test_signals_reach_every_process(module, number, processes):
    job = launch(f"--processes={processes}", module("stopping", STOPPING))
    lines = []
    while sum(line.startswith("ready") for line in lines) < processes:
        lines.append(job.stdout.readline())
        assert lines[-1], lines
    started = time.monotonic()
    job.send_signal(number)
    output, _ = job.communicate(timeout=60)
    assert sum(f"saved {rank}" in output for rank in range(processes)) == processes
    assert time.monotonic() - started < 25
