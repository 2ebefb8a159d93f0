"""A branch per step with a sigmoid per class (BARM, Zhang & Gao, ECCV 2024)."""

import torch
import torch.nn.functional as F
from torch import nn

from kproba.network.heads.head import Branch, Head, NetworkParts


class BranchHead(Head):
    """Every step has its own 3×3 block and classifier on the ASPP's features."""

    def new(self, channels: int, classes: int, *, first: bool) -> Branch:
        """A branch with |C_k| + 1 logits, as at step 0."""
        return Branch(channels, 1 + classes)

    def forward(
        self, branches: nn.ModuleList, shared: torch.Tensor
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """g_k and z_k of every branch k; see `Head.forward`."""
        blocks, logits = [], []
        for branch in branches:
            block, z = branch(shared)
            blocks.append(block)
            logits.append(z)
        return blocks, logits

    def log_probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Log of a sigmoid per class, (B, |S_t|, H, W); they need not add up to 1."""
        return F.logsigmoid(logits)

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
