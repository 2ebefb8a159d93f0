"""List the training images of a step."""

import sys
from typing import TYPE_CHECKING

from kproba.splits import write_split

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with open(snakemake.log[0], "w", buffering=1) as sys.stderr:
    write_split(
        snakemake.input.index,
        snakemake.output.split,
        groups=snakemake.params.groups,
        setting=snakemake.wildcards.setting,
    )
