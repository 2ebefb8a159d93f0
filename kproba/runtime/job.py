"""Arguments, processes and log that the programs of all jobs share."""

import argparse
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from kproba.runtime.compute import Compute
from kproba.runtime.logs import exit_on_error, log_to_stderr

if TYPE_CHECKING:
    from kproba.runtime.distributed import Process


def job_parser(name: str, description: str) -> argparse.ArgumentParser:
    """A parser with the argument `--compute`, which `kproba.runtime.launch` adds."""
    parser = argparse.ArgumentParser(prog=name, description=description)
    parser.add_argument(
        "--compute",
        type=Compute.from_argument,
        default=Compute(),
        help="compute options as JSON (kproba.runtime.compute)",
    )
    return parser


def add_files(
    parser: argparse.ArgumentParser, *names: str, optional: tuple[str, ...] = ()
) -> None:
    """Add an argument with a path per file.

    Args:
        parser: Gets the arguments.
        names: Files that the job needs, as names of attributes.
        optional: Files that may be missing. The argument may then have no value, which
            is how the rules write an empty input.
    """
    for name in (*names, *optional):
        flag = f"--{name.replace('_', '-')}"
        if name in optional:
            parser.add_argument(flag, type=Path, nargs="?", help="or nothing")
        else:
            parser.add_argument(flag, type=Path, required=True)


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Import without garbage collection; all new objects stay until the process ends.

    Otherwise Python searches all objects of torch for garbage, many times during the
    imports and again at the end. This takes two fifths of the CPU time of both.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def job_process(compute: Compute) -> "Iterator[Process]":
    """Join the processes of a job; its errors and log go to standard error."""
    import torch  # late, because arguments are parsed without it

    from kproba.runtime.distributed import process_group

    torch.set_num_threads(compute.threads)
    with (
        exit_on_error(),
        process_group(
            gpu=compute.gpus > 0, deterministic=compute.deterministic
        ) as process,
        exit_on_error(),  # reports before the other processes notice its end
    ):
        log_to_stderr(first=process.first)
        yield process
