"""Collect the results of all runs in two tables."""

import sys
from typing import TYPE_CHECKING

from kproba.report import summarise

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with open(snakemake.log[0], "w", buffering=1) as sys.stderr:
    summarise(snakemake.params.rows, snakemake.output.summary, snakemake.output.classes)
