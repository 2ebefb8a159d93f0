"""A head per step and one for unknown objects (SSUL)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kproba.network.heads.head import Head, NetworkParts, ParameterGroup

if TYPE_CHECKING:
    import torch
    from torch import nn

UNKNOWN_LOGIT = "unknown"  # in the extras of the outputs
SUREST = 100.0  # largest merged logit of the background
BACKGROUND_FACTOR = 1e-4  # on the rate of the background in increments
# The parts of the first step's module. "block" and "classifier" are those of C_0.
BACKGROUND = ("background_block", "background_classifier")
UNKNOWN = ("unknown_block", "unknown_classifier")


class UnknownHead(Head):
    """A sigmoid per class, the background and unknown objects (SSUL, NeurIPS 2021).

    Unknown objects, background and the classes of every step have a 3×3 block and a
    1×1 convolution each, on the ASPP's features (Cha et al., arXiv 2106.11562). Later
    classes start as copies of the unknown class. The blocks in the outputs are those of
    C_0, .., C_t, then those of background and unknown.
    """

    hidden = 1

    def new(self, channels: int, classes: int, *, first: bool) -> nn.ModuleDict:
        """The classes of a step; at step 0 also the background and the unknown."""
        from torch import nn

        from kproba.network.layers import conv_block

        layers: dict[str, nn.Module] = {
            "block": conv_block(channels),
            "classifier": nn.Conv2d(channels, classes, 1),
        }
        for block, classifier in (BACKGROUND, UNKNOWN) if first else ():
            layers[block] = conv_block(channels)
            layers[classifier] = nn.Conv2d(channels, 1, 1)
        return nn.ModuleDict(layers)

    def forward(
        self, branches: Sequence[nn.ModuleDict], shared: torch.Tensor
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """The blocks, and z_k of every step k; see `Head.forward`."""
        import torch
        from torch.nn.functional import pad

        first = branches[0]
        blocks, logits = [], []
        for branch in branches:
            blocks.append(branch["block"](shared))
            # Later steps do not adapt the background: r_k = 0.
            logits.append(pad(branch["classifier"](blocks[-1]), (0, 0, 0, 0, 1, 0)))
        blocks += [first[block](shared) for block, _ in (BACKGROUND, UNKNOWN)]
        background = first[BACKGROUND[1]](blocks[-2])
        logits[0] = torch.cat([background, logits[0][:, 1:]], dim=1)
        return blocks, logits

    def extras(
        self, branches: Sequence[nn.ModuleDict], blocks: list[torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """The logit of unknown objects, `unknown`, (B, 1, h, w)."""
        return {UNKNOWN_LOGIT: branches[0][UNKNOWN[1]](blocks[-1])}

    def compose(
        self, logits: Sequence[torch.Tensor], extras: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """Background, classes and unknown objects, (B, |S_t| + 1, h, w)."""
        import torch

        known = super().compose(logits, extras)
        return torch.cat([known, extras[UNKNOWN_LOGIT]], dim=1)

    def merge(self, logits: torch.Tensor) -> torch.Tensor:
        """Count unknown objects as background: p_0 + p_unknown (SSUL's test).

        The logit of the background becomes log s - log(1 - s), with
        s = σ(z_0) + σ(z_unknown), and 100 where s ≥ 1. So the class with the largest
        logit is the one with the largest probability.

        Args:
            logits: Composed logits, (B, |S_t| + 1, H, W).

        Returns:
            (B, |S_t|, H, W).
        """
        import torch

        from kproba.network.layers import log_sigmoid

        background, unknown = logits[:, :1], logits[:, -1:]
        one, other = log_sigmoid(background), log_sigmoid(unknown)
        # log(e^one + e^other), which underflows nowhere.
        log_sum = torch.maximum(one, other) + (one - other).abs().neg().exp().log1p()
        # 1 - σ(a) - σ(b), without the rounding of σ near 1.
        rest = (-background).sigmoid() - unknown.sigmoid()
        merged = log_sum - rest.clamp(min=1e-37).log()
        merged = torch.where(rest > 0, merged.clamp(max=SUREST), SUREST)
        return torch.cat([merged, logits[:, 1:-1]], dim=1)

    def apart(self, logits: torch.Tensor) -> torch.Tensor:
        """Log p of background and unknown objects, each alone, (B, 2, H, W)."""
        import torch

        from kproba.network.layers import log_sigmoid

        return log_sigmoid(torch.cat([logits[:, :1], logits[:, -1:]], dim=1))

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
        """Every new class is a copy of the unknown class (SSUL).

        The block is copied with its running statistics. Neither `seed` nor
        `start_from_background` has an effect.
        """
        import torch

        from kproba.network.layers import get_classifier

        block, classifier = (network.branches[0].get_submodule(n) for n in UNKNOWN)
        branch.get_submodule("block").load_state_dict(block.state_dict())
        new = get_classifier(branch)
        old = dict(classifier.named_parameters())
        assert new.bias is not None
        with torch.no_grad():
            new.weight.copy_(old["weight"].expand_as(new.weight))
            new.bias.copy_(old["bias"].expand_as(new.bias))

    def newest(self, network: NetworkParts) -> list[nn.Module]:
        """The classes of the newest step, the unknown class and the background."""
        return [network.branches[-1], *self._parts(network, (*UNKNOWN, *BACKGROUND))]

    def parameter_groups(self, network: NetworkParts) -> dict[str, ParameterGroup]:
        """The unknown class trains like new classes, the background hardly at all.

        In an increment, the unknown class belongs to "branch", the background to
        "background", with 1e-4 of that rate, and the classes of C_0 to "old_branches".
        At step 0, all of them are one group, as for other heads.
        """
        groups = super().parameter_groups(network)
        first, *later = network.branches
        if not later:
            return groups
        named = dict(first.named_children())
        unknown, background = (self._parts(network, p) for p in (UNKNOWN, BACKGROUND))
        others = [named[key] for key in named if key not in (*UNKNOWN, *BACKGROUND)]
        return {
            "backbone": groups["backbone"],
            "aspp": groups["aspp"],
            "branch": ParameterGroup([later[-1], *unknown], "branch"),
            "background": ParameterGroup(
                background, "branch", factor=BACKGROUND_FACTOR
            ),
            "old_branches": ParameterGroup([*others, *later[:-1]], "old_branches"),
        }

    @staticmethod
    def _parts(network: NetworkParts, names: Sequence[str]) -> list[nn.Module]:
        return [network.branches[0].get_submodule(name) for name in names]
