"""Checks of a configuration that compare several of its values."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kproba.network.backbones import BACKBONES
from kproba.plan.errors import ConfigError
from kproba.plan.methods import PlannedMethod
from kproba.plan.step_settings import PUBLISHED
from kproba.runtime.compute import Compute

Config = dict[str, Any]


def check_model(config: Config) -> None:
    """Refuse a network that cannot be built.

    Raises:
        ConfigError: The weights or the output stride do not fit the backbone.
    """
    model = config["model"]
    weights, backbone = model["weights"], BACKBONES[model["backbone"]]
    if weights not in PUBLISHED and not Path(weights).expanduser().is_file():
        raise ConfigError(
            f"model.weights: expected 'imagenet', 'none' or an existing file, but "
            f"{Path(weights).absolute()} does not exist."
        )
    if weights == "imagenet" and backbone.read_pretrained is None:
        raise ConfigError(
            f"model.weights: expected 'none' or a file for the backbone "
            f"{backbone.name}, which has no ImageNet weights, but got 'imagenet'."
        )
    if model["output_stride"] not in backbone.output_strides:
        strides = ", ".join(map(str, backbone.output_strides))
        raise ConfigError(
            f"model.output_stride: expected one of {strides} for the backbone "
            f"{backbone.name}, but got {model['output_stride']}."
        )


def check_shares(methods: Iterable[PlannedMethod]) -> None:
    """Refuse a share of old images in batches of a single image.

    Raises:
        ConfigError: The message names the method.
    """
    for method in methods:
        share, batch = method.memory["share"], method.increment["batch_size"]
        if method.has_memory and share is not None and batch < 2:
            raise ConfigError(
                f"increment (of {method.name}).batch_size: expected at least 2 for "
                f"memory.share = {share}, but got {batch}. Raise batch_size, or set "
                f"memory.share to null."
            )


def check_batches(
    base: Config, increments: Mapping[str, Config], compute: Compute
) -> None:
    """Refuse batches that processes and micro-batches cannot share evenly.

    Args:
        base: Optimisation of step 0.
        increments: Optimisation of later steps, by method.
        compute: Processes and micro-batches.

    Raises:
        ConfigError: The message names the section.
    """
    kind = "gpus" if compute.gpus else "processes"
    processes, nodes = getattr(compute, kind), compute.nodes
    if processes % nodes:
        raise ConfigError(
            f"compute.{kind}: expected a multiple of compute.nodes = {nodes}, so that "
            f"all nodes get the same number, but got {processes}."
        )
    split = processes * compute.accumulation
    sections = {"base": base}
    for name, increment in increments.items():
        sections[f"increment (of {name})"] = increment
    for where, section in sections.items():
        batch = section["batch_size"]
        if batch % split:
            raise ConfigError(
                f"{where}.batch_size: expected a multiple of {processes} "
                f"process(es) x {compute.accumulation} micro-batch(es) = "
                f"{split}, but got {batch}. Change batch_size, or compute.gpus, "
                f"compute.processes or compute.accumulation."
            )
    # Batch norm is synchronised over processes, but not over micro-batches.
    if base["batch_size"] == compute.accumulation:
        raise ConfigError(
            f"base.batch_size: expected at least 2 images per micro-batch, because "
            f"step 0 trains batch norm, but {base['batch_size']} divided by "
            f"{compute.accumulation} micro-batches leaves 1. Raise base.batch_size or "
            f"lower compute.accumulation."
        )
