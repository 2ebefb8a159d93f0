"""Locks that a job holds for as long as any of its processes lives.

They are advisory locks of open files (flock): the kernel gives them back when the last
process that inherited the file is gone, however it ended.
"""

import contextlib
import errno
import fcntl
import os
import signal
import sys
import time
from pathlib import Path

GRACE = 120.0  # seconds that a job gets to save its state


class Occupied(OSError):
    """Another job is at work on the same files."""


def own_log(log: Path, *, grace: float = GRACE) -> None:
    """Be the only job with this log, which stands for all that the job writes.

    When Snakemake alone was killed, its jobs go on, and asking again would start a
    second one beside them. Such an orphan is told to stop, saves its state, and is
    waited for.

    The lock file, hidden beside the log, becomes the standard input of this process:
    so all processes that it starts hold it too.

    Args:
        log: Path of the log.
        grace: Seconds to wait.

    Raises:
        Occupied: A job that a living Snakemake watches holds the log, or one that
            does not end.
    """
    lock = os.open(lock_of(log), os.O_RDWR | os.O_CREAT, 0o666)
    told: set[int] = set()
    end = time.monotonic() + grace
    while not try_lock(lock):
        for pid in holders(lock):
            if watched(pid):
                raise Occupied(
                    f"Expected to be the only job that writes {log}, but "
                    f"process {pid} of another Snakemake does. Wait for it, or stop it."
                )
            if pid not in told:
                print(
                    f"Stopping process {pid}, left behind by a killed Snakemake",
                    file=sys.stderr,
                    flush=True,
                )
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGTERM)
                told.add(pid)
        if time.monotonic() > end:
            who = f"process {min(told)}" if told else "a process of another machine"
            raise Occupied(
                f"Expected to be the only job that writes {log}, but {who} "
                f"still does after {grace:.0f} s. Stop it and ask again."
            )
        time.sleep(0.2)
    os.dup2(lock, 0)
    os.close(lock)


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


def holders(descriptor: int) -> list[int]:
    """Processes of this machine that took the lock of an open file (Linux)."""
    status = os.fstat(descriptor)
    major, minor = os.major(status.st_dev), os.minor(status.st_dev)
    wanted = f"{major:02x}:{minor:02x}:{status.st_ino}"
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return []
    rows = [line.split() for line in lines]
    # "1: FLOCK  ADVISORY  WRITE 4711 08:01:131 0 EOF"; "1: -> FLOCK .." waits.
    return [int(row[4]) for row in rows if row[1] == "FLOCK" and row[5] == wanted]


def watched(pid: int) -> bool:
    """Whether a Snakemake is among the parents of a process."""
    while pid > 1:
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return False
        if "snakemake" in {Path(os.fsdecode(word)).name for word in words}:
            return True
        pid = int(fields[1])
    return False
