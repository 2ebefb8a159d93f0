"""The curves of an experiment in TensorBoard, and validation during a training."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from kproba import cli
from kproba.data.colours import drawing_colours
from kproba.data.splits import read_indices
from kproba.results.tensorboard import _parts_of_link, find_curves
from kproba.runtime.launch import free_port
from kproba.runtime.run_file import read_run, write_run
from kproba.training import monitor as curves
from kproba.training.curves import Curves
from kproba.training.monitor import Monitor, draw_sheet


def write_events(folder: Path, value: float) -> None:
    with SummaryWriter(str(folder)) as writer:
        writer.add_scalar("loss/total", value, 1)


def write_step(
    experiment: Path,
    method: str,
    step: int,
    previous: Path | None = None,
    **more: bool,
) -> Path:
    """What the training of a step leaves; returns the folder of its event files."""
    folder = experiment / method / "seed3" / f"step{step}" / "tensorboard"
    task, setting = experiment.name.rsplit("-", 1)
    run = {"dataset": experiment.parent.name, "task": task, "setting": setting}
    run |= {"method": method, "seed": 3, "step": step}
    write_run(folder, {**run, **more}, previous)
    write_events(folder, step)
    return folder


def write_test(experiment: Path, method: str, step: int, events: Path) -> None:
    """What the test of a step leaves, whose network stands beside its event files."""
    folder = experiment / method / "seed3" / f"step{step}"
    folder.mkdir(parents=True, exist_ok=True)
    task, setting = experiment.name.rsplit("-", 1)
    about = {"dataset": experiment.parent.name, "task": task, "setting": setting}
    about |= {"method": method, "seed": 3, "step": step}
    network = os.path.relpath(events.with_name("model.safetensors"), folder)
    content = {"network": network, "about": about}
    (folder / "predictor.json").write_text(json.dumps(content))


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Steps of kproba and mib, and each one's step 0 in a task of its own."""
    pets = tmp_path / "results" / "pets"
    events = write_step(pets / "2-disjoint", "base", 0)
    for step in (1, 2, 10):
        events = write_step(pets / "2-1-disjoint", "kproba", step, events)
    events = write_step(pets / "2-disjoint", "base_softmax", 0)
    write_step(pets / "2-1-disjoint", "mib", 1, events)
    # joint: trained as a step 0 of all classes, tested here.
    events = write_step(pets / "3-overlap", "base", 0)
    write_test(pets / "2-1-disjoint", "joint", 10, events)
    return tmp_path / "results"


# Step 0 first, `joint` last: spaces in front make TensorBoard sort the names so.
NAMES = [
    " base step 00",
    " base_softmax step 00",
    "kproba step 01",
    "kproba step 02",
    "kproba step 10",
    "mib step 01",
    "\u00a0joint step 10",
]


def test_curves_of_an_experiment_are_all_its_steps_in_order(results):
    curves = find_curves(results / "pets" / "2-1-disjoint")
    assert list(curves) == NAMES == sorted(NAMES)
    base = results / "pets/2-disjoint/base_softmax/seed3/step0/tensorboard"
    assert curves[NAMES[1]] == base


def test_joint_training_in_the_place_of_the_last_step_is_the_last(tmp_path):
    """It has the iterations of all steps, so it is no step 0 of another task."""
    pets = tmp_path / "results" / "pets" / "2-1-disjoint"
    events = write_step(pets, "kproba", 0)
    write_step(pets, "kproba", 1, events)
    write_step(pets, "joint", 1, joint=True)
    expected = [" kproba step 0", "kproba step 1", "\u00a0joint step 1"]
    assert list(find_curves(pets)) == expected
    run = read_run(pets / "joint" / "seed3" / "step1" / "tensorboard")
    assert run is not None and run.joint
    run = read_run(pets / "kproba" / "seed3" / "step1" / "tensorboard")
    assert run is not None and not run.joint


