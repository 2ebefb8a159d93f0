"""Copy a network or a bank, with its description, from a packed step."""

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from kproba.predict.packed import BANK, FIRST_NETWORK, NETWORK
from kproba.predict.unpack import unpack_step
from kproba.runtime.files import atomic_path
from kproba.runtime.logs import log_to

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

MEMBERS = {"step": NETWORK, "step0": FIRST_NETWORK}

with log_to(snakemake.log[0]), tempfile.TemporaryDirectory() as folder:
    network = dict(snakemake.wildcards.items()).get("network")
    member = Path(folder) / "step" / (MEMBERS[network] if network else BANK)
    unpack_step(snakemake.resources.step, Path(folder) / "step")
    for source, target in (
        (member, snakemake.output.model),
        (member.with_suffix(".json"), snakemake.output.description),
    ):
        with atomic_path(target) as temporary:
            shutil.copyfile(source, temporary)
