"""Which GPUs a job gets: Snakemake counts them, but does not say which.

A job holds one lock file per device for as long as it lives, so jobs of one user on one
machine never share a device, whichever Snakemake started them.
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
    """Wait for free devices and hold them for the life of this program.

    The lock files stay open when another program takes this one's place (exec).

    Args:
        count: Devices wanted.
        required: False: where CUDA_VISIBLE_DEVICES names none at all, the job goes on
            without.

    Returns:
        Environment that shows these devices alone.

    Raises:
        ValueError: There are not as many devices.
    """
    if not required and "CUDA_VISIBLE_DEVICES" not in os.environ:
        return {}
    visible = visible_devices()
    if count > len(visible):
        raise ValueError(
            f"Expected {count} GPU(s) for this job, but {_source()} {len(visible)} "
            f"({', '.join(visible) or 'none'}). Lower compute.gpus (0 computes on the "
            f"CPU) or --resources gpu, or check the driver and CUDA_VISIBLE_DEVICES."
        )
    told = False
    while not (held := try_devices(count, visible)):
        if not told:
            say(f"Waiting for {count} of the GPUs {', '.join(visible)}: others work")
        told = True
        # In no rhythm, or two jobs that want several could meet again and again.
        time.sleep(random.uniform(0.05, 0.3))
    say(f"GPU {', '.join(held)} of {', '.join(visible)}")
    return {"CUDA_VISIBLE_DEVICES": ",".join(held)}


def visible_devices() -> list[str]:
    """Names of the devices that this job may choose from."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        import torch  # slow, and needed for this alone

        return [str(number) for number in range(torch.cuda.device_count())]
    devices = []
    for name in map(str.strip, named.split(",")):
        if name in NONE:  # CUDA ignores what comes after one that is not there
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
        # What cleans /tmp may have removed the file since it was opened.
        if try_lock(lock) and _is_open_as(path, lock):
            os.set_inheritable(lock, True)
            os.utime(lock)  # young: not to be cleaned away
            locks[name] = lock
        else:
            os.close(lock)
    if len(locks) == count:
        return list(locks)
    for lock in locks.values():
        os.close(lock)
    return []


def lock_file(device: str) -> Path:
    """The lock file of a device; names of a SLURM job's devices are its own."""
    folder = Path(os.environ.get("KPROBA_LOCKS", f"/tmp/kproba-{os.getuid()}"))
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(
            f"Expected {folder} to belong to you, but it does not. Name another folder "
            f"for the locks of GPUs in KPROBA_LOCKS."
        )
    # Where SLURM shows each job its own devices alone, all of them call theirs 0.
    home = ""
    if "SLURM_JOB_ID" in os.environ:
        node = os.environ.get("SLURMD_NODENAME", "")
        home = f"slurm{os.environ['SLURM_JOB_ID']}-{node}-"
    return folder / f"{home}gpu-{re.sub(r'[^A-Za-z0-9-]', '_', device)}.lock"


def _is_open_as(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def say(message: str) -> None:
    """A line of the job's log."""
    print(message, file=sys.stderr, flush=True)


def _source() -> str:
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return "CUDA_VISIBLE_DEVICES names"
    return "PyTorch sees"
