"""TODO jobs.train."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from kproba.training.loop import Stopped, train
from kproba.runtime.files import read_json
from kproba.runtime.job import add_machine_arguments, job_process
from kproba.training.checkpoint import StopFlag
from kproba.training.settings import Files, Means, StepSettings

log = logging.getLogger("kproba")

STOPPED = 143  # exit status after SIGTERM: state saved, ask again to go on


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="kproba.jobs.train", description="Train one step; see config/README.md."
    )
    parser.add_argument("settings", type=Path, help="settings.json of the step")
    for name, needed in (
        ("split", True),
        ("previous", False),
        ("model", True),
        ("metrics", True),
        ("usage", True),
        ("tensorboard", True),
        ("state", True),
    ):
        parser.add_argument(f"--{name}", type=Path, required=needed)
    for name in ("pseudo-labels", "weights", "bank", "source"):
        parser.add_argument(f"--{name}", type=Path, nargs="?", help="or nothing")
    parser.add_argument(
        "--validation", type=Path, nargs="*", default=[], help="indices, or nothing"
    )
    parser.add_argument("--looks", type=int, default=0, help="at validation images")
    parser.add_argument("--look-images", type=int, default=0, help="at each look")
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--cache-gib", type=float, default=0.0)
    parser.add_argument("--state-minutes", type=float, default=5.0)
    add_machine_arguments(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Train one step; exit status 143 when stopped with the state saved."""
    options = arguments(argv)
    settings = StepSettings.from_dict(read_json(options.settings))
    files = Files(
        split=options.split,
        previous=options.previous,
        pseudo_labels=options.pseudo_labels,
        weights=options.weights,
        model=options.model,
        metrics=options.metrics,
        usage=options.usage,
        validation=tuple(options.validation),
        tensorboard=options.tensorboard,
        state=options.state,
        bank=options.bank,
        source=options.source,
    )
    means = Means(
        workers=options.workers,
        accumulation=options.accumulation,
        compile=options.compile,
        cache_gib=options.cache_gib,
        state_minutes=options.state_minutes,
        looks=options.looks,
        look_images=options.look_images,
    )
    with job_process(options) as process:
        # All crops are of one size: trying cuDNN's algorithms once pays.
        torch.backends.cudnn.benchmark = not options.deterministic
        try:
            train(settings, files, means, process, StopFlag.of_signals())
        except Stopped as stopped:
            log.warning("%s", stopped)
            return STOPPED
    return 0


if __name__ == "__main__":
    sys.exit(main())
