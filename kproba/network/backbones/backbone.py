"""The backbone as a module of the network, built from any entry of the table."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from kproba.network.backbones import Channels, backbone_entry
from kproba.network.backbones.weights import load_backbone_weights
from kproba.runtime.references import resolve


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation of the three channels, for pixels in [0, 1]."""

    mean: Channels
    std: Channels


class Recording(NamedTuple):
    """A recorded function, with the input shape and the first stage it is for."""

    compute: Callable[[torch.Tensor], tuple[torch.Tensor, ...]]
    given: tuple[torch.Size, int]


class Backbone(nn.Module):
    """Images (B, 3, H, W) to features (B, `channels`, *feature_size(H, W)).

    Args:
        name: A name of `kproba.network.backbones.BACKBONES`.
        output_stride: Pixels per cell; later strides become dilation.
        weights: "imagenet", "none", or the path of a state dict (.pth, .safetensors).

    Attributes:
        body: The layers, as the entry builds them.
        channels: Channels of the last feature map.
        normalisation: Normalises the images.
        anchor: How the layers pad, see `kproba.network.backbones.BackboneEntry`.

    Raises:
        ValueError: Unknown name or stride, or weights that do not fit.
        FileNotFoundError: The file named in `weights` does not exist.
    """

    def __init__(self, name: str, *, output_stride: int, weights: str):
        super().__init__()
        entry = backbone_entry(name)
        if output_stride not in entry.output_strides:
            raise ValueError(
                f"Expected an output stride of {entry.output_strides} for {name}, but "
                f"got {output_stride}."
            )
        self.name = name
        self.output_stride = output_stride
        self.channels = entry.channels
        self.anchor = entry.anchor
        self.normalisation = Normalisation(entry.mean, entry.std)
        # Resolved here: torch.compile could not follow the import in `forward`.
        self._stages_of = resolve(entry.stages)
        self._feature_size = resolve(entry.feature_size or _divide_extents)
        self._recording: Recording | None = None
        self.body: nn.Module = resolve(entry.build)(output_stride)
        if weights != "none":
            load_backbone_weights(self.body, name, weights)

    def stages(self) -> list[nn.Module]:
        """The stages in the order of the forward pass; the first includes the stem.

        They are listed again at every call, because batch norms may be replaced.
        """
        stages: list[nn.Module] = self._stages_of(self.body)
        return stages

    def freeze(self, stages: int) -> None:
        """Freeze the first `stages` stages with their batch norms; 0 freezes none.

        Early stages have learned edges and textures from ImageNet. Without their
        backward pass, which has a high resolution, training is faster.
        """
        for stage in self.stages()[:stages]:
            stage.eval().requires_grad_(False)

    def forward(
        self,
        images: torch.Tensor,
        stages: list[torch.Tensor] | None = None,
        start: int = 0,
    ) -> torch.Tensor:
        """Compute the last feature map of normalised images.

        Args:
            images: (B, 3, H, W) float, or the feature map of the first `start` stages.
            stages: If given, the feature map of every stage from `start` on is
                appended, (B, C, h', w') each; the last one is the result.
            start: Number of stages that are already computed.

        Returns:
            (B, `channels`, h, w).
        """
        recording = self._recording
        if recording is not None and (images.shape, start) == recording.given:
            maps = recording.compute(images)
            if stages is not None:
                stages.extend(maps[:-1])
            return maps[-1]
        if stages is None and not start:
            features = self.body(images)
            return features[-1] if isinstance(features, list) else features
        features = images
        for stage in self.stages()[start:]:
            features = stage(features)
            if stages is not None:
                stages.append(features)
        return features

    def use_recording(
        self,
        compute: Callable[[torch.Tensor], tuple[torch.Tensor, ...]],
        shape: torch.Size,
        start: int,
    ) -> None:
        """Use a recording for images of one shape (`kproba.training.graphs`).

        Args:
            compute: Maps images to the feature maps of the requested stages and the
                last.
            shape: Shape of the images, or of the map of the first `start` stages.
            start: Number of stages that are already computed.
        """
        self._recording = Recording(compute, (shape, start))

    def feature_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the last feature map for images of this size."""
        size: tuple[int, int] = self._feature_size(height, width, self.output_stride)
        return size


def _divide_extents(height: int, width: int, stride: int) -> tuple[int, int]:
    """Divide the extents, rounded up, as convolutions with half-kernel padding do."""
    return -(-height // stride), -(-width // stride)
