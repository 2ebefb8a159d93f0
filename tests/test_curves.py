"""The curves of an experiment in TensorBoard, and what looks at validation images."""

import json
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from kproba.methods.builtin import METHODS
from kproba.results.tensorboard import curves_of
from kproba.runtime.launch import free_port
from kproba.training import monitor as curves
from kproba.training.curves import Curves
from kproba.training.monitor import Monitor


def write_step(
    folder: Path, method: str, step: int, groups: list[list[int]], setting: str
) -> None:
    folder = folder / "seed3" / f"step{step}"
    folder.mkdir(parents=True)
    recipe = METHODS[method].to_dict()
    told = {"step": step, "groups": groups, "setting": setting, "recipe": recipe}
    (folder / "settings.json").write_text(json.dumps(told))
    with SummaryWriter(str(folder / "tensorboard")) as writer:
        writer.add_scalar("loss/loss", step, 1)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Steps of kproba and mib, and each one's step 0 in a task of its own."""
    pets = tmp_path / "results" / "pets"
    groups = [[1, 2], [3]]
    for step in (1, 2, 10):
        write_step(pets / "2-1-disjoint" / "kproba", "kproba", step, groups, "disjoint")
    write_step(pets / "2-1-disjoint" / "mib", "mib", 1, groups, "disjoint")
    for base, method in (("base", "kproba"), ("base_softmax", "mib")):
        write_step(pets / "2-disjoint" / base, method, 0, groups[:1], "disjoint")
    # joint: trained as a step 0 of all classes, tested here.
    write_step(pets / "3-overlap" / "base", "kproba", 0, [[1, 2, 3]], "overlap")
    tested = pets / "2-1-disjoint" / "joint" / "seed3" / "step10" / "predictor.json"
    tested.parent.mkdir(parents=True)
    network = "../../../../3-overlap/base/seed3/step0/model.safetensors"
    tested.write_text(json.dumps({"network": network}))
    return tmp_path / "results"


NAMES = [
    "pets 2-1-disjoint/base seed3 step00",
    "pets 2-1-disjoint/base_softmax seed3 step00",
    "pets 2-1-disjoint/joint seed3 step10",
    "pets 2-1-disjoint/kproba seed3 step01",
    "pets 2-1-disjoint/kproba seed3 step02",
    "pets 2-1-disjoint/kproba seed3 step10",
    "pets 2-1-disjoint/mib seed3 step01",
]


def test_curves_of_an_experiment_are_all_its_steps_in_order(results):
    found = curves_of(results / "pets" / "2-1-disjoint")
    assert list(found) == NAMES
    base = results / "pets/2-disjoint/base_softmax/seed3/step0/tensorboard"
    assert found[NAMES[1]] == base


@pytest.mark.parametrize(
    "folder", ["pets/2-1-disjoint/kproba", "pets/2-1-disjoint/kproba/seed3"]
)
def test_curves_of_a_method_begin_with_its_step_0(results, folder):
    assert list(curves_of(results / folder)) == [NAMES[0], *NAMES[3:6]]


def test_curves_of_a_step_are_its_own_and_those_of_step_0(results):
    step = results / "pets" / "2-1-disjoint" / "kproba" / "seed3" / "step2"
    assert list(curves_of(step)) == [NAMES[0], NAMES[4]]


def test_resumed_curves_begin_with_what_is_known_if_the_files_are_lost(tmp_path):
    rows = [{"iteration": 2, "loss": 5.0}, {"iteration": 4, "loss": 3.0}]
    look = {"iteration": 3, "old": 40.0, "all": 30.0}
    for name in ("lost", "kept"):
        first = Curves(tmp_path / name, 0, [])
        for row in rows if name == "kept" else []:
            first.add(row, 1.0)
        if name == "kept":
            first.add_look(look)
        first.close()
        if name == "lost":
            shutil.rmtree(tmp_path / name)
        again = Curves(tmp_path / name, 4, rows, [look])
        again.add({"iteration": 6, "loss": 2.0}, 1.0)
        again.close()
        events = EventAccumulator(str(tmp_path / name)).Reload()
        told = [(entry.step, entry.value) for entry in events.Scalars("loss/loss")]
        assert told == [(2, 5.0), (4, 3.0), (6, 2.0)]
        for measure in ("old", "all"):
            [seen] = events.Scalars(f"validation/{measure}")
            assert (seen.step, seen.value) == (3, look[measure])
        assert len(events.Scalars("speed/images_per_second")) == (
            1 if name == "lost" else 3
        )


def test_folder_without_steps_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Expected trained steps below"):
        curves_of(tmp_path)


def test_command_shows_the_steps_until_it_is_stopped(results):
    port = free_port()
    folder = results / "pets" / "2-1-disjoint"
    words = ["tensorboard", str(folder), "--port", str(port)]
    with subprocess.Popen(
        [sys.executable, "-m", "kproba.predict.cli", *words]
    ) as command:
        address, deadline = f"http://localhost:{port}/data/runs", time.monotonic() + 60
        runs: list[str] = []
        while len(runs) < len(NAMES) and time.monotonic() < deadline:
            time.sleep(0.2)
            try:
                with urllib.request.urlopen(address, timeout=5) as answer:
                    runs = json.load(answer)
            except OSError:
                assert command.poll() is None
        command.send_signal(signal.SIGTERM)
        assert command.wait(timeout=30) in (0, 143, -signal.SIGTERM)
    assert sorted(runs) == NAMES


@pytest.mark.parametrize(("times", "iterations"), [(4, 372), (3, 3), (5, 3), (1, 10)])
def test_looks_are_spread_evenly_and_the_last_is_at_the_end(index, times, iterations):
    monitor = Monitor([index], ((1,),), ["background", "cat"], images=1, times=times)
    due = [i for i in range(1, iterations + 1) if monitor.due(i, iterations)]
    assert len(due) == min(times, iterations)
    assert due[-1] == iterations
    gaps = [after - before for before, after in zip([0, *due], due, strict=False)]
    assert max(gaps) - min(gaps) <= 1


def test_images_that_are_looked_at_hold_a_seen_class(small_folder, index_of):
    index, _ = index_of(small_folder)
    monitor = Monitor([index], ((1,),), ["background", "cat"], images=5, times=1)
    assert list(monitor.rows["id"]) == ["d"]  # c holds none


def test_a_look_that_fails_ends_the_looks_and_not_the_training(
    index, tmp_path, monkeypatch, caplog
):
    monitor = Monitor([index], ((1,),), ["background", "cat"], images=1, times=4)
    network = torch.nn.Linear(1, 1)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)

    def fails(*_: object, **__: object) -> None:
        assert not torch.backends.cudnn.benchmark
        assert torch.backends.cudnn.enabled
        raise torch.OutOfMemoryError("too little memory")

    monkeypatch.setattr(curves, "evaluate", fails)
    monitor.look(network, Curves(tmp_path, 0, []), 1, "cpu")
    assert "No more looks at validation images: too little memory" in caplog.text
    assert torch.backends.cudnn.benchmark
    assert not any(monitor.due(done, 4) for done in range(1, 5))
