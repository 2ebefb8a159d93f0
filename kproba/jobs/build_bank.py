"""Builds the prototype bank of a step.

kproba-launch kproba.jobs.build_bank --job '{..}' --model .. --split .. --bank ..
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
    parser = job_parser("kproba.jobs.build_bank", "Build the prototype bank of a step.")
    add_data(parser)
    optional = ("previous", "pseudo_labels", "network", "untrained", "weights")
    add_files(parser, "model", "split", "bank", optional=optional)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Build a bank; on an error, exit with status 1 and a message."""
    options = vars(arguments(argv))
    job, compute = options.pop("job"), options.pop("compute")
    # Late, because it loads torch. So errors in the arguments are reported at once.
    with without_garbage_collection():
        from kproba.jobs.step_bank import BankFiles, build_step_bank

    with job_process(compute) as process:
        build_step_bank(BankFiles(**options), job, compute, process)


if __name__ == "__main__":
    main()