@pytest.mark.parametrize(
    "folder", ["pets/2-1-disjoint/kproba", "pets/2-1-disjoint/kproba/seed3"]
)
def test_curves_of_a_method_begin_with_its_step_0(results, folder):
    assert list(find_curves(results / folder)) == [NAMES[0], *NAMES[2:5]]


@pytest.mark.parametrize("folder", ["", "tensorboard"])
def test_curves_of_a_step_are_its_own_and_those_of_step_0(results, folder):
    step = results / "pets" / "2-1-disjoint" / "kproba" / "seed3" / "step2"
    assert list(find_curves(step / folder)) == [" base step 0", "kproba step 2"]


def test_curves_of_all_results_are_listed_in_every_experiment_that_uses_them(results):
    assert list(find_curves(results)) == [
        *(f"2-1-disjoint/{name}" for name in NAMES),
        *("2-disjoint/ base step 00", "2-disjoint/ base_softmax step 00"),
        "3-overlap/ base step 00",
    ]


@pytest.mark.parametrize(
    ("change", "first", "second"),
    [
        ({"seed": 4}, "kproba seed 3 step 1", "kproba seed 4 step 1"),
        ({"step": 2}, "kproba step 1", "kproba step 2"),
        ({"step": 12}, "kproba step 01", "kproba step 12"),
        ({"dataset": "toys"}, "pets/kproba step 1", "toys/kproba step 1"),
        ({"setting": "x"}, "overlap/kproba step 1", "x/kproba step 1"),
        (
            {"dataset": "toys", "task": "1-1", "seed": 4},
            "pets 2-1/kproba seed 3 step 1",
            "toys 1-1/kproba seed 4 step 1",
        ),
    ],
    ids=str,
)
def test_names_hold_what_differs_between_the_runs(tmp_path, change, first, second):
    folders = [tmp_path / name / "tensorboard" for name in ("a", "b")]
    write_run(folders[0], RUN, None)
    write_run(folders[1], {**RUN, **change}, None)
    assert find_curves(tmp_path) == {first: folders[0], second: folders[1]}


def test_names_and_links_come_from_files_whatever_folders_are_called(tmp_path):
    run = {"dataset": "a/b", "task": "x-y", "setting": "overlap", "method": "m"}
    names = {**run, "seed": 1, "step": 0}
    first, second = tmp_path / "one" / "tensorboard", tmp_path / "two" / "tensorboard"
    write_run(first, names, None)
    write_run(second, {**names, "step": 1, "method": "n"}, first)
    assert find_curves(tmp_path / "two") == {
        " m step 0": first,
        "n step 1": second,
    }


def test_results_may_move_together(results, tmp_path):
    moved = results.rename(tmp_path / "elsewhere")
    assert list(find_curves(moved / "pets" / "2-1-disjoint")) == NAMES


def test_removed_steps_end_the_chain(results):
    shutil.rmtree(results / "pets" / "2-1-disjoint" / "kproba" / "seed3" / "step1")
    kproba = results / "pets" / "2-1-disjoint" / "kproba"
    assert list(find_curves(kproba)) == NAMES[3:5]


def test_a_shared_step_is_listed_for_the_method_that_needs_it(results):
    """without_bfd trained step 2 alone: its step 1 is that of kproba."""
    disjoint = results / "pets" / "2-1-disjoint"
    shared = disjoint / "kproba" / "seed3" / "step1" / "tensorboard"
    write_step(disjoint, "without_bfd", 2, shared)
    step_1, step_2 = "{} step 1", "{} step 2"
    assert list(find_curves(disjoint / "without_bfd")) == [
        *(" base step 0", step_1.format("kproba"), step_2.format("without_bfd"))
    ]
    write_test(disjoint, "without_bfd", 1, shared)
    curves = find_curves(disjoint / "without_bfd")
    assert list(curves) == [
        *(" base step 0", step_1.format("without_bfd"), step_2.format("without_bfd"))
    ]
    assert curves[step_1.format("without_bfd")] == shared
    every = find_curves(disjoint)
    # Step 1, which two methods share, is listed once.
    assert list(every) == [*NAMES[:-1], "without_bfd step 02", NAMES[-1]]


