"""Write the page that shows all results."""

from typing import TYPE_CHECKING

from kproba.results.experiment import Experiment
from kproba.results.page import write_report
from kproba.runtime.logs import log_to

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def figures(entry: dict) -> dict[str, str]:
    """Paths of the figures of an experiment that the page shows, by name."""
    folder = "results/{dataset}/{task}-{setting}/figures".format(**entry)
    return {name: f"{folder}/{name}.png" for name in ("miou", "training")}


with log_to(snakemake.log[0]):
    write_report(
        snakemake.params.rows,
        [
            Experiment(**entry, figures=figures(entry))
            for entry in snakemake.params.experiments
        ],
        snakemake.output.page,
        summary=snakemake.input.summary,
        classes=snakemake.input.classes,
        pseudo_labels=snakemake.input.pseudo_labels,
    )
