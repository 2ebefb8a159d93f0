"""One step by torchrun: processes, restarts, workers and accumulation agree."""

import errno
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from gloo_processes import finished_within, in_processes
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_steps import (
    RATES,
    command,
    interrupt,
    largest_relative_difference,
    launch,
    step_settings,
    write_data,
)

from kproba.bank.decision import Decision
from kproba.data.label_images import read_label_image, write_label_image
from kproba.data.labels import UNSURE, LabelMap
from kproba.data.splits import read_index
from kproba.data.tasks import parse_task
from kproba.jobs.build_bank import BankFiles, build_step_bank
from kproba.runtime.compute import Compute
from kproba.runtime.distributed import Process
from kproba.runtime.files import FullDiskError, read_json
from kproba.runtime.launch import free_port
from kproba.training.checkpoint import StopFlag
from kproba.training.loop import Stopped, train
from kproba.training.monitor import Monitor
from kproba.training.settings import Files, StepSettings

STATE = "training-state.pt"
SMALL_RATES = {"backbone": 1e-4, "aspp": 1e-3, "branch": 1e-3}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def base(data: Path) -> Path:
    """A trained step 0."""
    return launch(data, data / "base", step_settings(0)) / "model.safetensors"


def train_with(
    process: Process,
    data: Path,
    out: Path,
    base: Path | None,
    compute: Compute,
    inputs: dict[str, Path] | None = None,
    **more: Any,
) -> None:
    """Train the step of `out`/settings.json; every process writes its weights.

    Args:
        process: This process of several.
        data: What `write_data` wrote.
        out: Folder of the outputs.
        base: Model of step t-1.
        compute: What the machine offers.
        inputs: Further inputs, as attributes of `Files`.
        more: Of `train`.
    """
    settings = StepSettings.from_dict(read_json(out / "settings.json"))
    files = Files(
        split=data / f"step{settings.step}.csv",
        previous=base,
        model=out / "model.safetensors",
        metrics=out / "metrics.csv",
        usage=out / "usage.json",
        validation=(data / "index.csv",),
        tensorboard=out / "tensorboard",
        **(inputs or {}),
    )
    assert files.state == out / STATE
    network = train(settings, files, compute, process, **more)
    weights = {key: value.contiguous() for key, value in network.state_dict().items()}
    save_file(weights, out / f"rank{process.rank}.safetensors")


def trained(
    data: Path,
    out: Path,
    settings: dict,
    *,
    base: Path | None = None,
    processes: int = 1,
    inputs: dict[str, Path] | None = None,
    **compute: Any,
) -> Path:
    out.mkdir()
    (out / "settings.json").write_text(json.dumps(settings))
    job = (train_with, data, out, base, Compute(**compute), inputs)
    in_processes(processes, *job)
    return out


SHARED = {"batch_size": 12, "epochs": 3}


