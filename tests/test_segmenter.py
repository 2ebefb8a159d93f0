"""Loading what a step has learned, images of any size, and the command `kproba`."""

import csv
import io
import itertools
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from small_predictions import columns, noise
from test_inference import all_jobs, step  # noqa: F401  # a fixture

import kproba
from kproba import cli
from kproba.bank.decision import Decision
from kproba.bank.description import SeenClass, convert_description
from kproba.data.colours import drawing_colours
from kproba.data.label_images import read_label_image
from kproba.data.tiles import tile_starts
from kproba.network.heads import HEADS
from kproba.predict.predict import choose_device
from kproba.predict.segmenter import load, read_picture
from kproba.runtime.distributed import Process
from kproba.runtime.files import read_json, write_json


@pytest.fixture
def trained(step, tmp_path) -> Path:  # noqa: F811
    """A tested step 0 of background, cat and dog, by network and bank."""
    all_jobs(Process(), step(3), tmp_path)
    return tmp_path


def _forget_digests(folder: Path) -> None:
    """Make predictor.json that of an older version, whose files may be changed."""
    description = read_json(folder / "predictor.json")
    description.pop("digests")
    write_json(folder / "predictor.json", description)


def run(capsys, *words) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        cli.main([str(word) for word in words])
    return ended.value.code, capsys.readouterr().out


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


# --- loading and predicting ----------------------------------------------------------


def test_what_was_tested_is_what_is_loaded(trained):
    loaded = kproba.load(trained)
    assert [vars(entry) for entry in loaded.classes] == [
        {"label": 0, "name": "background", "step": 0},
        {"label": 1, "name": "cat", "step": 0},
        {"label": 2, "name": "dog", "step": 0},
    ]
    examples = sorted((trained / "examples").glob("*.png"))
    assert examples
    for path in examples:
        predicted = loaded.predict(trained / f"dataset/images/val/{path.name}")
        assert np.array_equal(predicted.indices, read_label_image(path))
        assert predicted.how == "whole"


def test_a_moved_step_loads_as_long_as_its_files_move_together(trained, tmp_path):
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for path in [*trained.glob("*.safetensors"), *trained.glob("*.json")]:
        path.rename(moved / path.name)
    assert load(moved / "predictor.json").classes[2].name == "dog"
    (moved / "prototypes.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="prototypes"):
        load(moved)
    with pytest.raises(FileNotFoundError, match=r"predictor\.json.*does not exist"):
        load(trained)


def test_a_description_of_version_0_1_loads(trained):
    """It has "source" for "feature_network", and for "decision" a whole "rule"."""
    description = read_json(trained / "predictor.json")
    assert not {"source", "rule"} & description.keys()
    of_labels = {"threshold": 0.7, "score_threshold": 0.0}
    plain = description["decision"]
    for network in (None, description["network"]):
        current = {**description, "feature_network": network}
        released = dict(current)
        released["source"] = released.pop("feature_network")
        released["rule"] = {**released.pop("decision"), **of_labels}
        write_json(trained / "predictor.json", released)
        assert convert_description(released) == current
        loaded = load(trained)
        found = loaded.predictor.combination.decision
        assert found == Decision(**plain)
        assert loaded.classes == tuple(
            SeenClass(**entry) for entry in description["classes"]
        )


def test_kinds_of_images_are_one_image(trained):
    loaded, image = load(trained), noise(60, 40)
    pixels = np.asarray(image)
    image.save(trained / "a.png")
    kinds = [image, pixels, torch.from_numpy(pixels.copy()).permute(2, 0, 1)]
    kinds += [trained / "a.png", str(trained / "a.png")]
    first, *others = [loaded.predict(kind) for kind in kinds]
    assert first.indices.shape == first.confidence.shape == (40, 60)
    for other in others:
        assert np.array_equal(first.indices, other.indices)
        assert np.array_equal(first.confidence, other.confidence)


def test_probabilities_are_those_of_the_likeliest_class(trained):
    result = load(trained).predict(noise(60, 40))
    assert result.probabilities.shape == (3, 40, 60)
    assert np.allclose(result.probabilities.sum(axis=0), 1, atol=1e-5)
    assert np.array_equal(result.probabilities.argmax(axis=0), result.indices)
    assert np.allclose(result.probabilities.max(axis=0), result.confidence, atol=1e-5)
    assert sum(result.pixels().values()) == 2400
    assert result.areas() == {k: n / 2400 for k, n in result.pixels().items() if n}


def test_a_photo_is_turned_upright(tmp_path):
    image = noise(60, 40)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right by a quarter
    image.save(tmp_path / "turned.png", exif=exif)
    upright = read_picture(tmp_path / "turned.png")
    assert upright.size == (40, 60)
    expected = image.transpose(Image.Transpose.ROTATE_270)
    assert np.array_equal(np.asarray(upright), np.asarray(expected))


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros(4, np.uint8),
        Image.new("I;16", (4, 4)),
        Image.new("F", (4, 4)),
    ],
)
def test_other_than_8_bits_is_refused(image):
    with pytest.raises(ValueError, match="8"):
        read_picture(image)


