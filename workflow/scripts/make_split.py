"""List the training images of a step."""

import json
from typing import TYPE_CHECKING

from kproba.data.splits import write_split
from kproba.runtime.logs import log_to

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with log_to(snakemake.log[0]):
    write_split(
        snakemake.input.indices,
        snakemake.output.split,
        groups=json.loads(snakemake.resources.groups),
        setting=snakemake.wildcards.setting,
        classes=json.loads(snakemake.resources.classes),
    )
