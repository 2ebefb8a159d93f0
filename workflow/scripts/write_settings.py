"""Write all that determines the training of a step."""

import sys
from typing import TYPE_CHECKING

from kproba.artifacts import write_json

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with open(snakemake.log[0], "w", buffering=1) as sys.stderr:
    write_json(snakemake.output.settings, snakemake.params.settings)
