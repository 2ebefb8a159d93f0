"""One step of training: what it changes, writes and says."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_runs import SHARED, train_with, trained
from training_steps import (
    RATES,
    command,
    largest_relative_difference,
    launch,
    step_settings,
)

from kproba.runtime.compute import Compute
from kproba.runtime.distributed import Process
from kproba.runtime.files import read_json
from kproba.training.checkpoint import StopFlag
from kproba.training.loop import Stopped
from kproba.training.monitor import Monitor


def test_validation_while_training_changes_nothing(
    data: Path, base: Path, alone: Path, tmp_path: Path
) -> None:
    out, settings = tmp_path / "1", step_settings(1, **SHARED)
    trained(data, out, settings, base=base, val_times=2, val_images=2)
    for name in ("model.safetensors", "metrics.csv"):
        assert (out / name).read_bytes() == (alone / name).read_bytes(), name
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    iterations = pd.read_csv(out / "metrics.csv")["iteration"]
    for name in ("validation/old", "validation/new", "validation/all"):
        found = events.Scalars(name)
        assert len(found) == 2
        assert found[-1].step == iterations.iloc[-1]
        assert all(0 <= entry.value <= 100 for entry in found)
    assert len(tags["images"]) == 2
    losses = [entry.value for entry in events.Scalars("loss/total")]
    np.testing.assert_allclose(
        losses, pd.read_csv(out / "metrics.csv")["loss"], rtol=1e-6
    )
    assert {"learning_rate/branch", "speed/images_per_second"} <= set(tags["scalars"])


def test_validations_before_an_interruption_stay_in_the_curves(
    data: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "settings.json").write_text(json.dumps(step_settings(1, **SHARED)))
    flag, validate = StopFlag(), Monitor.validate

    def validate_and_be_stopped(self: Monitor, *args: Any) -> Any:
        flag.requested = True
        return validate(self, *args)

    compute = Compute(val_times=2, val_images=2)
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Monitor, "validate", validate_and_be_stopped)
        train_with(Process(), data, tmp_path, base, compute, stop=flag)
    shutil.rmtree(tmp_path / "tensorboard")  # as Snakemake does
    train_with(Process(), data, tmp_path, base, compute)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    last = int(pd.read_csv(tmp_path / "metrics.csv")["iteration"].iloc[-1])
    steps = [entry.step for entry in events.Scalars("validation/all")]
    assert steps == [(last + 1) // 2, last]


def test_usage_holds_what_a_step_has_cost(alone: Path) -> None:
    usage = read_json(alone / "usage.json")
    assert usage["device"] == "CPU"
    assert usage["processes"] == 1
    assert usage["seconds"] > 0
    images = (
        pd.read_csv(alone / "metrics.csv")["iteration"].iloc[-1] * SHARED["batch_size"]
    )
    speed = images / usage["seconds"]
    assert usage["images_per_second"] == pytest.approx(speed, rel=0.2)
    assert 2**26 < usage["peak_memory_bytes"] < 2**34


def test_training_changes_what_it_should(
    data: Path, base: Path, tmp_path: Path
) -> None:
    out = launch(data, tmp_path / "out", step_settings(1), previous=base)
    before, after = load_file(base), load_file(out / "model.safetensors")
    assert set(after) - set(before) == {k for k in after if k.startswith("branches.1")}
    frozen = [
        key for key in before if "running_" in key or "num_batches_tracked" in key
    ]
    assert frozen
    assert all(torch.equal(before[key], after[key]) for key in frozen)
    assert not torch.equal(
        before["aspp.convs.0.0.weight"], after["aspp.convs.0.0.weight"]
    )


def test_loader_workers_do_not_change_a_byte(
    data: Path, base: Path, tmp_path: Path
) -> None:
    settings = step_settings(1)
    one, two = (
        launch(data, tmp_path / str(n), settings, previous=base, workers=n)
        for n in (0, 2)
    )
    for name in ("model.safetensors", "metrics.csv"):
        assert (one / name).read_bytes() == (two / name).read_bytes()


def test_a_compiled_backbone_trains_to_the_same_weights(
    data: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced as ever, but run by PyTorch: making kernels takes minutes."""
    traced = []

    def as_it_is(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        traced.append(len(graph.graph.nodes))
        return graph.forward

    compile_it = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self: compile_it(self, backend=as_it_is)
    )
    for name, compiled in (("eager", False), ("compiled", True)):
        (tmp_path / name).mkdir()
        settings = json.dumps(step_settings(1))
        (tmp_path / name / "settings.json").write_text(settings)
        compute = Compute(compile=compiled)
        train_with(Process(), data, tmp_path / name, base, compute)
        assert bool(traced) == compiled
    difference = largest_relative_difference(tmp_path / "eager", tmp_path / "compiled")
    assert difference < 1e-5


def test_loss_that_is_not_finite_names_the_images(
    data: Path, base: Path, tmp_path: Path
) -> None:
    hot = dict.fromkeys(RATES, 1e12)
    settings = step_settings(1, epochs=20, learning_rate=hot)
    done = subprocess.run(
        command(data, tmp_path / "out", settings, previous=base),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "The loss is not finite" in done.stderr
    assert "train_0" in done.stderr
    assert not (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize("method", ["kproba", "finetune"])
def test_log_and_metrics_name_every_term(
    data: Path, base: Path, tmp_path: Path, method: str
) -> None:
    out = launch(data, tmp_path / "out", step_settings(1, method), previous=base)
    terms = {"kproba": ["bce", "bga_ce", "bga_t", "gkd", "bfd"], "finetune": ["bce"]}
    metrics = pd.read_csv(out / "metrics.csv")
    columns = [name for name in metrics if not name.startswith("lr_")]
    assert columns == ["iteration", "loss", *terms[method]]
    torch.testing.assert_close(
        torch.tensor(metrics[terms[method]].sum(axis=1).to_numpy()),
        torch.tensor(metrics["loss"].to_numpy()),
    )
    log = (out / "train.log").read_text()
    assert "images/s" in log
    assert json.loads(log.strip().splitlines()[-1].split(" ", 1)[1])["step"] == 1
