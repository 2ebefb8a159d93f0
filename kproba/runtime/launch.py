"""Starts the program of a job: one process directly, several with torchrun.

    kproba-launch --log train.log --gpus 2 --cores 8 kproba.jobs.train settings.json ..

The launcher first takes the lock of the job's log (`kproba.runtime.locks`) and those of
its GPUs (`kproba.runtime.devices`). It then appends `--compute` to the arguments of
the program. It does not import torch, so that a job with one process loads torch only
once.
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

from kproba import artifacts
from kproba.runtime.compute import Compute
from kproba.runtime.devices import hold_devices
from kproba.runtime.locks import hold_log
from kproba.runtime.logs import JOB, TERMINAL

# OpenMP threads that wait actively make a shared machine several times slower. Without
# the two thresholds, glibc returns the memory of every large temporary tensor to the
# kernel and requests it again page by page, which costs up to a fifth of an iteration
# on a CPU.
ENVIRONMENT = {
    "OMP_WAIT_POLICY": "passive",
    "MALLOC_MMAP_THRESHOLD_": str(
        32 * 2**20
    ),  # bytes, the largest value that glibc accepts
    "MALLOC_TRIM_THRESHOLD_": str(16 * 2**30),
}


@dataclass(frozen=True)
class Launch:
    """A program to run and the resources that it may use.

    Attributes:
        module: Python module to run, such as "kproba.jobs.train".
        rest: Arguments of the module.
        compute: Compute options, over all nodes. With the device "cpu" it runs one CPU
            process per GPU, to try the set-up of a cluster without GPUs. It uses fewer
            threads if there are not enough cores.
        cores: CPU cores of each node; None: as many as the threads need.
        rendezvous: "host:port" of the first node; None if there is only one node, or if
            SLURM starts the others.
        address: Name of this node that the other nodes use; None: its host name.
    """

    module: str
    rest: tuple[str, ...] = ()
    compute: Compute = Compute()  # noqa: RUF009 - frozen
    cores: int | None = None
    rendezvous: str | None = None
    address: str | None = None

    @property
    def local(self) -> int:
        """Number of processes on each node.

        Raises:
            ValueError: The number of processes is not a multiple of the nodes.
        """
        compute = self.compute
        count = compute.gpus or compute.processes
        if count % compute.nodes:
            kind = "GPUs" if compute.gpus else "processes"
            raise ValueError(
                f"Expected a number of {kind} that is a multiple of the "
                f"{compute.nodes} nodes, but got {count}. Change compute.nodes or "
                f"compute.{kind.lower()}."
            )
        return count // compute.nodes


def command(job: Launch) -> list[str]:
    """The command line of a job, or of its part on this node."""
    local = job.local
    start = [sys.executable, "-m"]
    if job.compute.nodes > 1:
        start += ["torch.distributed.run", "--rdzv-backend=c10d"]
        start += [f"--rdzv-endpoint={job.rendezvous}", f"--rdzv-id={job.rendezvous}"]
        start += [f"--nnodes={job.compute.nodes}", f"--nproc-per-node={local}"]
        start += [f"--local-addr={job.address or node_name()}", "-m"]
    elif local > 1:
        # torchrun chooses a free port, so that jobs can run side by side. The address
        # is a number, because the host name of a machine may not resolve to it.
        start += ["torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
        start += [f"--nproc-per-node={local}", "-m"]
    compute = job.compute
    gpus = local if compute.gpus and compute.device == "cuda" else 0
    options = replace(compute, gpus=gpus, threads=threads_per_process(job))
    return [*start, job.module, *job.rest, f"--compute={options.to_json()}"]


def threads_per_process(job: Launch) -> int:
    """Threads of each process, at most its share of the cores of the node."""
    threads = job.compute.threads
    share = job.cores // job.local if job.cores else threads
    return max(1, min(threads, share))


def srun_command(job: Launch) -> list[str]:
    """The command line that starts a job's part on every node of a SLURM job.

    Raises:
        ValueError: This is not a SLURM job.
    """
    if "SLURM_JOB_ID" not in os.environ:
        raise ValueError(
            f"Expected to run in a SLURM job, because SLURM starts the processes on "
            f"all {job.compute.nodes} nodes, but SLURM_JOB_ID is not set. Without "
            f"SLURM, start the job yourself on every node with --rendezvous HOST:PORT."
        )
    # A SLURM job starts on its first node, which is the rendezvous.
    part = replace(job, rendezvous=f"{node_name()}:{free_port()}")
    return [
        *("srun", f"--nodes={job.compute.nodes}", f"--ntasks={job.compute.nodes}"),
        *("--ntasks-per-node=1", "--overlap", "--kill-on-bad-exit=1"),
        *([f"--cpus-per-task={job.cores}"] if job.cores else []),
        *(sys.executable, "-m", "kproba.runtime.launch", *launcher_arguments(part)),
    ]


def launcher_arguments(job: Launch) -> list[str]:
    """The command line of this launcher that describes a job."""
    words = [f"--compute={job.compute.to_json()}"]
    for name in ("cores", "rendezvous", "address"):
        value = getattr(job, name)
        words += [f"--{name}={value}"] if value is not None else []
    return [*words, job.module, *job.rest]


def start_sentinel() -> None:
    """Start `kproba.runtime.sentinel`, which passes SIGTERM on to this process.

    Does nothing outside a SLURM job.
    """
    # Not set in the shell that salloc opens on a login node.
    node = os.environ.get("SLURMD_NODENAME")
    if "SLURM_JOB_ID" not in os.environ or not node or not shutil.which("srun"):
        return
    # Other variables of SLURM describe the current step, not the new one.
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
    """Name of this node on the network: SLURM's if it resolves, else the host name."""
    if name := os.environ.get("SLURMD_NODENAME"):
        with contextlib.suppress(OSError):
            socket.getaddrinfo(name, None)
            return name
    return socket.gethostname()


