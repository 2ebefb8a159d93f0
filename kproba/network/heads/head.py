"""The parts that all heads have in common.

A head has one module per step, kept in `SegmentationNetwork.branches`. The module of
step 0 gives the logits [background, classes of C_0], that of step k ≥ 1 gives
[r_k, classes of C_k], with r_k the background adaptation of step k. The background's
logit over S_t is

    z_0 + Σ_{k=1..t} min(r_k, 0),

and while step t trains it is sg(z_0) + Σ_{k<t} sg(min(r_k, 0)) + r_t, with sg = no
gradient (Zhang & Gao, "Background Adaptation with Residual Modeling", ECCV 2024). A
head without such adaptation has r_k = 0.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import nn


class NetworkParts(Protocol):
    """The parts of `kproba.network.network.SegmentationNetwork` that a head uses."""

    aspp: nn.Module
    branches: nn.ModuleList

    @property
    def backbone(self) -> nn.Module:
        """The backbone."""


class Branch(nn.Module):
    """A 3×3 conv-BN-ReLU block and a 1×1 classifier: the module of step 0.

    Args:
        channels: A, of the ASPP and of the block.
        outputs: Logits, background or background adaptation included.
    """

    def __init__(self, channels: int, outputs: int):
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        )
        self.classifier = nn.Conv2d(channels, outputs, 1)

    def forward(self, shared: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """ASPP features (B, A, h, w) to block features (B, A, h, w) and logits."""
        features = self.block(shared)
        return features, self.classifier(features)


class Head(ABC):
    """How logits follow from the ASPP's features; it holds no weights itself.

    The modules of the steps have a `classifier`, a 1×1 convolution, and the first of
    them a `block`, which the bank and losses on features may read.
    """

    @abstractmethod
    def new(self, channels: int, classes: int, *, first: bool) -> nn.Module:
        """The module of one step.

        Args:
            channels: A, of the ASPP.
            classes: |C_k|, without background.
            first: Whether it is that of step 0.
        """

    @abstractmethod
    def forward(
        self, branches: nn.ModuleList, shared: torch.Tensor
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Block features and logits of the steps 0..t.

        Args:
            branches: The modules of the steps.
            shared: ASPP features, (B, A, h, w).

        Returns:
            Features g, each (B, A, h, w), as many as the head has blocks; and the
            logits z_k of every step, each (B, 1 + |C_k|, h, w).
        """

    @abstractmethod
    def log_probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Log p of composed logits, (B, |S_t|, H, W) to the same shape."""

    def start(
        self,
        network: NetworkParts,
        branch: nn.Module,
        *,
        seed: int,
        start_from_background: bool,
    ) -> None:
        """Set the initial weights of an added step: Kaiming-normal with zero bias.

        Args:
            network: The network without the step; a head may change it.
            branch: The module of the step, as `new` gave it.
            seed: Seed of the classifier's weights.
            start_from_background: Derive them from the background's; a head that
                cannot do so ignores it.
        """
        classifier = get_classifier(branch)
        generator = torch.Generator().manual_seed(seed)
        nn.init.kaiming_normal_(classifier.weight, generator=generator)
        if classifier.bias is not None:
            nn.init.zeros_(classifier.bias)

    def parameter_groups(self, network: NetworkParts) -> dict[str, list[nn.Module]]:
        """The modules that share a learning rate, by the name of the rate.

        Together they have all parameters of the network, each in one group.
        """
        *old, newest = network.branches
        return {
            "backbone": [network.backbone],
            "aspp": [network.aspp],
            "branch": [newest],
            "old_branches": old,
        }


def get_classifier(branch: nn.Module) -> nn.Conv2d:
    """The 1×1 convolution of a step."""
    classifier = branch.get_submodule("classifier")
    assert isinstance(classifier, nn.Conv2d)
    return classifier


def compose_logits(logits: Sequence[torch.Tensor]) -> torch.Tensor:
    """Compose the logits over S_t for inference.

    Args:
        logits: z_k of the steps 0..t, each (B, 1 + |C_k|, h, w).

    Returns:
        (B, |S_t|, h, w): z_0 + Σ_k min(r_k, 0) for the background, then the classes in
        the order of their steps.
    """
    background = logits[0][:, :1]
    for adaptation in logits[1:]:
        background = background + adaptation[:, :1].clamp(max=0)
    return torch.cat([background, *(z[:, 1:] for z in logits)], dim=1)


def training_background(logits: Sequence[torch.Tensor]) -> torch.Tensor:
    """The background's logit while the newest step trains, earlier parts protected.

    Args:
        logits: z_k of the steps 0..t, each (B, 1 + |C_k|, h, w), t ≥ 1.

    Returns:
        (B, 1, h, w): sg(z_0) + Σ_{k<t} sg(min(r_k, 0)) + r_t.
    """
    return compose_logits(logits[:-1])[:, :1].detach() + logits[-1][:, :1]
