"""Download the ImageNet weights of a backbone."""

from typing import TYPE_CHECKING

from kproba.extensions import load_recorded
from kproba.network.backbones.weights import save_pretrained_weights
from kproba.runtime.logs import log_to

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with log_to(snakemake.log[0]):
    load_recorded(snakemake.params.extensions)
    save_pretrained_weights(snakemake.wildcards.backbone, snakemake.output.weights)
