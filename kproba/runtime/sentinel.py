"""Passes SIGTERM on where SLURM does not send it to the program of a rule.

    srun --overlap --ntasks=1 .. python -m kproba.runtime.sentinel 4711

SLURM tells the tasks of a job's steps to end (scancel, pre-emption, time limit). On
clusters that track processes by cgroups that is only what SLURM started itself: here
Snakemake, which keeps the signal to itself. `kproba.runtime.launch` therefore starts a step of
its own beside the program, this one, which sleeps until it is told.
"""

import contextlib
import signal
import sys
import time

import psutil


def ranks_of(program: psutil.Process) -> list[psutil.Process]:
    """The processes that torchrun started, or the program itself where it did not."""
    ranks = []
    for child in program.children():
        with contextlib.suppress(psutil.Error):  # one that has ended, say
            if "LOCAL_RANK" in child.environ():
                ranks.append(child)
    return ranks or [program]


def tell(program: psutil.Process) -> None:
    """Send SIGTERM to the ranks; those that have it already lose nothing by another.

    torchrun itself would: a second signal breaks off its waiting for the ranks.
    """
    with contextlib.suppress(psutil.Error):
        for rank in ranks_of(program):
            with contextlib.suppress(psutil.Error):
                rank.terminate()


def lives(program: psutil.Process) -> bool:
    """Whether a program has not ended; its parent may not have noticed yet."""
    try:
        return program.is_running() and program.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def main() -> None:
    """Sleep as long as a process lives, and pass SIGTERM on to it."""
    try:
        program = psutil.Process(int(sys.argv[1]))
    except psutil.NoSuchProcess:
        return  # it was quicker
    signal.signal(signal.SIGTERM, lambda *_: tell(program))
    while lives(program):
        time.sleep(0.5)


if __name__ == "__main__":
    main()
