"""The interface of the heads, which compute logits from the features of the ASPP.

A head has one module per step, kept in `SegmentationNetwork.branches`; how their logits
are composed is in `kproba.network.logits`. The plan reads the table of the heads, so
torch is imported inside the methods.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class ParameterGroup:
    """Parts of a network that the optimizer treats alike.

    Attributes:
        modules: Its modules.
        rate: Key of `learning_rate` in the configuration: "backbone", "aspp", "branch"
            or "old_branches".
        factor: Factor on that learning rate.
        decay: Whether its weights decay.
    """

    modules: list[nn.Module]
    rate: str
    factor: float = 1.0
    decay: bool = True


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

    Attributes:
        hidden: Number of channels after those of S_t that `compose` adds and `merge`
            takes away; 0 for heads without such channels.
    """

    hidden = 0

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

    def compose(
        self, logits: Sequence[torch.Tensor], extras: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """Compose the logits for inference, at the size of the features.

        Args:
            logits: z_k of the steps 0..t, each (B, 1 + |C_k|, h, w).
            extras: The result of `extras`.

        Returns:
            (B, |S_t| + `hidden`, h, w): background, classes, then hidden channels.
        """
        from kproba.network.logits import compose_logits

        return compose_logits(logits)

    def merge(self, logits: torch.Tensor) -> torch.Tensor:
        """Take the hidden channels away, at the size of the image.

        Any of the classes may be left out of the channels, but not the background.

        Args:
            logits: Composed logits, (B, |S_t| + `hidden`, H, W), upsampled.

        Returns:
            (B, |S_t|, H, W); here the argument itself.
        """
        return logits

    def apart(self, logits: torch.Tensor) -> torch.Tensor | None:
        """Log p of the background and each hidden channel, before `merge`.

        Args:
            logits: As for `merge`.

        Returns:
            (B, 1 + `hidden`, H, W); None if nothing is hidden.
        """
        return None

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

    def newest(self, network: NetworkParts) -> list[nn.Module]:
        """The modules that an increment with `trains: newest` trains.

        Batch norms in them stay frozen. Here: the module of the newest step.
        """
        return [network.branches[-1]]

    def parameter_groups(self, network: NetworkParts) -> dict[str, ParameterGroup]:
        """The parts of a network that the optimizer treats alike.

        Returns:
            Groups by name, which is a column "lr_<name>" of metrics.csv. Together they
            have all parameters of the network that train, each in one group. Here:
            "backbone", "aspp", "branch" (the newest) and "old_branches", each with the
            learning rate of its name.
        """
        *old, newest = network.branches
        parts: dict[str, list[nn.Module]] = {
            "backbone": [network.backbone],
            "aspp": [network.aspp],
            "branch": [newest],
            "old_branches": old,
        }
        return {name: ParameterGroup(part, name) for name, part in parts.items()}
