"""Measures the features of the classes of a step.

kproba-launch kproba.jobs.measure_features --job '{..}' --model .. --statistics ..
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
        "kproba.jobs.measure_features", "Measure the features of a step's classes."
    )
    add_data(parser)
    optional = ("teacher", "previous")
    add_files(parser, "model", "split", "statistics", optional=optional)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure features; on an error, exit with status 1 and a message."""
    options = vars(arguments(argv))
    job, compute = options.pop("job"), options.pop("compute")
    # Late, because it loads torch. So errors in the arguments are reported at once.
    with without_garbage_collection():
        from kproba.jobs.step_statistics import StatisticsFiles, measure_step

    with job_process(compute) as process:
        measure_step(StatisticsFiles(**options), job, compute, process)


if __name__ == "__main__":
    main()
