"""What jobs and reports read: results, costs, settings, tables, inputs of a training.

Each file is named, with what is wrong and what to do, when it is damaged or foreign.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from damages import CONTENTS, INFINITE, NAN, Change, drop, put
from safetensors.torch import load_file, save_file
from tested_steps import change_json, save_step, small_network, write_evaluation
from training_steps import step_settings

from kproba.jobs.step_labels import LabelInputs, label_step
from kproba.jobs.train import main
from kproba.methods.export import LabelFiles
from kproba.network.backbones.backbone import Backbone
from kproba.results.record import read_evaluation_record, read_usage_record
from kproba.results.tables import read_confusion
from kproba.runtime.compute import Compute
from kproba.runtime.distributed import Process
from kproba.runtime.records import ArtifactError
from kproba.runtime.tables import read_table
from kproba.training.settings import read_settings

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
def files(tmp_path: Path) -> Path:
    """A folder with all that `READERS` read."""
    for name, content in SOUND.items():
        (tmp_path / name).write_text(content)
    write_evaluation(tmp_path / "evaluation.json")
    (tmp_path / "settings.json").write_text(json.dumps(step_settings(1)))
    return tmp_path


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
        "a measure is a text": put("all", value="50"),
        "a measure is true": put("all", value=True),
        "no classes": drop("classes"),
        "a class is a text": put("classes", 0, value="cat"),
        "a class without IoU": drop("classes", 0, "iou"),
        "protocol is a list": put("protocol", value=[]),
        "images are negative": put("images", value=-1),
    },
    "usage.json": {
        "seconds are negative": put("seconds", value=-1),
        "seconds are NaN": put("seconds", value=NAN),
        "device is a number": put("device", value=1),
    },
    "settings.json": {
        "no method": drop("method"),
        "a newer key": put("unknown", value=4),
        "unknown head": put("method", "head", value="hydra"),
        "unknown loss": put("method", "losses", value={"magic": 1.0}),
        "a loss is a text": put("method", "losses", value={"gkd": "1"}),
        "epochs 0": put("optimisation", "epochs", value=0),
        "epochs infinite": put("optimisation", "epochs", value=INFINITE),
        "batches of -1": put("optimisation", "batch_size", value=-1),
        "batches are true": put("optimisation", "batch_size", value=True),
        "rates are a number": put("optimisation", "learning_rate", value=0.1),
        "unknown optimizer": put("optimisation", "optimizer", value="lion"),
        "groups are numbers": put("groups", value=[1, 2]),
        "label 0": put("groups", 0, 0, value=0),
        "step is a text": put("run", "step", value="1"),
        "crop is NaN": put("augmentation", "crop_size", value=NAN),
        "unknown rule": put("decision", value={"rule": "guess"}),
        "run is null": put("run", value=None),
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
        ("iteration,loss\n1\n", "line 2 has 1 cells instead of 2"),
        ("iteration,loss\n1,2,3\n", "line 2 has 3 cells instead of 2"),
        ("iteration,loss\n1,low\n", "a number in the column loss .* got 'low'"),
        ("iteration,loss\n1,inf\n", "a number in the column loss .* got 'inf'"),
        ("iteration,loss\n1.5,1\n", "a whole number in the column iteration"),
        ("iteration,loss\n,1\n", "a whole number in the column iteration"),
        ("iteration,bce\n1,1\n", "loss is missing"),
        ("loss,loss\n1,1\n", "the same heading"),
        ('iteration,loss\n1,"2\n', "cannot be parsed"),
        ("iteration,loss\n1,\0\n", "it is not text"),
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
    change_json(path, put("class_names", value=["background", "cat"]))
    assert read_settings(path) == plain


# --- the training job ----------------------------------------------------------------

JOB_DAMAGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "settings cut": ("settings.json", lambda path: path.write_text("{")),
    "settings of another version": (
        "settings.json",
        lambda path: change_json(path, put("unknown", value=1)),
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
            path.with_suffix(".json"), put("classes", 1, "label", value=9)
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


def test_the_pseudo_labels_refuse_the_model_of_another_step(
    data: Path, tmp_path: Path
) -> None:
    model = save_step(small_network([6, 2]), tmp_path)
    job = {
        "settings": {"rule": "argmax"},
        "groups": step_settings(1)["groups"],
        "sequential": False,
    }
    outputs = LabelFiles(*(tmp_path / name for name in ("labels", "a.csv", "b.csv")))
    with pytest.raises(ArtifactError, match=r"model\.safetensors .*another step"):
        label_step(
            LabelInputs(model, data / "step1.csv"), outputs, job, Compute(), Process()
        )


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("content", ["empty", "half", "text", "binary", "a list"])
def test_damaged_weights_of_a_backbone_are_named(
    tmp_path: Path, content: str, suffix: str
) -> None:
    path = tmp_path / f"weights.{suffix}"
    state = small_network([1]).backbone.body.state_dict()
    if suffix == "pth":
        torch.save({key: value.clone() for key, value in state.items()}, path)
    else:
        save_file(state, path)
    path.write_bytes(CONTENTS[content](path.read_bytes()))
    with pytest.raises(ArtifactError, match=rf"Expected .*weights\.{suffix}") as error:
        Backbone("efficientnet_lite0", output_stride=16, weights=str(path))
    assert "weights_only" not in str(error.value)
