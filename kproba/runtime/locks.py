"""Locks that a job holds for as long as any of its processes lives.

They are advisory locks of open files (flock): the kernel gives them back when the last
process that inherited the file is gone, however it ended.
"""

import contextlib
import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil

GRACE = 120.0  # seconds that a job gets to save its state and end


class Occupied(OSError):
    """Another job is at work on the same files."""


def own_log(log: Path, *, grace: float = GRACE) -> str | None:
    """Be the only job with this log, which stands for all that the job writes.

    When Snakemake alone was killed, its jobs go on, and asking again would start a
    second one beside them. Such an orphan is told to stop, saves its state, and is
    waited for: a process of this machine, or a job of SLURM.

    The lock file, hidden beside the log, becomes the standard input of this process:
    so all processes that it starts hold it too.

    Args:
        log: Path of the log.
        grace: Seconds to wait.

    Returns:
        In words, what was told to stop; None if nothing was in the way.

    Raises:
        Occupied: A job that a living Snakemake watches holds the log, or one that
            does not end.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(lock_of(log), os.O_RDWR | os.O_CREAT, 0o666)
    told = None
    end = time.monotonic() + grace
    while not try_lock(lock):
        holder = read_holder(lock)
        if holder and told is None:
            if watched(holder):
                raise Occupied(
                    f"Expected to be the only job that writes {log}, but "
                    f"{name_of(holder)} of another Snakemake does. Wait for it, or "
                    f"stop it."
                )
            told = tell_to_stop(holder)
        if time.monotonic() > end:
            who = name_of(holder) if holder else "another job"
            raise Occupied(
                f"Expected to be the only job that writes {log}, but {who} still does "
                f"after {grace:.0f} s. Stop it and ask again."
            )
        time.sleep(0.2)
    os.ftruncate(lock, 0)
    os.pwrite(lock, json.dumps(myself()).encode(), 0)
    os.dup2(lock, 0)
    os.close(lock)
    return told


def lock_of(log: Path) -> Path:
    """The lock file of a log."""
    return log.with_name(f".{log.name}.lock")


def try_lock(descriptor: int) -> bool:
    """Lock an open file for this process and all that inherit the descriptor.

    Returns:
        False if another holds it. File systems that know no locks refuse nobody.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
            raise
    return True


def myself() -> dict[str, Any]:
    """What a lock file tells of its holder."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": psutil.Process().create_time(),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
    }


def read_holder(descriptor: int) -> dict[str, Any] | None:
    """Who holds a lock file, as far as it says so."""
    try:
        return json.loads(os.pread(descriptor, 4096, 0))
    except ValueError:
        return None  # not written yet


def name_of(holder: dict[str, Any]) -> str:
    """A holder in words."""
    if holder["slurm_job"]:
        return f"SLURM job {holder['slurm_job']}"
    return f"process {holder['pid']} on {holder['host']}"


def tell_to_stop(holder: dict[str, Any]) -> str:
    """Ask a job without a Snakemake to save its state and to end; in words."""
    if in_another_slurm_job(holder):
        subprocess.run(["scancel", holder["slurm_job"]], check=False)
    elif lives_here(holder):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(holder["pid"], signal.SIGTERM)
    else:
        return f"Waited for {name_of(holder)}, which held the log"
    return f"Stopped {name_of(holder)}, left behind by a killed Snakemake"


def watched(holder: dict[str, Any]) -> bool:
    """Whether a Snakemake is among the parents of a holder on this machine.

    Another job of SLURM has one of its own there; whether that is still waited for is
    not known, but two Snakemakes cannot work in one folder.
    """
    if not lives_here(holder) or in_another_slurm_job(holder):
        return False
    try:
        parents = psutil.Process(holder["pid"]).parents()
        words = [word for parent in parents for word in parent.cmdline()]
    except psutil.Error:
        return False  # ended meanwhile
    return "snakemake" in {Path(word).name for word in words}


def in_another_slurm_job(holder: dict[str, Any]) -> bool:
    """Whether a holder belongs to a SLURM job that is not this process's."""
    return holder["slurm_job"] not in (None, os.environ.get("SLURM_JOB_ID"))


def lives_here(holder: dict[str, Any]) -> bool:
    """Whether the very process that wrote the lock file runs on this machine.

    Numbers of processes are used again; the time of the start tells them apart, which
    moves a little with the clock.
    """
    if holder["host"] != socket.gethostname():
        return False
    try:
        started = psutil.Process(holder["pid"]).create_time()
    except psutil.Error:
        return False
    return abs(started - holder["started"]) < 2
