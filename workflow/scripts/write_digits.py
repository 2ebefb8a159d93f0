"""Draw the scenes of the embedded dataset."""

import json
from typing import TYPE_CHECKING

from kproba.data.kinds.digits import DigitScenes, write_digits
from kproba.runtime.logs import log_to

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with log_to(snakemake.log[0]):
    write_digits(
        snakemake.output.scenes,
        DigitScenes(**json.loads(snakemake.resources.settings)),
        workers=snakemake.threads,
    )
