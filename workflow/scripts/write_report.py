"""Write the page that shows all results."""

import sys
from typing import TYPE_CHECKING

from kproba.report import write_report

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with open(snakemake.log[0], "w", buffering=1) as sys.stderr:
    write_report(
        snakemake.input.summary,
        snakemake.input.classes,
        list(snakemake.input.figures),
        snakemake.output.page,
    )
