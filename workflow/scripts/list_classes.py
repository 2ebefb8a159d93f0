"""List the classes of a task in output order."""

import json
from typing import TYPE_CHECKING

from kproba.data.splits import write_classes
from kproba.runtime.logs import log_to

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with log_to(snakemake.log[0]):
    classes = json.loads(snakemake.resources.classes)
    write_classes(
        snakemake.output.classes,
        groups=classes["groups"],
        names={int(label): name for label, name in classes["names"].items()},
        setting=snakemake.wildcards.setting,
    )
