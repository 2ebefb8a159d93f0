"""Class-incremental semantic segmentation: the package, usable without Snakemake.

The packages follow the data: `plan`, `data`, `network`, `bank`, `methods`, `training`,
`results`, `predict`; `jobs` holds the programs of the rules, and `runtime` starts and
logs them. docs/architecture.md has the order in which to read them.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from pathlib import Path

    from kproba.network.network import SegmentationNetwork
    from kproba.predict.segmenter import Segmenter


def load(path: "str | Path", device: str = "cpu") -> "Segmenter":
    """Load a trained and evaluated step; see `kproba.predict.segmenter.load`."""
    from kproba.predict.segmenter import (
        load as load_step,  # keeps `import kproba` light
    )

    return load_step(path, device=device)


def load_model(path: "str | Path", device: str = "cpu") -> "SegmentationNetwork":
    """Load the model of any step; see `kproba.network.files.load_model`."""
    from kproba.network.files import (
        load_model as load,  # keeps `import kproba` free of torch
    )

    return load(path, device=device)


def __getattr__(name: str) -> Any:
    if name == "PrototypeBank":
        from kproba.bank.bank import PrototypeBank

        return PrototypeBank
    if name == "FusedPredictor":
        from kproba.bank.predictor import FusedPredictor

        return FusedPredictor
    raise AttributeError(f"module 'kproba' has no attribute {name!r}")
