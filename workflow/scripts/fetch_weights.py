"""Fetch the ImageNet weights of a backbone."""

from typing import TYPE_CHECKING

from kproba.backbones import save_torchvision_weights
from kproba.logs import log_to

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with log_to(snakemake.log[0]):
    save_torchvision_weights(snakemake.wildcards.backbone, snakemake.output.weights)