@pytest.mark.parametrize("nested", [False, True])
def test_results_of_version_0_1_are_named_by_their_settings(tmp_path, nested):
    names = {"dataset": "pets", "task": "2-1", "setting": "overlap"}
    for step in (1, 2):
        folder = tmp_path / "steps" / str(step)
        write_events(folder / "tensorboard", step)
        run = {**names, "method": "kproba", "seed": 4, "step": step}
        settings = {"run": run, "groups": [[1]]} if nested else {**run, "groups": [[1]]}
        (folder / "settings.json").write_text(json.dumps(settings))
    assert find_curves(tmp_path) == {
        f"kproba step {step}": tmp_path / "steps" / str(step) / "tensorboard"
        for step in (1, 2)
    }


def test_files_of_something_else_are_passed_over(results):
    other = results / "other"
    (other / "tensorboard").mkdir(parents=True)
    (other / "settings.json").write_text('{"editor": "dark"}')
    described = {"network": "model.safetensors", "about": {"method": "mine"}}
    (other / "predictor.json").write_text(json.dumps(described))
    with pytest.raises(ValueError, match="Expected trained steps below"):
        find_curves(other)


# --- run.json ------------------------------------------------------------------------

RUN = {
    **{"dataset": "pets", "task": "2-1", "setting": "overlap", "method": "kproba"},
    **{"seed": 3, "step": 1},
}


def test_run_file_holds_the_names_and_a_relative_link(tmp_path):
    folder, previous = tmp_path / "b/1/tensorboard", tmp_path / "a/0/tensorboard"
    write_run(folder, {**RUN, "groups": [[1]]}, previous)
    content = json.loads((folder / "run.json").read_text())
    assert content == {**RUN, "previous": "../../../a/0/tensorboard"}


def test_run_file_of_step_0_links_nowhere(tmp_path):
    write_run(tmp_path, {**RUN, "step": 0}, None)
    assert json.loads((tmp_path / "run.json").read_text())["previous"] is None
    step = read_run(tmp_path)
    assert step is not None
    assert (step.step, step.previous) == (0, None)


def test_run_file_is_read_as_it_was_written(tmp_path):
    folder, previous = tmp_path / "b" / "tensorboard", tmp_path / "a" / "tensorboard"
    previous.mkdir(parents=True)
    write_run(folder, RUN, previous)
    step = read_run(folder)
    assert step is not None
    assert step.previous is not None
    assert step.previous.resolve() == previous
    assert {name: getattr(step, name) for name in RUN} == RUN


def test_run_without_a_name_is_refused(tmp_path):
    with pytest.raises(KeyError, match="seed"):
        write_run(tmp_path, {k: v for k, v in RUN.items() if k != "seed"}, None)


def test_folder_without_names_is_of_no_run(tmp_path):
    assert read_run(tmp_path) is None
    assert read_run(tmp_path / "missing") is None


# --- event files ---------------------------------------------------------------------


def test_resumed_curves_begin_with_what_is_known_if_the_files_are_lost(tmp_path):
    rows = [{"iteration": 2, "loss": 5.0}, {"iteration": 4, "loss": 3.0}]
    validation = {"iteration": 3, "old": 40.0, "all": 30.0}
    for name in ("lost", "kept"):
        first = Curves(tmp_path / name, 0, [])
        for row in rows if name == "kept" else []:
            first.add(row, 1.0)
        if name == "kept":
            first.add_validation(validation)
        first.close()
        if name == "lost":
            shutil.rmtree(tmp_path / name)
        # TensorBoard reads files by name: the second, then a counter of the process,
        # whose 10 sorts before 9. A resumed run starts in a later second.
        time.sleep(1.1)
        again = Curves(tmp_path / name, 4, rows, [validation])
        again.add({"iteration": 6, "loss": 2.0}, 1.0)
        again.close()
        events = EventAccumulator(str(tmp_path / name)).Reload()
        losses = [(entry.step, entry.value) for entry in events.Scalars("loss/total")]
        assert losses == [(2, 5.0), (4, 3.0), (6, 2.0)]
        for measure in ("old", "all"):
            [seen] = events.Scalars(f"validation/{measure}")
            assert (seen.step, seen.value) == (3, validation[measure])
        assert len(events.Scalars("speed/images_per_second")) == (
            1 if name == "lost" else 3
        )


