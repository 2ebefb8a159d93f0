"""Large images in prediction are processed as in the jobs, by `kproba.bank.large`."""

from kproba.bank.large import (
    MOST_VALUES,
    SAMPLE,
    Part,
    PartlyScored,
    PixelPredictor,
    edge_weights,
)

__all__ = [
    "MOST_VALUES",
    "SAMPLE",
    "Part",
    "PartlyScored",
    "PixelPredictor",
    "edge_weights",
]
