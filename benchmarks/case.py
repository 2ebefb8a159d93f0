"""Device, sizes and tables for the benchmarks of steps and inference."""

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from benchmarks.inputs import CROP, images_of
from benchmarks.measuring import REPEATS
from kproba.network.architecture import Architecture
from kproba.network.folding import fold_all
from kproba.network.network import SegmentationNetwork


@dataclass(frozen=True)
class Case:
    """Device and sizes of a measurement.

    Attributes:
        device: "cuda:0" or "cpu".
        backbone: A name of `kproba.network.backbones.BACKBONES`.
        crop: Side of a training crop, in pixels.
        batch: Images of an iteration.
        channels: Of the ASPP.
        frozen_stages: First stages of the backbone that do not train.
        repeats: Rounds of every measurement, in which the sides run in turn.
        small: Whether this run only tries out the code; its figures have no meaning.
    """

    device: str = "cuda:0"
    backbone: str = "resnet101"
    crop: int = CROP
    batch: int = 8
    channels: int = 256
    frozen_stages: int = 0
    repeats: int = REPEATS
    small: bool = False

    @property
    def kind(self) -> str:
        """Kind of the device: "cuda" or "cpu"."""
        return self.device.split(":")[0]

    def wait(self) -> None:
        """Wait until the device has done everything."""
        if self.kind == "cuda":
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], object]) -> float:
        """Seconds until the device has finished a piece of work."""
        self.wait()
        started = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - started

    def in_turn(self, sides: dict[str, Callable[[], object]]) -> dict[str, float]:
        """Median seconds of every side, after two warm-up rounds."""
        for side in sides.values():
            side()
            if not self.small:
                side()
        rounds = [
            {name: self.seconds(side) for name, side in sides.items()}
            for _ in range(self.repeats)
        ]
        return {name: statistics.median(r[name] for r in rounds) for name in sides}


SMALL = Case(
    "cpu",
    "efficientnet_lite0",
    crop=65,
    batch=2,
    channels=16,
    frozen_stages=3,
    repeats=1,
    small=True,
)


def line(*cells: object) -> None:
    """Print a row of a table at once."""
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def table(*heads: str) -> None:
    """Print the head of a table."""
    print(flush=True)
    line(*heads)
    line(*("---" for _ in heads))


def say(text: str) -> None:
    """Print a paragraph at once."""
    print(f"\n{text}", flush=True)


def on_device(network: nn.Module, device: str) -> Any:
    """Copy a network to the device in the same way as the jobs."""
    return network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def architecture_of(case: Case) -> Architecture:
    """The network of the published settings, with the backbone of the case."""
    return Architecture(
        backbone=case.backbone,
        output_stride=16,
        atrous_rates=(6, 12, 18),
        aspp_channels=case.channels,
        aspp_dropout=0.1,
        bn_momentum=0.01,
        frozen_stages=case.frozen_stages,
    )


def untrained(
    architecture: Architecture, classes: int, device: str, *, crop: int, seed: int = 0
) -> SegmentationNetwork:
    """An untrained network of one step, with batch norms that keep numbers small.

    Networks of one seed are equal, those of two seeds differ in every stage.
    """
    return copy.deepcopy(_untrained(architecture, classes, device, crop, seed))


@lru_cache(maxsize=4)
def _untrained(
    architecture: Architecture, classes: int, device: str, crop: int, seed: int
) -> SegmentationNetwork:
    network = SegmentationNetwork(architecture, [classes], seed=seed)
    network = on_device(network, device)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    network.set_training_mode(batch_norm=True)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()  # those of frozen stages too
    network.dropout.keys = torch.arange(2)
    with torch.no_grad():
        network(images_of(2, crop).to(device))
    return network.eval().requires_grad_(False)


def with_first_stages_of(
    network: SegmentationNetwork, other: SegmentationNetwork, stages: int
) -> SegmentationNetwork:
    """A network whose first stages get the weights of another one's."""
    pairs = zip(network.backbone.stages(), other.backbone.stages(), strict=True)
    for own, theirs in list(pairs)[:stages]:
        own.load_state_dict(theirs.state_dict())
    return network


def two_networks(
    case: Case, classes: int, *, shared: int = 0
) -> tuple[SegmentationNetwork, SegmentationNetwork]:
    """Two folded networks that differ behind the first `shared` stages."""
    architecture = architecture_of(case)
    one, other = (
        untrained(architecture, classes, case.device, crop=case.crop, seed=seed)
        for seed in (0, 1)
    )
    with_first_stages_of(other, one, shared)
    return fold_all(one), fold_all(other)
