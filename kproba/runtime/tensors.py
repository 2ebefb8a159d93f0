"""Files of tensors (.safetensors): shapes are checked before tensors are loaded."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors

from kproba.runtime.files import atomic_path
from kproba.runtime.provenance import file_digest
from kproba.runtime.records import REMAKE, ArtifactError, regular_file

if TYPE_CHECKING:
    import torch

Shapes = dict[str, tuple[int, ...]]
KINDS = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL")


def read_shapes(path: str | Path) -> Shapes:
    """The shapes of the tensors in a file, by name; their values are not read.

    Raises:
        FileNotFoundError: There is no such file.
        ArtifactError: It is damaged, or holds something else.
        OSError: It must not be read.
    """
    regular_file(path)
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            names: list[str] = file.keys()
            slices = {name: file.get_slice(name) for name in names}
            kinds = {name: part.get_dtype() for name, part in slices.items()}
            shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
    except PermissionError as error:
        raise OSError(
            f"Expected to read {path}, but: {error.strerror}. Check its permissions."
        ) from error
    except (safetensors.SafetensorError, OSError, ValueError, OverflowError) as error:
        raise ArtifactError(_damaged(path, error)) from error
    unknown = [name for name, kind in kinds.items() if kind not in KINDS]
    if unknown:
        raise ArtifactError(
            f"Expected tensors of the types {', '.join(KINDS)} in {path}, but "
            f"{unknown[0]} has the type {kinds[unknown[0]]}. {REMAKE}"
        )
    return shapes


def load_tensors(
    path: str | Path, *, remedy: str = REMAKE
) -> "dict[str, torch.Tensor]":
    """The tensors of a file, by name, on the CPU; all of their numbers are finite.

    Args:
        path: The file.
        remedy: Advice for the user if it cannot be used.

    Raises:
        FileNotFoundError, OSError: As `read_shapes`.
        ArtifactError: It is damaged, or a number is NaN or infinite.
    """
    import safetensors.torch

    regular_file(path, remedy=remedy)
    try:
        tensors: dict[str, torch.Tensor] = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError, KeyError) as error:
        raise ArtifactError(_damaged(path, error, remedy)) from error
    name = find_not_finite(tensors)
    if name is not None:
        raise ArtifactError(
            f"Expected finite numbers in {path}, but the tensor {name} holds NaN or "
            f"infinity. The file was changed, or its training diverged. {remedy}"
        )
    return tensors


def save_tensors(tensors: "Mapping[str, torch.Tensor]", path: str | Path) -> str:
    """Write tensors to a file.

    Returns:
        The SHA-256 of the file.

    Raises:
        ValueError: A number is NaN or infinite; nothing is written.
        OSError: The file cannot be written.
    """
    import safetensors.torch

    name = find_not_finite(tensors)
    if name is not None:
        raise ValueError(
            f"Expected finite numbers to write to {path}, but the tensor {name} holds "
            f"NaN or infinity. The training diverged. Lower its learning rates, or set "
            f"increment.gradient_clip and base.gradient_clip."
        )
    plain = {key: value.contiguous().cpu() for key, value in tensors.items()}
    with atomic_path(path) as temporary:
        safetensors.torch.save_file(plain, temporary)
        return file_digest(temporary)


def find_not_finite(tensors: "Mapping[str, torch.Tensor]") -> str | None:
    """The name of a tensor that holds NaN or infinity; None if all are finite."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            return name
    return None


def compare_shapes(found: Shapes, expected: Shapes, path: str | Path) -> None:
    """Refuse tensors whose names or shapes do not fit a description.

    Args:
        found: Shapes in the file.
        expected: Shapes according to the description.
        path: The file; its description is beside it.

    Raises:
        ArtifactError: They differ; the message names the first tensor that does.
    """
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            raise ArtifactError(
                f"Expected {path} to hold what {Path(path).with_suffix('.json').name} "
                f"beside it describes, the tensor {name} {_size(expected.get(name))}, "
                f"but it is {_size(found.get(name))}: the two files are not of one "
                f"step, or one was changed. {REMAKE}"
            )


def check_digest(path: str | Path, recorded: str | None, recorder: str | Path) -> None:
    """Refuse a file whose digest differs from the recorded one.

    Args:
        path: The file.
        recorded: Its SHA-256; None if nothing was recorded, as before version 0.2.
        recorder: The file with this record.

    Raises:
        FileNotFoundError: There is no such file.
        ArtifactError: Its content is different.
        OSError: It must not be read.
    """
    if recorded is None:
        return
    regular_file(path)
    if file_digest(path) != recorded:
        raise ArtifactError(
            f"Expected {path} to be unchanged since {recorder} was written, but its "
            f"content is different. It is damaged, or belongs to another step or "
            f"method. {REMAKE}"
        )


def _size(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else f"of shape {list(shape)}"


def _damaged(path: str | Path, error: Exception, remedy: str = REMAKE) -> str:
    reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    return (
        f"Expected a complete file of tensors (.safetensors) in {path}, but it is "
        f"damaged or has another format ({reason}). {remedy}"
    )
