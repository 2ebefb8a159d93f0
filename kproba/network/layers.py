"""Layers: the block of a head, keyed dropout, batch norm after pooling, upsampling."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn


class KeyedDropout(nn.Module):
    """Dropout whose mask depends on a key per image instead of a global generator.

    An image loses the same units in every process, micro-batch or resumed training.
    `keys` (B,) int64 must be set before a forward pass in training mode.

    Args:
        probability: Probability of each unit to be dropped.
    """

    def __init__(self, probability: float):
        super().__init__()
        self.probability = probability
        self.keys: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Zero each unit with `probability` and scale the others up.

        Args:
            x: (B, ...) float.

        Raises:
            RuntimeError: Not one key per image, in training mode.
        """
        if not self.training or self.probability == 0:
            return x
        if self.keys is None or len(self.keys) != len(x):
            raise RuntimeError("Set KeyedDropout.keys to one key per image first.")
        keep = torch.empty(x.shape, dtype=torch.bool, device=x.device)
        for mask, key in zip(keep, self.keys.tolist(), strict=True):
            generator = torch.Generator(x.device).manual_seed(key)
            noise = torch.rand(mask.shape, generator=generator, device=x.device)
            torch.ge(noise, self.probability, out=mask)
        return x * keep / (1 - self.probability)


class PooledBatchNorm(nn.BatchNorm2d):
    """Batch norm after global pooling, with one value per image and channel.

    A batch of a single image has no variance, and `nn.BatchNorm2d` raises an error.
    Here such a batch is normalised with the running statistics, which do not change.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, 1, 1) to the same shape."""
        if not self.training or x.numel() > x.shape[1]:
            return super().forward(x)
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )


def conv_block(channels: int) -> nn.Sequential:
    """A 3×3 conv-BN-ReLU block of A channels, for the features g_k of a head."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    )


def get_classifier(branch: nn.Module) -> nn.Conv2d:
    """The 1×1 convolution of a step."""
    classifier = branch.get_submodule("classifier")
    assert isinstance(classifier, nn.Conv2d)
    return classifier


def log_sigmoid(x: torch.Tensor) -> torch.Tensor:
    """Log σ(x) of any shape, the same up to rounding as `F.logsigmoid`.

    Without a gradient, on a CPU: min(x, 0) - log(1 + exp(-|x|)) in vectorised steps,
    which together take a sixth of the time.
    """
    if x.device.type != "cpu" or (torch.is_grad_enabled() and x.requires_grad):
        return F.logsigmoid(x)
    return x.clamp(max=0).sub_(x.abs().neg_().exp_().log1p_())


def upsample(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Bilinear interpolation of (B, C, h, w) to (B, C, *size).

    The result has its channels last in memory, which makes an argmax over them seven
    times faster on a CPU.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)
