"""Draw the figures of one experiment."""

from typing import TYPE_CHECKING

from kproba.results.figures import draw_figures
from kproba.runtime.logs import log_to

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with log_to(snakemake.log[0]):
    draw_figures(
        snakemake.params.rows,
        snakemake.input.indices,
        groups=snakemake.params.groups,
        miou=snakemake.output.miou,
        training=snakemake.output.training,
        classes=snakemake.output.classes,
        pseudo_labels=snakemake.output.pseudo_labels,
        examples=snakemake.output.examples,
    )
