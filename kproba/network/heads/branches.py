"""A branch per step (BARM)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kproba.network.heads.head import Head, NetworkParts

if TYPE_CHECKING:
    import torch
    from torch import nn


class BranchHead(Head):
    """A branch per step with a sigmoid per class (BARM, Zhang & Gao, ECCV 2024).

    Every step has its own 3×3 block and classifier on the ASPP's features.
    """

    def new(self, channels: int, classes: int, *, first: bool) -> nn.ModuleDict:
        """A branch with |C_k| + 1 logits, as at step 0."""
        from torch import nn

        from kproba.network.layers import conv_block

        block, classifier = conv_block(channels), nn.Conv2d(channels, 1 + classes, 1)
        return nn.ModuleDict({"block": block, "classifier": classifier})

    def forward(
        self, branches: Sequence[nn.ModuleDict], shared: torch.Tensor
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """g_k and z_k of every branch k; see `Head.forward`."""
        blocks, logits = [], []
        for branch in branches:
            blocks.append(branch["block"](shared))
            logits.append(branch["classifier"](blocks[-1]))
        return blocks, logits

    def log_probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Log of a sigmoid per class, (B, |S_t|, H, W); they need not add up to 1."""
        from kproba.network.layers import log_sigmoid

        return log_sigmoid(logits)

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """A sigmoid per class, (B, |S_t|, H, W); `logits` are overwritten."""
        return logits.sigmoid_()

    def start(
        self,
        network: NetworkParts,
        branch: nn.Module,
        *,
        seed: int,
        start_from_background: bool,
    ) -> None:
        """The block is a copy of branch 0's, running statistics included."""
        first = network.branches[0].get_submodule("block")
        branch.get_submodule("block").load_state_dict(first.state_dict())
        super().start(
            network, branch, seed=seed, start_from_background=start_from_background
        )
