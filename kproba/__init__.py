"""Class-incremental semantic segmentation: the method, usable without Snakemake.

Reading order: `methods`, `splits`, `digits`, `data`, `model`, `losses`, `prototypes`,
`pseudo_labels`, `prediction`, `training`, `evaluation`, `segmenter`, `report`. `config`
joins them to a workflow.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from pathlib import Path

    from kproba.model import SegmentationNetwork
    from kproba.segmenter import Segmenter


def load(path: "str | Path", device: str = "cpu") -> "Segmenter":
    """Load what a tested step learned; see `kproba.segmenter.load`."""
    from kproba.segmenter import load as load_step  # keeps `import kproba` light

    return load_step(path, device=device)


def load_model(path: "str | Path", device: str = "cpu") -> "SegmentationNetwork":
    """Load the model of any step for inference; see `kproba.model.load_model`."""
    from kproba.model import load_model as load  # keeps `import kproba` free of torch

    return load(path, device=device)


def __getattr__(name: str) -> Any:
    if name == "PrototypeBank":
        from kproba.prototypes import PrototypeBank

        return PrototypeBank
    if name == "FusedPredictor":
        from kproba.prediction import FusedPredictor

        return FusedPredictor
    raise AttributeError(f"module 'kproba' has no attribute {name!r}")
