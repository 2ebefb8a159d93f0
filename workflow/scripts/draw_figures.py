"""Draw the figures of one experiment."""

import sys
from typing import TYPE_CHECKING

from kproba.report import draw_figures

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with open(snakemake.log[0], "w", buffering=1) as sys.stderr:
    draw_figures(
        snakemake.params.rows,
        snakemake.input.index,
        groups=snakemake.params.groups,
        miou=snakemake.output.miou,
        classes=snakemake.output.classes,
        examples=snakemake.output.examples,
    )
