"""Draw the figures of one experiment."""

from typing import TYPE_CHECKING

from kproba.artifacts import FIGURE_NAMES
from kproba.extensions import load_recorded
from kproba.plan.results import StepResult
from kproba.results.figures import draw_figures
from kproba.runtime.logs import log_to

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with log_to(snakemake.log[0]):
    load_recorded(snakemake.params.extensions)
    draw_figures(
        [StepResult.from_dict(row) for row in snakemake.params.rows],
        snakemake.input.indices,
        {name: getattr(snakemake.output, name) for name in FIGURE_NAMES},
        groups=snakemake.params.groups,
    )
