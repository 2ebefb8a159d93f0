"""Collect the results of all runs in two tables."""

from typing import TYPE_CHECKING

from kproba.logs import log_to
from kproba.report import summarise

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with log_to(snakemake.log[0]):
    summarise(snakemake.params.rows, snakemake.output.summary, snakemake.output.classes)
