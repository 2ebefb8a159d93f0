"""ImageNet weights of a backbone, from the source in its entry or from a file."""

import warnings
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from kproba.network.backbones import backbone_entry
from kproba.runtime.files import atomic_path
from kproba.runtime.records import ArtifactError, regular_file
from kproba.runtime.references import resolve
from kproba.runtime.tensors import find_not_finite, load_tensors

REMEDY = "Copy the file again, save it as .safetensors, or name another file."

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

    A node without internet can read this file (`model.weights`). The keys have their
    published names.

    Raises:
        ValueError: Unknown backbone.
        FileNotFoundError: There is no connection to download the weights.
    """
    state = _read_pretrained(name)
    with atomic_path(path) as temporary:
        save_file(state, temporary)


def _read_pretrained(name: str) -> State:
    reference = backbone_entry(name).read_pretrained
    if reference is None:
        raise ValueError(
            f"Expected 'none' or a file for model.weights, because the backbone {name} "
            f"has no ImageNet weights, but got 'imagenet'."
        )
    state: State = resolve(reference)()
    return state


def _read_state(path: Path) -> State:
    if not path.exists():
        raise FileNotFoundError(
            f"Expected backbone weights in {path.resolve()} (model.weights), but there "
            f"is no such file."
        )
    if path.suffix == ".safetensors":
        return load_tensors(path, remedy=REMEDY)
    regular_file(path, remedy=REMEDY)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings of the reader do not help here
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (MemoryError, PermissionError) as error:
        raise OSError(f"Expected to read {path}, but: {error}. {REMEDY}") from error
    except Exception as error:
        # The message of torch recommends running the code in the file, so leave it out.
        raise ArtifactError(
            f"Expected a file of tensors without code in {path} (model.weights), but "
            f"the file is damaged or has another format ({type(error).__name__}). "
            f"{REMEDY}"
        ) from None
    if isinstance(state, dict):
        state = state.get("state_dict", state)
    if not isinstance(state, dict) or not any(
        isinstance(value, torch.Tensor) for value in state.values()
    ):
        raise ArtifactError(
            f"Expected a state dict in {path} (model.weights), a dictionary of "
            f"tensors, but the file holds something else. {REMEDY}"
        )
    tensors = {k: v for k, v in state.items() if isinstance(v, torch.Tensor)}
    name = find_not_finite(tensors)
    if name is not None:
        raise ArtifactError(
            f"Expected finite numbers in {path} (model.weights), but the tensor {name} "
            f"holds NaN or infinity. {REMEDY}"
        )
    return tensors
