"""The background-adaptation network: one branch per step on a shared ASPP.

Image (B, 3, H, W) -> backbone b (B, Cb, h, w) -> ASPP f (B, A, h, w) -> per branch a
3×3 block g_k (B, A, h, w) and a 1×1 convolution z_k. Branch 0 has the logits
[background, classes of C_0], branch k ≥ 1 has [r_k, classes of C_k], r_k being the
background adaptation of step k. Over S_t the background's logit is

    z_0 + Σ_{k=1..t} min(r_k, 0),

and while step t trains it is sg(z_0) + Σ_{k<t} sg(min(r_k, 0)) + r_t, with sg = no
gradient (Zhang & Gao, "Background Adaptation with Residual Modeling", ECCV 2024).

With `Architecture.softmax` later steps have no branch of their own: z_k is a 1×1
convolution on g_0 with the classes of C_k alone (r_k = 0), and one softmax over S_t
takes the place of the sigmoids, as in DeepLab and the methods built on it.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import nn
from torchvision.models.segmentation.deeplabv3 import ASPP

from kproba.network.backbones import Backbone
from kproba.network.heads import AddedClasses, Branch, compose_logits
from kproba.network.layers import KeyedDropout, PooledBatchNorm, upsample


@dataclass(frozen=True)
class Architecture:
    """What the network is built from, but for the classes.

    Attributes:
        backbone: One of `kproba.network.backbones.BACKBONES`.
        output_stride: 16 or 8.
        atrous_rates: Dilations of the ASPP's 3×3 convolutions, in cells.
        aspp_channels: Channels A of the ASPP and of the 3×3 blocks.
        aspp_dropout: Probability of the ASPP's dropout.
        bn_momentum: Of the backbone's batch norms at step 0.
        frozen_stages: First stages of the backbone that are never trained.
        softmax: One softmax over classes that share features, not a sigmoid per class
            and a branch per step.
    """

    backbone: str
    output_stride: Literal[8, 16]
    atrous_rates: tuple[int, ...]
    aspp_channels: int
    aspp_dropout: float
    bn_momentum: float
    frozen_stages: int = 0
    softmax: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "atrous_rates", tuple(self.atrous_rates))


class Outputs(NamedTuple):
    """Everything a forward pass computes, at feature resolution.

    Attributes:
        backbone: b, (B, Cb, h, w).
        blocks: g_k of every branch, each (B, A, h, w); with a softmax g_0 alone.
        logits: z_k of every branch, each (B, 1 + |C_k|, h, w).
        stages: Of the backbone, each (B, C, h', w'), if `keep_stages` is set.
    """

    backbone: torch.Tensor
    blocks: list[torch.Tensor]
    logits: list[torch.Tensor]
    stages: Sequence[torch.Tensor] = ()


class SegmentationNetwork(nn.Module):
    """Backbone, ASPP and one branch per step.

    Args:
        architecture: Settings of the network.
        classes_per_step: |C_0| without background, |C_1|, ...
        weights: Of the backbone: "imagenet", "none" or a path.
        seed: Of the initial weights.
    """

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
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            stride, channels = architecture.output_stride, architecture.aspp_channels
            self.backbone = Backbone(
                architecture.backbone, output_stride=stride, weights=weights
            )
            for module in self.backbone.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.momentum = architecture.bn_momentum
            self.aspp = ASPP(
                self.backbone.channels, list(architecture.atrous_rates), channels
            )
            self.aspp.convs[-1][2] = PooledBatchNorm(channels)
            # torchvision fixes the dropout at 0.5 and draws it from a global generator
            self.dropout = KeyedDropout(architecture.aspp_dropout)
            self.aspp.project[-1] = self.dropout
            self.branches = nn.ModuleList(
                AddedClasses(channels, count)
                if architecture.softmax and step > 0
                else Branch(channels, 1 + count)
                for step, count in enumerate(classes_per_step)
            )
            for part in (self.aspp, self.branches):
                for module in part.modules():
                    if isinstance(module, nn.Conv2d):
                        nn.init.kaiming_normal_(module.weight)
                        if module.bias is not None:
                            nn.init.zeros_(module.bias)
        statistics = self.backbone.normalisation
        for name, values in (("mean", statistics.mean), ("std", statistics.std)):
            tensor = 255 * torch.tensor(values).view(3, 1, 1)
            self.register_buffer(f"pixel_{name}", tensor, persistent=False)
        self.pixel_mean: torch.Tensor
        self.pixel_std: torch.Tensor
        self.keep_stages = False  # in the outputs

    @property
    def channels(self) -> int:
        """|S_t|: background and all classes seen."""
        return 1 + sum(self.classes_per_step)

    def forward(self, images: torch.Tensor) -> Outputs:
        """Images (B, 3, H, W) uint8 to the outputs of all branches."""
        pixels = (images.float() - self.pixel_mean) / self.pixel_std
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        stages: list[torch.Tensor] | None = [] if self.keep_stages else None
        features = self.backbone(pixels, stages)
        return self.heads(features, stages or ())

    def heads(
        self, features: torch.Tensor, stages: Sequence[torch.Tensor] = ()
    ) -> Outputs:
        """Backbone features (B, Cb, h, w) to the outputs of all branches."""
        shared = self.aspp(features)
        blocks: list[torch.Tensor] = []
        logits: list[torch.Tensor] = []
        for branch in self.branches:
            if isinstance(branch, AddedClasses):
                logits.append(branch(blocks[0]))
            else:
                block, own = branch(shared)
                blocks.append(block)
                logits.append(own)
        return Outputs(features, blocks, logits, stages)

    def predict_logits(self, images: torch.Tensor) -> torch.Tensor:
        """Logits over S_t, (B, |S_t|, H, W) float32, of images (B, 3, H, W) uint8."""
        logits = compose_logits(self(images).logits)
        return upsample(logits.float(), images.shape[-2:])

    @torch.inference_mode()
    def predict(self, images: torch.Tensor) -> torch.Tensor:
        """Labels (B, H, W) uint8 in output indices; 0 is background."""
        return self.predict_logits(images).argmax(dim=1).to(torch.uint8)

    def set_training_mode(self, *, batch_norm: bool) -> None:
        """Training mode, but for the frozen stages.

        Args:
            batch_norm: Whether batch norms train (step 0) or stay as they are.
        """
        self.train()
        self.backbone.freeze(self.architecture.frozen_stages)
        if not batch_norm:
            self.freeze_batch_norm()

    def train_only(self, part: Literal["heads", "newest"]) -> None:
        """Keep the backbone as it is or, for "newest", all but the newest branch."""
        *old, _ = self.branches
        kept = (self.backbone,) if part == "heads" else (self.backbone, self.aspp, *old)
        for module in kept:
            module.requires_grad_(False)

    def freeze_batch_norm(self) -> None:
        """Keep statistics, scale and shift of every batch norm as they are."""
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
    """The network of the next step: all weights copied, one branch added.

    The new 3×3 block starts as a copy of branch 0's, running statistics included; its
    1×1 convolution is Kaiming-normal with zero bias. With a softmax there is no block.

    Args:
        previous: Network of step t-1; left as it is.
        classes: |C_t|.
        seed: Of the new convolution.
        start_from_background: With a softmax, new classes get the background's weights
            instead, and both its bias less log(|C_t| + 1): together they start with
            the probability that was the background's (Cermelli et al., "Modeling the
            Background", CVPR 2020).
    """
    network = copy.deepcopy(previous)
    network.classes_per_step.append(classes)
    channels, first = network.architecture.aspp_channels, network.branches[0]
    assert isinstance(first, Branch)
    branch: Branch | AddedClasses
    with torch.random.fork_rng(devices=[]):
        if network.architecture.softmax:
            branch = AddedClasses(channels, classes)
        else:
            branch = Branch(channels, 1 + classes)
            branch.block.load_state_dict(first.block.state_dict())
    weight, bias = branch.classifier.weight, branch.classifier.bias
    assert bias is not None
    generator = torch.Generator().manual_seed(seed)
    nn.init.kaiming_normal_(weight, generator=generator)
    nn.init.zeros_(bias)
    if start_from_background and network.architecture.softmax:
        old = first.classifier
        assert old.bias is not None
        with torch.no_grad():
            old.bias[0] -= math.log(classes + 1)
            weight.copy_(old.weight[:1].expand_as(weight))
            bias.fill_(old.bias[0])
    network.branches.append(branch)
    return network
