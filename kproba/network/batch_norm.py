"""Batch norm with statistics over the images of all processes, on the CPU.

PyTorch's `SyncBatchNorm` runs on GPUs only. This is the same computation over gloo, so
that step 0 on several processes equals step 0 on one:

    y = (x - μ) / sqrt(σ² + ε) γ + β,  μ and σ² over the N values of all processes,
    dx = γ / sqrt(σ² + ε) (dy - mean(dy) - x̂ mean(dy x̂)),  means over all processes.

(Ioffe & Szegedy, ICML 2015, section 3.)
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import nn


class GlobalBatchNorm(nn.BatchNorm2d):
    """`nn.BatchNorm2d` over all processes.

    Args:
        norm: The batch norm to replace. Its parameters and buffers are used, and the
            activation that timm's batch norms include.
    """

    def __init__(self, norm: nn.BatchNorm2d):
        super().__init__(norm.num_features, norm.eps, norm.momentum)
        self.weight, self.bias = norm.weight, norm.bias
        for name, buffer in norm.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        self.act = getattr(norm, "act", nn.Identity())
        self.train(norm.training)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) to the same shape; in training all processes must call it."""
        if not self.training:
            result: torch.Tensor = self.act(super().forward(x))
            return result
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        y, mean, variance, count = _Normalise.apply(x, self.weight, self.bias, self.eps)
        with torch.no_grad():
            momentum = self.momentum or 0.0
            unbiased = variance * count / (count - 1).clamp(min=1)
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(unbiased, momentum)
            self.num_batches_tracked += 1
        result = self.act(y)
        return result


class _Normalise(torch.autograd.Function):
    """Normalise x; returns mean, biased variance and count of all processes too."""

    @staticmethod
    def forward(ctx: Any, x, weight, bias, epsilon):  # type: ignore[no-untyped-def]
        size = torch.tensor([x.numel() / x.shape[1]], dtype=x.dtype)
        sums = torch.cat([x.sum((0, 2, 3)), size])
        dist.all_reduce(sums)
        count = sums[-1]
        mean = sums[:-1] / count
        # Sum the squares around the mean, because squares of raw values lose digits.
        variance = (x - mean[:, None, None]).square().sum((0, 2, 3))
        dist.all_reduce(variance)
        variance /= count
        ctx.save_for_backward(x, weight, mean, variance, count)
        ctx.epsilon = epsilon
        y = nn.functional.batch_norm(x, mean, variance, weight, bias, eps=epsilon)
        ctx.mark_non_differentiable(mean, variance, count)
        return y, mean, variance, count

    @staticmethod
    def backward(ctx: Any, gradient, *_):  # type: ignore[no-untyped-def]
        x, weight, mean, variance, count = ctx.saved_tensors
        scale = (variance + ctx.epsilon).rsqrt()
        normal = (x - mean[:, None, None]) * scale[:, None, None]
        bias_gradient = gradient.sum((0, 2, 3))
        weight_gradient = (gradient * normal).sum((0, 2, 3))
        both = torch.stack([bias_gradient, weight_gradient])
        dist.all_reduce(both)
        shift, slope = (both / count)[:, :, None, None]
        x_gradient = (weight * scale)[:, None, None] * (
            gradient - shift - normal * slope
        )
        # DistributedDataParallel sums the parameters' gradients over the processes.
        return x_gradient, weight_gradient, bias_gradient, None


def synchronise(module: nn.Module) -> None:
    """Replace, in place, every batch norm in training mode by `GlobalBatchNorm`."""
    for name, norm in list(module.named_modules()):
        if isinstance(norm, nn.BatchNorm2d) and norm.training:
            module.set_submodule(name, GlobalBatchNorm(norm))
