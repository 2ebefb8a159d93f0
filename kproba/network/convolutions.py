"""Convolutions that are fast on a CPU: depthwise and 1×1 convolutions."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import skip_init

# Values of a feature map that fit into a processor's cache.
CACHED = 2**20
# For larger maps of one image, PyTorch always uses oneDNN.
SMALL = 20480


class Depthwise(nn.Conv2d):
    """A depthwise convolution of stride 1 whose gradients are fast on a CPU.

    For 5×5 or dilated kernels on small maps, PyTorch's backward pass takes several
    times as long as its forward pass. On other devices this is `nn.Conv2d`.
    """

    def _conv_forward(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """(B, C, H, W) to the same shape, in the dtype of autocast.

        Args:
            x: (B, C, H, W).
            weight: (C, 1, k, k).
            bias: (C,), which does not train, or None.
        """
        trains = bias is not None and bias.requires_grad
        if x.device.type != "cpu" or not torch.is_grad_enabled() or trains:
            return super()._conv_forward(x, weight, bias)
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            x, weight = x.to(dtype), weight.to(dtype)
            bias = bias if bias is None else bias.to(dtype)
        result: torch.Tensor = _DepthwiseFunction.apply(
            x, weight, bias, self.padding[0], self.dilation[0]
        )
        return result


class _DepthwiseFunction(torch.autograd.Function):
    """Both gradients computed as forward passes.

    With "same" padding the gradient of the input is the convolution of the output's
    gradient with the flipped kernel. The gradient of weight (i, j) is the sum, over
    images and cells, of the output's gradient times the input shifted by (i, j).
    """

    @staticmethod
    def forward(ctx, x, weight, bias, padding, dilation):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, weight)
        ctx.padding, ctx.dilation = padding, dilation
        return F.conv2d(x, weight, bias, 1, padding, dilation, groups=len(weight))

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        x, weight = ctx.saved_tensors
        d, p, k = ctx.dilation, ctx.padding, weight.shape[-1]
        input_gradient = weight_gradient = None
        if ctx.needs_input_grad[0]:
            flipped = weight.flip(2, 3)
            input_gradient = F.conv2d(
                gradient, flipped, None, 1, p, d, groups=len(weight)
            )
        if ctx.needs_input_grad[1]:
            height, width = gradient.shape[-2:]
            padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, p, p, p, p))  # (B, H, W, C)
            gradient = gradient.permute(0, 2, 3, 1)
            # As many images at once as fit into the cache.
            images = max(1, CACHED // gradient[0].numel())
            parts = []
            # Sums in bfloat16 would lose most digits.
            sum_type = torch.promote_types(x.dtype, torch.float32)
            for outputs, inputs in zip(
                gradient.split(images), padded.split(images), strict=True
            ):
                taps = [
                    (inputs[:, i : i + height, j : j + width] * outputs).sum(
                        (0, 1, 2), dtype=sum_type
                    )
                    for i in range(0, k * d, d)
                    for j in range(0, k * d, d)
                ]
                parts.append(torch.stack(taps, dim=1))
            total = torch.stack(parts).sum(0).to(weight.dtype)
            # DistributedDataParallel expects the strides of the weight.
            weight_gradient = total.as_strided(weight.shape, weight.stride())
        return input_gradient, weight_gradient, None, None, None


class Pointwise(nn.Conv2d):
    """A 1×1 convolution that a CPU computes with oneDNN.

    On one thread, PyTorch hands small batches to a matrix product, which takes up to
    twice as long. It does not do so for a convolution with a dilation, and a dilation
    does not change the result of a 1×1 kernel. On other devices this is `nn.Conv2d`.
    """

    def _conv_forward(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """(B, C, H, W) to (B, C', H', W'), with a kernel of one pixel."""
        small = len(x) == 1 and x.numel() <= SMALL
        if x.device.type != "cpu" or small or torch.jit.is_tracing():
            return super()._conv_forward(x, weight, bias)
        return F.conv2d(x, weight, bias, self.stride, 0, 2, self.groups)


def use_pointwise(module: nn.Module) -> None:
    """Replace, in place, plain 1×1 convolutions; the parameters stay the same."""
    for name, each in list(module.named_modules()):
        if type(each) is not nn.Conv2d or each.kernel_size != (1, 1):
            continue
        if each.padding != (0, 0) or each.groups != 1 or each.dilation != (1, 1):
            continue
        # Without initial weights, because the global generator must not change.
        fast = skip_init(
            Pointwise,
            each.in_channels,
            each.out_channels,
            1,
            stride=each.stride,
            bias=each.bias is not None,
        )
        fast.weight, fast.bias = each.weight, each.bias
        module.set_submodule(name, fast.train(each.training))


def use_depthwise(body: nn.Module) -> None:
    """Replace, in place, the convolutions that are faster as `Depthwise`.

    Those are depthwise, of stride 1, and 5×5 or dilated. The weights stay the same
    parameters.
    """
    for name, module in list(body.named_modules()):
        if not isinstance(module, nn.Conv2d) or module.stride != (1, 1):
            continue
        depthwise = module.groups == module.in_channels == module.out_channels
        if depthwise and (module.kernel_size == (5, 5) or module.dilation != (1, 1)):
            fast = Depthwise(
                module.in_channels,
                module.out_channels,
                module.kernel_size,  # type: ignore[arg-type]
                padding=module.padding,  # type: ignore[arg-type]
                dilation=module.dilation,  # type: ignore[arg-type]
                groups=module.groups,
                bias=False,
            )
            fast.weight = module.weight
            body.set_submodule(name, fast)
