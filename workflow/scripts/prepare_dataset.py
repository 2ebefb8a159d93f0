"""Check every image and mask of a dataset and write its index."""

import sys
from typing import TYPE_CHECKING

from kproba.data import index_folder

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with open(snakemake.log[0], "w", buffering=1) as sys.stderr:
    index_folder(
        snakemake.input.folder,
        snakemake.output.index,
        snakemake.output.integrity,
        class_count=snakemake.params.class_count,
        workers=snakemake.threads,
    )
