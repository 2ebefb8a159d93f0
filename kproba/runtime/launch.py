"""Starts the program of a job: one process by itself, several through torchrun.

    kproba-launch --log train.log --gpus 2 --cores 8 kproba.jobs.train settings.json ..

Before that it takes the job's log and its GPUs for itself (`kproba.runtime.locks`,
`kproba.runtime.devices`). The program gets `--gpus` and `--threads` at the end of its own
arguments. Torch is not needed here: a job with one process loads it once.
"""

import argparse
import contextlib
import fcntl
import os
import shlex
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kproba.runtime.devices import hold_devices
from kproba.runtime.locks import own_log
from kproba.runtime.logs import JOB, TERMINAL

# Spinning OpenMP threads make a shared machine several times slower. Without the others
# glibc gives every large temporary tensor back to the kernel and takes it again, page
# by page: up to a fifth of an iteration on a CPU.
ENVIRONMENT = {
    "OMP_WAIT_POLICY": "passive",
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),  # bytes, the largest that glibc takes
    "MALLOC_TRIM_THRESHOLD_": str(16 * 2**30),
}


@dataclass(frozen=True)
class Job:
    """What a job runs and what it may use.

    Attributes:
        module: Python module to run, such as "kproba.jobs.train".
        rest: Its arguments.
        gpus: GPUs over all nodes; 0: none.
        device: Where it computes: "cuda", or "cpu" with as many processes as it has
            GPUs, to try a cluster's set-up without any.
        processes: Processes on the CPU, over all nodes, of a job without GPUs.
        nodes: Machines.
        cores: CPU cores on each node; None: as many as the threads need.
        threads: CPU threads of each process, fewer where the cores do not suffice.
        rendezvous: "host:port" of the first node; None: this is the only one, or SLURM
            starts the others.
        address: Name of this node for the others; None: what the system calls it.
    """

    module: str
    rest: tuple[str, ...] = ()
    gpus: int = 0
    device: str = "cuda"
    processes: int = 1
    nodes: int = 1
    cores: int | None = None
    threads: int = 1
    rendezvous: str | None = None
    address: str | None = None

    @property
    def local(self) -> int:
        """Processes on each node.

        Raises:
            ValueError: The nodes cannot share them evenly.
        """
        count = self.gpus or self.processes
        if count % self.nodes:
            kind = "GPUs" if self.gpus else "processes"
            raise ValueError(
                f"Expected a number of {kind} that {self.nodes} nodes can share "
                f"evenly, but got {count}. Change compute.nodes, or compute."
                f"{kind.lower()}."
            )
        return count // self.nodes


