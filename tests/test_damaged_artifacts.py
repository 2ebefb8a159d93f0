"""Artifacts that are damaged, foreign or mixed: one message that names the file.

Every kind of damage is tried on every artifact, by what reads it: `kproba info`,
`kproba predict`, `kproba export`, and the readers of the jobs.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tested_steps import (
    FIRST,
    change_json,
    forget_digests,
    save_step,
    small_network,
    write_tested_step,
)
from training_steps import step_settings

import kproba
from kproba.bank.bank import PrototypeBank
from kproba.predict.cli import main as command
from kproba.results.record import read_evaluation_record, read_usage_record
from kproba.results.tables import read_confusion
from kproba.runtime.records import ArtifactError
from kproba.runtime.tables import read_table
from kproba.training.settings import read_settings

JSON = ("predictor.json", "model.json", "prototypes.json")
TENSORS = ("model.safetensors", "prototypes.safetensors")

Change = Callable[[Any], Any]


def _nested(depth: int) -> bytes:
    return b'{"a":' * depth + b"1" + b"}" * depth


# What replaces the content of any file.
CONTENTS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda raw: b"",
    "blank": lambda raw: b" \n\n",
    "half": lambda raw: raw[: len(raw) // 2],
    "one byte": lambda raw: raw[:1],
    "binary": lambda raw: bytes(range(256)) * 20,
    "not UTF-8": lambda raw: b'{"a": "\xff\xfe"}',
    "text": lambda raw: b"no such thing",
    "a number": lambda raw: b"12",
    "a list": lambda raw: b"[1, 2]",
    "null": lambda raw: b"null",
    "an empty object": lambda raw: b"{}",
    "deeply nested": lambda raw: _nested(100_000),
    "deep lists": lambda raw: b"[" * 100_000 + b"]" * 100_000,
    "a key twice": lambda raw: b'{"a": 1, "a": 2}',
    "a huge number": lambda raw: b"9" * 10_000,
}


@pytest.fixture(scope="module")
def tested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with results/ of a tested step."""
    root = tmp_path_factory.mktemp("tested")
    write_tested_step(root)
    return root


@pytest.fixture
def step(tested: Path, tmp_path: Path) -> Path:
    """The folder of a tested step that a test may damage."""
    shutil.copytree(tested / "results", tmp_path / "results")
    return tmp_path / "results/pets/1-1-overlap/kproba/seed0/step1"


@pytest.fixture
def old_step(step: Path) -> Path:
    """The same of an older version: there are no digests that notice every change."""
    forget_digests(step)
    return step


def fails(capsys: pytest.CaptureFixture[str], *words: object, named: Path | str) -> str:
    """Run a command that must end in one message about a file; returns it."""
    with pytest.raises(SystemExit) as ended:
        command([str(word) for word in words])
    message = capsys.readouterr().err
    assert ended.value.code == 1, message
    assert message.startswith("Error: Expected"), message
    assert len(message.splitlines()) == 1, message
    assert Path(named).name in message
    assert "weights_only" not in message
    return message


# --- any content ---------------------------------------------------------------------


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("name", [*JSON, *TENSORS])
def test_info_and_load_name_a_file_of_any_content(
    old_step: Path, capsys: pytest.CaptureFixture[str], name: str, content: str
) -> None:
    path = old_step / name
    path.write_bytes(CONTENTS[content](path.read_bytes()))
    if name in JSON:
        fails(capsys, "info", old_step, named=path)
    with pytest.raises(ArtifactError, match=rf"Expected .*{name}.*\. "):
        kproba.load(old_step)


@pytest.mark.parametrize("name", [*JSON, *TENSORS])
def test_commands_name_a_damaged_file(
    step: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    Image.new("RGB", (40, 30)).save(step / "a.png")
    path = step / name
    path.write_bytes(path.read_bytes()[:100])
    out = step / "out"
    fails(capsys, "info", step, named=path)
    fails(capsys, "predict", step, step / "a.png", "--out", out, named=path)
    fails(capsys, "export", step, step / "a.pt", named=path)
    fails(capsys, "pack", step, "--out", step / "a.zip", named=path)
    assert not (step / "a.pt").exists()
    assert not (step / "a.zip").exists()


KINDS: dict[str, Callable[[Path], object]] = {
    "a folder": Path.mkdir,
    "a FIFO": os.mkfifo,
    "a link to itself": lambda path: path.symlink_to(path),
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "absent": lambda path: None,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*JSON, *TENSORS])
def test_what_is_no_file_is_named_and_never_waited_for(
    old_step: Path, name: str, kind: str
) -> None:
    path = old_step / name
    path.unlink()
    KINDS[kind](path)
    with pytest.raises((OSError, ArtifactError), match=rf"Expected .*{name}"):
        kproba.load(old_step)


