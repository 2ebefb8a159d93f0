"""Trains one step.

kproba-launch --processes 2 kproba.jobs.train settings.json --split .. --model ..
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from kproba.jobs.arguments import add_folders, add_names
from kproba.runtime.job import (
    add_files,
    job_parser,
    job_process,
    without_garbage_collection,
)
from kproba.training.files import OUTPUTS, Files

log = logging.getLogger("kproba")

STOPPED = 143  # exit status after SIGTERM, with a saved state to resume from
OPTIONAL = (
    *("previous", "pseudo_labels", "weights", "bank", "feature_network"),
    *("statistics", "memory", "memory_labels"),
)


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = job_parser(
        "kproba.jobs.train", "Train one step; see docs/configuration.md."
    )
    parser.add_argument("settings", type=Path, help="settings.json of the step")
    add_files(parser, "split", *OUTPUTS, optional=OPTIONAL)
    for name, what in (
        ("validation", "one or more index.csv"),
        ("saliency", "one or more saliency.csv"),
        ("chain", "image lists of all steps whose iterations are added up"),
    ):
        parser.add_argument(
            f"--{name}", type=Path, nargs="*", default=[], help=f"{what}, or no value"
        )
    add_folders(parser)
    add_names(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Train one step; exit status 143 when stopped with the state saved."""
    options = arguments(argv)
    names = ("split", *OUTPUTS, *OPTIONAL)
    paths = {name: getattr(options, name) for name in names}
    files = Files(
        **paths,
        chain=tuple(options.chain),
        validation=tuple(options.validation),
        saliency=tuple(options.saliency),
        folders=options.folders,
        names=tuple(options.names),
    )
    compute = options.compute
    # Late, because they load torch. So errors in the arguments are reported at once.
    with without_garbage_collection():
        import torch

        from kproba.training.checkpoint import StopFlag
        from kproba.training.loop import Stopped, train
        from kproba.training.settings import read_settings

    with job_process(compute) as process:
        settings = read_settings(options.settings)
        # All crops have one size, so it pays to try the algorithms of cuDNN once.
        torch.backends.cudnn.benchmark = not compute.deterministic
        try:
            train(settings, files, compute, process, StopFlag.of_signals())
        except Stopped as stopped:
            log.warning("%s", stopped)
            return STOPPED
    return 0


if __name__ == "__main__":
    sys.exit(main())
