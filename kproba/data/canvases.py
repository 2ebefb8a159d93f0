"""Pictures of several sizes in one batch, each padded to a common canvas.

A GPU plans its kernels again for every size of picture, and small batches do not use
all of it. The 12,031 labelled pictures of VOC have 790 sizes; on canvases they have 15,
and 1.12 times the pixels. Pixels outside a picture do not affect its features
(`kproba.network.canvas`), so padding only changes the rounding.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F

from kproba.data.labels import IGNORE

# Where a picture lies on its canvas: at its top left, or at its bottom right.
Anchor = Literal["start", "end"]
STEPS = {256: 64, 2**31: 128}  # pixels between canvases, for sides up to a length
FEW = 16  # up to so many sizes, padding does not pay
ALIGNED = 32  # pixels; sides are multiples of it, so that all strides fit


class Size(NamedTuple):
    """Height and width in pixels."""

    height: int
    width: int


def choose_canvases(
    sizes: Iterable[tuple[int, int]], most_side: int
) -> list[Size | None]:
    """The canvas of every picture; None where no picture needs one.

    Pictures whose sides round up to the same lengths (`rounded`) share a canvas, which
    is as large as the largest of them. Pictures that are all of one size need none, and
    no picture does where all together have at most `FEW` sizes.

    Args:
        sizes: Height and width of each picture.
        most_side: A picture with a longer side is not padded: it is cut into tiles.
    """
    known = [Size(*size) for size in sizes]
    if len(set(known)) <= FEW:
        return [None] * len(known)
    groups: dict[Size, set[Size]] = defaultdict(set)
    for size in known:
        groups[rounded(size)].add(size)
    canvases: dict[Size, Size | None] = {}
    for key, members in groups.items():
        highest = max(size.height for size in members)
        widest = max(size.width for size in members)
        common = Size(_up(highest, ALIGNED), _up(widest, ALIGNED))
        canvases[key] = common if len(members) > 1 else None
    return [
        canvases[rounded(size)] if max(size) <= most_side else None for size in known
    ]


def rounded(size: Size) -> Size:
    """Sides rounded up to multiples of the step of their length."""
    steps = [next(step for most, step in STEPS.items() if s <= most) for s in size]
    return Size(*(_up(side, step) for side, step in zip(size, steps, strict=True)))


def _up(length: int, step: int) -> int:
    return -(-length // step) * step


def pad(pixels: torch.Tensor, canvas: Size, anchor: Anchor, value: int) -> torch.Tensor:
    """Pixels (.., h, w) on a canvas, (.., H, W), with `value` beyond them."""
    height, width = pixels.shape[-2:]
    down, across = canvas.height - height, canvas.width - width
    sides = (0, across, 0, down) if anchor == "start" else (across, 0, down, 0)
    return F.pad(pixels, sides, value=value)


def pad_pair(
    image: torch.Tensor, target: torch.Tensor, canvas: Size, anchor: Anchor
) -> tuple[torch.Tensor, torch.Tensor]:
    """An image (3, h, w) and its target (h, w) on a canvas; 255 beyond the target."""
    return pad(image, canvas, anchor, 0), pad(target, canvas, anchor, IGNORE)


def places(
    canvas: Sequence[int], sizes: Sequence[tuple[int, int]], anchor: Anchor
) -> list[tuple[slice, slice, slice]]:
    """Return the slices of each picture in a batch (B, H, W) of a canvas.

    Args:
        canvas: (.., H, W).
        sizes: Height and width of each picture.
        anchor: Their corner on the canvas.
    """
    height, width = canvas[-2:]
    found = []
    for number, (high, wide) in enumerate(sizes):
        top, left = (0, 0) if anchor == "start" else (height - high, width - wide)
        rows, columns = slice(top, top + high), slice(left, left + wide)
        found.append((slice(number, number + 1), rows, columns))
    return found
