"""Copy the summary and report of a configuration to the folder results/."""

import shutil
from typing import TYPE_CHECKING

from kproba.runtime.files import atomic_path
from kproba.runtime.logs import log_to

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with log_to(snakemake.log[0]):
    for source, target in zip(snakemake.input, snakemake.output, strict=True):
        with atomic_path(target) as temporary:
            shutil.copyfile(source, temporary)
