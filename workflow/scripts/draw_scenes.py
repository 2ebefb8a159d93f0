"""Draw the scenes of a dataset."""

import json
from typing import TYPE_CHECKING

from kproba.data.kinds.digits import DigitScenes, write_digits
from kproba.data.kinds.glyphs import GlyphScenes, write_glyphs
from kproba.runtime.logs import log_to

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with log_to(snakemake.log[0]):
    folder, workers = snakemake.output.scenes, snakemake.threads
    settings = json.loads(snakemake.resources.settings)
    if snakemake.resources.kind == "glyphs":
        write_glyphs(folder, GlyphScenes(**settings), workers=workers)
    else:
        write_digits(folder, DigitScenes(**settings), workers=workers)
