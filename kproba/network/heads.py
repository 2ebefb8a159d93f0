"""TODO network.heads."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn


class Branch(nn.Module):
    """A 3×3 conv-BN-ReLU block and a 1×1 classifier."""

    def __init__(self, channels: int, outputs: int):
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        )
        self.classifier = nn.Conv2d(channels, outputs, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """ASPP features (B, A, h, w) to block features and logits."""
        features = self.block(x)
        return features, self.classifier(features)


class AddedClasses(nn.Module):
    """A 1×1 classifier of the classes of one step on the features of branch 0."""

    def __init__(self, channels: int, classes: int):
        super().__init__()
        self.classifier = nn.Conv2d(channels, classes, 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """g_0 (B, A, h, w) to [0, classes], (B, 1 + |C_k|, h, w): nothing adapts."""
        return F.pad(self.classifier(features), (0, 0, 0, 0, 1, 0))


def compose_logits(logits: Sequence[torch.Tensor]) -> torch.Tensor:
    """Branch logits to logits over S_t for inference.

    Args:
        logits: z_k of the branches 0..t, each (B, 1 + |C_k|, h, w).

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
        logits: z_k of the branches 0..t, each (B, 1 + |C_k|, h, w), t ≥ 1.

    Returns:
        (B, 1, h, w): sg(z_0) + Σ_{k<t} sg(min(r_k, 0)) + r_t.
    """
    return compose_logits(logits[:-1])[:, :1].detach() + logits[-1][:, :1]
