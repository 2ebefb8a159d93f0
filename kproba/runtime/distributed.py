"""One process or many: the same code path, started by `kproba.runtime.launch`."""

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
    """This process among all of the job.

    Attributes:
        rank: Its number.
        world_size: How many there are.
        device: "cpu" or "cuda:N".
    """

    rank: int = 0
    world_size: int = 1
    device: str = "cpu"

    @property
    def first(self) -> bool:
        """Whether this process writes files and logs."""
        return self.rank == 0

    def sum(self, values: list[float]) -> list[float]:
        """Sum of the values over all processes, in float64 on the CPU."""
        if self.world_size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor)
        return tensor.tolist()

    def add_up(self, tensor: torch.Tensor) -> None:
        """Replace a tensor, in place, by its sum over all processes."""
        if self.world_size > 1:
            dist.all_reduce(tensor)

    def gather(self, part: T) -> list[T]:
        """The parts of all processes, in their order, in every process."""
        if self.world_size == 1:
            return [part]
        parts: list[T | None] = [None] * self.world_size
        dist.all_gather_object(parts, part)
        return parts  # type: ignore[return-value]  # every place is filled

    def wait(self) -> None:
        """Return when all processes are here."""
        if self.world_size > 1:
            dist.barrier()


ALONE = Process()


@contextmanager
def process_group(*, gpu: bool, deterministic: bool = False) -> Iterator[Process]:
    """Join the processes that torchrun started (one process without torchrun).

    Args:
        gpu: Use one CUDA device per process (NCCL), else the CPU (gloo).
        deterministic: On a GPU too, use algorithms alone that give the same bytes each
            time; slower. The CPU's always do.

    Raises:
        RuntimeError: `gpu` is asked for and PyTorch sees no CUDA device for this
            process.
    """
    rank = int(os.environ.get("RANK", "0"))
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _end_with_parent(int(os.environ.get("KPROBA_LAUNCHER", os.getppid())))
    device = "cpu"
    if deterministic:
        # cuBLAS reads this when it starts.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic or not gpu, warn_only=not gpu)
    if gpu:
        if not torch.cuda.is_available() or local_rank >= torch.cuda.device_count():
            raise RuntimeError(
                f"Expected a CUDA device for process {local_rank}, but PyTorch sees "
                f"{torch.cuda.device_count()}. Set compute.gpus to 0 for the CPU, or "
                f"check the driver and CUDA_VISIBLE_DEVICES."
            )
        device = f"cuda:{local_rank}"
        torch.cuda.set_device(device)
    if world_size > 1:
        # Small CPU tensors (counts, losses) go over gloo even on GPUs.
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo")
    yield Process(rank, world_size, device)
    # Not after an error: the others may wait for this process, which must end at once.
    if world_size > 1:
        dist.destroy_process_group()


def _end_with_parent(torchrun: int) -> None:
    """Be killed when the parent, torchrun, dies, however it dies (Linux).

    torchrun puts its children into sessions of their own: a SIGKILL for all processes
    of a job would spare them, and they would go on with a GPU that nobody holds.
    """
    PR_SET_PDEATHSIG = 1
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != torchrun:
        sys.exit("torchrun, which started this process, is gone already.")
