"""The table of backbones. The plan reads it, so nothing here imports torch.

A new backbone needs an entry in `BACKBONES` and the module that it refers to.
"""

from dataclasses import dataclass
from typing import Literal

from kproba.runtime.references import Reference

Channels = tuple[float, float, float]


@dataclass(frozen=True)
class BackboneEntry:
    """One backbone, an entry of `BACKBONES`.

    Functions are given as "package.module:name" (`kproba.runtime.references`), so that
    the entry needs no torch. "Body" is the `nn.Module` that `build` returns.

    Attributes:
        name: Value of `model.backbone` in the configuration.
        description: One line for the documentation.
        channels: Channels of the last feature map.
        output_strides: Supported pixels per cell of the last feature map.
        mean: Mean of the three input channels, for pixels in [0, 1].
        std: Their standard deviation.
        build: (output_stride: int) -> body with random weights. It maps images
            (B, 3, H, W) to the last feature map (B, channels, h, w), or to a list that
            ends with it.
        stages: (body) -> list[nn.Module] that, applied one after the other, compute the
            same feature map. The stem and the first stage are one module. They share
            their weights with the body.
        read_pretrained: () -> published ImageNet state dict, with its own key names.
            None: there are no such weights.
        adapt_state: (published state dict) -> state dict for the body. Raises
            ValueError if the tensors are those of another network. None: they have the
            keys of the body.
        packaged: The ImageNet weights come with a Python package, so no rule has to
            download them.
        feature_size: (height, width, output_stride) -> (h, w). None: ceil(height /
            output_stride) and ceil(width / output_stride).
        anchor: How its layers pad, "start" or "end" (`kproba.network.canvas`): then a
            GPU gets pictures of several sizes in one batch. None: it does not.
    """

    name: str
    description: str
    channels: int
    output_strides: tuple[int, ...]
    mean: Channels
    std: Channels
    build: Reference
    stages: Reference
    read_pretrained: Reference | None = None
    adapt_state: Reference | None = None
    packaged: bool = False
    feature_size: Reference | None = None
    anchor: Literal["start", "end"] | None = None


_EFFICIENTNET = "kproba.network.backbones.efficientnet"
_RESNET = "kproba.network.backbones.resnet"


def _resnet(depth: int) -> BackboneEntry:
    return BackboneEntry(
        name=f"resnet{depth}",
        description=f"Dilated ResNet-{depth} of torchvision.",
        channels=2048,
        output_strides=(8, 16),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        build=f"{_RESNET}:build_resnet{depth}",
        stages=f"{_RESNET}:stages",
        read_pretrained=f"{_RESNET}:read_resnet{depth}",
        adapt_state=f"{_RESNET}:adapt_state",
        anchor="start",
    )


BACKBONES: dict[str, BackboneEntry] = {
    entry.name: entry
    for entry in (
        BackboneEntry(
            name="efficientnet_lite0",
            description="Dilated EfficientNet-Lite0 of timm; small enough for a CPU.",
            channels=320,
            output_strides=(8, 16),
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            build=f"{_EFFICIENTNET}:build",
            stages=f"{_EFFICIENTNET}:stages",
            read_pretrained=f"{_EFFICIENTNET}:read_pretrained",
            adapt_state=f"{_EFFICIENTNET}:adapt_state",
            packaged=True,
            anchor="end",
        ),
        _resnet(50),
        _resnet(101),
    )
}


def backbone_entry(name: str) -> BackboneEntry:
    """The entry of a backbone.

    Raises:
        ValueError: There is none of this name.
    """
    if name not in BACKBONES:
        raise ValueError(
            f"Expected one of the backbones {', '.join(BACKBONES)}, but got {name!r}."
        )
    return BACKBONES[name]
