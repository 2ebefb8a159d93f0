"""The settings that determine a network, without torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from kproba.runtime import records

# The keys in model.json and settings.json, of all versions. Extensions may add
# backbones and heads, so these names are checked when they are used.
ARCHITECTURE = records.record(
    {
        "backbone": records.text(100),
        "output_stride": records.integer(1, 64),
        "atrous_rates": records.list_of(records.integer(1, 1024), least=1, most=16),
        "aspp_channels": records.integer(1, 2**16),
        "aspp_dropout": records.number(0, 1),
        "bn_momentum": records.number(0, 1),
    },
    {
        "frozen_stages": records.integer(0, 64),
        "head": records.text(100),
        "softmax": records.flag,  # version 0.1 has this key instead of the head
    },
)


@dataclass(frozen=True)
class Architecture:
    """Settings of the network, except for its classes.

    Attributes:
        backbone: A name of `kproba.network.backbones.BACKBONES`.
        output_stride: Pixels per feature cell; 8 or 16 for the present backbones.
        atrous_rates: Dilations of the ASPP's 3×3 convolutions, in cells.
        aspp_channels: Channels A of the ASPP and of the head's 3×3 blocks.
        aspp_dropout: Dropout probability of the ASPP.
        bn_momentum: Momentum of the backbone's batch norms at step 0.
        frozen_stages: Number of first stages of the backbone that are never trained.
        head: A name of `kproba.network.heads.HEADS`.
    """

    backbone: str
    output_stride: Literal[8, 16]
    atrous_rates: tuple[int, ...]
    aspp_channels: int
    aspp_dropout: float
    bn_momentum: float
    frozen_stages: int = 0
    head: str = "branches"

    def __post_init__(self) -> None:
        object.__setattr__(self, "atrous_rates", tuple(self.atrous_rates))

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Architecture":
        """The architecture in a model.json or settings.json, of version 0.1 too.

        Version 0.1 had two heads, and wrote `softmax: true` or `false` to choose one.
        """
        content = dict(content)
        if "softmax" in content:
            softmax = content.pop("softmax")
            content.setdefault("head", "softmax" if softmax else "branches")
        return cls(**content)
