"""Test the model of a step on all classes seen."""

from typing import TYPE_CHECKING

from kproba.inference import evaluate_step
from kproba.logs import log_to

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with log_to(snakemake.log[0]):
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
