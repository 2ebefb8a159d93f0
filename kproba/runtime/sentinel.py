"""Passes SIGTERM on, if SLURM does not send it to the program of a rule.

    srun --overlap --ntasks=1 .. python -m kproba.runtime.sentinel 4711

At scancel, pre-emption and the time limit, SLURM signals the tasks of a job's steps.
On clusters that track processes by cgroups, these are only the tasks that SLURM itself
started: here Snakemake, which does not pass the signal on. `kproba.runtime.launch`
therefore starts this program beside the job, as a step of its own. It sleeps until it
gets the signal, and sends it to the process with the given number.
"""

import contextlib
import signal
import sys
import time

import psutil


def find_ranks(program: psutil.Process) -> list[psutil.Process]:
    """The processes that torchrun started, or the program itself without torchrun."""
    ranks = []
    for child in program.children():
        with contextlib.suppress(psutil.Error):  # for example, it has just ended
            if "LOCAL_RANK" in child.environ():
                ranks.append(child)
    return ranks or [program]


def terminate_ranks(program: psutil.Process) -> None:
    """Send SIGTERM to the ranks, but not to torchrun.

    A rank may get the signal twice without harm. At a second signal torchrun would stop
    waiting for its ranks to save their state.
    """
    with contextlib.suppress(psutil.Error):
        for rank in find_ranks(program):
            with contextlib.suppress(psutil.Error):
                rank.terminate()


def is_alive(program: psutil.Process) -> bool:
    """Whether a program still runs. A zombie has ended."""
    try:
        return program.is_running() and program.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def main() -> None:
    """Sleep as long as a process runs, and pass SIGTERM on to it."""
    try:
        program = psutil.Process(int(sys.argv[1]))
    except psutil.NoSuchProcess:
        return  # it ended before this program began
    signal.signal(signal.SIGTERM, lambda *_: terminate_ranks(program))
    while is_alive(program):
        time.sleep(0.5)


if __name__ == "__main__":
    main()
