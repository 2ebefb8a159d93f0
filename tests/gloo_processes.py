"""Several processes over gloo in one test, without the start-up of torchrun."""

import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from typing import Any

from torch.multiprocessing import start_processes

from kproba.runtime.distributed import process_group

# A server that has loaded everything, but run nothing, forks the processes quickly.
multiprocessing.set_forkserver_preload(
    ["kproba.jobs.step_bank", "kproba.jobs.step_test", "kproba.training.loop"]
)


def in_processes(count: int, work: Callable[..., Any], *arguments: Any) -> None:
    """Call `work(process, *arguments)` in every one of `count` processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start_processes(
        _one,
        (count, port, work, arguments),
        nprocs=count,
        start_method="forkserver",
    )


def _one(rank: int, count: int, port: int, work: Any, arguments: tuple) -> None:
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(count),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    with process_group(gpu=False) as process:
        work(process, *arguments)


def finished_within(
    seconds: float, count: int, work: Callable[..., Any], *arguments: Any
) -> bool:
    """Start `count` processes and SIGKILL them after a time; whether they were done."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    started = [
        context.Process(target=_one, args=(rank, count, port, work, arguments))
        for rank in range(count)
    ]
    for process in started:
        process.start()
    end = time.monotonic() + seconds
    for process in started:
        process.join(max(0.0, end - time.monotonic()))
    for process in started:
        process.kill()
    for process in started:
        process.join()
    return all(process.exitcode == 0 for process in started)


def wait_until(condition: Callable[[], bool], seconds: float = 300) -> None:
    """Return when a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not come true in time"
        time.sleep(0.05)