# --- sizes ---------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 63, 64, 65, 80, 127, 128, 1000])
def test_tiles_cover_a_side_and_overlap_by_a_quarter(length):
    starts = tile_starts(length, 64)
    assert starts[0] == 0
    assert starts[-1] + min(64, length) == length
    assert all(0 < b - a <= 48 for a, b in itertools.pairwise(starts))


@pytest.mark.parametrize("size", [(200, 150), (64, 300), (65, 20), (150, 64)])
def test_tiles_give_what_the_whole_image_gives(size):
    """If the network sees one pixel at a time; the weights do not matter then."""
    image = noise(*size)
    whole, tiled = columns(), columns()
    expected = whole.predict(image)
    result = tiled.predict(image, tile=64)
    assert whole.predictor.shapes == [(1, 3, *size[::-1])]
    assert len(tiled.predictor.shapes) == int(result.how.split()[0]) > 1
    assert max(max(shape[2:]) for shape in tiled.predictor.shapes) <= 64
    assert np.array_equal(result.indices, expected.indices)
    assert np.allclose(result.confidence, expected.confidence, atol=1e-5)
    assert set(np.unique(result.labels)) == {0, 7}


def test_an_image_is_scaled_on_request_and_the_result_says_so():
    image = Image.fromarray(np.tile(np.uint8([0, 250])[:, None, None], (1, 80, 3)))
    image = image.resize((80, 40), Image.Resampling.NEAREST)  # two halves
    stand_in = columns()
    result = stand_in.predict(image, long_side=32)
    assert stand_in.predictor.shapes == [(1, 3, 16, 32)]
    assert result.how == "scaled to 32x16"
    assert result.indices.shape == (40, 80)
    assert (result.indices[:17] == 1).all() and (result.indices[23:] == 0).all()
    assert np.allclose(result.probabilities.max(0), result.confidence, atol=1e-5)


def test_images_of_one_size_are_stacked(trained):
    loaded = load(trained)
    images = [noise(48, 64, seed) for seed in range(3)]
    together = loaded.predict_batch(images)
    for image, result in zip(images, together, strict=True):
        alone = loaded.predict(image)
        # To rounding, which an untrained network of noise makes much of in places.
        assert np.isclose(result.confidence, alone.confidence, atol=1e-3).mean() > 0.99
        assert (result.indices == alone.indices).mean() > 0.99
    stand_in = columns()
    stand_in.predict_batch([*images, noise(64, 48)])
    assert [shape[0] for shape in stand_in.predictor.shapes] == [1, 1, 1, 1]
    stand_in.predict_batch(images)
    assert stand_in.predictor.shapes[-1][0] == 3


@pytest.mark.parametrize("how", [{"tile": 16}, {"long_side": 8}])
def test_senseless_sizes_are_refused(how):
    with pytest.raises(ValueError, match="at least 64 pixels"):
        columns().predict(noise(40, 40), **how)


# --- the command ---------------------------------------------------------------------


def test_predict_writes_masks_overlays_and_areas(trained, capsys):
    photos = trained / "photos"
    (photos / "deep").mkdir(parents=True)
    noise(60, 40).save(photos / "a.png")
    noise(60, 40, 1).save(photos / "a.jpg")
    noise(50, 70, 2).convert("L").save(photos / "deep" / "grey.tif")
    (photos / "notes.txt").write_text("not an image, and to be ignored")
    out = trained / "out"
    wanted = ["--confidence", "--probabilities", "--batch-size", 2]
    code, _ = run(capsys, "predict", trained, photos, "--out", out, *wanted)
    assert code == 0
    names = ["a", "a-2", "deep/grey"]
    for kind, ending in [
        ("masks", "png"),
        ("overlays", "jpg"),
        ("confidence", "png"),
        ("probabilities", "npz"),
    ]:
        result = sorted(out.glob(f"{kind}/**/*.*"))
        assert result == sorted(out / kind / f"{name}.{ending}" for name in names)
    result = load(trained).predict(photos / "deep" / "grey.tif")
    mask = Image.open(out / "masks/deep/grey.png")
    assert mask.mode == "P"
    assert np.array_equal(np.asarray(mask), result.labels)
    saved = np.load(out / "probabilities/deep/grey.npz")
    assert saved["classes"].tolist() == ["background", "cat", "dog"]
    assert np.abs(saved["probabilities"] - result.probabilities).max() < 1e-3
    grey = np.asarray(Image.open(out / "confidence/deep/grey.png"))
    assert np.abs(grey / 255 - result.confidence).max() < 1 / 255
    areas = rows(out / "areas.csv")
    of_grey = [row for row in areas if row["file"].endswith("grey.tif")]
    assert {row["class"]: int(row["pixels"]) for row in of_grey} == {
        name: n for name, n in result.pixels().items() if n
    }
    assert {(row["width"], row["height"], row["how"]) for row in of_grey} == {
        ("50", "70", "whole")
    }
    assert sum(float(row["percent"]) for row in of_grey) == pytest.approx(100, abs=0.01)


