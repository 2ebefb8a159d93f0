"""Fast convolutions of one pixel, and padding "SAME": results, and where they are."""

from dataclasses import replace

import pytest
import torch
from small_networks import ARCHITECTURE, assert_equal_states, random_images
from timm.layers import Conv2dSame
from torch import nn

from kproba.network import SegmentationNetwork, add_branch
from kproba.network.backbones import efficientnet
from kproba.network.backbones.efficientnet import SamePadded
from kproba.network.convolutions import SMALL, Depthwise, Pointwise, use_pointwise

BACKBONES = ["efficientnet_lite0", "resnet50"]


def results(layer: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Output, and gradients of input and parameters."""
    x = x.clone().requires_grad_()
    y = layer(x)
    generator = torch.Generator().manual_seed(4)
    (y * torch.randn(y.shape, generator=generator, dtype=y.dtype)).sum().backward()
    assert x.grad is not None
    return [y.detach(), x.grad, *(p.grad for p in layer.parameters())]  # type: ignore[list-item]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(1, 1, 1), (1, 9, 7), (3, 9, 8), (1, 80, 80)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_pointwise_results_are_those_of_the_convolution(
    size: tuple[int, int, int], stride: int, bias: bool, dtype: torch.dtype
) -> None:
    """Of small and large maps, which are computed in different ways."""
    generator = torch.Generator().manual_seed(0)
    batch, height, width = size
    # oneDNN 3.x writes beyond its memory for 5 channels and a stride of 2.
    shape = (batch, 16, height, width)
    x = torch.randn(shape, generator=generator, dtype=dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    plain = nn.Conv2d(16, 8, 1, stride=stride, bias=bias).to(dtype)
    fast = Pointwise(16, 8, 1, stride=stride, bias=bias).to(dtype)
    fast.load_state_dict(plain.state_dict())
    tolerance = 1e-12 if dtype == torch.float64 else 1e-4
    pairs = zip(results(fast, x), results(plain, x), strict=True)
    for own, other in pairs:
        scale = other.abs().max().item()
        torch.testing.assert_close(own, other, rtol=0, atol=tolerance * scale)
    assert (x.numel() > SMALL) == (size == (1, 80, 80))


def test_pointwise_has_the_type_of_autocast() -> None:
    x, layer = torch.randn(2, 6, 9, 9), Pointwise(6, 5, 1)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), layer(x), rtol=0.02, atol=0.05)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("head", ["branches", "softmax"])
def test_every_plain_convolution_of_one_pixel_is_replaced(
    backbone: str, head: str
) -> None:
    architecture = replace(ARCHITECTURE, backbone=backbone, head=head)
    network = add_branch(SegmentationNetwork(architecture, [2]), 1, seed=0)
    assert isinstance(network.get_submodule("branches.1.classifier"), Pointwise)
    for part, least in ((network.backbone, 20), (network.aspp, 3)):
        fast = [m for m in part.modules() if isinstance(m, Pointwise)]
        assert len(fast) >= least
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            assert isinstance(module, Pointwise) == (module.kernel_size == (1, 1))


def test_other_convolutions_are_not_replaced() -> None:
    class Own(nn.Conv2d):
        """A convolution of an extension."""

    kept = [
        nn.Conv2d(4, 4, 1, groups=2),
        nn.Conv2d(4, 4, 1, padding=1),
        nn.Conv2d(4, 4, 1, dilation=2),
        nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 4, (1, 3)),
        Own(4, 4, 1),
    ]
    taken = nn.Conv2d(4, 4, 1, stride=2).eval()
    parameters = [taken.weight, taken.bias]
    module = nn.Sequential(*kept, taken)
    before = torch.get_rng_state()
    use_pointwise(module)
    assert torch.equal(torch.get_rng_state(), before)
    assert list(module)[:-1] == kept
    fast = module[-1]
    assert isinstance(fast, Pointwise) and fast.stride == (2, 2) and not fast.training
    assert fast.weight is parameters[0] and fast.bias is parameters[1]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_initial_weights_are_those_of_plain_layers(
    monkeypatch: pytest.MonkeyPatch, backbone: str
) -> None:
    """Of the first step and of an added one; random numbers stay where they were."""
    architecture = replace(ARCHITECTURE, backbone=backbone)
    before = torch.get_rng_state()

    def build() -> tuple[SegmentationNetwork, torch.Tensor]:
        network = add_branch(SegmentationNetwork(architecture, [2], seed=5), 1, seed=7)
        return network, network.eval()(random_images()).backbone

    fast, expected = build()
    for module, name in (
        ("kproba.network.network", "use_pointwise"),
        ("kproba.network.backbones.efficientnet", "_use_same_padded"),
    ):
        monkeypatch.setattr(f"{module}.{name}", lambda module: None)
    plain, found = build()
    kinds = (Pointwise, SamePadded)
    assert not any(isinstance(m, kinds) for m in plain.modules())
    assert_equal_states(fast.state_dict(), plain.state_dict())
    scale = expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * scale)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("size", [(9, 9), (8, 8), (7, 10), (1, 2), (3, 1)])
@pytest.mark.parametrize("kernel", [3, 5])
def test_same_padding_is_that_of_timm(kernel: int, size: tuple[int, int]) -> None:
    options = {"stride": 2, "groups": 4, "bias": False}
    body = nn.Sequential(Conv2dSame(4, 4, kernel, **options).double())  # type: ignore[arg-type]
    x = torch.randn(2, 4, *size, dtype=torch.float64)
    expected = results(body, x)
    weight = body[0].weight
    weight.grad = None
    before = torch.get_rng_state()
    efficientnet._use_same_padded(body)
    assert torch.equal(torch.get_rng_state(), before)
    assert isinstance(body[0], SamePadded) and body[0].weight is weight
    for own, other in zip(results(body, x), expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("trains", [True, False])
def test_depthwise_takes_the_shift_of_a_folded_norm(trains: bool) -> None:
    """A bias that is a constant; one that trains has a gradient as elsewhere."""
    layer = Depthwise(6, 6, 5, padding=2, groups=6, bias=True).double()
    plain = nn.Conv2d(6, 6, 5, padding=2, groups=6, bias=True).double()
    plain.load_state_dict(layer.state_dict())
    for each in (layer, plain):
        assert each.bias is not None
        each.bias.requires_grad_(trains)
    x = torch.randn(2, 6, 7, 9, dtype=torch.float64)
    for own, other in zip(results(layer, x), results(plain, x), strict=True):
        if other is None:
            assert own is None
        else:
            torch.testing.assert_close(own, other, rtol=1e-10, atol=1e-10)
