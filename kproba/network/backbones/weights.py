"""ImageNet weights of a backbone: from where its entry says, or from a file."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from kproba.network.backbones import backbone_entry
from kproba.runtime.files import atomic_path
from kproba.runtime.references import resolve

State = dict[str, torch.Tensor]


def load_backbone_weights(body: nn.Module, name: str, weights: str) -> None:
    """Load ImageNet weights into the body of a backbone.

    Args:
        body: `Backbone.body`.
        name: A name of `kproba.network.backbones.BACKBONES`.
        weights: "imagenet" for what the entry's `read_pretrained` returns, otherwise
            the path of a state dict in the same form (.pth, .safetensors).

    Raises:
        FileNotFoundError: No such file, or no connection to fetch it.
        ValueError: Tensors are missing or have another shape. The body keeps its
            weights then.
    """
    entry = backbone_entry(name)
    if weights == "imagenet":
        state = _read_pretrained(name)
    else:
        state = _read_state(Path(weights))
    try:
        if entry.adapt_state is not None:
            state = resolve(entry.adapt_state)(state)
    except ValueError as error:
        raise ValueError(
            f"Expected weights of {name} in {weights}, but: {error}"
        ) from error
    expected = body.state_dict()
    wrong = [
        key
        for key, tensor in expected.items()
        if key not in state or state[key].shape != tensor.shape
    ]
    if wrong:
        raise ValueError(
            f"Expected weights of {name} in {weights}, but {len(wrong)} tensors are "
            f"missing or of another shape, such as {wrong[0]}."
        )
    body.load_state_dict({key: state[key] for key in expected})


def save_pretrained_weights(name: str, path: str | Path) -> None:
    """Write the published ImageNet weights of a backbone as safetensors.

    A node without internet reads that file instead (`model.weights`). The key names are
    those of the publication.

    Raises:
        ValueError: Unknown backbone.
        FileNotFoundError: There is no connection to fetch the weights.
    """
    state = _read_pretrained(name)
    with atomic_path(path) as temporary:
        save_file(state, temporary)


def _read_pretrained(name: str) -> State:
    reference = backbone_entry(name).read_pretrained
    if reference is None:
        raise ValueError(
            f"Expected model.weights 'none' or a file for the backbone {name}, which "
            f"has no ImageNet weights, but got 'imagenet'."
        )
    state: State = resolve(reference)()
    return state


def _read_state(path: Path) -> State:
    if not path.is_file():
        raise FileNotFoundError(
            f"Expected backbone weights in {path.resolve()} (model.weights), but there "
            f"is no such file."
        )
    if path.suffix == ".safetensors":
        return load_file(path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    return state.get("state_dict", state)
