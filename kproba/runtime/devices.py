"""Chooses the GPUs of a job: Snakemake counts GPUs, but does not assign them.

A job holds one lock file per device for as long as it lives. Jobs of one user on one
machine therefore never share a device, even if different Snakemakes started them.
"""

import os
import random
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from kproba.runtime.locks import try_lock

NONE = ("", "-1", "NoDevFiles")  # values of CUDA_VISIBLE_DEVICES that mean no device


def hold_devices(count: int, *, required: bool = True) -> dict[str, str]:
    """Wait for free devices and hold them for the life of this process.

    The lock files stay open when this process starts another program with exec.

    Args:
        count: Number of devices.
        required: If False, do nothing where CUDA_VISIBLE_DEVICES is not set.

    Returns:
        Environment variables that make exactly these devices visible.

    Raises:
        ValueError: There are fewer devices than `count`.
    """
    if not required and "CUDA_VISIBLE_DEVICES" not in os.environ:
        return {}
    visible = visible_devices()
    if count > len(visible):
        raise ValueError(
            f"Expected {count} GPU(s) for this job, but {_source()} {len(visible)} "
            f"({', '.join(visible) or 'none'}). Reduce compute.gpus (0 uses the CPU) "
            f"or --resources gpu, or check the driver and CUDA_VISIBLE_DEVICES."
        )
    announced = False
    while not (held := try_devices(count, visible)):
        if not announced:
            write_log(
                f"Waiting for {count} of the GPUs {', '.join(visible)}, which other "
                f"jobs are using"
            )
        announced = True
        # Random, because two jobs that each need several devices could otherwise
        # keep taking one from each other in step.
        time.sleep(random.uniform(0.05, 0.3))
    write_log(f"Using GPU {', '.join(held)} of {', '.join(visible)}")
    return {"CUDA_VISIBLE_DEVICES": ",".join(held)}


def visible_devices() -> list[str]:
    """Names of the devices that this job may choose from."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        import torch  # slow, and needed only here

        return [str(number) for number in range(torch.cuda.device_count())]
    devices = []
    for name in map(str.strip, listed.split(",")):
        if name in NONE:  # CUDA ignores all names after an invalid one
            break
        devices.append(name)
    return list(dict.fromkeys(devices))


def try_devices(count: int, visible: Sequence[str]) -> list[str]:
    """Lock `count` free devices, or none; returns their names."""
    locks: dict[str, int] = {}
    for name in visible:
        if len(locks) == count:
            break
        path = lock_file(name)
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        # A cleaner of /tmp may have removed the file since it was opened.
        if try_lock(lock) and _is_open_as(path, lock):
            os.set_inheritable(lock, True)
            os.utime(lock)  # cleaners of /tmp leave recent files alone
            locks[name] = lock
        else:
            os.close(lock)
    if len(locks) == count:
        return list(locks)
    for lock in locks.values():
        os.close(lock)
    return []


def lock_file(device: str) -> Path:
    """Path of the lock file of a device.

    Raises:
        PermissionError: The folder of the lock files belongs to another user.
    """
    folder = Path(os.environ.get("KPROBA_LOCKS", f"/tmp/kproba-{os.getuid()}"))
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(
            f"Expected {folder} to belong to you, but it belongs to another user. Set "
            f"KPROBA_LOCKS to another folder for the GPU locks."
        )
    # If SLURM shows each job only its assigned devices, the first device of every job
    # has the name 0. So the name of the lock also contains the job and the node.
    prefix = ""
    if "SLURM_JOB_ID" in os.environ:
        node = os.environ.get("SLURMD_NODENAME", "")
        prefix = f"slurm{os.environ['SLURM_JOB_ID']}-{node}-"
    return folder / f"{prefix}gpu-{re.sub(r'[^A-Za-z0-9-]', '_', device)}.lock"


def _is_open_as(path: Path, descriptor: int) -> bool:
    """Whether a path still leads to the file that is open as `descriptor`."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def write_log(message: str) -> None:
    """Write a line to the log of the job, which is standard error."""
    print(message, file=sys.stderr, flush=True)


def _source() -> str:
    """The source of the names in `visible_devices`, as the start of a clause."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return "CUDA_VISIBLE_DEVICES names"
    return "PyTorch sees"