def test_folder_without_steps_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Expected trained steps below"):
        find_curves(tmp_path)


def not_a_folder(path: Path) -> Path:
    path.write_text("")
    return path


UNUSABLE = {
    "file": (not_a_folder, "Not a directory"),
    "below a file": (lambda path: not_a_folder(path) / "x", "Not a directory"),
    "missing": (lambda path: path, "No such file"),
    "too long": (lambda path: path.with_name("x" * 300), "File name too long"),
    "a loop": (lambda path: path.symlink_to(path) or path, ""),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_folders_that_are_none_are_refused(tmp_path, capsys, kind):
    make, reason = UNUSABLE[kind]
    folder = make(tmp_path / "a")
    with pytest.raises(SystemExit) as ended:
        cli.main(["tensorboard", str(folder)])
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("Error: Expected a folder of trained steps") or (
        kind == "a loop" and said.startswith("Error: Expected")
    )
    assert reason in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--port", "-1"], "--port from 0 to 65535, but got -1"),
        (["--port", "65536"], "--port from 0 to 65535, but got 65536"),
        (["--host", ""], "--host, but it is empty"),
        (["--host", " "], "--host, but it is empty"),
        (["--host", "no such host!"], "no such host!, port 6006, cannot be used"),
        (["--host", "x" * 300], "cannot be used"),
    ],
    ids=str,
)
def test_addresses_that_are_none_are_refused(results, capsys, words, message):
    with pytest.raises(SystemExit) as ended:
        cli.main(["tensorboard", str(results), *words])
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("Error: Expected") and message in said
    assert said.count("\n") == 1


def test_a_port_in_use_is_refused(results, capsys):
    with socket.socket() as used:
        used.bind(("localhost", 0))
        used.listen()
        port = used.getsockname()[1]
        with pytest.raises(SystemExit) as ended:
            cli.main(["tensorboard", str(results), "--port", str(port)])
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert f"localhost, port {port}, cannot be used: Address already in use" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    "content", ["", "[1]", "{}", '{"dataset": 3}', "\xff", '{"previous": 7}']
)
@pytest.mark.parametrize("name", ["run.json", "predictor.json"])
def test_damaged_files_are_named_and_left_out(results, caplog, name, content):
    folder = results / "pets/2-1-disjoint/damaged/seed3/step1/tensorboard"
    folder.mkdir(parents=True)
    path = folder / "run.json" if name == "run.json" else folder.parent / name
    path.write_text(content, encoding="latin-1")
    assert list(find_curves(results / "pets" / "2-1-disjoint")) == NAMES
    if name == "run.json" and content == "":
        assert f"left out {folder}, which cannot be read" in caplog.text


def test_steps_that_refer_to_each_other_end(tmp_path):
    names = {**dict.fromkeys(("dataset", "task", "setting", "method"), "a"), "seed": 1}
    folders = [tmp_path / str(step) / "tensorboard" for step in range(2)]
    for step, folder in enumerate(folders):
        write_run(folder, {**names, "step": step}, folders[1 - step])
    assert len(find_curves(tmp_path)) == 2


