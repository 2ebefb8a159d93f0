"""Batch norm over several processes against PyTorch's over the whole batch."""

import pytest
import torch
from gloo_processes import in_processes
from timm.layers import BatchNormAct2d
from torch import nn

from kproba.network.batch_norm import GlobalBatchNorm, synchronise
from kproba.runtime.distributed import Process

PARTS = {2: (3, 2), 3: (1, 3, 1)}  # images of every process, unevenly


def norm_of(kind: str) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(4) if kind == "torch" else BatchNormAct2d(4, inplace=False)
    norm = norm.double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 0.5, -2.0, 3.0]))
        norm.bias.copy_(torch.tensor([0.0, 1.0, -1.0, 0.3]))
    return norm


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Images far from zero mean, and the weights of a loss."""
    generator = torch.Generator().manual_seed(0)
    shape = (5, 4, 3, 2)
    x = 7 + 3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    return x, torch.randn(shape, generator=generator, dtype=torch.float64)


def run(norm: nn.Module, x: torch.Tensor, wanted: torch.Tensor) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    y = norm(x)
    (y.sin() * wanted).sum().backward()
    parameters = [parameter.grad for parameter in norm.parameters()]
    return [y.detach(), x.grad, *parameters]


def part_of_whole(process: Process, kind: str) -> None:
    expected_norm = norm_of(kind)
    expected = run(expected_norm, *batch())
    shared = nn.Sequential(norm_of(kind))
    synchronise(shared)
    assert isinstance(shared[0], GlobalBatchNorm)
    parts = PARTS[process.world_size]
    start = sum(parts[: process.rank])
    own = slice(start, start + parts[process.rank])
    y, of_x, *of_parameters = run(shared, *(tensor[own] for tensor in batch()))
    torch.testing.assert_close(y, expected[0][own])
    torch.testing.assert_close(of_x, expected[1][own])
    for gradient, whole in zip(of_parameters, expected[2:], strict=True):
        process.add_up(gradient)
        torch.testing.assert_close(gradient, whole)
    assert shared[0].state_dict().keys() == expected_norm.state_dict().keys()
    for key, tensor in expected_norm.state_dict().items():
        torch.testing.assert_close(shared[0].state_dict()[key], tensor)
    shared.eval()
    expected_norm.eval()
    torch.testing.assert_close(shared(batch()[0]), expected_norm(batch()[0]))


@pytest.mark.parametrize("kind", ["torch", "timm"])
@pytest.mark.parametrize("processes", PARTS)
def test_outputs_gradients_and_statistics_are_those_of_the_whole_batch(kind, processes):
    in_processes(processes, part_of_whole, kind)


def test_frozen_batch_norms_are_left_alone():
    module = nn.Sequential(nn.BatchNorm2d(2).eval(), nn.BatchNorm2d(2))
    synchronise(module)
    assert type(module[0]) is nn.BatchNorm2d
    assert isinstance(module[1], GlobalBatchNorm)