@pytest.fixture(scope="module")
def alone(data: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Step 1 by one process."""
    folder = tmp_path_factory.mktemp("alone")
    return trained(data, folder / "1", step_settings(1, **SHARED), base=base)


@pytest.mark.parametrize(
    ("processes", "accumulation"), [(1, 2), (2, 1), (2, 3), (3, 1), (3, 4), (4, 1)]
)
def test_processes_and_micro_batches_give_the_weights_of_one_process(
    data: Path,
    base: Path,
    alone: Path,
    tmp_path: Path,
    processes: int,
    accumulation: int,
) -> None:
    shared = trained(
        data,
        tmp_path / "shared",
        step_settings(1, **SHARED),
        base=base,
        processes=processes,
        accumulation=accumulation,
    )
    assert largest_relative_difference(alone, shared) < 1e-5
    columns = [pd.read_csv(path / "metrics.csv")["loss"] for path in (alone, shared)]
    torch.testing.assert_close(*(torch.tensor(c.to_numpy()) for c in columns))
    ranks = [load_file(shared / f"rank{r}.safetensors") for r in range(processes)]
    assert all(torch.equal(ranks[0][k], rank[k]) for rank in ranks for k in ranks[0])
    start = load_file(base)
    assert any(not torch.equal(ranks[0][key], start[key]) for key in start)


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
    losses = [entry.value for entry in events.Scalars("loss/loss")]
    np.testing.assert_allclose(
        losses, pd.read_csv(out / "metrics.csv")["loss"], rtol=1e-6
    )
    assert {"learning_rate/lr_branch", "speed/images_per_second"} <= set(
        tags["scalars"]
    )


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


@pytest.fixture(scope="module")
def targets(data: Path) -> Path:
    """Targets of step 1 with old classes and unsure pixels in the background."""
    folder = data / "pseudo_labels"
    folder.mkdir()
    random = np.random.default_rng(0)
    table = LabelMap(parse_task("6-2", 10)[:2]).training_table()
    for row in read_index(data / "step1.csv").itertuples():
        labels = table[read_label_image(row.mask)]
        found = random.choice([0, 3, UNSURE], labels.shape, p=[0.5, 0.2, 0.3])
        labels = np.where(labels == 0, found, labels).astype(np.uint8)
        write_label_image(folder / f"{row.id}.png", labels)
    return folder


def trained_twice(
    data: Path,
    out: Path,
    settings: dict,
    base: Path,
    inputs: dict[str, Path] | None = None,
) -> Path:
    """Step 1 by one process; two with three micro-batches give the same weights."""
    one, two = (
        trained(
            data,
            out / f"{processes}",
            settings,
            base=base,
            processes=processes,
            inputs=inputs,
            accumulation=accumulation,
        )
        for processes, accumulation in ((1, 1), (2, 3))
    )
    assert largest_relative_difference(one, two) < 1e-5
    return one


TERMS = {
    "kproba": {"bce", "bga_ce", "bga_t", "gkd", "bfd"},
    "barm": {"bce", "bga_ce", "bga_t", "gkd", "bfd"},
    "ssul": {"bce"},
    "plop": {"ce", "pod", "pod_logits"},
    "mib": {"ce", "unbiased_kd"},
    "lwf": {"ce", "kd"},
    "finetune": {"bce"},
}
ALL_TERMS = set().union(*TERMS.values())


@pytest.mark.parametrize("method", TERMS)
def test_every_method_gives_the_same_weights_by_two_processes(
    data: Path, targets: Path, tmp_path: Path, method: str
) -> None:
    first = trained(data, tmp_path / "base", step_settings(0, method))
    base = first / "model.safetensors"
    settings = step_settings(1, method, **SHARED)
    inputs = {}
    if method in ("kproba", "barm", "ssul", "plop"):
        inputs = {"pseudo_labels": targets}
    one = trained_twice(data, tmp_path, settings, base, inputs)
    before, after = load_file(base), load_file(one / "model.safetensors")
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert bool(changed) == (method != "ssul")  # there only the new branch learns
    new = {key for key in after if key.startswith("branches.1")}
    assert set(after) - set(before) == new
    softmax = method in ("plop", "mib", "lwf")
    assert len(new) == (2 if softmax else 8)
    metrics = pd.read_csv(one / "metrics.csv")
    assert TERMS[method] == {name for name in metrics if name in ALL_TERMS}
    assert np.isfinite(metrics.to_numpy()).all()


def test_backbone_stays_and_serves_the_teacher_if_the_heads_train_alone(
    data: Path, base: Path, targets: Path, tmp_path: Path
) -> None:
    settings = step_settings(1, **SHARED)
    settings["method"]["trains"] = "heads"
    inputs = {"pseudo_labels": targets}
    one = trained_twice(data, tmp_path, settings, base, inputs)
    before, after = load_file(base), load_file(one / "model.safetensors")
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert {key.split(".")[0] for key in changed} == {"aspp", "branches"}
    # The teacher that runs its own backbone says the same.
    settings["method"]["trains"] = "all"
    settings["optimisation"]["learning_rate"]["backbone"] = 0.0
    settings["optimisation"]["floor"] = 0.0
    slow = trained(data, tmp_path / "slow", settings, base=base, inputs=inputs)
    assert largest_relative_difference(one, slow) < 1e-5


def test_a_bank_teaches_an_increment(
    data: Path, base: Path, alone: Path, tmp_path: Path
) -> None:
    bank, groups = tmp_path / "prototypes.safetensors", parse_task("6-2", 10)[:1]
    corrected = step_settings(1, **SHARED)
    job = {
        "settings": {
            **{"feature": "backbone", "map": "identity", "scatter": True},
            **{"ridge": 0.01, "calibration_cells": 500},
        },
        **{"groups": groups, "names": corrected["class_names"][:7]},
        **{"sequential": False, "seed": 0, "keep_temperature": False},
    }
    files = BankFiles(base, data / "step0.csv", bank)
    build_step_bank(files, job, Compute(), Process())
    assert corrected["decision"] is None
    corrected["decision"] = Decision(posterior_weight=0.5, image_prior=1).to_dict()
    one = trained_twice(data, tmp_path, corrected, base, {"bank": bank})
    assert largest_relative_difference(one, alone) > 1e-4
    terms = [pd.read_csv(path / "metrics.csv").iloc[0] for path in (one, alone)]
    for name in ("bce", "bfd"):  # of the first iteration: the same network
        assert terms[0][name] == pytest.approx(terms[1][name], rel=1e-5)
    assert terms[0]["gkd"] != pytest.approx(terms[1]["gkd"], rel=1e-3)
    # Features of another network, here the same one, come from a pass of their own.
    inputs = {"bank": bank, "feature_network": base}
    again = trained(data, tmp_path / "again", corrected, base=base, inputs=inputs)
    assert largest_relative_difference(one, again) < 1e-5
    with pytest.raises(ValueError, match="Expected the bank and the model of the prev"):
        train_with(Process(), data, again, base, Compute())


def test_two_nodes_give_the_weights_of_one_process(
    data: Path, base: Path, alone: Path, tmp_path: Path
) -> None:
    """Two agents on two addresses of this machine, two processes each."""
    (tmp_path / "settings.json").write_text(json.dumps(step_settings(1, **SHARED)))
    job = ["--nodes=2", "--processes=4", f"--rendezvous=127.0.0.2:{free_port()}"]
    files = {
        "split": data / "step1.csv",
        "previous": base,
        "model": tmp_path / "model.safetensors",
        "metrics": tmp_path / "metrics.csv",
        "usage": tmp_path / "usage.json",
        "tensorboard": tmp_path / "tensorboard",
    }
    words = ["kproba.jobs.train", str(tmp_path / "settings.json")]
    words += [f"--{name}={path}" for name, path in files.items()]
    agents = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "kproba.runtime.launch", *job),
                *(f"--address=127.0.0.{number}", *words),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in (2, 3)
    ]
    outputs = [agent.communicate(timeout=300)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], outputs
    assert sum("= 4 process(es) x 1" in output for output in outputs) == 1
    assert largest_relative_difference(alone, tmp_path) < 1e-5


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_step_0_of_several_processes_has_the_batch_norm_of_one(
    data: Path, tmp_path: Path, processes: int
) -> None:
    settings = step_settings(
        0, weights="imagenet", batch_size=12, epochs=2, learning_rate=SMALL_RATES
    )
    one = trained(data, tmp_path / "one", settings)
    several = trained(data, tmp_path / "several", settings, processes=processes)
    # Rounding grows where statistics are taken anew: more than in an increment.
    assert largest_relative_difference(one, several) < 1e-3
    ranks = [load_file(several / f"rank{r}.safetensors") for r in range(processes)]
    assert all(torch.equal(ranks[0][k], rank[k]) for rank in ranks for k in ranks[0])


def test_batches_of_one_image_do_not_break_batch_norm(
    data: Path, tmp_path: Path
) -> None:
    settings = step_settings(0, batch_size=4, learning_rate=SMALL_RATES)
    one = trained(data, tmp_path / "one", settings, accumulation=4)
    several = trained(data, tmp_path / "several", settings, processes=4)
    for folder in (one, several):
        weights = load_file(folder / "model.safetensors")
        assert all(
            t.isfinite().all() for t in weights.values() if t.is_floating_point()
        )


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
    assert "the state is saved, ask again to go on" in output
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
    settings = step_settings(1, epochs=12)
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
    message = "the state is saved" if writable else "an older state is kept, if any"
    stop = StopFlag(requested=True)
    with pytest.raises(Stopped, match=message):
        train_with(Process(), data, tmp_path, base, Compute(), stop=stop)
    assert (tmp_path / STATE).exists() == writable


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


def test_state_of_other_settings_is_not_used(
    data: Path, base: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = command(data, out, step_settings(1, epochs=60), previous=base)
    interrupt(words, signal.SIGTERM, lambda: any((out / "tensorboard").glob("events*")))
    other = step_settings(1, epochs=2)
    launch(data, out, other, previous=base)
    assert "state of other settings" in (out / "train.log").read_text()
    fresh = launch(data, tmp_path / "fresh", other, previous=base)
    assert (out / "model.safetensors").read_bytes() == (
        fresh / "model.safetensors"
    ).read_bytes()


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
