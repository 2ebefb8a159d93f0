"""What the programs of all jobs share: arguments of the machine, processes, log."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from kproba.runtime.distributed import Process, process_group
from kproba.runtime.logs import log_to_stderr, told_errors


def add_machine_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that change how fast a job is, never its result.

    `--gpus` and `--threads` come from `kproba.runtime.launch`.
    """
    parser.add_argument("--gpus", type=int, default=0, help="0: on the CPU")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--workers", type=int, default=0, help="that load images")
    parser.add_argument("--deterministic", action="store_true", help="on a GPU too")


@contextmanager
def job_process(options: argparse.Namespace) -> Iterator[Process]:
    """Join the processes of a job; its errors and log go to standard error."""
    torch.set_num_threads(options.threads)
    gpu = options.gpus > 0
    with (
        told_errors(),
        process_group(gpu=gpu, deterministic=options.deterministic) as process,
        told_errors(),  # before the others notice that this process has left them
    ):
        log_to_stderr(first=process.first)
        yield process
