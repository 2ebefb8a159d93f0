"""The heads, which compute logits from the features of the ASPP.

A head has one module per step, kept in `SegmentationNetwork.branches`; how their logits
are composed is in `kproba.network.logits`. A new head is a subclass of `Head` and an
entry of `HEADS`. The plan reads the table, so torch is imported inside the methods.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from kproba.runtime.references import Reference

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class HeadEntry:
    """One head, an entry of `HEADS`.

    Attributes:
        name: Value of `Architecture.head`.
        description: One line for the documentation.
        base: Name of the pseudo method whose step 0 all methods with this head share.
        step_0_loss: Name of the cross-entropy of step 0.
        provides: Names of outputs that loss terms may need.
        implementation: Subclass of `Head`, or its reference
            "package.module:name"; it is called without arguments.
        step_0_terms: Weights of further loss terms of step 0, by name. They must need
            neither a teacher nor masks, which step 0 does not have.
    """

    name: str
    description: str
    base: str
    step_0_loss: str
    provides: frozenset[str]
    implementation: Reference
    step_0_terms: Mapping[str, float] = field(default_factory=dict)


HEADS: dict[str, HeadEntry] = {
    entry.name: entry
    for entry in (
        HeadEntry(
            name="branches",
            description="One branch per step, with a sigmoid per class.",
            base="base",
            step_0_loss="bce",
            provides=frozenset({"branches"}),
            implementation="kproba.network.heads:BranchHead",
        ),
        HeadEntry(
            name="softmax",
            description="One classifier per step on shared features, with one softmax.",
            base="base_softmax",
            step_0_loss="ce",
            provides=frozenset({"softmax"}),
            implementation="kproba.network.heads:SoftmaxHead",
        ),
    )
}


def head_entry(name: str) -> HeadEntry:
    """The entry of a head.

    Raises:
        ValueError: There is none of this name.
    """
    if name not in HEADS:
        raise ValueError(
            f"Expected one of the heads {', '.join(HEADS)}, but got {name!r}."
        )
    return HEADS[name]


class NetworkParts(Protocol):
    """The parts of `kproba.network.network.SegmentationNetwork` that a head uses."""

    aspp: nn.Module
    branches: nn.ModuleList

    @property
    def backbone(self) -> nn.Module:
        """The backbone."""


class Head(ABC):
    """Computes logits from the features of the ASPP; it holds no weights itself.

    The module of a step is an `nn.ModuleDict` of its layers: a "classifier", which is a
    1×1 convolution; in the first step a "block", whose features the bank and the losses
    may use; and further layers of the head.
    """

    @abstractmethod
    def new(self, channels: int, classes: int, *, first: bool) -> nn.ModuleDict:
        """The layers of one step.

        Args:
            channels: A, of the ASPP.
            classes: |C_k|, without background.
            first: Whether this is step 0.
        """

    @abstractmethod
    def forward(
        self, branches: Sequence[nn.ModuleDict], shared: torch.Tensor
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Block features and logits of the steps 0..t.

        Args:
            branches: The layers of the steps 0..t.
            shared: ASPP features, (B, A, h, w).

        Returns:
            Features g, each (B, A, h, w), as many as the head has blocks; and the
            logits z_k of every step, each (B, 1 + |C_k|, h, w). Channel 0 is the
            background at step 0, and later its adaptation r_k. A head that learns
            neither returns zeros there.
        """

    def extras(
        self, branches: Sequence[nn.ModuleDict], blocks: list[torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Further tensors for the loss terms, as `case.student.extras`; none here.

        Args:
            branches: The layers of the steps 0..t.
            blocks: The features that `forward` returned.
        """
        return {}

    @abstractmethod
    def log_probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Log p of composed logits, (B, |S_t|, H, W) to the same shape."""

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """P of composed logits, (B, |S_t|, H, W), which may be overwritten."""
        return self.log_probabilities(logits).exp_()

    def start(
        self,
        network: NetworkParts,
        branch: nn.Module,
        *,
        seed: int,
        start_from_background: bool,
    ) -> None:
        """Set the initial weights of a new step: Kaiming-normal with zero bias.

        Args:
            network: The network without the step; a head may change it.
            branch: The module of the step, as `new` gave it.
            seed: Seed of the classifier's weights.
            start_from_background: Derive them from the background's; a head that
                cannot do so ignores it.
        """
        import torch
        from torch import nn

        from kproba.network.layers import get_classifier

        classifier = get_classifier(branch)
        generator = torch.Generator().manual_seed(seed)
        nn.init.kaiming_normal_(classifier.weight, generator=generator)
        if classifier.bias is not None:
            nn.init.zeros_(classifier.bias)

    def parameter_groups(self, network: NetworkParts) -> dict[str, list[nn.Module]]:
        """The modules that share a learning rate.

        Returns:
            Modules by the keys of `learning_rate` in the configuration: "backbone",
            "aspp", "branch" (the newest) and "old_branches". Together they have all
            parameters of the network, each in one group.
        """
        *old, newest = network.branches
        return {
            "backbone": [network.backbone],
            "aspp": [network.aspp],
            "branch": [newest],
            "old_branches": old,
        }


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

    def parameter_groups(self, network: NetworkParts) -> dict[str, list[nn.Module]]:
        """Group the block with the ASPP, and all classifiers as the newest branch.

        At step 0, block and classifier are one group, as for other heads.
        """
        from kproba.network.layers import get_classifier

        groups = super().parameter_groups(network)
        if len(network.branches) > 1:
            groups["aspp"].append(network.branches[0].get_submodule("block"))
            groups["branch"] = [get_classifier(branch) for branch in network.branches]
            groups["old_branches"] = []
        return groups
