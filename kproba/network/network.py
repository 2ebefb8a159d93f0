"""The segmentation network: a backbone, a shared ASPP and a head.

Image (B, 3, H, W) -> backbone b (B, Cb, h, w) -> ASPP f (B, A, h, w) -> head: features
g_k (B, A, h, w) and logits z_k (B, 1 + |C_k|, h, w) of every step k. How they
are composed to logits over S_t is in `kproba.network.logits`. The ASPP is that of
DeepLabv3 (Chen et al., arXiv 1706.05587).
"""

import copy
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple, cast

import torch
from torch import nn
from torchvision.models.segmentation.deeplabv3 import ASPP

from kproba.network.architecture import Architecture
from kproba.network.backbones.backbone import Backbone
from kproba.network.convolutions import use_pointwise
from kproba.network.heads import Head, head_entry
from kproba.network.layers import KeyedDropout, PooledBatchNorm, upsample
from kproba.runtime.references import resolve


class Outputs(NamedTuple):
    """Everything a forward pass computes, at feature resolution.

    Attributes:
        backbone: b, (B, Cb, h, w).
        blocks: Features of the head's blocks, each (B, A, h, w); g_0 comes first.
        logits: z_k of every step, each (B, 1 + |C_k|, h, w).
        stages: Feature maps of the backbone's stages, each (B, C, h', w'): of all if
            `keep_stages` is set, else of the first `shared_stages`.
        extras: Further tensors that the head gives to the loss terms, by name.
    """

    backbone: torch.Tensor
    blocks: list[torch.Tensor]
    logits: list[torch.Tensor]
    stages: Sequence[torch.Tensor] = ()
    extras: Mapping[str, torch.Tensor] = MappingProxyType({})


