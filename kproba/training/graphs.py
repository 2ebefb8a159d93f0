"""CUDA graphs of the backbones: one launch instead of hundreds.

At mixed precision a modern GPU computes an iteration faster than Python can launch its
kernels. All crops have one size, and in an increment the backbones hold neither dropout
nor statistics: the same kernels run at every iteration. So they are recorded once and
replayed. ASPP, head, dropout and losses are not recorded, because they differ between
methods.
"""

import copy
import logging
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import nn

from kproba.network.backbones.backbone import Backbone
from kproba.network.network import SegmentationNetwork
from kproba.runtime.compute import Compute
from kproba.runtime.distributed import Process
from kproba.training.settings import StepSettings

log = logging.getLogger("kproba")

WARM_UP = 3  # passes before the recording, in which cuDNN chooses its kernels

Tensors = tuple[torch.Tensor, ...]


class _Stages(nn.Module):
    """The stages of a backbone from one stage on, with only tensors as arguments.

    Args:
        backbone: Its weights are shared.
        start: Number of stages that are already computed.
        kept: Number of first stages whose maps are returned, before the last map.
    """

    def __init__(self, backbone: Backbone, start: int, kept: int):
        super().__init__()
        self.backbone, self.start, self.kept = backbone, start, kept

    def forward(self, images: torch.Tensor) -> Tensors:
        """The maps of the first stages from `start` to `kept`, then the last one."""
        stages: list[torch.Tensor] = []
        features = self.backbone(images, stages, self.start)
        kept = max(0, self.kept - self.start)
        return (*stages[:kept], features)


def unsuitable(settings: StepSettings, compute: Compute, process: Process) -> str:
    """Reasons why the backbones of a training cannot be recorded; empty if they can."""
    reasons = {
        "the step trains on a CPU": process.device == "cpu",
        "step 0 trains batch norms": settings.step == 0,
        "several processes exchange gradients": process.world_size > 1,
        "it adds up the gradients of several micro-batches": compute.accumulation > 1,
        "compute.compile creates its own kernels": compute.compile,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def record_backbones(
    student: SegmentationNetwork,
    others: Sequence[tuple[SegmentationNetwork, int]],
    settings: StepSettings,
    precision: torch.dtype,
) -> None:
    """Record the backbones of a training for its batches; changes them in place.

    Args:
        student: Forward and backward pass are recorded.
        others: Teacher and network of the bank's features, as far as they are used,
            each with the number of first stages that it gets from elsewhere.
        settings: Size of the batches and crops.
        precision: Type of autocast; float32 for none.
    """
    device, crop = student.pixel_mean.device, settings.augmentation.crop_size
    shape = (settings.optimisation.batch_size, 3, crop, crop)
    images = torch.zeros(shape, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    mixed = precision != torch.float32
    # A cache of weights in the type of autocast would outlive the recording.
    with torch.autocast("cuda", precision, enabled=mixed, cache_enabled=False):
        for network, start in others:
            with torch.no_grad():
                sample = images
                for stage in network.backbone.stages()[:start]:
                    sample = stage(sample)
                record = _record_forward(_stages_of(network, start), sample)
            network.backbone.use_recording(record, sample.shape, start)
        stages = _stages_of(student, 0)
        graphed = torch.cuda.make_graphed_callables(stages, (images,), WARM_UP)
        record = cast("Callable[[torch.Tensor], Tensors]", graphed)
        student.backbone.use_recording(record, images.shape, 0)
    log.info("recorded %d backbones as CUDA graphs", 1 + len(others))


def _stages_of(network: SegmentationNetwork, start: int) -> _Stages:
    backbone = copy.copy(network.backbone)  # not recorded
    kept = len(backbone.stages()) if network.keep_stages else network.shared_stages
    return _Stages(backbone, start, kept)


def _record_forward(
    module: nn.Module, sample: torch.Tensor
) -> Callable[[torch.Tensor], Tensors]:
    """Record a forward pass without gradients.

    Returns:
        The module for tensors like `sample`. Each call overwrites the last results.
    """
    given = sample.clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            module(given)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results: Tensors = module(given)

    def replay(images: torch.Tensor) -> Tensors:
        given.copy_(images)
        graph.replay()
        return results

    return replay
