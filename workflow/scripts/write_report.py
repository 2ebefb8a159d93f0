"""Write the page that shows all results."""

from typing import TYPE_CHECKING

from kproba.logs import log_to
from kproba.report import write_report

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with log_to(snakemake.log[0]):
    write_report(
        snakemake.input.summary,
        snakemake.input.pseudo_labels,
        list(snakemake.input.figures),
        snakemake.output.page,
    )