def test_an_overlay_has_the_colours_and_a_legend_of_what_it_shows(trained, capsys):
    noise(300, 200).save(trained / "a.png")
    out = trained / "out"
    run(capsys, "predict", trained, trained / "a.png", "--out", out)
    sheet = Image.open(out / "overlays/a.jpg")
    assert sheet.width == 300 and sheet.height > 200
    legend = np.asarray(sheet)[200:].reshape(-1, 3).astype(int)
    result = set(np.unique(load(trained).predict(noise(300, 200)).indices)) - {0}
    assert result
    palette = drawing_colours(3).astype(int)
    for index in (1, 2):
        near = (np.abs(legend - palette[index]).max(axis=1) < 12).mean()
        assert (near > 0.005) == (index in result)


def test_unreadable_files_are_named_and_the_others_done(trained, capsys, caplog):
    good, out = trained / "good.png", trained / "out"
    noise(60, 40).save(good)
    content = good.read_bytes()
    (trained / "cut.png").write_bytes(content[: len(content) // 2])
    (trained / "text.jpg").write_text("no picture")
    Image.new("I;16", (8, 8)).save(trained / "deep.png")
    bad = [trained / name for name in ("cut.png", "text.jpg", "deep.png", "none.png")]
    code, _ = run(capsys, "predict", trained, *bad, good, "--out", out)
    assert code == 3
    lines = caplog.text
    for path in bad:
        assert f"skipped {path}: " in lines
    assert "No such file" in lines and "8 bits" in lines
    assert [path.name for path in (out / "masks").iterdir()] == ["good.png"]
    assert {row["file"] for row in rows(out / "areas.csv")} == {str(good)}


def test_a_list_of_files_comes_from_standard_input(trained, capsys, monkeypatch):
    for name in ("a b.png", "c.png"):
        noise(60, 40).save(trained / name)
    listed = "".join(f"{trained / name}\n" for name in ("a b.png", "c.png"))
    monkeypatch.setattr(sys, "stdin", io.StringIO(listed + "\n"))
    out = trained / "out"
    code, _ = run(capsys, "predict", trained, "-", "--out", out, "--no-overlays")
    assert code == 0
    names = sorted(path.name for path in (out / "masks").iterdir())
    assert names == ["a b.png", "c.png"]
    assert not (out / "overlays").exists()


def test_predict_without_images_or_step_is_an_error(trained, capsys):
    (trained / "empty").mkdir()
    for words, message in (
        ([trained, trained / "empty"], "found none in"),
        ([trained / "empty", trained], "Expected an evaluated step"),
    ):
        with pytest.raises(SystemExit) as ended:
            cli.main(["predict", *map(str, words), "--out", str(trained / "out")])
        assert ended.value.code == 1
        assert message in capsys.readouterr().err


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == "cpu"
    with pytest.raises(ValueError, match="found none"):
        choose_device("cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == "cuda"


def test_info_prints_classes_files_bank_and_result(trained, capsys):
    description = read_json(trained / "predictor.json")
    description["about"] = {
        "dataset": "pets",
        "task": "2",
        "setting": "overlap",
        "method": "kproba",
        "seed": 0,
        "step": 0,
    }
    write_json(trained / "predictor.json", description)
    model = read_json(trained / "model.json")
    made = SimpleNamespace(torch="9.9", commit=None)
    write_json(trained / "model.json", model | {"provenance": vars(made)})
    _forget_digests(trained)
    code, printed = run(capsys, "info", trained)
    assert code == 0
    bank = read_json(trained / "prototypes.json")
    for wanted in (
        "pets 2 overlap, kproba, seed 0, after step 0",
        "step 0: background (0), cat (1), dog (2)",
        "network and bank (klda)",
        f"{trained / 'model.safetensors'}  (",
        "2 maps of 32 Fourier features on block",
        f"cat {bank['cells_per_class'][1]}",
        f"all {read_json(trained / 'evaluation.json')['all']:.1f} percent on 3 images",
        "torch        9.9",
    ):
        assert wanted in printed
    assert "commit" not in printed


@pytest.mark.parametrize(
    ("architecture", "head"),
    [
        ({"head": "branches"}, "branches"),
        ({"head": "softmax"}, "softmax"),
        ({"softmax": False}, "branches"),
        ({"softmax": True}, "softmax"),
    ],
)
def test_info_knows_the_heads_of_this_and_the_released_version(
    trained, capsys, architecture, head
):
    model = read_json(trained / "model.json")
    for key in ("head", "softmax"):
        model["architecture"].pop(key, None)
    model["architecture"] |= architecture
    write_json(trained / "model.json", model | {"provenance": {}})
    description = read_json(trained / "predictor.json")
    run_keys = ("dataset", "task", "setting", "method", "seed", "step")
    description["about"] = {**dict.fromkeys(run_keys, "a"), "seed": 0, "step": 0}
    description.pop("digests")
    write_json(trained / "predictor.json", description)
    code, printed = run(capsys, "info", trained)
    assert code == 0
    assert f"output stride 16; {HEADS[head].description}" in printed
