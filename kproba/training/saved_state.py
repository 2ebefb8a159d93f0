"""Reads the state of an unfinished training, and checks it before it is used."""

import errno
import stat
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kproba.runtime import records

_NUMBERS = records.mapping_of(records.maybe(records.number()), most=1000)
PROGRESS = records.record(
    {
        "iteration": records.integer(),
        "rows": records.list_of(_NUMBERS, most=10**7),
        "sums": records.list_of(
            records.mapping_of(records.number(), most=1000), least=1
        ),
        "seconds": records.number(0),
        "validations": records.list_of(_NUMBERS, most=10**7),
    }
)


class DamagedStateError(ValueError):
    """A file is not a state of this training; the message gives the reason."""


def read_state(path: Path, device: str) -> dict[str, Any]:
    """Read a saved state; code in the file is never run.

    Args:
        path: The file.
        device: Device of the tensors.

    Raises:
        DamagedStateError: It is damaged, or something else.
        OSError: It must not be read.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise DamagedStateError("is not a file")
        # Any error of the reader means a damaged file; its warnings do not help here.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location=device, weights_only=True)
    except (DamagedStateError, MemoryError, torch.OutOfMemoryError):
        raise
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE):
            raise OSError(
                f"Expected to read {path}, but: {error.strerror}. Check its "
                f"permissions and its disk, or delete it to start the step again."
            ) from error
        raise DamagedStateError("cannot be opened or parsed") from error
    except Exception as error:
        # The reason that torch gives recommends to run the code in the file: left out.
        raise DamagedStateError(
            f"is damaged or has another format ({type(error).__name__})"
        ) from None
    if not isinstance(state, dict) or not isinstance(state.get("mark"), str):
        raise DamagedStateError("holds something else")
    return state


def check_state(
    state: Mapping[str, Any],
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> None:
    """Refuse a state that does not fit this training.

    Raises:
        DamagedStateError: A part is missing, or of other shapes or kinds.
    """
    parts = ("network", "optimizer", "scaler", "progress")
    if any(not isinstance(state.get(part), dict) for part in parts):
        raise DamagedStateError(f"lacks one of the parts {', '.join(parts)}")
    _compare("network", state["network"], network.state_dict())
    _check_optimizer(state["optimizer"], optimizer)
    if state["scaler"].keys() != scaler.state_dict().keys() or not all(
        isinstance(value, int | float) for value in state["scaler"].values()
    ):
        raise DamagedStateError("holds another scaler of the loss")
    try:
        PROGRESS(state["progress"], "progress")
    except records.MismatchError as error:
        raise DamagedStateError(
            f"holds no {error.expected} for `{error.where}`"
        ) from None
    sums = state["progress"]["sums"]
    if any(part.keys() != sums[0].keys() for part in sums):
        raise DamagedStateError("holds different loss terms of the processes")


def _check_optimizer(
    saved: Mapping[str, Any], optimizer: torch.optim.Optimizer
) -> None:
    """Refuse groups or moments of other parameters."""
    groups, moments = saved.get("param_groups"), saved.get("state")
    own = optimizer.state_dict()["param_groups"]
    if not isinstance(groups, list) or not isinstance(moments, dict):
        raise DamagedStateError("lacks the state of the optimizer")
    alike = len(groups) == len(own) and all(
        isinstance(group, dict)
        and group.keys() == mine.keys()
        and group["params"] == mine["params"]
        for group, mine in zip(groups, own, strict=True)
    )
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if not alike or not moments.keys() <= set(range(len(parameters))):
        raise DamagedStateError("holds the optimizer of another training")
    for index, values in moments.items():
        if not isinstance(values, dict):
            raise DamagedStateError("lacks the moments of the optimizer")
        for name, value in values.items():
            if isinstance(value, torch.Tensor) and name != "step":
                expected = {name: parameters[index]}
                _compare(f"optimizer, parameter {index}", {name: value}, expected)


def _compare(
    what: str, found: Mapping[str, Any], expected: Mapping[str, torch.Tensor]
) -> None:
    """Refuse tensors of other names, shapes or kinds, or with NaN or infinity."""
    if found.keys() != expected.keys():
        raise DamagedStateError(f"holds tensors with other names ({what})")
    for name, tensor in found.items():
        if not isinstance(tensor, torch.Tensor) or (
            tensor.shape != expected[name].shape
            or tensor.is_floating_point() != expected[name].is_floating_point()
        ):
            raise DamagedStateError(f"holds another {name} ({what})")
        if not bool(tensor.isfinite().all()):
            raise DamagedStateError(f"holds NaN or infinity in {name} ({what})")
