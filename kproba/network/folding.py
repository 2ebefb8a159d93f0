"""Frozen batch norms, folded into the convolutions before them.

A batch norm that does not train is a fixed scale and shift of every channel,

    y = (conv(x, W) - μ) γ / sqrt(σ² + ε) + β = conv(x, W s) + β - μ s,
    s = γ / sqrt(σ² + ε)

(Ioffe & Szegedy, ICML 2015, section 3.1). So it costs no pass over the feature map, and
autograd keeps one map less. The gradient of W follows from W s. The results differ from
the two separate layers only by rounding.
"""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import fx, nn

from kproba.network.files import load_model
from kproba.network.layers import KeyedDropout, PooledBatchNorm
from kproba.network.network import SegmentationNetwork

IMAGES = 4  # images of the batch that decides between weight and map


class FoldedConvolution(nn.Module):
    """A convolution and the frozen batch norm after it.

    If the weight is trained, it stays the same parameter, and W s is computed at every
    call. If the weight is larger than the feature map, the map is scaled and shifted
    instead, which is cheaper. If the weight is frozen, W s is computed once.

    Args:
        convolution: Without a bias.
        norm: In evaluation mode, with running statistics.
        dtype: Type in which a weight that does not train is kept; None: its own.
    """

    scale: torch.Tensor
    shift: torch.Tensor
    constant: torch.Tensor

    def __init__(
        self, convolution: nn.Conv2d, norm: nn.BatchNorm2d, dtype: torch.dtype | None
    ):
        super().__init__()
        # Stride, padding and the like, without registering the weight a second time.
        self._convolve = convolution._conv_forward
        self.kernel_size = convolution.kernel_size
        scale, shift = _scale_and_shift(norm)
        weight = convolution.weight
        self.trains = weight.requires_grad
        if self.trains:
            self.weight = weight
            self.norm = norm  # its parameters are frozen
            self.register_buffer("scale", scale[:, None, None, None], persistent=False)
        else:
            constant = (weight * scale[:, None, None, None]).to(dtype or weight.dtype)
            self.register_buffer("constant", constant, persistent=False)
            shift = shift.to(constant.dtype)
        self.register_buffer("shift", shift, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) to what the batch norm would give, without its activation."""
        if not self.trains:
            return self._convolve(x, self.constant, self.shift)
        # For a fixed number of images, so that the choice is the same for all batch
        # sizes.
        if self.weight.shape[1:].numel() > IMAGES * x.shape[2] * x.shape[3]:
            return self._normalise(self._convolve(x, self.weight, None))
        return self._convolve(x, self.weight * self.scale, self.shift)

    def _normalise(self, y: torch.Tensor) -> torch.Tensor:
        norm = self.norm
        statistics = norm.running_mean, norm.running_var
        return F.batch_norm(y, *statistics, norm.weight, norm.bias, eps=norm.eps)


def _scale_and_shift(norm: nn.BatchNorm2d) -> tuple[torch.Tensor, torch.Tensor]:
    """The s and β - μ s of a batch norm, (C,) each in its type, computed in float64."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -norm.running_mean.double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.detach().double()
    dtype = norm.running_var.dtype
    return scale.to(dtype), shift.to(dtype)


def fold(
    network: SegmentationNetwork, dtype: torch.dtype | None = None
) -> SegmentationNetwork:
    """Return a second module with the same function and folded frozen batch norms.

    It shares the trained parameters, so the gradients, the state dict and the optimizer
    of `network` stay valid. Attributes that are set later, such as `keep_stages`, are
    not shared.

    Args:
        network: It is not changed. Parameters that are frozen must be frozen already.
        dtype: Type of the frozen weights, such as the type of autocast; None:
            unchanged.
    """
    tensors = [*network.parameters(), *network.buffers()]
    twin = copy.deepcopy(network, {id(tensor): tensor for tensor in tensors})
    # Found before anything is replaced: stages may share modules.
    pairs = [pair for part in _parts(twin) for pair in _pairs(part)]
    names = {module: name for name, module in twin.named_modules()}
    for convolution, norm in pairs:
        folded = FoldedConvolution(convolution, norm, dtype)
        twin.set_submodule(names[convolution], folded)
        # timm's batch norms include the activation.
        twin.set_submodule(names[norm], getattr(norm, "act", nn.Identity()))
    return twin


def fold_all(
    network: SegmentationNetwork, dtype: torch.dtype | None = None
) -> SegmentationNetwork:
    """`fold` for inference: no parameter is trained."""
    return fold(network.eval().requires_grad_(False), dtype)


def load_folded(path: str | Path, *, device: str = "cpu") -> SegmentationNetwork:
    """Load a model for inference, with folded batch norms.

    Args:
        path: As for `kproba.network.files.load_model`, which names the errors raised.
        device: Device of the returned network.
    """
    return fold_all(load_model(path, device=device))


def _parts(network: SegmentationNetwork) -> Iterator[nn.Module]:
    """The parts of a network that are traced separately."""
    yield from network.backbone.stages()
    yield network.aspp
    for branch in cast("list[nn.ModuleDict]", list(network.branches)):
        yield from branch.values()


class _Tracer(fx.Tracer):
    """Traces modules down to their convolutions and batch norms."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is recorded as one call."""
        # The dropout depends on its keys.
        whole = isinstance(m, nn.Conv2d | nn.BatchNorm2d | KeyedDropout)
        return whole or super().is_leaf_module(m, module_qualified_name)


def _pairs(part: nn.Module) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Pairs of a convolution and the frozen batch norm that is the only one to use it.

    A part that cannot be traced, for example one of an extension, has no pairs and
    stays unchanged.
    """
    try:
        graph = _Tracer().trace(part)
    except Exception:  # the code of the part may raise any error with a traced value
        return []
    calls = [node for node in graph.nodes if node.op == "call_module"]
    targets = [str(node.target) for node in calls]
    # Modules whose parameters the code reads directly, such as shared weights.
    read = {str(n.target).rpartition(".")[0] for n in graph.nodes if n.op == "get_attr"}
    found = []
    for node in calls:
        before = node.args[0] if node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module":
            continue
        if len(before.users) > 1 or targets.count(str(before.target)) > 1:
            continue
        if read & {str(before.target), str(node.target)}:
            continue
        convolution = part.get_submodule(str(before.target))
        norm = part.get_submodule(str(node.target))
        if _can_fold(convolution, norm) and targets.count(str(node.target)) == 1:
            pair = cast("tuple[nn.Conv2d, nn.BatchNorm2d]", (convolution, norm))
            found.append(pair)
    return found


def _can_fold(convolution: nn.Module, norm: nn.Module) -> bool:
    """Whether `FoldedConvolution` can replace two modules."""
    if not isinstance(convolution, nn.Conv2d) or convolution.bias is not None:
        return False
    if type(convolution).forward is not nn.Conv2d.forward:
        return False
    if not isinstance(convolution.weight, nn.Parameter):  # computed at every call
        return False
    if not isinstance(norm, nn.BatchNorm2d) or norm.training:
        return False
    known = type(norm).forward in (nn.BatchNorm2d.forward, PooledBatchNorm.forward)
    # Batch norms of timm include an activation, and a dropout that is never used here.
    known |= hasattr(norm, "act") and isinstance(norm.drop, nn.Identity)
    trains = any(parameter.requires_grad for parameter in norm.parameters())
    return known and not trains and norm.running_var is not None
