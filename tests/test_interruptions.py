"""A training that is stopped, killed or out of disk space goes on as if nothing was."""

import errno
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gloo_processes import finished_within
from training_runs import STATE, train_with, trained
from training_steps import command, interrupt, launch, step_settings

from kproba.runtime.compute import Compute
from kproba.runtime.distributed import Process
from kproba.runtime.files import FullDiskError
from kproba.training.checkpoint import StopFlag
from kproba.training.loop import Stopped


@pytest.mark.parametrize("processes", [1, 2])
def test_stopped_run_saves_its_state_and_ends_with_the_same_bytes(
    data: Path, base: Path, tmp_path: Path, processes: int
) -> None:
    settings = step_settings(1, epochs=30)
    more = {"previous": base, "processes": processes}
    whole = launch(data, tmp_path / "whole", settings, **more)
    out = tmp_path / "out"
    state = out / STATE
    words = command(data, out, settings, **more)  # a state every five minutes
    status, output = interrupt(
        words, signal.SIGTERM, lambda: any((out / "tensorboard").glob("events*"))
    )
    assert status == (143 if processes == 1 else 1)  # torchrun's own
    assert "the state is saved. Run the same command again" in output
    assert state.is_file()
    assert not (out / "model.safetensors").exists()
    launch(data, out, settings, **more)
    assert "resumed after" in (out / "train.log").read_text()
    for name in ("model.safetensors", "metrics.csv"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    assert not state.exists()


@pytest.mark.parametrize("processes", [1, 2])
def test_training_killed_again_and_again_ends_with_the_same_bytes(
    data: Path, base: Path, tmp_path: Path, processes: int
) -> None:
    settings = step_settings(1, epochs=40)
    whole = trained(data, tmp_path / "whole", settings, base=base, processes=processes)
    out = tmp_path / "killed"
    out.mkdir()
    (out / "settings.json").write_text(json.dumps(settings))
    job = (train_with, data, out, base, Compute(state_minutes=1e-6))
    random = np.random.default_rng(processes)
    resumed = 0
    for attempt, moment in enumerate(random.uniform(0.6, 1.8, size=100)):
        resumed += (out / STATE).exists()
        patience = 1.03**attempt  # on a busy machine nothing starts in a second
        if finished_within(moment * patience, processes, *job):
            break
        assert not (out / "metrics.csv").exists() or resumed
    assert resumed >= 3, "the run was not caught in the middle"
    for name in ("model.safetensors", "model.json", "metrics.csv"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    assert not (out / STATE).exists()


def test_full_disk_keeps_the_last_good_state(
    data: Path,
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    whole = trained(data, tmp_path / "whole", step_settings(1, epochs=4), base=base)
    out = tmp_path / "out"
    out.mkdir()
    (out / "settings.json").write_text(json.dumps(step_settings(1, epochs=4)))
    states: list[bytes] = []
    save = torch.save

    def fill_up_after_five(content: Any, path: Path) -> None:
        if len(states) == 5:
            # What torch raises when a write fails: no reason, no errno.
            free = shutil.disk_usage(out)._replace(free=0)
            monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
            raise RuntimeError("PytorchStreamWriter failed writing file data/3")
        save(content, path)
        states.append(Path(path).read_bytes())

    monkeypatch.setattr(torch, "save", fill_up_after_five)
    monkeypatch.setattr("kproba.training.loop.save_model", full_disk)
    compute = Compute(state_minutes=1e-6)
    with pytest.raises(OSError, match="disk is full"):
        train_with(Process(), data, out, base, compute)
    assert len([r for r in caplog.records if "disk is full" in r.message]) == 1
    assert (out / STATE).read_bytes() == states[-1]
    monkeypatch.undo()
    train_with(Process(), data, out, base, compute)
    for name in ("model.safetensors", "metrics.csv"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name


def full_disk(*_: Any, **__: Any) -> None:
    raise FullDiskError(errno.ENOSPC, "The disk is full: model.safetensors")


@pytest.mark.parametrize("writable", [True, False])
def test_a_stopped_run_says_whether_its_state_is_saved(
    data: Path,
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    writable: bool,
) -> None:
    (tmp_path / "settings.json").write_text(json.dumps(step_settings(1, epochs=4)))
    if not writable:
        monkeypatch.setattr(torch, "save", full_disk)
    message = "the state is saved" if writable else "the last state, if any, is kept"
    stop = StopFlag(requested=True)
    with pytest.raises(Stopped, match=message):
        train_with(Process(), data, tmp_path, base, Compute(), stop=stop)
    assert (tmp_path / STATE).exists() == writable


def test_state_of_other_settings_is_not_used(
    data: Path, base: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = command(data, out, step_settings(1, epochs=60), previous=base)
    interrupt(words, signal.SIGTERM, lambda: any((out / "tensorboard").glob("events*")))
    other = step_settings(1, epochs=2)
    launch(data, out, other, previous=base)
    assert "saved with other settings" in (out / "train.log").read_text()
    fresh = launch(data, tmp_path / "fresh", other, previous=base)
    assert (out / "model.safetensors").read_bytes() == (
        fresh / "model.safetensors"
    ).read_bytes()
