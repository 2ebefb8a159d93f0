"""Write the page that shows all results."""

import json
from typing import TYPE_CHECKING, Any

from kproba.data.folders import parse_folders
from kproba.extensions import load_recorded
from kproba.plan.results import StepResult
from kproba.results.experiment import Experiment
from kproba.results.page import write_report
from kproba.runtime.logs import log_to

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def experiment(entry: dict[str, Any]) -> Experiment:
    folders = parse_folders(snakemake.resources.folders)
    return Experiment(**entry, folders=folders)


with log_to(snakemake.log[0]):
    table = json.loads(snakemake.resources.table)
    load_recorded(table["extensions"])
    write_report(
        [StepResult.from_dict(row) for row in table["rows"]],
        [experiment(entry) for entry in table["experiments"]],
        snakemake.output.page,
        summary=snakemake.input.summary,
        classes=snakemake.input.classes,
        pseudo_labels=snakemake.input.pseudo_labels,
    )
