"""List the classes of a task in output order."""

import sys
from typing import TYPE_CHECKING

from kproba.splits import write_classes

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with open(snakemake.log[0], "w", buffering=1) as sys.stderr:
    write_classes(
        snakemake.output.classes,
        groups=snakemake.params.groups,
        names=snakemake.params.names,
        setting=snakemake.wildcards.setting,
    )
