"""Collect the results of all runs in tables."""

import json
from typing import TYPE_CHECKING

from kproba.extensions import load_recorded
from kproba.plan.results import StepResult
from kproba.results.tables import collect_quality, summarise
from kproba.runtime.logs import log_to

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with log_to(snakemake.log[0]):
    table = json.loads(snakemake.resources.table)
    load_recorded(table["extensions"])
    results = [StepResult.from_dict(row) for row in table["rows"]]
    tables = snakemake.output
    summarise(results, tables.summary, tables.classes)
    collect_quality(results, tables.pseudo_labels)
