"""Starts the program of a job: one process by itself, several through torchrun.

    kproba-launch --gpus 2 --threads 4 --log train.log kproba.training settings.json ..

The program gets `--gpus` and `--threads` at the end of its own arguments. Torch is not
needed here: a job with one process loads it once.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from kproba.locks import Occupied, own_log

# Spinning OpenMP threads make a shared machine several times slower. Without the others
# glibc gives every large temporary tensor back to the kernel and takes it again, page
# by page: up to a fifth of an iteration on a CPU.
ENVIRONMENT = {
    "OMP_WAIT_POLICY": "passive",
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),  # bytes, the largest that glibc takes
    "MALLOC_TRIM_THRESHOLD_": str(16 * 2**30),
}


def command(
    module: str, rest: Sequence[str], *, gpus: int, processes: int, threads: int
) -> list[str]:
    """The command line of a job.

    Args:
        module: Python module to run, such as "kproba.training".
        rest: Its arguments.
        gpus: One process for each; 0: on the CPU.
        processes: Number of processes on the CPU.
        threads: CPU threads of each process.
    """
    count = gpus or processes
    start = [sys.executable, "-m"]
    if count > 1:
        # A free port is chosen anew each time, so jobs may run side by side.
        start += ["torch.distributed.run", "--standalone"]
        start += [f"--nproc-per-node={count}", "-m"]
    return [*start, module, *rest, f"--gpus={gpus}", f"--threads={threads}"]


def redirect(log: Path) -> None:
    """Send standard output and error to a file, replaced."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def main(argv: Sequence[str] | None = None) -> None:
    """Become the program; signals reach it directly."""
    parser = argparse.ArgumentParser(prog="kproba.launch", description=__doc__)
    parser.add_argument("--gpus", type=int, default=0, help="0: on the CPU")
    parser.add_argument("--processes", type=int, default=1, help="on the CPU")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--log", type=Path, help="of this job alone, for all output")
    parser.add_argument("module", help="such as kproba.training")
    parser.add_argument("rest", nargs=argparse.REMAINDER, help="its arguments")
    given = parser.parse_args(argv)
    words = command(
        given.module,
        given.rest,
        gpus=given.gpus,
        processes=given.processes,
        threads=given.threads,
    )
    if given.log:
        redirect(given.log)
        try:
            own_log(given.log)
        except Occupied as error:
            sys.exit(f"Error: {error}")
    environment = {**ENVIRONMENT, **os.environ, "OMP_NUM_THREADS": str(given.threads)}
    os.execve(words[0], words, environment)


if __name__ == "__main__":
    main()