@pytest.mark.parametrize(
    "name",
    [
        "a$b {c} step00",
        "日本 ö/é seed1",
        "../../x",
        "/etc/x",
        "a//b/./c",
        "x" * 500,
        "ö" * 300 + "/b",
        "nul\0",
        "half \ud800",
    ],
)
def test_names_of_runs_become_links_in_their_folder(tmp_path, name):
    link = tmp_path.joinpath(*_parts_of_link(name))
    assert tmp_path in link.parents
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to("anything")
    if len(name) < 30 and not {"..", ".", ""} & set(name.split("/")) and name[-1] > " ":
        shown = link.relative_to(tmp_path).as_posix()
        assert shown == name.replace("\0", "?").replace("\ud800", "?")


def test_command_shows_the_steps_until_it_is_stopped(results):
    port = free_port()
    folder = results / "pets" / "2-1-disjoint"
    words = ["tensorboard", str(folder), "--port", str(port)]
    with subprocess.Popen(
        [sys.executable, "-m", "kproba.cli", *words],
        stderr=subprocess.PIPE,
        text=True,
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
        command.send_signal(signal.SIGINT)
        assert command.wait(timeout=30) == 130
        assert command.stderr.read().endswith("Interrupted.\n")
    assert sorted(runs) == NAMES


@pytest.mark.parametrize(("times", "iterations"), [(4, 372), (3, 3), (5, 3), (1, 10)])
def test_validations_are_spread_evenly_and_the_last_is_at_the_end(
    index, times, iterations
):
    monitor = Monitor(read_indices([index]), ((1,),), images=1, times=times)
    due = [i for i in range(1, iterations + 1) if monitor.is_due(i, iterations)]
    assert len(due) == min(times, iterations)
    assert due[-1] == iterations
    gaps = [after - before for before, after in zip([0, *due], due, strict=False)]
    assert max(gaps) - min(gaps) <= 1


def test_validation_images_hold_a_seen_class(small_folder, index_of):
    index, _ = index_of(small_folder)
    monitor = Monitor(read_indices([index]), ((1,),), images=5, times=1)
    assert list(monitor.rows["id"]) == ["d"]  # c holds none


def test_a_validation_that_fails_ends_validation_and_not_the_training(
    index, tmp_path, monkeypatch, caplog
):
    monitor = Monitor(read_indices([index]), ((1,),), images=1, times=4)
    network = torch.nn.Linear(1, 1)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)

    def fails(*_: object, **__: object) -> None:
        assert not torch.backends.cudnn.benchmark
        assert torch.backends.cudnn.enabled
        raise torch.OutOfMemoryError("too little memory")

    monkeypatch.setattr(curves, "evaluate", fails)
    result = monitor.validate(network, Curves(tmp_path, 0, []), 1, "cpu")
    assert result is None
    assert "No more validation while training: too little memory" in caplog.text
    assert torch.backends.cudnn.benchmark
    assert not any(monitor.is_due(done, 4) for done in range(1, 5))


@pytest.mark.parametrize("size", [(144, 144), (500, 375), (60, 400), (2000, 300)])
def test_letters_of_logged_pictures_are_readable_on_a_card(size):
    """TensorBoard shows a picture 350 pixels wide; squares are as high as letters."""
    mask = np.ones(size[::-1], np.uint8)
    sheet = np.asarray(draw_sheet(Image.new("RGB", size), [mask, mask], ["a", "cat"]))
    panels = round(400 * size[1] / max(size))
    legend = sheet[panels:]
    square = (legend == drawing_colours(2)[1]).all(-1).any(1).sum()
    assert 350 * square / sheet.shape[1] >= 11 - 2 * 350 / sheet.shape[1]


def test_curves_have_a_group_and_a_name(tmp_path):
    row = {"iteration": 1, "loss": 3.0, "gkd": 2.0, "lr_backbone": 0.5}
    written = Curves(tmp_path, 0, [])
    written.add(row, 4.0)
    written.close()
    tags = EventAccumulator(str(tmp_path)).Reload().Tags()["scalars"]
    assert set(tags) == {
        *("loss/total", "loss/gkd", "learning_rate/backbone"),
        "speed/images_per_second",
    }
