"""Locks that a job holds for as long as any of its processes lives.

They are advisory locks of open files (flock). The kernel releases such a lock when the
last process that inherited the file has ended, however it ended.
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

GRACE = 120.0  # seconds for a job to save its state and end


class LogInUseError(OSError):
    """Another job writes the same log, and so the same files."""


def hold_log(log: Path, *, grace: float = GRACE) -> str | None:
    """Become the only job that writes this log and, with it, the job's other files.

    If Snakemake alone is killed, its jobs continue as orphans, and the next Snakemake
    would start a second job beside them. So this function stops such a job, whether it
    is a process on this machine or a SLURM job. The job saves its state, and this
    function waits for its end.

    The lock file, hidden beside the log, becomes the standard input of this process, so
    that all processes that it starts hold the lock as well.

    Args:
        log: Path of the log.
        grace: Seconds to wait.

    Returns:
        A sentence about the job that was stopped; None if there was none.

    Raises:
        LogInUseError: The log is held by a job whose Snakemake lives, or by one that
            does not end in time.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(lock_path(log), os.O_RDWR | os.O_CREAT, 0o666)
    stopped = None
    end = time.monotonic() + grace
    while not try_lock(lock):
        holder = read_holder(lock)
        if holder and stopped is None:
            if has_snakemake(holder):
                raise LogInUseError(
                    f"Expected no other job that writes {log}, but "
                    f"{describe_holder(holder)}, which another Snakemake started, is "
                    f"writing it. Wait until it ends, or stop it."
                )
            stopped = stop_holder(holder)
        if time.monotonic() > end:
            who = describe_holder(holder) if holder else "another job"
            raise LogInUseError(
                f"Expected no other job that writes {log}, but {who} is still writing "
                f"it after {grace:.0f} s. Stop it and run again."
            )
        time.sleep(0.2)
    os.ftruncate(lock, 0)
    os.pwrite(lock, json.dumps(describe_this_process()).encode(), 0)
    os.dup2(lock, 0)
    os.close(lock)
    return stopped


def lock_path(log: Path) -> Path:
    """Path of the lock file of a log."""
    return log.with_name(f".{log.name}.lock")


def try_lock(descriptor: int) -> bool:
    """Lock an open file for this process and all that inherit the descriptor.

    Returns:
        False if another process holds the lock. On a file system without locks, every
        call succeeds.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
            raise
    return True


def describe_this_process() -> dict[str, Any]:
    """The content of a lock file that this process holds."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": psutil.Process().create_time(),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
    }


def read_holder(descriptor: int) -> dict[str, Any] | None:
    """The content of a lock file: who holds it; None if it has none yet."""
    try:
        return json.loads(os.pread(descriptor, 4096, 0))
    except ValueError:
        return None


def describe_holder(holder: dict[str, Any]) -> str:
    """Describe the holder of a lock, for messages."""
    if holder["slurm_job"]:
        return f"SLURM job {holder['slurm_job']}"
    return f"process {holder['pid']} on {holder['host']}"


def stop_holder(holder: dict[str, Any]) -> str:
    """Stop a job without a Snakemake; it saves its state first.

    Returns:
        A sentence about the stopped job.
    """
    if is_in_another_slurm_job(holder):
        subprocess.run(["scancel", holder["slurm_job"]], check=False)
    elif runs_here(holder):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(holder["pid"], signal.SIGTERM)
    else:
        return f"Waited until {describe_holder(holder)} released the log"
    return f"Stopped {describe_holder(holder)}; its Snakemake was killed"


def has_snakemake(holder: dict[str, Any]) -> bool:
    """Whether a Snakemake is among the parents of a holder on this machine.

    False for a holder in another SLURM job. That job contains a Snakemake, too, but the
    one that submitted the job cannot be found from here. It must have ended, because
    two Snakemakes cannot work in one folder, and this process has its own.
    """
    if not runs_here(holder) or is_in_another_slurm_job(holder):
        return False
    try:
        parents = psutil.Process(holder["pid"]).parents()
        words = [word for parent in parents for word in parent.cmdline()]
    except psutil.Error:
        return False  # it has ended in the meantime
    return "snakemake" in {Path(word).name for word in words}


def is_in_another_slurm_job(holder: dict[str, Any]) -> bool:
    """Whether a holder belongs to a SLURM job other than this process's."""
    return holder["slurm_job"] not in (None, os.environ.get("SLURM_JOB_ID"))


def runs_here(holder: dict[str, Any]) -> bool:
    """Whether the process that wrote the lock file still runs on this machine.

    Systems reuse process numbers, so the start times are compared as well. They may
    differ slightly, because they follow corrections of the clock.
    """
    if holder["host"] != socket.gethostname():
        return False
    try:
        started = psutil.Process(holder["pid"]).create_time()
    except psutil.Error:
        return False
    return abs(started - holder["started"]) < 2
