"""List the classes of a task in output order."""

from typing import TYPE_CHECKING

from kproba.data.splits import write_classes
from kproba.runtime.logs import log_to

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with log_to(snakemake.log[0]):
    write_classes(
        snakemake.output.classes,
        groups=snakemake.params.groups,
        names=snakemake.params.names,
        setting=snakemake.wildcards.setting,
    )
