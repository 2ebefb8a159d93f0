"""Test the model of a step on all classes seen."""

import sys
from typing import TYPE_CHECKING

from kproba.inference import evaluate_step

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with open(snakemake.log[0], "w", buffering=1) as sys.stderr:
    evaluate_step(
        snakemake.input.model,
        snakemake.input.index,
        snakemake.output.evaluation,
        snakemake.output.confusion,
        snakemake.output.examples,
        settings=snakemake.params.settings,
        groups=snakemake.params.groups,
        names=snakemake.params.names,
        about=snakemake.params.about,
        gpu=snakemake.resources.gpu > 0,
        threads=snakemake.resources.cpu_threads,
        batch_size=snakemake.resources.batch_size,
        workers=snakemake.resources.workers,
    )
