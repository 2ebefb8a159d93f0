"""A saved state that is damaged or foreign: the step starts anew, and says so."""

import logging
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kproba.runtime.distributed import Process
from kproba.training.checkpoint import Checkpoint, Progress

MARK = "a" * 64
PROCESS = Process()


class _Code:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mknod, (str(self.path),)


def checkpoint(path: Path, kind: str = "sgd", mark: str = MARK) -> Checkpoint:
    """Of a small network after one step of its optimizer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    groups = [{"name": "all", "params": list(network.parameters())}]
    optimizer: torch.optim.Optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    if kind == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=0.1)
    network(torch.ones(2, 3)).square().sum().backward()
    optimizer.step()
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return Checkpoint(path, mark, network, optimizer, scaler)


def progress() -> Progress:
    rows = [{"iteration": 2, "loss": 0.5, "bce": 0.5, "lr_branch": 0.1}]
    return Progress(3, rows, {"bce": 0.25}, 1.5, [{"iteration": 2, "all": 50.0}])


@pytest.fixture(params=["sgd", "adamw"])
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Checkpoint:
    """A checkpoint whose state is saved."""
    made = checkpoint(tmp_path / "training-state.pt", request.param)
    assert made.save(progress(), PROCESS)
    return made


def weights(made: Checkpoint) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in made.network.state_dict().items()}


def test_a_sound_state_is_restored(saved: Checkpoint) -> None:
    kind = type(saved.optimizer).__name__.lower()
    other = checkpoint(saved.path, kind)
    with torch.no_grad():
        for parameter in other.network.parameters():
            parameter.zero_()
    assert other.load(PROCESS) == progress()
    for key, value in weights(saved).items():
        assert torch.equal(value, weights(other)[key])
    assert saved.path.exists()


def test_a_state_of_other_settings_is_not_used(
    saved: Checkpoint, caplog: pytest.LogCaptureFixture
) -> None:
    saved.mark = "b" * 64
    assert saved.load(PROCESS) == Progress()
    assert "other settings or inputs" in caplog.text


def _rewrite(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """A damage that changes the content of the state."""

    def damage(path: Path) -> None:
        state = torch.load(path, weights_only=True)
        changed = change(state)
        torch.save(state if changed is None else changed, path)

    return damage


def _cut(share: float) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        raw = path.read_bytes()
        path.write_bytes(raw[: int(share * len(raw))])

    return damage


def _replace(make: Callable[[Path], object]) -> Callable[[Path], None]:
    """A damage that puts something else in the place of the file."""

    def damage(path: Path) -> None:
        path.unlink()
        make(path)

    return damage


def _set(*keys: Any, value: Any) -> Callable[[Path], None]:
    def change(state: Any) -> None:
        for key in keys[:-1]:
            state = state[key]
        state[keys[-1]] = value

    return _rewrite(change)


def _spoil_moments(state: dict[str, Any]) -> None:
    moments = state["optimizer"]["state"][0]
    name = next(key for key in moments if key != "step")
    moments[name] = torch.zeros(7)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "empty": _cut(0),
    "one byte": lambda path: path.write_bytes(b"P") and None,
    "half": _cut(0.5),
    "without its end": _cut(0.99),
    "text": lambda path: path.write_text("no state\n" * 99) and None,
    "binary": lambda path: path.write_bytes(bytes(range(256)) * 9) and None,
    "a pickle": lambda path: path.write_bytes(pickle.dumps({"mark": MARK})) and None,
    "code": lambda path: (
        path.write_bytes(pickle.dumps({"mark": _Code(path.with_name("ran"))})) and None
    ),
    "code in an archive": lambda path: torch.save(
        {"mark": MARK, "network": _Code(path.with_name("ran"))}, path
    ),
    "a list": _rewrite(lambda state: [1, 2]),
    "a tensor": _rewrite(lambda state: torch.zeros(3)),
    "no mark": _rewrite(lambda state: state.pop("mark") and None),
    "no network": _rewrite(lambda state: state.pop("network") and None),
    "a tensor less": _rewrite(lambda state: state["network"].popitem() and None),
    "another shape": _set("network", "0.weight", value=torch.zeros(5, 5)),
    "another kind": _set("network", "0.weight", value=torch.zeros(4, 3).int()),
    "a number for a tensor": _set("network", "0.weight", value=1.0),
    "NaN": _set("network", "0.bias", value=torch.full((4,), float("nan"))),
    "no optimizer": _set("optimizer", value=None),
    "no groups": _set("optimizer", "param_groups", value=[]),
    "other parameters": _set("optimizer", "param_groups", 0, "params", value=[0]),
    "moments of others": _rewrite(_spoil_moments),
    "moments are a list": _set("optimizer", "state", 0, value=[1]),
    "another scaler": _set("scaler", value={"scale": 2.0}),
    "no progress": _set("progress", value=None),
    "no iteration": _rewrite(lambda s: s["progress"].pop("iteration") and None),
    "iteration is a text": _set("progress", "iteration", value="3"),
    "iteration is negative": _set("progress", "iteration", value=-3),
    "rows are a number": _set("progress", "rows", value=1),
    "sums are a dictionary": _set("progress", "sums", value={"bce": 1.0}),
    "sums are empty": _set("progress", "sums", value=[]),
    "sums differ": _set("progress", "sums", value=[{"bce": 1.0}, {"ce": 1.0}]),
    "a newer key": _set("progress", "mood", value=1),
    "a folder": _replace(Path.mkdir),
    "a FIFO": _replace(os.mkfifo),
    "a dangling link": _replace(lambda path: path.symlink_to("nowhere")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_starts_the_step_anew(
    saved: Checkpoint, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    path = saved.path
    before = weights(saved)
    moments = repr(saved.optimizer.state_dict())
    DAMAGES[damage](path)
    assert saved.load(PROCESS) == Progress()
    for key, value in weights(saved).items():
        assert torch.equal(value, before[key])
    assert repr(saved.optimizer.state_dict()) == moments
    assert not path.with_name("ran").exists()
    [message] = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert message.startswith(f"Expected the state of this training in {path}, but it ")
    assert "starts from its beginning" in message
    assert "weights_only" not in message
    assert "pickle" not in message.lower().replace("unpicklingerror", "")
    assert not os.path.lexists(path)
    assert os.path.lexists(path.with_name("training-state.pt.damaged"))
    # The step is not blocked: a new state is saved and found.
    assert saved.save(progress(), PROCESS)
    assert saved.load(PROCESS) == progress()


def test_only_the_latest_damaged_state_is_kept(saved: Checkpoint) -> None:
    aside = saved.path.with_name("training-state.pt.damaged")
    (aside / "older").mkdir(parents=True)
    saved.path.write_text("damaged")
    assert saved.load(PROCESS) == Progress()
    assert aside.read_text() == "damaged"
