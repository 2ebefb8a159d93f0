"""One softmax over the classes of all steps, as in DeepLab."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kproba.network.heads.head import Head, NetworkParts, ParameterGroup

if TYPE_CHECKING:
    import torch
    from torch import nn


class SoftmaxHead(Head):
    """A classifier per step on shared features with one softmax, as in DeepLab.

    One 3×3 block serves all steps; later steps add only a classifier. PLOP (Douillard
    et al., CVPR 2021), MiB (Cermelli et al., CVPR 2020) and LwF build on this head.
    """

    def new(self, channels: int, classes: int, *, first: bool) -> nn.ModuleDict:
        """Block and classifier for step 0, a classifier for later steps."""
        from torch import nn

        from kproba.network.layers import conv_block

        layers = {"block": conv_block(channels)} if first else {}
        outputs = 1 + classes if first else classes  # only step 0 has a background
        return nn.ModuleDict({**layers, "classifier": nn.Conv2d(channels, outputs, 1)})

    def forward(
        self, branches: Sequence[nn.ModuleDict], shared: torch.Tensor
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """[g_0], and z_k of every step k; see `Head.forward`."""
        from torch.nn.functional import pad

        first, *added = branches
        block = first["block"](shared)
        logits = [first["classifier"](block)]
        for branch in added:
            # Later steps do not adapt the background: r_k = 0.
            logits.append(pad(branch["classifier"](block), (0, 0, 0, 0, 1, 0)))
        return [block], logits

    def log_probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Log softmax over the classes, (B, |S_t|, H, W)."""
        return logits.log_softmax(dim=1)

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Softmax over the classes, (B, |S_t|, H, W)."""
        return logits.softmax(dim=1)

    def start(
        self,
        network: NetworkParts,
        branch: nn.Module,
        *,
        seed: int,
        start_from_background: bool,
    ) -> None:
        """Random weights, or weights that share the probability of the background.

        With `start_from_background`, the new classes get the weights of the background,
        and the bias of all of them is reduced by log(|C_t| + 1). So together they start
        with the previous probability of the background (MiB, section 3.3). This also
        changes `network`.
        """
        super().start(
            network, branch, seed=seed, start_from_background=start_from_background
        )
        if not start_from_background:
            return
        import torch

        from kproba.network.layers import get_classifier

        old, new = get_classifier(network.branches[0]), get_classifier(branch)
        assert old.bias is not None and new.bias is not None
        with torch.no_grad():
            old.bias[0] -= math.log(new.out_channels + 1)
            new.weight.copy_(old.weight[:1].expand_as(new.weight))
            new.bias.fill_(old.bias[0])

    def parameter_groups(self, network: NetworkParts) -> dict[str, ParameterGroup]:
        """Group the block with the ASPP, and all classifiers as the newest branch.

        At step 0, block and classifier are one group, as for other heads.
        """
        from kproba.network.layers import get_classifier

        groups = super().parameter_groups(network)
        if len(network.branches) > 1:
            block = network.branches[0].get_submodule("block")
            groups["aspp"].modules.append(block)
            classifiers = [get_classifier(branch) for branch in network.branches]
            groups["branch"] = ParameterGroup([*classifiers], "branch")
            del groups["old_branches"]
        return groups
