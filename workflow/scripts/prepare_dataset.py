"""Check every image and mask of a dataset and write its index."""

from typing import TYPE_CHECKING

from kproba.data.index import index_dataset
from kproba.extensions import load_recorded
from kproba.runtime.logs import log_to

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with log_to(snakemake.log[0], terminal=True):
    settings = dict(snakemake.params.settings)
    load_recorded(settings.pop("extensions", []))
    index_dataset(
        snakemake.output.index,
        snakemake.output.integrity,
        **settings,
        class_count=snakemake.params.class_count,
        workers=snakemake.threads,
    )
