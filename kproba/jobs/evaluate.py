"""Evaluates a step.

kproba-launch kproba.jobs.evaluate --job '{..}' --model .. --indices .. --evaluation ..
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

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
        "kproba.jobs.evaluate", "Evaluate a step on its validation images."
    )
    add_data(parser)
    parser.add_argument("--indices", type=Path, nargs="+", required=True)
    needed = ("model", "evaluation", "confusion", "examples", "predictor")
    add_files(parser, *needed, optional=("bank", "feature_network"))
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate a step; on an error, exit with status 1 and a message."""
    options = vars(arguments(argv))
    job, compute = options.pop("job"), options.pop("compute")
    indices = tuple(options.pop("indices"))
    # Late, because it loads torch. So errors in the arguments are reported at once.
    with without_garbage_collection():
        from kproba.jobs.step_test import TestFiles, test_step

    with job_process(compute) as process:
        test_step(TestFiles(**options, indices=indices), job, compute, process)


if __name__ == "__main__":
    main()
