"""Models on disk: model.safetensors with the weights, model.json beside it."""

from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from kproba.extensions import find_origins, load_recorded
from kproba.network.architecture import Architecture
from kproba.network.backbones import BACKBONES
from kproba.network.heads import HEADS
from kproba.network.network import SegmentationNetwork
from kproba.runtime.files import atomic_path, read_json, write_json


def save_model(
    network: SegmentationNetwork, path: str | Path, *, about: dict[str, Any]
) -> None:
    """Write the weights to `path` and the architecture to `path` with .json.

    Args:
        network: Network to save.
        path: Name ending in .safetensors.
        about: Further content of the JSON file: classes, provenance.
    """
    path = Path(path)
    state = {
        key: value.contiguous().cpu() for key, value in network.state_dict().items()
    }
    with atomic_path(path) as temporary:
        safetensors.torch.save_file(state, temporary)
    architecture = network.architecture
    # Of what the network is made of alone: loss terms are not needed to use it.
    parts = [("backbone", architecture.backbone), ("head", architecture.head)]
    extensions = find_origins(parts)
    write_json(
        path.with_suffix(".json"),
        {
            "architecture": vars(architecture),
            "classes_per_step": network.classes_per_step,
            **({"extensions": extensions} if extensions else {}),
            **about,
        },
    )


def load_model(path: str | Path, *, device: str = "cpu") -> SegmentationNetwork:
    """Load a model of any version for inference (evaluation mode, no gradient).

    Args:
        path: model.safetensors of any step, model.json beside it.
        device: Device of the returned network.

    Raises:
        FileNotFoundError: One of the two files is missing.
        ValueError: The model has a backbone or head that this version does not know.
        ExtensionError: It was made with a file of extensions that is not there.
    """
    path = Path(path)
    for needed in (path, path.with_suffix(".json")):
        if not needed.is_file():
            raise FileNotFoundError(
                f"Expected a model in {path} and its description beside it, but "
                f"{needed} does not exist."
            )
    about = read_json(path.with_suffix(".json"))
    architecture = Architecture.from_dict(about["architecture"])
    if architecture.backbone not in BACKBONES or architecture.head not in HEADS:
        load_recorded(about.get("extensions", []), path)
    network = SegmentationNetwork(architecture, about["classes_per_step"])
    network.load_state_dict(safetensors.torch.load_file(path))
    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network.eval().requires_grad_(False)
