"""A classifier per step on shared features with one softmax over S_t, as in DeepLab.

PLOP (Douillard et al., CVPR 2021), MiB (Cermelli et al., CVPR 2020) and LwF for
segmentation build on this head.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from kproba.network.heads.head import Branch, Head, NetworkParts, get_classifier


class AddedClasses(nn.Module):
    """A 1×1 classifier for the classes of one step on the features of step 0's block.

    Args:
        channels: A, of the block.
        classes: |C_k|.
    """

    def __init__(self, channels: int, classes: int):
        super().__init__()
        self.classifier = nn.Conv2d(channels, classes, 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """g_0 (B, A, h, w) to [0, classes], (B, 1 + |C_k|, h, w): r_k = 0."""
        return F.pad(self.classifier(features), (0, 0, 0, 0, 1, 0))


class SoftmaxHead(Head):
    """One 3×3 block for all steps; later steps add only a classifier."""

    def new(self, channels: int, classes: int, *, first: bool) -> nn.Module:
        """Block and classifier for step 0, a classifier for later steps."""
        if first:
            return Branch(channels, 1 + classes)
        return AddedClasses(channels, classes)

    def forward(
        self, branches: nn.ModuleList, shared: torch.Tensor
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """[g_0], and z_k of every step k; see `Head.forward`."""
        first, *added = branches
        block, z = first(shared)
        return [block], [z, *(classes(block) for classes in added)]

    def log_probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Log softmax over the classes, (B, |S_t|, H, W)."""
        return logits.log_softmax(dim=1)

    def start(
        self,
        network: NetworkParts,
        branch: nn.Module,
        *,
        seed: int,
        start_from_background: bool,
    ) -> None:
        """Random classes, or classes that share the background's probability.

        With `start_from_background` the new classes get the background's weights, and
        both its bias less log(|C_t| + 1): together they start with the probability that
        was the background's (MiB, section 3.3). This changes `network` as well.
        """
        super().start(
            network, branch, seed=seed, start_from_background=start_from_background
        )
        if not start_from_background:
            return
        old, new = get_classifier(network.branches[0]), get_classifier(branch)
        assert old.bias is not None and new.bias is not None
        with torch.no_grad():
            old.bias[0] -= math.log(new.out_channels + 1)
            new.weight.copy_(old.weight[:1].expand_as(new.weight))
            new.bias.fill_(old.bias[0])

    def parameter_groups(self, network: NetworkParts) -> dict[str, list[nn.Module]]:
        """The block learns as the ASPP does, all classifiers as the newest.

        At step 0 block and classifier are one part, as for other heads.
        """
        groups = super().parameter_groups(network)
        if len(network.branches) > 1:
            groups["aspp"].append(network.branches[0].get_submodule("block"))
            groups["branch"] = [get_classifier(branch) for branch in network.branches]
            groups["old_branches"] = []
        return groups
