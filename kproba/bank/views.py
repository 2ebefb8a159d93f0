"""Outputs of networks for a whole batch, or image by image for a canvas."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from kproba.bank.fusion import Combination
from kproba.network.canvas import Canvas
from kproba.network.network import Outputs, SegmentationNetwork

Place = tuple[slice, ...]


class View(NamedTuple):
    """Outputs of the networks for some images of one size.

    Attributes:
        place: Slices of these images in the batch (B, H, W).
        size: Their height and width in pixels.
        outputs: Outputs of the network.
        features: Outputs that the bank uses: the same, or those of another network.
    """

    place: Place
    size: tuple[int, int]
    outputs: Outputs
    features: Outputs


def views(
    network: SegmentationNetwork,
    images: torch.Tensor,
    sizes: Sequence[tuple[int, int]] | None = None,
    combination: Combination | None = None,
) -> Iterator[View]:
    """Run the networks on a batch, and yield their outputs.

    Args:
        network: In evaluation mode.
        images: (B, 3, H, W) uint8, on the device of the network.
        sizes: Height and width of each image, where they are on a canvas; None: all
            have the size of the batch.
        combination: The bank that decides with the network; None without.

    Raises:
        ValueError: There are sizes, but the padding of the backbone is not known.
    """
    if sizes is None:
        outputs, features = _outputs(network, images, combination)
        height, width = images.shape[-2:]
        yield View((slice(None),), (height, width), outputs, features)
        return
    anchor = network.backbone.anchor
    if anchor is None:
        raise ValueError(
            f"Expected images of one size, because the backbone "
            f"{network.backbone.name} has no `anchor`, but got images of several sizes "
            f"on a canvas."
        )
    canvas = Canvas(images.shape, sizes, anchor, images.device)
    other = None if combination is None else combination.feature_network
    with canvas.masked(network, other):
        outputs, features = _outputs(network, images, combination)
    for number, place in enumerate(canvas.places(*images.shape[-2:])):
        of_image = canvas.crop(outputs, number)
        seen = of_image if features is outputs else canvas.crop(features, number)
        yield View(place, sizes[number], of_image, seen)


def _outputs(
    network: SegmentationNetwork,
    images: torch.Tensor,
    combination: Combination | None,
) -> tuple[Outputs, Outputs]:
    outputs: Outputs = network(images)
    if combination is None:
        return outputs, outputs
    return outputs, combination.features(outputs, images)
