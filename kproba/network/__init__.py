"""The segmentation network: backbone, ASPP and a head with one module per step.

The tables `kproba.network.backbones.BACKBONES` and `kproba.network.heads.HEADS` and
`Architecture` need no torch. The other names below are imported at their first use, so
that `import kproba.network` and the tables stay free of it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kproba.network.architecture import Architecture

if TYPE_CHECKING:
    from kproba.network.backbones.backbone import Backbone
    from kproba.network.files import load_model, save_model
    from kproba.network.heads import Head
    from kproba.network.layers import upsample
    from kproba.network.logits import compose_logits, training_background
    from kproba.network.network import Outputs, SegmentationNetwork, add_branch

__all__ = [
    "Architecture",
    "Backbone",
    "Head",
    "Outputs",
    "SegmentationNetwork",
    "add_branch",
    "compose_logits",
    "load_model",
    "save_model",
    "training_background",
    "upsample",
]

_MODULES = {
    "Backbone": "kproba.network.backbones.backbone",
    "Head": "kproba.network.heads",
    "Outputs": "kproba.network.network",
    "SegmentationNetwork": "kproba.network.network",
    "add_branch": "kproba.network.network",
    "compose_logits": "kproba.network.logits",
    "load_model": "kproba.network.files",
    "save_model": "kproba.network.files",
    "training_background": "kproba.network.logits",
    "upsample": "kproba.network.layers",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
