"""Writes the pseudo labels of a step.

kproba-launch kproba.jobs.export_labels --job '{..}' --model .. --split .. --labels ..
"""

import argparse
from collections.abc import Sequence

from kproba.jobs.arguments import add_data, add_names
from kproba.runtime.job import (
    add_files,
    job_parser,
    job_process,
    without_garbage_collection,
)


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = job_parser(
        "kproba.jobs.export_labels", "Write the pseudo labels of a step."
    )
    add_data(parser)
    add_names(parser)
    needed = ("model", "split", "labels", "table", "quality")
    add_files(parser, *needed, optional=("bank", "feature_network"))
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Write pseudo labels; on an error, exit with status 1 and a message."""
    options = arguments(argv)
    # Late, because they load torch. So errors in the arguments are reported at once.
    with without_garbage_collection():
        from kproba.jobs.step_labels import LabelInputs, label_step
        from kproba.methods.export import LabelFiles

    inputs = LabelInputs(
        options.model,
        options.split,
        options.bank,
        options.feature_network,
        options.folders,
        options.names,
    )
    outputs = LabelFiles(options.labels, options.table, options.quality)
    with job_process(options.compute) as process:
        label_step(inputs, outputs, options.job, options.compute, process)


if __name__ == "__main__":
    main()
