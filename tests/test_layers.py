"""Layers: dropout by key, fast depthwise gradients, batch norm after pooling."""

import pytest
import torch
from torch import nn

from kproba.network import Backbone
from kproba.network.convolutions import Depthwise
from kproba.network.layers import KeyedDropout, PooledBatchNorm


@pytest.fixture
def dropout():
    return KeyedDropout(0.3).train()


def test_an_image_loses_the_same_units_in_any_batch(dropout):
    x = torch.rand(3, 4, 6, 6) + 1
    dropout.keys = torch.tensor([5, 6, 7])
    together = dropout(x)
    torch.manual_seed(1)
    dropout.keys = torch.tensor([7, 5])
    assert torch.equal(dropout(x[[2, 0]]), together[[2, 0]])
    dropout.keys = torch.tensor([6])
    assert torch.equal(dropout(x[[1]]), together[[1]])
    masks = together == 0
    assert not torch.equal(masks[0], masks[1]) and not torch.equal(masks[1], masks[2])


def test_dropout_does_not_touch_the_global_generator(dropout):
    before = torch.get_rng_state()
    dropout.keys = torch.tensor([1])
    dropout(torch.ones(1, 2, 3, 3))
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_hits_its_rate_and_scales_the_rest(dropout):
    dropout.keys = torch.tensor([8, 9])
    dropped = dropout(torch.full((2, 64, 20, 20), 7.0))
    # 51 200 units: the standard error of the rate is 0.002.
    assert (dropped == 0).float().mean().item() == pytest.approx(0.3, abs=0.01)
    torch.testing.assert_close(dropped[dropped != 0].unique(), torch.tensor([10.0]))


def test_dropout_is_the_identity_in_evaluation(dropout):
    x = torch.rand(2, 3, 4, 4)
    assert torch.equal(dropout.eval()(x), x)


def test_dropout_of_probability_0_needs_no_keys():
    x = torch.rand(2, 3, 4, 4)
    assert torch.equal(KeyedDropout(0.0).train()(x), x)


@pytest.mark.parametrize("keys", [None, torch.tensor([1])])
def test_dropout_without_one_key_per_image_is_an_error(dropout, keys):
    dropout.keys = keys
    with pytest.raises(RuntimeError, match="one key per image"):
        dropout(torch.ones(2, 3, 4, 4))


@pytest.mark.parametrize(("kernel", "dilation"), [(5, 1), (5, 2), (3, 2), (3, 4)])
def test_fast_depthwise_gradients_are_those_of_the_convolution(kernel, dilation):
    torch.manual_seed(0)
    settings = {"padding": kernel // 2 * dilation, "dilation": dilation, "groups": 6}
    plain = nn.Conv2d(6, 6, kernel, bias=False, **settings).double()
    fast = Depthwise(6, 6, kernel, bias=False, **settings).double()
    fast.load_state_dict(plain.state_dict())
    results = []
    for layer in (plain, fast):
        x = torch.linspace(-3, 3, 3 * 6 * 7 * 9, dtype=torch.float64).view(3, 6, 7, 9)
        x = x.sin().requires_grad_()
        y = layer(x)
        (y * torch.arange(9)).sum().backward()
        results.append((y, x.grad, layer.weight.grad))
    for own, other in zip(*results, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-10, atol=1e-10)


def test_fast_depthwise_gradients_in_mixed_precision():
    torch.manual_seed(0)
    exact = Depthwise(6, 6, 5, padding=4, dilation=2, groups=6, bias=False).double()
    mixed = Depthwise(6, 6, 5, padding=4, dilation=2, groups=6, bias=False)
    mixed.load_state_dict(exact.state_dict())
    results = []
    for layer, kind in ((exact, torch.float64), (mixed, torch.float32)):
        x = torch.linspace(-3, 3, 3 * 6 * 7 * 9, dtype=kind).view(3, 6, 7, 9)
        x = x.sin().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=layer is mixed):
            y = layer(x)
        assert y.dtype == (torch.bfloat16 if layer is mixed else torch.float64)
        (y.double() * torch.arange(9)).sum().backward()
        results.append((y, x.grad, layer.weight.grad))
    assert results[1][1].dtype == results[1][2].dtype == torch.float32
    for own, other in zip(*results, strict=True):
        error = (own - other.double()).norm() / own.norm()
        assert error < 0.01  # bfloat16 has three digits


def test_slow_depthwise_convolutions_of_the_backbone_are_replaced():
    body = Backbone("efficientnet_lite0", output_stride=16, weights="none").body
    slow = [
        module
        for module in body.modules()
        if isinstance(module, nn.Conv2d)
        and module.groups > 1
        and module.stride == (1, 1)
        and (module.kernel_size == (5, 5) or module.dilation != (1, 1))
    ]
    assert len(slow) >= 8
    assert all(isinstance(module, Depthwise) for module in slow)


def test_pooling_of_one_image_uses_the_running_statistics():
    norm = PooledBatchNorm(3).train()
    with torch.no_grad():
        norm.running_mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
        norm.running_var.fill_(4.0)
    x = torch.tensor([3.0, 2.0, -1.0]).view(1, 3, 1, 1).requires_grad_()
    y = norm(x)
    torch.testing.assert_close(
        y.flatten(), torch.tensor([1.0, 0.0, -2.0]), rtol=1e-4, atol=1e-5
    )
    y.sum().backward()
    assert x.grad.abs().min() > 0
    assert norm.running_mean.tolist() == [1, 2, 3]


def test_pooling_of_several_images_is_batch_norm():
    x = torch.randn(4, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    own, plain = PooledBatchNorm(3).train(), torch.nn.BatchNorm2d(3).train()
    torch.testing.assert_close(own(x), plain(x))
    torch.testing.assert_close(own.running_var, plain.running_var)
