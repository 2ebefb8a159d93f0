"""Models on disk: model.safetensors with the weights, and model.json."""

from pathlib import Path
from typing import Any

import torch

from kproba.extensions import find_origins
from kproba.network.network import SegmentationNetwork
from kproba.network.record import ModelRecord, read_model_record
from kproba.runtime.files import write_json
from kproba.runtime.records import REMAKE, ArtifactError
from kproba.runtime.tensors import (
    Shapes,
    check_digest,
    compare_shapes,
    load_tensors,
    read_shapes,
    save_tensors,
)


def save_model(
    network: SegmentationNetwork, path: str | Path, *, about: dict[str, Any]
) -> None:
    """Write the weights to `path` and the architecture to `path` with .json.

    Args:
        network: Network to save.
        path: Name ending in .safetensors.
        about: Further content of the JSON file: classes, provenance.

    Raises:
        ValueError: A weight is NaN or infinite; nothing is written.
        OSError: A file cannot be written.
    """
    path = Path(path)
    digest = save_tensors(network.state_dict(), path)
    architecture = network.architecture
    # Only extensions of the network: loss terms are not needed to use it.
    parts = [("backbone", architecture.backbone), ("head", architecture.head)]
    extensions = find_origins(parts)
    write_json(
        path.with_suffix(".json"),
        {
            "architecture": vars(architecture),
            "classes_per_step": network.classes_per_step,
            "sha256": digest,
            **({"extensions": extensions} if extensions else {}),
            **about,
        },
    )


def load_model(path: str | Path, *, device: str = "cpu") -> SegmentationNetwork:
    """Load a model of any version for inference (evaluation mode, no gradient).

    Args:
        path: model.safetensors of any step, in one folder with its model.json.
        device: Device of the returned network.

    Raises:
        FileNotFoundError: One of the two files is missing.
        ArtifactError: A file is damaged, the two files do not belong together, or this
            version does not know the backbone or head. It is a ValueError.
        ExtensionError: A file of extensions that the model needs is missing.
    """
    path = Path(path)
    for needed in (path, path.with_suffix(".json")):
        if not needed.exists():
            raise FileNotFoundError(
                f"Expected a model in {path} and its description in the same folder, "
                f"but {needed} does not exist. {REMAKE}"
            )
    record = read_model_record(path)
    check_digest(path, record.sha256, record.path)
    shapes = read_shapes(path)
    _check_sizes(record, shapes, path)
    network = _build(record)
    state = network.state_dict()
    expected = {name: tuple(value.shape) for name, value in state.items()}
    compare_shapes(shapes, expected, path)
    network.load_state_dict(load_tensors(path))
    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network.eval().requires_grad_(False)


def _build(record: ModelRecord) -> SegmentationNetwork:
    """Build the network of a description, without its weights."""
    architecture = record.architecture
    record.load_extensions()
    try:
        return SegmentationNetwork(architecture, record.classes_per_step)
    except ValueError as error:
        raise ArtifactError(
            f"Expected {record.path} to describe a network that this version can "
            f"build, but: {error} {REMAKE}"
        ) from error


def _check_sizes(record: ModelRecord, shapes: Shapes, path: Path) -> None:
    """Refuse a description of a larger network than the one in the file of weights.

    This checks only the sizes that determine the memory, before the network is built.
    All names and shapes are compared later.

    Raises:
        ArtifactError: Channels or classes differ from those of the weights.
    """
    channels = record.architecture.aspp_channels
    held = (shapes.get("aspp.project.0.weight") or (0,))[0]
    if channels != held:
        raise ArtifactError(
            f"Expected {held} for `architecture.aspp_channels` in {record.path}, as in "
            f"{path}, but got {channels}. The two files belong to different steps, or "
            f"one was changed. {REMAKE}"
        )
    names = [name.split(".") for name in shapes]
    steps = {parts[1] for parts in names if parts[0] == "branches" and parts[1:]}
    if len(steps) != len(record.classes_per_step):
        raise ArtifactError(
            f"Expected {len(steps)} steps for `classes_per_step` in {record.path}, as "
            f"in {path}, but got {len(record.classes_per_step)}. The two files belong "
            f"to different steps, or one was changed. {REMAKE}"
        )
