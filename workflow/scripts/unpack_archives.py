"""Unpack the archives of a published dataset."""

from pathlib import Path
from typing import TYPE_CHECKING

from kproba.data.unpacking import unpack
from kproba.runtime.logs import log_to

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with log_to(snakemake.log[0], terminal=True):
    unpack(
        [
            (Path(path), checksum)
            for path, checksum in zip(
                snakemake.input.archives, snakemake.params.checksums, strict=True
            )
        ],
        snakemake.output.folder,
    )
