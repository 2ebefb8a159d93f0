"""Copy the summary and report of a configuration to the folder results/."""

import shutil
from typing import TYPE_CHECKING

from kproba.runtime.files import atomic_path
from kproba.runtime.logs import log_to

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with log_to(snakemake.log[0]):
    files = snakemake.input
    copied = (files.summary, files.classes, files.pseudo_labels, files.page)
    for source, target in zip(copied, snakemake.output, strict=True):
        with atomic_path(target) as temporary:
            shutil.copyfile(source, temporary)
