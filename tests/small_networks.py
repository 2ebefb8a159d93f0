"""A small network as after training, images for it, and a comparison of states."""

from collections import Counter
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from kproba.network import Architecture, SegmentationNetwork

ARCHITECTURE = Architecture(
    backbone="efficientnet_lite0",
    output_stride=16,
    atrous_rates=(6, 12, 18),
    aspp_channels=8,
    aspp_dropout=0.1,
    bn_momentum=0.1,
)


def random_images() -> torch.Tensor:
    """Two images, (2, 3, 48, 48) uint8."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, 3, 48, 48), generator=generator)
    return pixels.to(torch.uint8)


def network_after_training() -> SegmentationNetwork:
    """A network of two steps, of three and two classes, in evaluation mode.

    Its batch norms have statistics as after training: a copy that forgets them gives
    other outputs.
    """
    network = SegmentationNetwork(ARCHITECTURE, [3, 2], seed=1)
    randomise_norms(network)
    return network.eval()


def randomise_norms(network: nn.Module) -> None:
    """Change statistics, scales and shifts of batch norms, the same at every call."""
    generator = torch.Generator().manual_seed(2)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            assert module.running_var is not None
            tensors = (module.running_mean, module.weight, module.bias)
            for tensor in tensors:
                if tensor is not None:
                    noise = torch.randn(tensor.shape, generator=generator)
                    tensor.data.add_(0.2 * noise)
            variance = module.running_var
            variance.mul_(0.5 + torch.rand(variance.shape, generator=generator))
            assert module.num_batches_tracked is not None
            module.num_batches_tracked += 7


class CountedOperators(TorchDispatchMode):
    """Counts the ATen operators that run within, backward passes included."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.names[func.__name__.split(".")[0]] += 1
        return func(*args, **(kwargs or {}))

    @property
    def total(self) -> int:
        """Of all operators."""
        return self.names.total()

    def times(self, name: str) -> int:
        """How often an operator ran, in any of its forms."""
        return sum(n for key, n in self.names.items() if key.endswith(name))


def state_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the state dict."""
    return {key: value.clone() for key, value in module.state_dict().items()}


def assert_equal_states(
    one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]
) -> None:
    """The same keys in the same order, and the same bytes."""
    assert list(one) == list(other)
    assert all(torch.equal(one[key], other[key]) for key in one)
