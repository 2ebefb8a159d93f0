"""The jobs of a step that run a trained network forward: bank, pseudo labels, test.

    kproba-launch --processes 2 kproba.jobs.inference bank --job '{..}' --model ..

Each reads artifacts, calls the method's functions and writes artifacts. Several
processes share the images: the batches of a single process are dealt out in turn, so
every number of processes sees every image once, in the same company.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kproba.jobs.build_bank import bank_of_step
from kproba.jobs.evaluate import evaluate_step
from kproba.jobs.export_labels import pseudo_labels_of_step
from kproba.jobs.images import Reading
from kproba.runtime.job import add_machine_arguments, job_process

# Per job its function, the files that it needs and those that it may have.
JOBS: dict[str, tuple[Any, tuple[str, ...], tuple[str, ...]]] = {
    "bank": (
        bank_of_step,
        ("model", "split", "bank"),
        ("previous", "pseudo_labels", "network", "weights"),
    ),
    "pseudo-labels": (
        pseudo_labels_of_step,
        ("model", "split", "labels", "table", "quality"),
        ("bank", "source"),
    ),
    "evaluation": (
        evaluate_step,
        ("model", "indices", "evaluation", "confusion", "examples", "predictor_file"),
        ("bank", "source"),
    ),
}


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="kproba.jobs.inference",
        description="Bank, pseudo labels or test of a step.",
    )
    jobs = parser.add_subparsers(dest="name", required=True)
    for name, (_, needed, optional) in JOBS.items():
        job = jobs.add_parser(name)
        job.add_argument(
            "--job", type=json.loads, required=True, help="settings as JSON"
        )
        for file in (*needed, *optional):
            flag = f"--{file.replace('_', '-')}"
            if file == "indices":
                job.add_argument(flag, type=Path, nargs="+", required=True)
            elif file in needed:
                job.add_argument(flag, type=Path, required=True)
            else:
                job.add_argument(flag, type=Path, nargs="?", help="or nothing")
        job.add_argument("--batch-size", type=int, default=8)
        add_machine_arguments(job)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Do one job; exit status 1 with a message when it cannot be done."""
    options = arguments(argv)
    function, needed, optional = JOBS[options.name]
    with job_process(options) as process:
        function(
            **{file: getattr(options, file) for file in (*needed, *optional)},
            **options.job,
            reading=Reading(options.batch_size, options.workers, process),
        )


if __name__ == "__main__":
    main()
