"""Write everything that determines the training of a step."""

import json
from typing import TYPE_CHECKING

from kproba.runtime.files import write_json
from kproba.runtime.logs import log_to

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with log_to(snakemake.log[0]):
    write_json(snakemake.output.settings, json.loads(snakemake.resources.settings))
