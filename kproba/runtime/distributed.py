"""The processes of a job: one or several, with the same code.

`kproba.runtime.launch` starts them.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


@dataclass(frozen=True)
class Process:
    """This process, one of the processes of a job.

    Attributes:
        rank: Number of this process, from 0.
        world_size: Number of processes.
        device: "cpu" or "cuda:N".
    """

    rank: int = 0
    world_size: int = 1
    device: str = "cpu"

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and logs."""
        return self.rank == 0

    def sum(self, values: list[float]) -> list[float]:
        """Sum of each value over all processes, in float64 on the CPU."""
        if self.world_size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor)
        return tensor.tolist()

    def add_up(self, tensor: torch.Tensor) -> None:
        """Replace a tensor in place by its sum over all processes."""
        if self.world_size > 1:
            dist.all_reduce(tensor)

    def gather(self, part: T) -> list[T]:
        """The parts of all processes in the order of their ranks, in every process."""
        if self.world_size == 1:
            return [part]
        parts: list[T | None] = [None] * self.world_size
        dist.all_gather_object(parts, part)
        return parts  # type: ignore[return-value]  # every rank fills one

    def wait(self) -> None:
        """Wait until all processes have called this."""
        if self.world_size > 1:
            dist.barrier()


ALONE = Process()


@contextmanager
def process_group(*, gpu: bool, deterministic: bool = False) -> Iterator[Process]:
    """Join the processes that torchrun started (one process without torchrun).

    Args:
        gpu: Whether to use one CUDA device per process (NCCL), or the CPU (gloo).
        deterministic: Whether to use, on a GPU, only algorithms that give the same
            bytes each time, which is slower. On the CPU they are always used.

    Raises:
        RuntimeError: `gpu` is True, but PyTorch sees no CUDA device for this process.
    """
    rank = int(os.environ.get("RANK", "0"))
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _end_with_parent(int(os.environ.get("KPROBA_LAUNCHER", os.getppid())))
    device = "cpu"
    if deterministic:
        # cuBLAS reads this variable once, when it starts.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic or not gpu, warn_only=not gpu)
    # Otherwise PyTorch fills every new tensor with NaN, to detect reads before a write.
    # This takes up to a tenth of an iteration on a CPU.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if gpu:
        if not torch.cuda.is_available() or local_rank >= torch.cuda.device_count():
            raise RuntimeError(
                f"Expected a CUDA device for process {local_rank}, but PyTorch sees "
                f"{torch.cuda.device_count()}. Set compute.gpus to 0 to use the CPU, "
                f"or check the driver and CUDA_VISIBLE_DEVICES."
            )
        device = f"cuda:{local_rank}"
        torch.cuda.set_device(device)
    if world_size > 1:
        # Small CPU tensors (counts, losses) go over gloo even on GPUs.
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo")
    yield Process(rank, world_size, device)
    # Not in a `finally`: after an error this process must end at once, because others
    # may be waiting for it.
    if world_size > 1:
        dist.destroy_process_group()


def _end_with_parent(torchrun: int) -> None:
    """Ask Linux to kill this process when its parent, torchrun, ends for any reason.

    torchrun starts each child in a separate session. A SIGKILL for all processes of a
    job's session would miss them, and they would still use a GPU whose lock is free.
    """
    PR_SET_PDEATHSIG = 1
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != torchrun:
        sys.exit(
            "Expected torchrun, which started this process, but it has already ended."
        )