# --- values --------------------------------------------------------------------------


def _put(*keys: Any, value: Any) -> Change:
    """A change that sets a value below some keys."""

    def change(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


def _drop(*keys: Any) -> Change:
    """A change that removes a key below others."""

    def change(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        del content[keys[-1]]

    return change


NAN, INFINITE = float("nan"), float("inf")
CHANGES: dict[str, dict[str, Change]] = {
    "model.json": {
        "no architecture": _drop("architecture"),
        "architecture is a list": _put("architecture", value=[1]),
        "no backbone": _drop("architecture", "backbone"),
        "unknown backbone": _put("architecture", "backbone", value="vgg"),
        "another backbone": _put("architecture", "backbone", value="resnet50"),
        "backbone is a number": _put("architecture", "backbone", value=3),
        "unknown head": _put("architecture", "head", value="hydra"),
        "a key of a newer version": _put("architecture", "gates", value=2),
        "stride 7": _put("architecture", "output_stride", value=7),
        "huge channels": _put("architecture", "aspp_channels", value=10**9),
        "many channels": _put("architecture", "aspp_channels", value=65536),
        "negative channels": _put("architecture", "aspp_channels", value=-8),
        "channels are true": _put("architecture", "aspp_channels", value=True),
        "channels are a text": _put("architecture", "aspp_channels", value="8"),
        "channels are a fraction": _put("architecture", "aspp_channels", value=8.5),
        "another rate": _put("architecture", "atrous_rates", value=[1, 2, 3]),
        "rate 0": _put("architecture", "atrous_rates", value=[0, 1]),
        "dropout NaN": _put("architecture", "aspp_dropout", value=NAN),
        "momentum infinite": _put("architecture", "bn_momentum", value=INFINITE),
        "huge classes": _put("classes_per_step", value=[10**8]),
        "other classes": _put("classes_per_step", value=[1, 2]),
        "fewer steps": _put("classes_per_step", value=[2]),
        "more steps": _put("classes_per_step", value=[1, 1, 1]),
        "no classes": _put("classes_per_step", value=[]),
        "negative classes": _put("classes_per_step", value=[3, -1]),
        "classes are a number": _put("classes_per_step", value=2),
        "extensions are a text": _put("extensions", value="mine.py"),
        "provenance is a list": _put("provenance", value=[]),
    },
    "prototypes.json": {
        "no settings": _drop("settings"),
        "no model": _drop("model"),
        "another model": _put("model", value="0" * 64),
        "unknown map": _put("settings", "map", value="spline"),
        "another map": _put("settings", "map", value="identity"),
        "another feature": _put("settings", "feature", value="block"),
        "huge dimension": _put("settings", "dimension", value=10**9),
        "odd dimension": _put("settings", "dimension", value=63),
        "no dimension": _put("settings", "dimension", value=None),
        "many maps": _put("settings", "maps", value=10**6),
        "more maps": _put("settings", "maps", value=3),
        "no maps": _put("settings", "maps", value=0),
        "no scatter": _put("settings", "scatter", value=False),
        "scatter is a number": _put("settings", "scatter", value=1),
        "ridge NaN": _put("settings", "ridge", value=NAN),
        "a key of a newer version": _put("settings", "shrinkage", value=0.1),
        "gamma 0": _put("gamma", value=0),
        "gamma infinite": _put("gamma", value=INFINITE),
        "no gamma": _put("gamma", value=None),
        "temperature 0": _put("temperature", value=0),
        "temperature negative": _put("temperature", value=-1.0),
        "temperature NaN": _put("temperature", value=NAN),
        "temperature is true": _put("temperature", value=True),
        "temperature huge": _put("temperature", value=1e300),
        "count negative": _put("scatter_count", value=-1),
        "seed is a text": _put("seed", value="0"),
        "cells of other classes": _put("cells_per_class", value=[1, 2]),
    },
    "predictor.json": {
        "no network": _drop("network"),
        "network is null": _put("network", value=None),
        "network is a number": _put("network", value=5),
        "network is absolute": _put("network", value="/etc/model.safetensors"),
        "network is another file": _put("network", value="predictor.json"),
        "network is outside": _put("network", value="../" * 7 + "x/m.safetensors"),
        "bank is outside": _put("bank", value="a/" + "../" * 8 + "b.safetensors"),
        "NUL in a path": _put("bank", value="a\0.safetensors"),
        "no bank": _put("bank", value=None),
        "no decision": _put("decision", value=None),
        "unknown rule": _put("decision", "rule", value="guess"),
        "rule is null": _put("decision", "rule", value=None),
        "tau 0": _put("decision", "temperature", value=0),
        "tau NaN": _put("decision", "temperature", value=NAN),
        "weight is a text": _put("decision", "posterior_weight", value="1"),
        "prior negative": _put("decision", "image_prior", value=-1),
        "a newer decision": _put("decision", "smoothing", value=1),
        "a key of a newer version": _put("tiles", value=1),
        "no classes": _put("classes", value=[]),
        "fewer classes": lambda content: content["classes"].pop() and None,
        "label twice": _put("classes", 1, "label", value=2),
        "label too large": _put("classes", 1, "label", value=256),
        "name twice": _put("classes", 1, "name", value="dog"),
        "name is empty": _put("classes", 1, "name", value=""),
        "name has a line break": _put("classes", 1, "name", value="a\nb"),
        "steps out of order": _put("classes", 0, "step", value=1),
        "channel twice": _put("channels", value=[0, 1, 1]),
        "channel is true": _put("channels", value=[0, True, 2]),
        "fewer channels": _put("channels", value=[0, 1]),
        "about is empty": _put("about", value={}),
        "seed is a text": _put("about", "seed", value="0"),
        "long side 0": _put("long_side", value=0),
        "long side is a text": _put("long_side", value="300"),
    },
}
CASES = [
    pytest.param(name, change, id=f"{name}, {what}")
    for name, changes in CHANGES.items()
    for what, change in changes.items()
]


@pytest.mark.parametrize(("name", "change"), CASES)
def test_a_wrong_value_is_named(
    old_step: Path, capsys: pytest.CaptureFixture[str], name: str, change: Change
) -> None:
    """By `load`, which `predict` and `export` call; `info` may not need the value."""
    change_json(old_step / name, change)
    stem = Path(name).stem  # the message may be about the tensors beside it
    with pytest.raises((ArtifactError, OSError), match=rf"Expected .*{stem}") as error:
        kproba.load(old_step)
    assert type(error.value) in (ArtifactError, FileNotFoundError)
    with pytest.raises(SystemExit):
        command(["info", str(old_step)])
    assert "Traceback" not in capsys.readouterr().err


def test_a_description_of_two_steps_ago_needs_no_memory(old_step: Path) -> None:
    """The largest numbers that the checks of single values let through."""
    change_json(
        old_step / "model.json", _put("architecture", "aspp_channels", value=65536)
    )
    with pytest.raises(ArtifactError, match="8 channels of the ASPP"):
        kproba.load_model(old_step / "model.safetensors")
    change_json(
        old_step / "prototypes.json", _put("settings", "dimension", value=2**20)
    )
    with pytest.raises(ArtifactError, match=r"of shape \[3, 1048576\]"):
        PrototypeBank.load(old_step / "prototypes.safetensors")


# --- tensors -------------------------------------------------------------------------

Tensors = dict[str, torch.Tensor]


def _fill(name: str, value: float) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        tensors[name].view(-1)[0] = value

    return change


TENSOR_CHANGES: dict[str, dict[str, Callable[[Tensors], object]]] = {
    "model.safetensors": {
        "NaN": _fill("branches.0.classifier.weight", NAN),
        "infinity": _fill("aspp.project.0.weight", INFINITE),
        "NaN in statistics": _fill("aspp.convs.0.1.running_mean", NAN),
        "a tensor less": lambda tensors: tensors.pop("branches.1.classifier.bias"),
        "a tensor more": lambda tensors: tensors.update(extra=torch.zeros(2)),
        "another shape": lambda tensors: tensors.update(
            {"branches.1.classifier.bias": torch.zeros(7)}
        ),
    },
    "prototypes.safetensors": {
        "NaN": _fill("means.0", NAN),
        "infinity": _fill("scatter.1", INFINITE),
        "a negative count": _fill("count", -1),
        "a share above 1": _fill("share", 2),
        "no spread": _fill("spread", 0),
        "a map less": lambda tensors: tensors.pop("means.1"),
        "no centre": lambda tensors: tensors.pop("centre"),
        "fewer features": lambda tensors: tensors.update(centre=torch.zeros(3)),
        "another dimension": lambda tensors: tensors.update(
            {"means.0": torch.zeros(3, 8, dtype=torch.float64)}
        ),
        "no values": lambda tensors: tensors.clear(),
    },
}
TENSOR_CASES = [
    pytest.param(name, change, id=f"{name}, {what}")
    for name, changes in TENSOR_CHANGES.items()
    for what, change in changes.items()
]


@pytest.mark.parametrize(("name", "change"), TENSOR_CASES)
def test_wrong_tensors_are_named(
    old_step: Path, name: str, change: Callable[[Tensors], object]
) -> None:
    tensors = load_file(old_step / name)
    change(tensors)
    save_file(tensors, old_step / name)
    with pytest.raises(ArtifactError, match=rf"Expected .*{name}"):
        kproba.load(old_step)


def test_nothing_that_diverged_is_saved(step: Path) -> None:
    network = small_network([1, 1])
    network.branches[0].classifier.bias.data[0] = NAN
    before = (step / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match=r"branches\.0\.classifier\.bias.*diverged"):
        save_step(network, step)
    assert (step / "model.safetensors").read_bytes() == before
    path = step / "prototypes.safetensors"
    bank = PrototypeBank.load(path)
    bank.means[0][0, 0] = INFINITE
    with pytest.raises(ValueError, match=r"means\.0 .*infinity"):
        bank.save(path, about={})
    bank = PrototypeBank.load(path)
    bank.temperature = NAN
    with pytest.raises(ValueError, match="temperature above 0"):
        bank.save(path, about={})


# --- digests, and files of other steps ----------------------------------------------


@pytest.mark.parametrize("place", [0.3, 0.6, 0.999])
@pytest.mark.parametrize("name", [*TENSORS, f"{FIRST}/model.safetensors"])
def test_a_flipped_byte_is_noticed(
    step: Path, capsys: pytest.CaptureFixture[str], name: str, place: float
) -> None:
    path = step.parents[5] / name if "/" in name else step / name
    raw = bytearray(path.read_bytes())
    raw[int(place * len(raw))] ^= 1
    path.write_bytes(raw)
    message = fails(capsys, "info", step, named=path)
    assert "has changed since" in message
    with pytest.raises(ArtifactError, match="has changed since"):
        kproba.load(step)


@pytest.mark.parametrize("name", ["model", "prototypes"])
def test_a_changed_description_is_noticed(step: Path, name: str) -> None:
    path = step / f"{name}.json"
    path.write_text(path.read_text() + "\n")
    with pytest.raises(ArtifactError, match=rf"{name}\.json as it was"):
        kproba.load(step)


def test_the_model_of_another_method_is_noticed(step: Path) -> None:
    """It has the same classes and shapes, and its description fits it."""
    save_step(small_network([1, 1], seed=7), step)
    with pytest.raises(ArtifactError, match=r"model\.safetensors as it was"):
        kproba.load(step)


def test_a_model_is_compared_with_its_own_description(step: Path) -> None:
    other = step.parent / "other"
    model = save_step(small_network([1, 1], seed=7), other)
    shutil.copy(model, step)
    with pytest.raises(ArtifactError, match="has changed since"):
        kproba.load_model(step / "model.safetensors")
    assert kproba.load_model(model).classes_per_step == [1, 1]


def test_the_bank_of_another_step_is_noticed(old_step: Path) -> None:
    first = old_step.parents[5] / FIRST
    network = save_step(small_network([1, 2]), old_step)
    change_json(old_step / "predictor.json", _put("channels", value=[0, 1, 2, 3]))
    extra = {"label": 9, "name": "cow", "step": 1}
    change_json(
        old_step / "predictor.json", lambda content: content["classes"].append(extra)
    )
    with pytest.raises(ArtifactError, match=r"bank of the 4 classes .*prototypes"):
        kproba.load(old_step)
    assert network.exists()
    assert first.exists()


def test_equal_steps_have_equal_bytes(tested: Path, tmp_path: Path) -> None:
    again = write_tested_step(tmp_path / "again")
    for path in again.iterdir():
        if path.is_file():
            first = tested / path.relative_to(tmp_path / "again")
            assert path.read_bytes() == first.read_bytes(), path.name


# --- places --------------------------------------------------------------------------


def test_a_step_without_its_results_says_what_is_missing(
    step: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = tmp_path / "a/b/c/d/e/f/moved"
    shutil.copytree(step, moved)
    message = fails(capsys, "info", moved, named="model.safetensors")
    assert "1-overlap/base/seed0/step0/model.safetensors" in message
    assert "results/ as a whole" in message
    assert "kproba pack" in message


@pytest.mark.parametrize("name", ["results", "archive"])
def test_results_move_as_a_whole_under_any_name(
    step: Path, tmp_path: Path, name: str
) -> None:
    shutil.move(tmp_path / "results", tmp_path / "elsewhere" / name)
    moved = tmp_path / "elsewhere" / name / step.relative_to(tmp_path / "results")
    assert kproba.load(moved).classes[2].name == "dog"


def test_links_are_followed_as_they_are_on_disk(step: Path, tmp_path: Path) -> None:
    link = tmp_path / "short"
    link.symlink_to(step)
    assert kproba.load(link).classes[1].name == "cat"
    disk = tmp_path / "disk"
    first = tmp_path / FIRST
    shutil.move(first, disk)
    first.symlink_to(disk)
    assert kproba.load(step).classes[1].name == "cat"


# --- what jobs and reports read ------------------------------------------------------

READERS: dict[str, Callable[[Path], object]] = {
    "evaluation.json": lambda path: read_evaluation_record(path, ["all"]),
    "usage.json": read_usage_record,
    "settings.json": read_settings,
    "confusion.csv": lambda path: read_confusion(path, 3),
    "metrics.csv": lambda path: read_table(path, {"iteration": int, "loss": float}),
    "pseudo_labels.csv": lambda path: read_table(path, {"id": str}),
}
SOUND: dict[str, str] = {
    "usage.json": '{"device": "CPU", "seconds": 1.5}',
    "confusion.csv": "true,a,b,c\na,1,0,0\nb,0,1,0\nc,0,0,1\n",
    "metrics.csv": "iteration,loss\n1,0.5\n2,0.25\n",
    "pseudo_labels.csv": "id,background\n007,12\n",
}


@pytest.fixture
def files(step: Path) -> Path:
    """A folder with all that `READERS` read."""
    for name, content in SOUND.items():
        (step / name).write_text(content)
    (step / "settings.json").write_text(json.dumps(step_settings(1)))
    return step


@pytest.mark.parametrize("name", READERS)
def test_sound_files_are_read(files: Path, name: str) -> None:
    assert READERS[name](files / name) is not None


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (name, content)
        for name in READERS
        for content in CONTENTS
        # All keys of usage.json may be absent.
        if (name, content) != ("usage.json", "an empty object")
    ],
)
def test_readers_name_a_file_of_any_content(
    files: Path, name: str, content: str
) -> None:
    path = files / name
    path.write_bytes(CONTENTS[content](path.read_bytes()))
    if name == "metrics.csv" and content == "half":
        path.write_text("iteration,loss\n1")
    if name == "pseudo_labels.csv" and content == "half":
        path.write_text("id,background\n007")
    with pytest.raises(ArtifactError, match=rf"Expected .*{name}") as error:
        READERS[name](path)
    assert len(str(error.value).splitlines()) == 1


FIELD_CHANGES: dict[str, dict[str, Change]] = {
    "evaluation.json": {
        "a measure is a text": _put("all", value="50"),
        "a measure is true": _put("all", value=True),
        "no classes": _drop("classes"),
        "a class is a text": _put("classes", 0, value="cat"),
        "a class without IoU": _drop("classes", 0, "iou"),
        "protocol is a list": _put("protocol", value=[]),
        "images are negative": _put("images", value=-1),
    },
    "usage.json": {
        "seconds are negative": _put("seconds", value=-1),
        "seconds are NaN": _put("seconds", value=NAN),
        "device is a number": _put("device", value=1),
    },
    "settings.json": {
        "no method": _drop("method"),
        "a newer key": _put("looks", value=4),
        "unknown head": _put("method", "head", value="hydra"),
        "unknown loss": _put("method", "losses", value={"magic": 1.0}),
        "a loss is a text": _put("method", "losses", value={"gkd": "1"}),
        "epochs 0": _put("optimisation", "epochs", value=0),
        "epochs infinite": _put("optimisation", "epochs", value=INFINITE),
        "batches of -1": _put("optimisation", "batch_size", value=-1),
        "batches are true": _put("optimisation", "batch_size", value=True),
        "rates are a number": _put("optimisation", "learning_rate", value=0.1),
        "unknown optimizer": _put("optimisation", "optimizer", value="lion"),
        "groups are numbers": _put("groups", value=[1, 2]),
        "label 0": _put("groups", 0, 0, value=0),
        "step is a text": _put("run", "step", value="1"),
        "crop is NaN": _put("augmentation", "crop_size", value=NAN),
        "unknown rule": _put("decision", value={"rule": "guess"}),
        "run is null": _put("run", value=None),
    },
}
FIELD_CASES = [
    pytest.param(name, change, id=f"{name}, {what}")
    for name, changes in FIELD_CHANGES.items()
    for what, change in changes.items()
]


@pytest.mark.parametrize(("name", "change"), FIELD_CASES)
def test_readers_name_a_wrong_value(files: Path, name: str, change: Change) -> None:
    change_json(files / name, change)
    with pytest.raises(ArtifactError, match=rf"Expected .*{name}") as error:
        READERS[name](files / name)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("iteration,loss\n1\n", "line 2 has 1 cells and not 2"),
        ("iteration,loss\n1,2,3\n", "line 2 has 3 cells and not 2"),
        ("iteration,loss\n1,low\n", "a number in the column loss .* got 'low'"),
        ("iteration,loss\n1,inf\n", "a number in the column loss .* got 'inf'"),
        ("iteration,loss\n1.5,1\n", "a whole number in the column iteration"),
        ("iteration,loss\n,1\n", "a whole number in the column iteration"),
        ("iteration,bce\n1,1\n", "loss is missing"),
        ("loss,loss\n1,1\n", "the same heading"),
        ('iteration,loss\n1,"2\n', "cannot be parsed"),
        ("iteration,loss\n1,\0\n", "it is no text"),
    ],
)
def test_a_table_says_what_is_wrong(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(content)
    with pytest.raises(ArtifactError, match=reason):
        READERS["metrics.csv"](path)


def test_names_of_older_settings_are_left_out(files: Path) -> None:
    path = files / "settings.json"
    plain = read_settings(path)
    change_json(path, _put("class_names", value=["background", "cat"]))
    assert read_settings(path) == plain


# --- the training job ----------------------------------------------------------------

JOB_DAMAGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "settings cut": ("settings.json", lambda path: path.write_text("{")),
    "settings of another version": (
        "settings.json",
        lambda path: change_json(path, _put("looks", value=1)),
    ),
    "split cut": ("split.csv", lambda path: path.write_text("id,image\na")),
    "split empty": ("split.csv", lambda path: path.write_text("")),
    "model cut": ("model.safetensors", lambda path: path.write_bytes(b"1234")),
    "no model": ("model.safetensors", Path.unlink),
    "model NaN": (
        "model.safetensors",
        lambda path: save_file(
            {k: v.float() * NAN for k, v in load_file(path).items()}, path
        ),
    ),
    "no description": ("model.json", Path.unlink),
    "a model of another step": (
        "model.safetensors",
        lambda path: save_step(small_network([6, 2]), path.parent),
    ),
    "a model of other labels": (
        "model.safetensors",
        lambda path: change_json(
            path.with_suffix(".json"), _put("classes", 1, "label", value=9)
        ),
    ),
}


@pytest.mark.parametrize("damage", JOB_DAMAGES)
def test_the_training_names_a_damaged_input(
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: str,
) -> None:
    from kproba.jobs.train import main

    name, change = JOB_DAMAGES[damage]
    previous = save_step(small_network([6]), tmp_path)
    (tmp_path / "settings.json").write_text(json.dumps(step_settings(1)))
    shutil.copy(data / "step1.csv", tmp_path / "split.csv")
    change(tmp_path / name)
    out = tmp_path / "out"
    words = [f"--{key}={out / key}" for key in ("metrics", "usage", "tensorboard")]
    words += [f"--model={out / 'model.safetensors'}", f"--previous={previous}"]
    words += [f"--split={tmp_path / 'split.csv'}", str(tmp_path / "settings.json")]
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("Error: Expected"), message
    assert Path(name).stem in message
    assert not (out / "model.safetensors").exists()
