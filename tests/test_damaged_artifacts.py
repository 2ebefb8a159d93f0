"""Artifacts that are damaged, foreign or mixed: one message that names the file.

Every kind of damage is tried on every artifact, by what reads it: `kproba info`,
`kproba predict`, `kproba export`, and the readers of the jobs.
"""

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from damages import CONTENTS, INFINITE, NAN, Change, drop, put
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

import kproba
from kproba.bank.bank import PrototypeBank
from kproba.cli import main as command
from kproba.runtime.records import ArtifactError

JSON = ("predictor.json", "model.json", "prototypes.json")
TENSORS = ("model.safetensors", "prototypes.safetensors")


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


CHANGES: dict[str, dict[str, Change]] = {
    "model.json": {
        "no architecture": drop("architecture"),
        "architecture is a list": put("architecture", value=[1]),
        "no backbone": drop("architecture", "backbone"),
        "unknown backbone": put("architecture", "backbone", value="vgg"),
        "another backbone": put("architecture", "backbone", value="resnet50"),
        "backbone is a number": put("architecture", "backbone", value=3),
        "unknown head": put("architecture", "head", value="hydra"),
        "a key of a newer version": put("architecture", "gates", value=2),
        "stride 7": put("architecture", "output_stride", value=7),
        "huge channels": put("architecture", "aspp_channels", value=10**9),
        "many channels": put("architecture", "aspp_channels", value=65536),
        "negative channels": put("architecture", "aspp_channels", value=-8),
        "channels are true": put("architecture", "aspp_channels", value=True),
        "channels are a text": put("architecture", "aspp_channels", value="8"),
        "channels are a fraction": put("architecture", "aspp_channels", value=8.5),
        "another rate": put("architecture", "atrous_rates", value=[1, 2, 3]),
        "rate 0": put("architecture", "atrous_rates", value=[0, 1]),
        "dropout NaN": put("architecture", "aspp_dropout", value=NAN),
        "momentum infinite": put("architecture", "bn_momentum", value=INFINITE),
        "huge classes": put("classes_per_step", value=[10**8]),
        "other classes": put("classes_per_step", value=[1, 2]),
        "fewer steps": put("classes_per_step", value=[2]),
        "more steps": put("classes_per_step", value=[1, 1, 1]),
        "no classes": put("classes_per_step", value=[]),
        "negative classes": put("classes_per_step", value=[3, -1]),
        "classes are a number": put("classes_per_step", value=2),
        "extensions are a text": put("extensions", value="mine.py"),
        "provenance is a list": put("provenance", value=[]),
    },
    "prototypes.json": {
        "no settings": drop("settings"),
        "no model": drop("model"),
        "another model": put("model", value="0" * 64),
        "unknown map": put("settings", "map", value="spline"),
        "another map": put("settings", "map", value="identity"),
        "another feature": put("settings", "feature", value="block"),
        "huge dimension": put("settings", "dimension", value=10**9),
        "odd dimension": put("settings", "dimension", value=63),
        "no dimension": put("settings", "dimension", value=None),
        "many maps": put("settings", "maps", value=10**6),
        "more maps": put("settings", "maps", value=3),
        "no maps": put("settings", "maps", value=0),
        "no scatter": put("settings", "scatter", value=False),
        "scatter is a number": put("settings", "scatter", value=1),
        "ridge NaN": put("settings", "ridge", value=NAN),
        "a key of a newer version": put("settings", "shrinkage", value=0.1),
        "gamma 0": put("gamma", value=0),
        "gamma infinite": put("gamma", value=INFINITE),
        "no gamma": put("gamma", value=None),
        "temperature 0": put("temperature", value=0),
        "temperature negative": put("temperature", value=-1.0),
        "temperature NaN": put("temperature", value=NAN),
        "temperature is true": put("temperature", value=True),
        "temperature huge": put("temperature", value=1e300),
        "count negative": put("scatter_count", value=-1),
        "seed is a text": put("seed", value="0"),
        "cells of other classes": put("cells_per_class", value=[1, 2]),
    },
    "predictor.json": {
        "no network": drop("network"),
        "network is null": put("network", value=None),
        "network is a number": put("network", value=5),
        "network is absolute": put("network", value="/etc/model.safetensors"),
        "network is another file": put("network", value="predictor.json"),
        "network is outside": put("network", value="../" * 7 + "x/m.safetensors"),
        "bank is outside": put("bank", value="a/" + "../" * 8 + "b.safetensors"),
        "NUL in a path": put("bank", value="a\0.safetensors"),
        "no bank": put("bank", value=None),
        "no decision": put("decision", value=None),
        "unknown rule": put("decision", "rule", value="guess"),
        "rule is null": put("decision", "rule", value=None),
        "tau 0": put("decision", "temperature", value=0),
        "tau NaN": put("decision", "temperature", value=NAN),
        "weight is a text": put("decision", "posterior_weight", value="1"),
        "prior negative": put("decision", "image_prior", value=-1),
        "a newer decision": put("decision", "smoothing", value=1),
        "a key of a newer version": put("tiles", value=1),
        "no classes": put("classes", value=[]),
        "fewer classes": lambda content: content["classes"].pop() and None,
        "label twice": put("classes", 1, "label", value=2),
        "label too large": put("classes", 1, "label", value=256),
        "name twice": put("classes", 1, "name", value="dog"),
        "name is empty": put("classes", 1, "name", value=""),
        "name has a line break": put("classes", 1, "name", value="a\nb"),
        "steps out of order": put("classes", 0, "step", value=1),
        "channel twice": put("channels", value=[0, 1, 1]),
        "channel is true": put("channels", value=[0, True, 2]),
        "fewer channels": put("channels", value=[0, 1]),
        "about is empty": put("about", value={}),
        "seed is a text": put("about", "seed", value="0"),
        "long side 0": put("long_side", value=0),
        "long side is a text": put("long_side", value="300"),
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
        old_step / "model.json", put("architecture", "aspp_channels", value=65536)
    )
    with pytest.raises(ArtifactError, match=r"8 for `architecture.aspp_channels`"):
        kproba.load_model(old_step / "model.safetensors")
    change_json(old_step / "prototypes.json", put("settings", "dimension", value=2**20))
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
        "whole numbers": lambda tensors: tensors.update(
            {"means.0": tensors["means.0"].long()}
        ),
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


def _tensor_file(head: object, data: bytes = b"") -> bytes:
    """A file of tensors with any header."""
    text = json.dumps(head).encode()
    return struct.pack("<Q", len(text)) + text + data


def _tensor(shape: list[int], start: int = 0, end: int = 4, kind: str = "F32") -> Any:
    return {"dtype": kind, "shape": shape, "data_offsets": [start, end]}


HEADERS = {
    "a huge length": struct.pack("<Q", 2**62) + b"{}",
    "huge shapes": _tensor_file({"a": _tensor([10**12, 10**12])}, bytes(4)),
    "shapes that overflow": _tensor_file({"a": _tensor([2**62, 2**62], 0, 0)}),
    "a negative shape": _tensor_file({"a": _tensor([-1])}, bytes(4)),
    "an unknown type": _tensor_file({"a": _tensor([1], kind="X9")}, bytes(4)),
    "a type of eight bits": _tensor_file(
        {"centre": _tensor([4], kind="F8_E5M2")}, bytes(4)
    ),
    "one place twice": _tensor_file({"a": _tensor([1]), "b": _tensor([1])}, bytes(4)),
    "no shape": _tensor_file(
        {
            "aspp.project.0.weight": _tensor([]),
            "centre": _tensor([], 4, 8),
            "count": _tensor([], 8, 12),
        },
        bytes(12),
    ),
    "odd names": _tensor_file(
        {"": _tensor([1]), "branches": _tensor([1], 4, 8), ".": _tensor([1], 8, 12)},
        bytes(12),
    ),
}


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("name", TENSORS)
def test_odd_headers_are_named(old_step: Path, name: str, header: str) -> None:
    (old_step / name).write_bytes(HEADERS[header])
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
    assert "its content is different" in message
    with pytest.raises(ArtifactError, match="its content is different"):
        kproba.load(step)


@pytest.mark.parametrize("name", ["model", "prototypes"])
def test_a_changed_description_is_noticed(step: Path, name: str) -> None:
    path = step / f"{name}.json"
    path.write_text(path.read_text() + "\n")
    with pytest.raises(ArtifactError, match=rf"{name}\.json to be unchanged"):
        kproba.load(step)


def test_the_model_of_another_method_is_noticed(step: Path) -> None:
    """It has the same classes and shapes, and its description fits it."""
    save_step(small_network([1, 1], seed=7), step)
    with pytest.raises(ArtifactError, match=r"model\.safetensors to be unchanged"):
        kproba.load(step)


def test_a_model_is_compared_with_its_own_description(step: Path) -> None:
    other = step.parent / "other"
    model = save_step(small_network([1, 1], seed=7), other)
    shutil.copy(model, step)
    with pytest.raises(ArtifactError, match="its content is different"):
        kproba.load_model(step / "model.safetensors")
    assert kproba.load_model(model).classes_per_step == [1, 1]


def test_the_bank_of_another_step_is_noticed(old_step: Path) -> None:
    first = old_step.parents[5] / FIRST
    network = save_step(small_network([1, 2]), old_step)
    change_json(old_step / "predictor.json", put("channels", value=[0, 1, 2, 3]))
    extra = {"label": 9, "name": "cow", "step": 1}
    change_json(
        old_step / "predictor.json", lambda content: content["classes"].append(extra)
    )
    with pytest.raises(ArtifactError, match=r"bank with the 4 classes .*prototypes"):
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
    assert "Move or copy the whole folder results/" in message
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
