"""Networks on a canvas, that is, a batch of padded pictures of several sizes.

A convolution pads with zeros beyond a picture. On a canvas (`kproba.data.canvases`),
batch norms and biases change these zeros after the first layer. So every layer that
reads more than one cell gets its input with zeros outside the pictures, and pooling
uses only the cells of the pictures. Then the features of a picture are the same as
without a canvas, up to rounding.

For this, the grid of cells must be the same with and without a canvas. The entry of a
backbone defines how its layers pad (`BackboneEntry.anchor`):

- "start": half of the kernel on both sides, as PyTorch does. Cell i of a stride of 2
  covers the pixels around 2 i, counted from the top left.
- "end": as little as needed and rather at the end, as TensorFlow's "SAME". Cells are
  counted from the bottom right.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from kproba.data.canvases import Anchor, places
from kproba.network.folding import FoldedConvolution
from kproba.network.network import Outputs, SegmentationNetwork


class Canvas:
    """The pictures of one batch.

    Args:
        canvas: Height and width of the batch.
        sizes: Height and width of each picture.
        anchor: Corner of the canvas where pictures are placed.
        device: Device of the networks.
    """

    def __init__(
        self,
        canvas: Sequence[int],
        sizes: Sequence[tuple[int, int]],
        anchor: Anchor,
        device: torch.device,
    ):
        self.canvas, self.sizes, self.anchor = tuple(canvas[-2:]), sizes, anchor
        self.device = device
        self._masks: dict[tuple[int, int], torch.Tensor] = {}

    def places(self, height: int, width: int) -> list[tuple[slice, slice, slice]]:
        """The slices of each picture in a map (B, height, width) of the canvas."""
        down, across = self.canvas[0] // height, self.canvas[1] // width
        cells = [(-(-high // down), -(-wide // across)) for high, wide in self.sizes]
        return places((height, width), cells, self.anchor)

    def mask(self, x: torch.Tensor) -> torch.Tensor:
        """A map (B, C, h, w) with zeros outside the pictures."""
        height, width = x.shape[-2:]
        if (height, width) not in self._masks:
            mask = torch.zeros(len(self.sizes), 1, height, width, device=self.device)
            for number, rows, columns in self.places(height, width):
                mask[number, :, rows, columns] = 1
            self._masks[height, width] = mask
        return x * self._masks[height, width].to(x.dtype)

    @contextmanager
    def masked(self, *networks: SegmentationNetwork | None) -> Iterator[None]:
        """Set the inputs of layers to zero outside the pictures, within a block."""
        with ExitStack() as hooks:
            for network in networks:
                for module in network.modules() if network is not None else ():
                    if _looks_beyond(module):
                        hook = module.register_forward_pre_hook(self._mask_input)
                        hooks.callback(hook.remove)
                    elif isinstance(module, nn.AdaptiveAvgPool2d):
                        hook = module.register_forward_hook(self._mean_of_pictures)
                        hooks.callback(hook.remove)
            yield

    def _mask_input(self, module: nn.Module, inputs: tuple[Any, ...]) -> Any:
        return (self.mask(inputs[0]), *inputs[1:])

    def _mean_of_pictures(
        self, module: nn.Module, inputs: tuple[Any, ...], pooled: torch.Tensor
    ) -> torch.Tensor:
        """The mean over each picture in place of the mean over its canvas."""
        (x,) = inputs
        parts = [x[n, :, rows, columns] for n, rows, columns in self._cells(x)]
        return torch.cat([part.mean(dim=(2, 3), keepdim=True) for part in parts])

    def _cells(self, x: torch.Tensor) -> list[tuple[slice, slice, slice]]:
        return self.places(*x.shape[-2:])

    def crop(self, outputs: Outputs, number: int) -> Outputs:
        """The outputs of one picture, (1, C, h, w) each."""

        def of_picture(x: torch.Tensor) -> torch.Tensor:
            images, rows, columns = self._cells(x)[number]
            return x[images, :, rows, columns]

        return Outputs(
            of_picture(outputs.backbone),
            [of_picture(block) for block in outputs.blocks],
            [of_picture(logits) for logits in outputs.logits],
            [of_picture(stage) for stage in outputs.stages],
            {name: of_picture(extra) for name, extra in outputs.extras.items()},
        )


def _looks_beyond(module: nn.Module) -> bool:
    """Whether a layer reads more than one cell for each output cell."""
    if isinstance(module, nn.MaxPool2d):  # of values that an activation made positive
        return True
    if isinstance(module, FoldedConvolution):
        return module.kernel_size != (1, 1)
    return isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1)
