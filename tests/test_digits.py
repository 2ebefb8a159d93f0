"""The embedded dataset of digit scenes."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from kproba.data.index import index_dataset
from kproba.data.kinds import KINDS, digits
from kproba.data.kinds.digits import DigitScenes, draw_scene, write_digits
from kproba.data.label_images import read_label_image
from kproba.data.splits import parse_classes, read_index

SCENES = DigitScenes(
    train=30,
    val=20,
    size=64,
    digits=(2, 3),
    height=(0.36, 0.5),
    rotation=25,
    seed=3,
)
FEW = dataclasses.replace(SCENES, train=3, val=2)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("digits") / "data"
    write_digits(folder, SCENES)
    return folder


def _masks(folder: Path, subset: str) -> list[np.ndarray]:
    paths = sorted((folder / "masks" / subset).iterdir())
    return [read_label_image(path) for path in paths]


def _contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_equal_seeds_give_equal_bytes(tmp_path):
    for name, workers in (("once", 1), ("again", 2)):
        write_digits(tmp_path / name, FEW, workers=workers)
    once = _contents(tmp_path / "once")
    assert len(once) == 2 * (3 + 2) + 1
    assert once == _contents(tmp_path / "again")


def test_other_seed_gives_other_scenes(dataset, tmp_path):
    write_digits(tmp_path / "other", dataclasses.replace(FEW, seed=4))
    before, other = _contents(dataset), _contents(tmp_path / "other")
    changed = {name for name in other if other[name] != before[name]}
    assert changed == other.keys() - {"classes.txt"}


def test_more_scenes_leave_the_first_ones_as_they_are(dataset, tmp_path):
    write_digits(tmp_path / "few", FEW)
    many = _contents(dataset)
    assert all(
        many[name] == content for name, content in _contents(tmp_path / "few").items()
    )


def test_training_and_validation_draw_different_scenes(dataset):
    train, val = (
        {path.read_bytes() for path in (dataset / "images" / subset).iterdir()}
        for subset in ("train", "val")
    )
    assert (len(train), len(val)) == (30, 20)
    assert not train & val


@pytest.fixture
def sources(monkeypatch, tmp_path) -> dict[str, tuple]:
    """Glyphs and regions that the scenes of each subset are drawn from."""
    drawn = []

    def record(rng, scenes, glyphs, regions):
        drawn.append((glyphs, regions))
        blank = np.zeros((scenes.size, scenes.size, 3), np.uint8)
        return blank, blank[..., 0]

    monkeypatch.setattr(digits, "draw_scene", record)
    write_digits(tmp_path / "recorded", dataclasses.replace(SCENES, train=1, val=1))
    return dict(zip(("train", "val"), drawn, strict=True))


def test_glyphs_are_shared_out_between_training_and_validation(sources):
    data = load_digits()
    for digit in range(10):
        train, val = (
            {(16 * ink).astype(np.uint8).tobytes() for ink in glyphs[digit]}
            for glyphs, _ in (sources["train"], sources["val"])
        )
        inks = data.images[data.target == digit].astype(np.uint8)
        assert not train & val
        assert train | val == {ink.tobytes() for ink in inks}
        assert len(val) < len(train)


def test_training_and_validation_share_no_part_of_a_photograph(sources):
    photographs = load_sample_images().images
    for photograph, train, val in zip(
        photographs, sources["train"][1], sources["val"][1], strict=True
    ):
        left, right = train.shape[1], val.shape[1]
        np.testing.assert_array_equal(train, photograph[:, :left])
        np.testing.assert_array_equal(val, photograph[:, -right:])
        assert left + right <= photograph.shape[1]


@pytest.mark.parametrize("subset", ["train", "val"])
def test_masks_hold_background_and_every_digit(dataset, subset):
    masks = _masks(dataset, subset)
    labels = np.unique(masks)
    assert labels.tolist() == list(range(11))
    assert all((mask == 0).any() for mask in masks)


@pytest.mark.parametrize("subset", ["train", "val"])
def test_scenes_hold_several_classes(dataset, subset):
    counts = [len(set(np.unique(mask)) - {0}) for mask in _masks(dataset, subset)]
    assert max(counts) == SCENES.digits[1]
    assert np.mean([count >= SCENES.digits[0] for count in counts]) >= 0.9


def test_most_of_every_digit_stays_visible():
    """A glyph of full ink is a square: its visible part can be counted."""
    scenes = dataclasses.replace(SCENES, digits=(6, 6), rotation=0, height=(0.3, 0.3))
    block = [np.ones((1, 8, 8)) for _ in range(10)]
    grey = [np.full((64, 64, 3), 128, np.uint8)]
    for seed in range(5):
        _, mask = draw_scene(np.random.default_rng(seed), scenes, block, grey)
        areas = np.bincount(mask.ravel(), minlength=11)[1:]
        visible = areas[areas > 0]
        assert len(visible) >= 2
        assert visible.min() >= digits.VISIBLE * visible.max()


def test_image_differs_from_its_background_where_the_mask_says(sources):
    grey = [np.full((64, 64, 3), 128, np.uint8)]
    glyphs, _ = sources["train"]
    for seed in range(5):
        image, mask = draw_scene(np.random.default_rng(seed), SCENES, glyphs, grey)
        distance = np.linalg.norm(image.astype(float) - 128, axis=-1)
        seen, said = distance > 55, mask > 0
        assert (seen & said).sum() >= 0.9 * (seen | said).sum()


@pytest.mark.parametrize("subset", ["train", "val"])
def test_images_have_the_size_of_the_settings(dataset, subset):
    for kind, mode in (("images", "RGB"), ("masks", "P")):
        for path in (dataset / kind / subset).iterdir():
            with Image.open(path) as image:
                assert (image.size, image.mode) == ((64, 64), mode)


def test_scenes_are_a_folder_dataset(dataset, tmp_path):
    names = KINDS["folder"].class_names(dataset, None)
    assert names == list(digits.CLASS_NAMES)
    paths = tmp_path / "index.csv", tmp_path / "report.json"
    index_dataset(*paths, kind="folder", folder=dataset, class_count=len(names))
    index = read_index(paths[0])
    assert index["subset"].value_counts().to_dict() == {"train": 30, "val": 20}
    masks = _masks(dataset, "train") + _masks(dataset, "val")
    for cell, mask in zip(index["classes"], masks, strict=True):
        assert parse_classes(cell) == frozenset(np.unique(mask).tolist())
