"""Chooses the old images that the next step may use.

kproba-launch kproba.jobs.update_memory --job '{..}' --split .. --table .. --labels ..
"""

import argparse
from collections.abc import Sequence

from kproba.jobs.arguments import add_data
from kproba.runtime.job import (
    add_files,
    job_parser,
    job_process,
    without_garbage_collection,
)


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = job_parser(
        "kproba.jobs.update_memory", "Choose old images for the next step."
    )
    add_data(parser)
    needed = ("split", "table", "record", "labels")
    add_files(parser, *needed, optional=("model", "previous", "previous_labels"))
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Write a memory; on an error, exit with status 1 and a message."""
    options = vars(arguments(argv))
    job, compute = options.pop("job"), options.pop("compute")
    # Late, because it loads torch. So errors in the arguments are reported at once.
    with without_garbage_collection():
        from kproba.jobs.step_memory import MemoryFiles, update_memory

    with job_process(compute) as process:
        update_memory(MemoryFiles(**options), job, compute, process)


if __name__ == "__main__":
    main()
