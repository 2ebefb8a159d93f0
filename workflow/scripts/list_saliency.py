"""Check the saliency maps of a dataset and write their table."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from kproba.data.saliency import SaliencyFolders
from kproba.data.saliency_table import list_saliency
from kproba.runtime.logs import log_to

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with log_to(snakemake.log[0], terminal=True):
    settings = json.loads(snakemake.resources.settings)
    pairs = settings.pop("pairs")
    list_saliency(
        snakemake.input.index,
        snakemake.output.table,
        snakemake.output.files,
        folders=SaliencyFolders(tuple((Path(a), Path(b)) for a, b in pairs)),
        state=snakemake.params.files,
        workers=snakemake.threads,
        **settings,
    )
