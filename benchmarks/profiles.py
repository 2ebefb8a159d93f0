"""Kernels and operators of a piece of work, counted and timed by PyTorch's profiler."""

import re
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.case import Case

# Kernels of convolutions and matrix products: of cuDNN, cuBLAS, CUTLASS, oneDNN.
PRODUCT = re.compile(
    r"gemm|gemv|conv|fprop|dgrad|wgrad|xmma|cutlass|winograd|nvjet|::(add|ba)?b?mm\b"
)
# They change a layout or a type, or set memory, whatever else is in their names.
NO_PRODUCT = re.compile(r"nchw_?tonhwc|nhwc_?tonchw|converttensor|convert_", re.I)


class Row(NamedTuple):
    """All calls of one kernel or operator.

    Attributes:
        name: Of the kernel or operator.
        calls: How often it ran.
        gpu: Seconds on the GPU: of the kernel itself, or of the kernels that the
            operator launched directly.
        cpu: Seconds on the CPU, without those of operators that it called.
        kernel: Whether it is a kernel on the GPU.
    """

    name: str
    calls: int
    gpu: float
    cpu: float
    kernel: bool

    @property
    def product(self) -> bool:
        """Whether it computes a convolution or a matrix product."""
        name = self.name.lower()
        return bool(PRODUCT.search(name)) and not NO_PRODUCT.search(name)


class Counts(NamedTuple):
    """Number of kernels and launches of a piece of work.

    Attributes:
        kernels: Kernels that ran on the GPU; on a CPU: ATen operators that were called,
            those of other operators included.
        launches: Calls that launched a kernel or a whole graph of them; 0 on a CPU.
    """

    kernels: int
    launches: int


def profiled(work: Callable[[], object], case: Case) -> list[Row]:
    """Run a piece of work under the profiler."""
    activities = [ProfilerActivity.CPU]
    if case.kind == "cuda":
        activities.append(ProfilerActivity.CUDA)
    case.wait()
    with profile(activities=activities) as found:
        work()
        case.wait()
    rows = []
    for event in found.key_averages():
        kernel = event.device_type == DeviceType.CUDA
        if kernel and getattr(event, "is_user_annotation", False):
            continue  # the span of kernels on the GPU, such as that of the optimizer
        gpu = getattr(event, "self_device_time_total", 0.0) / 1e6
        cpu = 0.0 if kernel else event.self_cpu_time_total / 1e6
        rows.append(Row(str(event.key), int(event.count), gpu, cpu, kernel))
    return rows


def counts(rows: list[Row], case: Case) -> Counts:
    """Kernels and launches among the rows of a profile."""
    if case.kind == "cpu":
        return Counts(sum(r.calls for r in rows if r.name.startswith("aten::")), 0)
    kernels = [row for row in rows if row.kernel and not is_copy(row.name)]
    launches = [row for row in rows if re.match(r"cu\w*Launch", row.name)]
    return Counts(sum(r.calls for r in kernels), sum(r.calls for r in launches))


def is_copy(name: str) -> bool:
    """Whether a row of the GPU is a copy or a fill, not a kernel."""
    return name.startswith(("Memcpy", "Memset"))


def operators(work: Callable[[], object]) -> int:
    """How many ATen operators a piece of work calls on the CPU."""
    return counts(profiled(work, Case("cpu")), Case("cpu")).kernels


def short(name: str, length: int = 70) -> str:
    """A name of a kernel in a cell of a table."""
    name = re.sub(r"\s+", " ", name).replace("|", "/")
    return f"`{name if len(name) <= length else name[: length - 2] + '..'}`"


def memory_gib(case: Case) -> str:
    """Peak memory of PyTorch on the GPU since it was last reset, in GiB."""
    if case.kind == "cpu":
        return "–"
    return f"{torch.cuda.max_memory_allocated() / 2**30:.1f}"
