"""Download an archive of a dataset."""

from typing import TYPE_CHECKING

from kproba.data.download import Archive, download
from kproba.runtime.logs import log_to

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with log_to(snakemake.log[0], terminal=True):
    download(
        Archive(
            snakemake.wildcards.archive,
            tuple(snakemake.resources.mirrors.split()),
            snakemake.params.checksum,
        ),
        snakemake.output.archive,
    )
