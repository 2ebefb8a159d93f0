"""Recorded backbones: what is recorded, how it is used, and when it is not.

CUDA graphs themselves are tested on a GPU (test_gpu.py). Here the recorded stages run
as they are.
"""

import pytest
import torch
from small_networks import random_images

from kproba.network import SegmentationNetwork
from kproba.network.architecture import Architecture
from kproba.network.sharing import forward_beside
from kproba.runtime.compute import Compute
from kproba.runtime.distributed import Process
from kproba.training.graphs import _stages_of, unsuitable

SMALL = Architecture("resnet50", 16, (1, 2), 8, 0.0, 0.1)
GPU = Process(device="cuda:0")


class OfStep:
    """Settings of a step, as far as `unsuitable` reads them."""

    def __init__(self, step: int):
        self.step = step


@pytest.mark.parametrize(
    ("step", "compute", "process", "reason"),
    [
        (1, Compute(), GPU, ""),
        (1, Compute(), Process(), "CPU"),
        (0, Compute(), GPU, "step 0"),
        (1, Compute(), Process(0, 2, "cuda:0"), "several processes"),
        (1, Compute(accumulation=2), GPU, "micro-batches"),
        (1, Compute(compile=True), GPU, "compute.compile"),
    ],
)
def test_where_backbones_are_not_recorded_the_reason_is_named(
    step, compute, process, reason
):
    found = unsuitable(OfStep(step), compute, process)
    assert reason in found and bool(reason) == bool(found)


@pytest.fixture
def network() -> SegmentationNetwork:
    return SegmentationNetwork(SMALL, [3]).eval().requires_grad_(False)


def record(network: SegmentationNetwork, shape: torch.Size, start: int = 0) -> list:
    """Use the stages of a network as its recording; returns the list of calls."""
    stages, calls = _stages_of(network, start), []

    def compute(images):
        calls.append(images.shape)
        return stages(images)

    network.backbone.use_recording(compute, shape, start)
    return calls


@pytest.mark.parametrize("keep_stages", [False, True])
@pytest.mark.parametrize("shared_stages", [0, 2])
def test_outputs_of_a_recording_are_those_of_the_network(
    network, keep_stages, shared_stages
):
    network.keep_stages, network.shared_stages = keep_stages, shared_stages
    images = random_images()
    expected = network(images)
    calls = record(network, images.shape)
    found = network(images)
    assert calls == [images.shape]
    assert len(found.stages) == len(expected.stages)
    for one, other in zip(found.stages, expected.stages, strict=True):
        assert torch.equal(one, other)
    for one, other in zip(found.logits, expected.logits, strict=True):
        assert torch.equal(one, other)


def test_a_recording_may_start_behind_shared_stages(network):
    images = random_images()
    network.shared_stages = 2
    outputs = network(images)
    calls = record(network, outputs.stages[1].shape, start=2)
    found = forward_beside(network, outputs, images, 2)
    assert calls == [outputs.stages[1].shape]
    assert torch.equal(found.logits[0], outputs.logits[0])


def test_images_of_another_size_are_computed_without_the_recording(network):
    images = random_images()
    calls = record(network, images.shape)
    network(images[:, :, :-16])
    assert not calls
