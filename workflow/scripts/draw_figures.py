"""Draw the figures of one experiment."""

import json
from typing import TYPE_CHECKING

from kproba.artifacts import FIGURE_NAMES
from kproba.data.folders import parse_folders
from kproba.extensions import load_recorded
from kproba.plan.results import StepResult
from kproba.results.figures import draw_figures
from kproba.runtime.logs import log_to

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with log_to(snakemake.log[0]):
    table = json.loads(snakemake.resources.table)
    load_recorded(table["extensions"])
    draw_figures(
        [StepResult.from_dict(row) for row in table["rows"]],
        snakemake.input.indices,
        {name: getattr(snakemake.output, name) for name in FIGURE_NAMES},
        groups=table["groups"],
        folders=parse_folders(snakemake.resources.folders),
    )