def command(job: Job) -> list[str]:
    """The command line of a job, or of its part on this node."""
    local = job.local
    start = [sys.executable, "-m"]
    if job.nodes > 1:
        start += ["torch.distributed.run", "--rdzv-backend=c10d"]
        start += [f"--rdzv-endpoint={job.rendezvous}", f"--rdzv-id={job.rendezvous}"]
        start += [f"--nnodes={job.nodes}", f"--nproc-per-node={local}"]
        start += [f"--local-addr={job.address or node_name()}", "-m"]
    elif local > 1:
        # A free port is chosen anew each time, so jobs may run side by side.
        # Named by number, as a machine's own name need not lead to it.
        start += ["torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
        start += [f"--nproc-per-node={local}", "-m"]
    gpus = local if job.gpus and job.device == "cuda" else 0
    return [
        *(*start, job.module, *job.rest),
        *(f"--gpus={gpus}", f"--threads={threads_of(job)}"),
    ]


def threads_of(job: Job) -> int:
    """Threads of each process: never more than its share of the cores."""
    share = job.cores // job.local if job.cores else job.threads
    return max(1, min(job.threads, share))


def srun_command(job: Job) -> list[str]:
    """The command line that starts a job's part on every node of a SLURM job.

    Raises:
        ValueError: This is no SLURM job.
    """
    if "SLURM_JOB_ID" not in os.environ:
        raise ValueError(
            f"Expected a SLURM job, which starts the job's part on each of its "
            f"{job.nodes} nodes, but SLURM_JOB_ID is not set. Elsewhere start it by "
            f"hand on every node with --rendezvous HOST:PORT."
        )
    # A SLURM job starts on its first node, where the processes meet.
    part = replace(job, rendezvous=f"{node_name()}:{free_port()}")
    return [
        *("srun", f"--nodes={job.nodes}", f"--ntasks={job.nodes}"),
        *("--ntasks-per-node=1", "--overlap", "--kill-on-bad-exit=1"),
        *([f"--cpus-per-task={job.cores}"] if job.cores else []),
        *(sys.executable, "-m", "kproba.runtime.launch", *arguments_of(part)),
    ]


def arguments_of(job: Job) -> list[str]:
    """The launcher's own arguments of a job."""
    words = [f"--gpus={job.gpus}", f"--device={job.device}", f"--nodes={job.nodes}"]
    words += [f"--processes={job.processes}", f"--threads={job.threads}"]
    for name in ("cores", "rendezvous", "address"):
        value = getattr(job, name)
        words += [f"--{name}={value}"] if value is not None else []
    return [*words, job.module, *job.rest]


def start_sentinel() -> None:
    """In a job of SLURM, let `kproba.runtime.sentinel` pass its SIGTERM on to this process."""
    node = os.environ.get("SLURMD_NODENAME")  # not in a shell of salloc elsewhere
    if "SLURM_JOB_ID" not in os.environ or not node or not shutil.which("srun"):
        return
    # What SLURM tells of this step is not meant for another.
    keep = ("SLURM_JOB_ID", "SLURM_CONF")
    environment = {
        name: value
        for name, value in os.environ.items()
        if name in keep or not name.startswith(("SLURM_", "SRUN_"))
    }
    words = ["srun", "--job-name=kproba-sentinel", "--overlap", "--quiet"]
    words += ["--nodes=1", "--ntasks=1", "--cpus-per-task=1", "--input=none"]
    words += ["--mem=0", "--gres=none", f"--nodelist={node}"]
    words += [sys.executable, "-m", "kproba.runtime.sentinel", str(os.getpid())]
    subprocess.Popen(words, env=environment, stdin=subprocess.DEVNULL)


def node_name() -> str:
    """What other nodes call this one: SLURM's name for it, if the network knows it."""
    if name := os.environ.get("SLURMD_NODENAME"):
        with contextlib.suppress(OSError):
            socket.getaddrinfo(name, None)
            return name
    return socket.gethostname()


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def redirect(log: Path) -> None:
    """Send standard output and error to a file, replaced.

    Where errors went before, a job still tells how far it is: `kproba.runtime.logs.Terminal`.
    """
    before = os.dup(2)
    os.set_inheritable(before, True)
    if stat.S_ISREG(os.fstat(before).st_mode):
        # Others write to this file too, each at the place where it stopped itself.
        flags = fcntl.fcntl(before, fcntl.F_GETFL)
        fcntl.fcntl(before, fcntl.F_SETFL, flags | os.O_APPEND)
    os.environ[TERMINAL] = f"/proc/{os.getpid()}/fd/{before}"
    os.environ[JOB] = log.with_suffix("").as_posix().removeprefix("results/")
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def start(job: Job) -> None:
    """Become the program of a job; signals reach it directly."""
    if job.nodes > 1 and job.rendezvous is None:
        words, environment = srun_command(job), dict(os.environ)
    else:
        words = command(job)
        environment = {**ENVIRONMENT, **os.environ}
        environment["OMP_NUM_THREADS"] = str(threads_of(job))
        environment["KPROBA_LAUNCHER"] = str(os.getpid())  # torchrun's, soon
        if job.gpus:
            environment |= hold_devices(job.local, required=job.device == "cuda")
        if job.nodes == 1:  # the parts of several nodes are tasks of SLURM themselves
            start_sentinel()
    print(shlex.join(words), flush=True)
    os.execvpe(words[0], words, environment)


def main(argv: Sequence[str] | None = None) -> None:
    """Start a job; exit status 1 with a message when it cannot be started."""
    parser = argparse.ArgumentParser(prog="kproba-launch", description=__doc__)
    parser.add_argument("--log", type=Path, help="of this job alone, for all output")
    parser.add_argument("--gpus", type=int, default=0, help="over all nodes")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--processes", type=int, default=1, help="on the CPU")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--cores", type=int, help="of each node")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--rendezvous", metavar="HOST:PORT", help="of the first node")
    parser.add_argument("--address", help="of this node")
    parser.add_argument("module", help="such as kproba.jobs.train")
    parser.add_argument("rest", nargs=argparse.REMAINDER, help="its arguments")
    given = vars(parser.parse_args(argv))
    log = given.pop("log")
    job = Job(**{**given, "rest": tuple(given["rest"])})
    try:
        if log:
            told = own_log(log)
            redirect(log)
            if told:
                print(told, flush=True)
        start(job)
    except (ValueError, OSError) as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
