"""Write the training targets of a step: its labels and the old classes found."""

from typing import TYPE_CHECKING

from kproba.inference import pseudo_labels_of_step
from kproba.logs import log_to

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with log_to(snakemake.log[0]):
    pseudo_labels_of_step(
        snakemake.input.model,
        snakemake.input.bank or None,
        snakemake.input.split,
        snakemake.output.labels,
        snakemake.output.table,
        settings=snakemake.params.settings,
        groups=snakemake.params.groups,
        names=snakemake.params.names,
        setting=snakemake.wildcards.setting,
        gpu=snakemake.resources.gpu > 0,
        threads=snakemake.resources.cpu_threads,
        batch_size=snakemake.resources.batch_size,
        workers=snakemake.resources.workers,
    )
