"""The settings of a bank."""

from dataclasses import dataclass
from typing import Literal

from kproba.runtime import records

# The keys in prototypes.json and in the settings of a job.
BANK_SETTINGS = records.record(
    {
        "feature": records.choice("backbone", "block", "both"),
        "map": records.choice("rff", "identity", "relu"),
        "scatter": records.flag,
        "ridge": records.maybe(records.number(0, 1e6)),
        "calibration_cells": records.integer(1, 10**9),
    },
    {
        "dimension": records.maybe(records.integer(2, 2**20)),
        "maps": records.integer(1, 1000),
        "gamma": records.maybe(
            records.either(records.choice("median"), records.number(above=0))
        ),
        "momentum": records.maybe(records.number(0, 1)),
        "regularisation": records.maybe(records.number(most=1e12, above=0)),
        "background": records.flag,
        "context": records.choice(1, 3),
    },
)


@dataclass(frozen=True)
class BankSettings:
    """The settings of a bank.

    Attributes:
        feature: "backbone": b; "block": g_0, the output of branch 0's 3×3 block;
            "both": b and g_0, one after the other.
        map: "rff" for random Fourier features, "identity" for none (LDA), "relu" for
            random ReLU features, on which the bank is a ridge regression.
        scatter: Whether the shared within-class scatter is accumulated.
        ridge: Added to the scatter's diagonal, as a share of the mean of its diagonal;
            None for "relu".
        calibration_cells: Cells drawn from the training images for standardisation,
            γ and temperature.
        dimension: D, random features per map, an even number; None for "identity".
        maps: E, number of maps; 1 for "identity" and "relu".
        gamma: γ on standardised features; "median": 1 / median ‖x - x'‖² of the
            calibration cells; None for "identity" and "relu".
        momentum: Momentum of an old class's mean when a step shows it again; None
            at step 0, which has no old classes, and for "relu".
        regularisation: λ, added to the diagonal of Σ φφᵀ over all cells; None for all
            maps but "relu".
        background: Whether the shared scatter holds the cells of the background. They
            are most of all cells, and hidden classes are among them. If the bank only
            tells classes apart, the scatter is better without them.
        context: 3: beside the features of a cell, the bank reads their mean over the
            3×3 cells around it; 1: the features alone.
    """

    feature: Literal["backbone", "block", "both"]
    map: Literal["rff", "identity", "relu"]
    scatter: bool
    ridge: float | None
    calibration_cells: int
    dimension: int | None = None
    maps: int = 1
    gamma: float | Literal["median"] | None = None
    momentum: float | None = None
    regularisation: float | None = None
    background: bool = True
    context: int = 1

    @property
    def exact(self) -> bool:
        """Whether the statistics are those of all cells of all steps together.

        Otherwise the means of old classes follow a later step with a momentum.
        """
        return self.map == "relu"
