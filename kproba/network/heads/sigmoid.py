"""A sigmoid per class on shared features, without a background (DKD, STAR)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kproba.network.heads.head import Head, NetworkParts, ParameterGroup

if TYPE_CHECKING:
    import torch
    from torch import nn


class SigmoidHead(Head):
    """A classifier per step on shared features, with a sigmoid per class.

    One 3×3 block serves all steps. The background has no channel: its logit is 0, so
    the prediction is the class with the highest probability if that is above 0.5, else
    background (Baek et al., NeurIPS 2022, DKD; Chen et al., NeurIPS 2023, STAR).
    """

    auxiliary = False  # whether there is a classifier for "no class"
    decays_old = True  # whether the weights of old parts decay in an increment

    def new(self, channels: int, classes: int, *, first: bool) -> nn.ModuleDict:
        """Block and classifier for step 0, a classifier for later steps."""
        from torch import nn

        from kproba.network.layers import conv_block

        layers: dict[str, nn.Module] = {"block": conv_block(channels)} if first else {}
        layers["classifier"] = nn.Conv2d(channels, classes, 1)
        if first and self.auxiliary:
            layers["auxiliary"] = nn.Conv2d(channels, 1, 1)
        return nn.ModuleDict(layers)

    def forward(
        self, branches: Sequence[nn.ModuleDict], shared: torch.Tensor
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """[g_0], and z_k of every step k with 0 as its background."""
        from torch.nn.functional import pad

        block = branches[0]["block"](shared)
        logits = [branch["classifier"](block) for branch in branches]
        return [block], [pad(z, (0, 0, 0, 0, 1, 0)) for z in logits]

    def extras(
        self, branches: Sequence[nn.ModuleDict], blocks: list[torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Weights (C, A) and biases (C,) of all classes, for the loss terms.

        With an auxiliary classifier also its logit (B, 1, h, w), which gives no
        gradient to the features.
        """
        import torch

        from kproba.network.layers import get_classifier

        if torch.is_inference_mode_enabled():
            return {}  # not needed for a prediction
        classifiers = [get_classifier(branch) for branch in branches]
        biases = [layer.bias for layer in classifiers if layer.bias is not None]
        extras = {
            "weights": torch.cat([layer.weight.flatten(1) for layer in classifiers]),
            "biases": torch.cat(biases),
        }
        if self.auxiliary:
            extras["auxiliary"] = branches[0]["auxiliary"](blocks[0].detach())
        return extras

    def log_probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Log of a sigmoid per class, (B, |S_t|, H, W); they need not add up to 1."""
        from kproba.network.layers import log_sigmoid

        return log_sigmoid(logits)

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """A sigmoid per class, (B, |S_t|, H, W); `logits` are overwritten."""
        return logits.sigmoid_()

    def parameter_groups(self, network: NetworkParts) -> dict[str, ParameterGroup]:
        """Group the block with the ASPP from step 1 on, and the classifiers by age."""
        groups = super().parameter_groups(network)
        if len(network.branches) == 1:
            return groups
        first, *_, newest = network.branches
        block = first.get_submodule("block")
        old: list[nn.Module] = [
            layer
            for branch in network.branches
            if branch is not newest
            for layer in branch.children()
            if layer is not block
        ]
        decay = self.decays_old
        return {
            "backbone": ParameterGroup([network.backbone], "backbone", decay=decay),
            "aspp": ParameterGroup([network.aspp, block], "aspp", decay=decay),
            "branch": groups["branch"],
            "old_branches": ParameterGroup(old, "old_branches", decay=decay),
        }


class AuxiliaryHead(SigmoidHead):
    """As `SigmoidHead`, with an auxiliary classifier that learns "no class" (DKD).

    New classes start with its weights. In an increment only the weights of the new
    classes decay.
    """

    auxiliary = True
    decays_old = False

    def start(
        self,
        network: NetworkParts,
        branch: nn.Module,
        *,
        seed: int,
        start_from_background: bool,
    ) -> None:
        """Every new class gets weights and bias of the auxiliary classifier."""
        import torch
        from torch import nn

        from kproba.network.layers import get_classifier

        auxiliary = network.branches[0].get_submodule("auxiliary")
        new = get_classifier(branch)
        assert isinstance(auxiliary, nn.Conv2d)
        assert new.bias is not None and auxiliary.bias is not None
        with torch.no_grad():
            new.weight.copy_(auxiliary.weight.view(1, -1, 1, 1).expand_as(new.weight))
            new.bias.copy_(auxiliary.bias.expand_as(new.bias))
