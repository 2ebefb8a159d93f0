"""Build the prototype bank of a step with its trained network."""

from typing import TYPE_CHECKING

from kproba.inference import bank_of_step
from kproba.logs import log_to

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with log_to(snakemake.log[0]):
    bank_of_step(
        snakemake.input.model,
        snakemake.input.split,
        snakemake.output.bank,
        previous=snakemake.input.previous or None,
        pseudo_labels=snakemake.input.pseudo_labels or None,
        settings=snakemake.params.settings,
        groups=snakemake.params.groups,
        names=snakemake.params.names,
        setting=snakemake.wildcards.setting,
        seed=int(snakemake.wildcards.seed),
        gpu=snakemake.resources.gpu > 0,
        threads=snakemake.resources.cpu_threads,
        batch_size=snakemake.resources.batch_size,
        workers=snakemake.resources.workers,
    )