def free_port() -> int:
    """A free port of this machine."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def redirect(log: Path) -> None:
    """Send standard output and error to a file, which is replaced.

    The previous standard error stays open: the job writes its progress to it (see
    `kproba.runtime.logs.Terminal`).
    """
    previous = os.dup(2)
    os.set_inheritable(previous, True)
    if stat.S_ISREG(os.fstat(previous).st_mode):
        # Several processes write to this file. Each has its own position, so that they
        # would overwrite each other's lines if they did not append.
        flags = fcntl.fcntl(previous, fcntl.F_GETFL)
        fcntl.fcntl(previous, fcntl.F_SETFL, flags | os.O_APPEND)
    os.environ[TERMINAL] = f"/proc/{os.getpid()}/fd/{previous}"
    os.environ[JOB] = (
        log.with_suffix("").as_posix().removeprefix(f"{artifacts.RESULTS}/")
    )
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def start(job: Launch) -> None:
    """Replace this process by the program of a job, so that signals reach it."""
    if job.compute.nodes > 1 and job.rendezvous is None:
        words, environment = srun_command(job), dict(os.environ)
    else:
        words = command(job)
        environment = {**ENVIRONMENT, **os.environ}
        environment["OMP_NUM_THREADS"] = str(threads_per_process(job))
        # If torchrun takes this process's place, it keeps the process number.
        environment["KPROBA_LAUNCHER"] = str(os.getpid())
        if job.compute.gpus:
            required = job.compute.device == "cuda"
            environment |= hold_devices(job.local, required=required)
        # On several nodes this process is a task of SLURM, which signals it directly.
        if job.compute.nodes == 1:
            start_sentinel()
    print(shlex.join(words), flush=True)
    os.execvpe(words[0], words, environment)


def main(argv: Sequence[str] | None = None) -> None:
    """Start a job; exit with status 1 and a message if that fails."""
    parser = argparse.ArgumentParser(prog="kproba-launch", description=__doc__)
    parser.add_argument("--log", type=Path, help="log file for all output of this job")
    parser.add_argument(
        "--compute",
        type=Compute.from_argument,
        default=Compute(),
        help="compute options as JSON",
    )
    parser.add_argument("--gpus", type=int, help="GPUs of the job, over all nodes")
    parser.add_argument("--device", choices=["cuda", "cpu"])
    parser.add_argument("--processes", type=int, help="processes on the CPU")
    parser.add_argument("--nodes", type=int)
    parser.add_argument("--threads", type=int, help="threads of each process")
    parser.add_argument("--cores", type=int, help="CPU cores of each node")
    parser.add_argument(
        "--rendezvous", metavar="HOST:PORT", help="address of the first node"
    )
    parser.add_argument("--address", help="network name of this node")
    parser.add_argument("module", help="program, such as kproba.jobs.train")
    parser.add_argument("rest", nargs=argparse.REMAINDER, help="its arguments")
    options = parser.parse_args(argv)
    # A single option wins over the JSON object.
    names = ("gpus", "device", "processes", "nodes", "threads")
    changed = {name: getattr(options, name) for name in names}
    changed = {name: value for name, value in changed.items() if value is not None}
    job = Launch(
        module=options.module,
        rest=tuple(options.rest),
        compute=replace(options.compute, **changed),
        cores=options.cores,
        rendezvous=options.rendezvous,
        address=options.address,
    )
    log = options.log
    try:
        if log:
            stopped = hold_log(log)
            redirect(log)
            if stopped:
                print(stopped, flush=True)
        start(job)
    except (ValueError, OSError) as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
