"""The model card of a step: what it says, and that its examples run."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from tested_steps import (
    ABOUT,
    FIRST,
    STEP,
    change_json,
    forget_digests,
    write_tested_step,
)

from kproba import cli
from kproba.artifacts import CARD, fill
from kproba.predict.pack import pack_step
from kproba.results.card import describe_card
from kproba.runtime.files import write_json
from kproba.runtime.run_file import write_run


@pytest.fixture
def step(tmp_path, monkeypatch) -> Path:
    """A step in results/ of the current folder."""
    write_tested_step(tmp_path)
    monkeypatch.chdir(tmp_path)
    return Path(STEP)


def block(card: str, language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", card, re.DOTALL)
    assert found is not None
    return found[1]


def row(card: str, first: str) -> list[str]:
    """Further cells of the row of a table that begins with a text."""
    [line] = [line for line in card.splitlines() if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in line.strip("|").split("|")[1:]]


def test_hugging_face_reads_the_results(step):
    change_json(step / "evaluation.json", lambda content: content.update(old=61.234))
    metadata = ModelCard(describe_card(step)).data
    results = {entry.metric_name: entry.metric_value for entry in metadata.eval_results}
    assert results == {
        "mIoU, old classes": 61.23,
        "mIoU, new classes": 50.0,
        "mIoU, all classes": 50.0,
    }
    assert metadata.model_name == "pets-1-1-overlap-kproba-step1"
    assert metadata.to_dict()["library_name"] == "kproba"
    assert metadata.pipeline_tag == "image-segmentation"
    assert {"kproba", "efficientnet_lite0"} <= set(metadata.tags)
    assert metadata.license is None  # it is for the owner to choose


def test_classes_results_and_files_are_listed(step):
    change_json(
        step / "evaluation.json",
        lambda content: content["classes"][1].update(iou=12.34, pixels=77),
    )
    card = describe_card(step)
    assert row(card, "0") == ["background (0), cat (1)"]
    assert row(card, "1") == ["dog (2)"]
    assert row(card, "cat") == ["0", "12.3", "77"]
    assert row(card, "old classes") == ["50.0"]
    assert "Evaluated on 2 validation images of `pets`" in card
    assert row(card, "prediction") == ["network and prototype bank, rule `klda`"]
    for name in ("model.safetensors", "prototypes.safetensors", FIRST.split("/")[-3]):
        assert name in card


def test_the_examples_of_use_run(step, capsys):
    card = describe_card(step)
    Image.new("RGB", (48, 32), "green").save("photo.jpg")
    words = shlex.split(block(card, "bash"))
    assert words.pop(0) == "kproba"
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 0
    assert Path("predictions/masks/photo.png").is_file()
    names: dict[str, object] = {}
    exec(block(card, "python"), names)
    assert names["result"].labels.shape == (32, 48)


def test_a_path_with_odd_letters_is_quoted(step, tmp_path):
    odd = tmp_path / 'it\'s a "test"'
    (tmp_path / "results").rename(odd)
    card = describe_card(odd / Path(STEP).relative_to("results"))
    words = shlex.split(block(card, "bash"))
    assert Path(words[2]).is_dir()
    [call] = re.findall(r"kproba\.load\((.*)\)", card)
    assert eval(call) == words[2]
    assert "The path starts at" not in card


def test_what_is_unknown_is_left_out(step):
    card = describe_card(step)
    assert "training images |" not in card
    assert "## Training settings" not in card
    assert "device" not in card
    assert not re.search(r"\b(None|nan)\b", card)
    (step / "evaluation.json").unlink()
    card = describe_card(step)
    assert "This step has not been evaluated." in card
    assert "model-index" not in card


def test_what_is_known_is_listed(step):
    first = Path(FIRST)
    run = {**ABOUT, "task": "1", "method": "base", "step": 0}
    write_run(first / "tensorboard", run, None)
    for task, number, images in (("1", 0, 3), ("1-1", 1, 2)):
        table = Path(f"results/splits/pets/{task}-overlap/step{number}.csv")
        table.parent.mkdir(parents=True)
        table.write_text("id,image\n" + 'a,"line\nbreak"\n' * images)
    settings = {"optimisation": {"epochs": 7}, "method": {"losses": {"kd": 0.5}}}
    change_json(step / "model.json", lambda content: content.update(settings=settings))
    forget_digests(step)  # model.json is another one now
    write_json(step / "usage.json", {"device": "Tesla T4", "seconds": 90})
    card = describe_card(step)
    counts = card.split("| step | training images |")[1]
    assert (row(counts, "0"), row(counts, "1")) == (["3"], ["2"])
    assert yaml.safe_load(block(card, "yaml")) == settings
    assert row(card, "device") == ["Tesla T4"]
    assert row(card, "last training") == ["1.5 minutes"]
    assert row(card, "torch") == ["2"]


def test_limits_name_the_classes_without_pictures(step):
    change_json(
        step / "evaluation.json",
        lambda content: content.update(
            without_pixels=["dog"], without_training_images=["cat"]
        ),
    )
    card = describe_card(step)
    assert "No validation image shows dog: not measured, counted as 0" in card
    assert "No training image shows cat." in card
    assert row(card, "dog")[1] == "not measured"


@pytest.mark.parametrize("names", [{"step": 0}, {"joint": True}])
def test_joint_training_is_called_so(step, names):
    """It is evaluated as the last step, and trained as that step or as a step 0."""
    change_json(
        step / "tensorboard" / "run.json", lambda c: c.update(names, previous=None)
    )
    assert "trained on everything at once" in describe_card(step)


def test_images_of_joint_training_are_all_images(step):
    """They are the list of the one-step task of all classes, whatever their order."""
    change_json(
        step / "tensorboard" / "run.json", lambda c: c.update(joint=True, previous=None)
    )
    for name, images in (("2-overlap/step0", 5), ("1-1-overlap/step1", 2)):
        table = Path(f"results/splits/pets/{name}.csv")
        table.parent.mkdir(parents=True)
        table.write_text("id,image\n" + "a,b\n" * images)
    counts = describe_card(step).split("| step | training images |")[1]
    assert row(counts, "1") == ["5"]


def test_names_cannot_break_tables(step):
    def rename(content):
        content["classes"][1]["name"] = "a|b"

    for name in ("predictor.json", "evaluation.json"):
        change_json(step / name, rename)
    card = describe_card(step)
    assert r"| 0 | background (0), a\|b (1) |" in card
    assert "| a\\|b | 0 | 50.0 | 9 |" in card


def test_the_card_of_an_archive_names_the_archive(step, capsys):
    pack_step(step, "step.zip")
    with pytest.raises(SystemExit) as ended:
        cli.main(["info", "--card", "step.zip"])
    assert ended.value.code == 0
    card = capsys.readouterr().out
    assert "kproba predict step.zip photo.jpg" in card
    assert 'kproba.load("step.zip")'.replace('"', "'") in card
    ModelCard(card)


def test_a_damaged_file_is_named(step, capsys):
    (step / "evaluation.json").write_text(json.dumps({"images": 2}))
    with pytest.raises(SystemExit) as ended:
        cli.main(["info", "--card", str(step)])
    assert ended.value.code == 1
    assert "evaluation.json" in capsys.readouterr().err


def test_a_card_needs_no_torch(step):
    script = (
        "import sys; from kproba.results.card import describe_card\n"
        f"describe_card({str(step)!r}); print({{'torch', 'pandas'}} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"


def test_the_card_is_beside_the_step():
    assert fill(CARD, ABOUT) == f"{STEP}/card.md"