class SegmentationNetwork(nn.Module):
    """Backbone, ASPP and a head with one module per step.

    Args:
        architecture: Settings of the network.
        classes_per_step: |C_0| without background, |C_1|, ...
        weights: Weights of the backbone: "imagenet", "none" or a path.
        seed: Seed of the initial weights.

    Attributes:
        head: The head's functions; its weights are in `branches`.
        branches: The head's module of every step.
        dropout: The only dropout; needs a key per image in training mode.
        keep_stages: Whether the outputs contain the backbone's stages.
        shared_stages: Number of first stages that the outputs always contain, for other
            networks that continue from there (`kproba.network.sharing`).

    Raises:
        ValueError: Unknown backbone, head or output stride, or weights that do not fit.
        FileNotFoundError: The file named in `weights` does not exist.
    """

    pixel_mean: torch.Tensor
    pixel_std: torch.Tensor

    def __init__(
        self,
        architecture: Architecture,
        classes_per_step: Sequence[int],
        *,
        weights: str = "none",
        seed: int = 0,
    ):
        super().__init__()
        self.architecture = architecture
        self.classes_per_step = list(classes_per_step)
        self.head: Head = resolve(head_entry(architecture.head).implementation)()
        self.keep_stages = False
        self.shared_stages = 0
        channels = architecture.aspp_channels
        # All parts use one random generator, so their order determines the weights.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.backbone = Backbone(
                architecture.backbone,
                output_stride=architecture.output_stride,
                weights=weights,
            )
            self.aspp = ASPP(
                self.backbone.channels, list(architecture.atrous_rates), channels
            )
            self.aspp.convs[-1][2] = PooledBatchNorm(channels)
            # torchvision has a fixed dropout of 0.5 from the global generator.
            self.dropout = KeyedDropout(architecture.aspp_dropout)
            self.aspp.project[-1] = self.dropout
            self.branches = nn.ModuleList(
                self.head.new(channels, count, first=step == 0)
                for step, count in enumerate(classes_per_step)
            )
            _initialise(self.aspp)
            _initialise(self.branches)
        use_pointwise(self)
        for module in self.backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = architecture.bn_momentum
        normalisation = self.backbone.normalisation
        for name, values in (("mean", normalisation.mean), ("std", normalisation.std)):
            pixels = 255 * torch.tensor(values).view(3, 1, 1)
            self.register_buffer(f"pixel_{name}", pixels, persistent=False)

    @property
    def channels(self) -> int:
        """|S_t|: background and all classes seen."""
        return 1 + sum(self.classes_per_step)

    def forward(self, images: torch.Tensor) -> Outputs:
        """Images (B, 3, H, W) uint8 to the outputs of all steps."""
        pixels = (images.float() - self.pixel_mean) / self.pixel_std
        return self.go_on(pixels.contiguous(memory_format=torch.channels_last), ())

    def go_on(
        self, features: torch.Tensor, done: Sequence[torch.Tensor] = ()
    ) -> Outputs:
        """Compute the outputs from the feature map of the first stages of the backbone.

        Args:
            features: Map of the last of these stages, (B, C, h', w'), or normalised
                pixels, (B, 3, H, W), if there are no such stages.
            done: The feature maps of these stages.
        """
        stages: list[torch.Tensor] | None = None
        if self.keep_stages or self.shared_stages > len(done):
            stages = list(done)
        features = self.backbone(features, stages, len(done))
        kept = done if stages is None else stages
        if not self.keep_stages:
            kept = kept[: self.shared_stages]
        return self.heads(features, kept)

    def heads(
        self, features: torch.Tensor, stages: Sequence[torch.Tensor] = ()
    ) -> Outputs:
        """Backbone features (B, Cb, h, w) to the outputs of all steps."""
        branches = cast("Sequence[nn.ModuleDict]", self.branches)
        blocks, logits = self.head.forward(branches, self.aspp(features))
        extras = self.head.extras(branches, blocks)
        return Outputs(features, blocks, logits, stages, extras)

    def log_probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Log p of composed logits, (B, |S_t|, H, W) to the same shape."""
        return self.head.log_probabilities(logits)

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """P of composed logits, (B, |S_t|, H, W), which may be overwritten."""
        return self.head.probabilities(logits)

    def compose(self, outputs: Outputs) -> torch.Tensor:
        """Composed logits of an inference, with the head's hidden channels.

        Returns:
            (B, |S_t| + hidden, h, w) float32.
        """
        return self.head.compose(outputs.logits, outputs.extras).float()

    def pixel_logits(self, outputs: Outputs, size: Sequence[int]) -> torch.Tensor:
        """Logits over S_t at the size (H, W) of an image, (B, |S_t|, H, W) float32."""
        return self.head.merge(upsample(self.compose(outputs), size))

    def feature_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the outputs for images of this size."""
        return self.backbone.feature_size(height, width)

    def predict_logits(self, images: torch.Tensor) -> torch.Tensor:
        """Logits over S_t, (B, |S_t|, H, W) float32, of images (B, 3, H, W) uint8."""
        return self.pixel_logits(self(images), images.shape[-2:])

    @torch.inference_mode()
    def predict(self, images: torch.Tensor) -> torch.Tensor:
        """Labels (B, H, W) uint8 in output indices; 0 is background."""
        return self.predict_logits(images).argmax(dim=1).to(torch.uint8)

    def set_training_mode(self, *, batch_norm: bool, dropout: bool = True) -> None:
        """Switch to training mode, except for the frozen stages.

        Args:
            batch_norm: Whether batch norms train (step 0) or are frozen.
            dropout: Whether the dropout is active.
        """
        self.train()
        self.dropout.train(dropout)
        self.backbone.freeze(self.architecture.frozen_stages)
        if not batch_norm:
            self.freeze_batch_norm()

    def train_only(self, part: Literal["heads", "newest", "nothing"]) -> None:
        """Freeze the backbone, or for "newest" all but what the head names.

        This is the newest step, unless `Head.newest` names more. For "nothing", freeze
        everything.
        """
        if part == "heads":
            self.backbone.requires_grad_(False)
            return
        modules = self.head.newest(self) if part == "newest" else []
        kept = {id(weight) for module in modules for weight in module.parameters()}
        for weight in self.parameters():
            if id(weight) not in kept:
                weight.requires_grad_(False)

    def freeze_batch_norm(self) -> None:
        """Freeze statistics, scale and shift of every batch norm."""
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
                module.requires_grad_(False)


def add_branch(
    previous: SegmentationNetwork,
    classes: int,
    *,
    seed: int,
    start_from_background: bool = False,
) -> SegmentationNetwork:
    """Build the network of the next step: a copy with one more module in its head.

    Args:
        previous: Network of step t-1; it is not changed.
        classes: |C_t|.
        seed: Seed of the new classifier.
        start_from_background: Derive the new classifier from the background's, where
            the head supports it (`kproba.network.heads`).
    """
    network = copy.deepcopy(previous)
    channels = network.architecture.aspp_channels
    # PyTorch uses the global generator for initial weights; restore it afterwards.
    with torch.random.fork_rng(devices=[]):
        branch = network.head.new(channels, classes, first=False)
    network.head.start(
        network, branch, seed=seed, start_from_background=start_from_background
    )
    use_pointwise(branch)
    network.branches.append(branch)
    network.classes_per_step.append(classes)
    return network


def _initialise(part: nn.Module) -> None:
    """Kaiming-normal convolutions with zero bias."""
    for module in part.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
