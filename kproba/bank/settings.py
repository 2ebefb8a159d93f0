"""TODO bank.settings."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class BankSettings:
    """What a bank is built from.

    Attributes:
        feature: "backbone": b; "block": g_0, the output of branch 0's 3×3 block;
            "both": b and g_0, one after the other.
        map: "rff" for random Fourier features, "identity" for none (LDA).
        dimension: D, random features per map, an even number.
        maps: E, number of maps (1 for "identity").
        gamma: γ on standardised features; "median": 1 / median ‖x - x'‖² of the
            calibration cells.
        scatter: Whether the shared within-class scatter is accumulated.
        momentum: Of an old class's mean when a later step shows the class again.
        ridge: Added to the scatter's diagonal, as a share of the mean of its diagonal.
        calibration_cells: Cells drawn from the training images for standardisation,
            γ and temperature.
    """

    feature: Literal["backbone", "block", "both"]
    map: Literal["rff", "identity"]
    dimension: int
    maps: int
    gamma: float | Literal["median"]
    scatter: bool
    momentum: float
    ridge: float
    calibration_cells: int
