"""Loading what a step learned, images of any size, and the command `kproba`."""

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
from test_inference import all_jobs, step  # noqa: F401  # a fixture

import kproba
from kproba.bank.description import SeenClass
from kproba.data.label_images import read_label_image
from kproba.predict import cli, segmenter
from kproba.predict.segmenter import Segmenter, load, read_picture, tile_starts
from kproba.runtime.distributed import Process
from kproba.runtime.files import read_json, write_json


@pytest.fixture
def trained(step, tmp_path) -> Path:  # noqa: F811
    """A tested step 0 of background, cat and dog, by network and bank."""
    all_jobs(Process(), step(3), tmp_path)
    return tmp_path


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    random = np.random.default_rng(seed)
    return Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))


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
        found = loaded.predict(trained / f"dataset/images/val/{path.name}")
        assert np.array_equal(found.indices, read_label_image(path))
        assert found.how == "whole"


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
    found = load(trained).predict(noise(60, 40))
    assert found.probabilities.shape == (3, 40, 60)
    assert np.allclose(found.probabilities.sum(axis=0), 1, atol=1e-5)
    assert np.array_equal(found.probabilities.argmax(axis=0), found.indices)
    assert np.allclose(found.probabilities.max(axis=0), found.confidence, atol=1e-5)
    assert sum(found.pixels().values()) == 2400
    assert found.areas() == {k: n / 2400 for k, n in found.pixels().items() if n}


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


class Columns:
    """Stands in for a network: a pixel's class follows from its own value."""

    def __init__(self):
        self.asked = []

    def log_scores(self, images):
        """Red pixels are background."""
        self.asked.append(tuple(images.shape))
        chance = images[:, :1].float() / 300 + 0.05
        return torch.cat([chance, 1 - chance], dim=1).log()

    def fit(self, log_s):
        """Nothing to fit."""
        self.fitted = tuple(log_s.shape)
        return log_s


def columns() -> Segmenter:
    classes = [SeenClass(0, "background", 0), SeenClass(7, "thing", 0)]
    return Segmenter(Columns(), classes, [0, 1])


@pytest.mark.parametrize("size", [(200, 150), (64, 300), (65, 20), (150, 64)])
def test_tiles_give_what_the_whole_image_gives(size):
    """Of a network that sees one pixel at a time, whatever the weights."""
    image = noise(*size)
    whole, tiled = columns(), columns()
    expected = whole.predict(image)
    found = tiled.predict(image, tile=64)
    assert whole.predictor.asked == [(1, 3, *size[::-1])]
    assert len(tiled.predictor.asked) == int(found.how.split()[0]) > 1
    assert max(max(shape[2:]) for shape in tiled.predictor.asked) <= 64
    # What fits an image as a whole sees it as a whole.
    assert tiled.predictor.fitted == (1, 2, *size[::-1])
    assert np.array_equal(found.indices, expected.indices)
    assert np.allclose(found.confidence, expected.confidence, atol=1e-5)
    assert set(np.unique(found.labels)) == {0, 7}


def test_an_image_is_scaled_on_request_and_told_so():
    image = Image.fromarray(np.tile(np.uint8([0, 250])[:, None, None], (1, 80, 3)))
    image = image.resize((80, 40), Image.Resampling.NEAREST)  # two halves
    asked = columns()
    found = asked.predict(image, long_side=32)
    assert asked.predictor.asked == [(1, 3, 16, 32)]
    assert found.how == "scaled to 32x16"
    assert found.indices.shape == (40, 80)
    assert (found.indices[:17] == 1).all() and (found.indices[23:] == 0).all()
    assert np.allclose(found.probabilities.max(0), found.confidence, atol=1e-5)


def test_what_needs_too_much_memory_is_scaled_down(monkeypatch):
    monkeypatch.setattr(segmenter, "MOST_VALUES", 2 * 50 * 100)
    asked = columns()
    found = asked.predict(noise(200, 100))
    assert found.how == "scaled to 100x50"
    assert found.labels.shape == (100, 200)
    asked.predict_batch([noise(60, 60), noise(60, 60)])  # two at once would not fit
    assert asked.predictor.asked[1:] == [(1, 3, 60, 60)] * 2


def test_images_of_one_size_are_asked_together(trained):
    loaded = load(trained)
    images = [noise(48, 64, seed) for seed in range(3)]
    together = loaded.predict_batch(images)
    for image, found in zip(images, together, strict=True):
        alone = loaded.predict(image)
        # To rounding, which an untrained network of noise makes much of in places.
        assert np.isclose(found.confidence, alone.confidence, atol=1e-3).mean() > 0.99
        assert (found.indices == alone.indices).mean() > 0.99
    asked = columns()
    asked.predict_batch([*images, noise(64, 48)])
    assert [shape[0] for shape in asked.predictor.asked] == [1, 1, 1, 1]
    asked.predict_batch(images)
    assert asked.predictor.asked[-1][0] == 3


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
    (photos / "notes.txt").write_text("no image, and not asked for")
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
        found = sorted(out.glob(f"{kind}/**/*.*"))
        assert found == sorted(out / kind / f"{name}.{ending}" for name in names)
    found = load(trained).predict(photos / "deep" / "grey.tif")
    mask = Image.open(out / "masks/deep/grey.png")
    assert mask.mode == "P"
    assert np.array_equal(np.asarray(mask), found.labels)
    saved = np.load(out / "probabilities/deep/grey.npz")
    assert saved["classes"].tolist() == ["background", "cat", "dog"]
    assert np.abs(saved["probabilities"] - found.probabilities).max() < 1e-3
    grey = np.asarray(Image.open(out / "confidence/deep/grey.png"))
    assert np.abs(grey / 255 - found.confidence).max() < 1 / 255
    areas = rows(out / "areas.csv")
    of_grey = [row for row in areas if row["file"].endswith("grey.tif")]
    assert {row["class"]: int(row["pixels"]) for row in of_grey} == {
        name: n for name, n in found.pixels().items() if n
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
    found = set(np.unique(load(trained).predict(noise(300, 200)).indices)) - {0}
    assert found
    palette = np.array(Image.open(out / "masks/a.png").getpalette()).reshape(-1, 3)
    for index in (1, 2):
        near = (np.abs(legend - palette[index]).max(axis=1) < 12).mean()
        assert (near > 0.005) == (index in found)


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
    told = caplog.text
    for path in bad:
        assert f"skipped {path}: " in told
    assert "No such file" in told and "8 bits" in told
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


def test_predict_without_images_or_step_says_so(trained, capsys):
    (trained / "empty").mkdir()
    for words, told in (
        ([trained, trained / "empty"], "found none in"),
        ([trained / "empty", trained], "Expected a tested step"),
    ):
        with pytest.raises(SystemExit) as ended:
            cli.main(["predict", *map(str, words), "--out", str(trained / "out")])
        assert ended.value.code == 1
        assert told in capsys.readouterr().err


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.device_of("auto") == "cpu"
    with pytest.raises(ValueError, match="found none"):
        cli.device_of("cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert cli.device_of("auto") == "cuda"


def test_info_tells_classes_files_bank_and_result(trained, capsys):
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
    code, told = run(capsys, "info", trained)
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
        assert wanted in told
    assert "commit" not in told
