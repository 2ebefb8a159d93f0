"""Draw the scenes of the embedded dataset."""

import sys
from typing import TYPE_CHECKING

from kproba.digits import DigitScenes, write_digits

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with open(snakemake.log[0], "w", buffering=1) as sys.stderr:
    write_digits(snakemake.output.scenes, DigitScenes(**snakemake.params.settings))
