"""Collect the results of all runs in tables."""

from typing import TYPE_CHECKING

from kproba.results.tables import collect_quality, summarise
from kproba.runtime.logs import log_to

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with log_to(snakemake.log[0]):
    rows, tables = snakemake.params.rows, snakemake.output
    summarise(rows, tables.summary, tables.classes)
    collect_quality(rows, tables.pseudo_labels)
