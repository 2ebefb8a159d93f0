"""The drawn dataset of many classes."""

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from plan_configs import make_plan

from kproba.data.index import index_dataset
from kproba.data.kinds import KINDS
from kproba.data.kinds.class_names import check_class_names
from kproba.data.kinds.glyph_counts import class_counts, class_ranks, deal
from kproba.data.kinds.glyph_shapes import (
    PATTERNS,
    family_and_pattern,
    family_count,
    make_shapes,
    render,
)
from kproba.data.kinds.glyphs import (
    SETTINGS,
    VISIBLE,
    GlyphScenes,
    draw_scene,
    write_glyphs,
)
from kproba.data.label_images import read_label_image
from kproba.data.splits import parse_classes, read_index
from kproba.plan.errors import ConfigError

SCENES = GlyphScenes(
    train=60,
    val=30,
    size=64,
    classes=20,
    glyphs=(2, 4),
    height=(0.5, 0.8),
    rotation=20,
    imbalance=1000,
    least=2,
    order="mixed",
    seed=3,
)
DEFAULTS = GlyphScenes(**{key: entry["default"] for key, entry in SETTINGS.items()})


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("glyphs") / "data"
    write_glyphs(folder, SCENES)
    return folder


def masks_of(folder: Path, subset: str) -> list[np.ndarray]:
    return [read_label_image(p) for p in sorted((folder / "masks" / subset).iterdir())]


def test_scenes_do_not_depend_on_the_number_of_processes(dataset, tmp_path):
    write_glyphs(tmp_path / "again", SCENES, workers=2)
    assert contents(dataset) == contents(tmp_path / "again")
    assert len(contents(dataset)) == 2 * (60 + 30) + 1


def test_other_seed_gives_other_scenes(dataset, tmp_path):
    write_glyphs(tmp_path / "other", dataclasses.replace(SCENES, seed=4))
    before, other = contents(dataset), contents(tmp_path / "other")
    changed = {name for name in other if other[name] != before[name]}
    assert changed == other.keys() - {"classes.txt"}


@pytest.mark.parametrize("subset", ["train", "val"])
def test_every_class_is_in_the_least_number_of_scenes(dataset, subset):
    shown = Counter(
        label for mask in masks_of(dataset, subset) for label in np.unique(mask)
    )
    assert shown.keys() == set(range(21))
    assert min(shown.values()) >= SCENES.least


def test_masks_show_the_classes_that_were_dealt(dataset):
    for subset in ("train", "val"):
        dealt = SCENES.deal(subset)
        for mask, classes in zip(masks_of(dataset, subset), dealt, strict=True):
            assert set(np.unique(mask)) == {0, *(one + 1 for one in classes)}
            assert SCENES.glyphs[0] <= len(set(classes)) <= SCENES.glyphs[1]


@pytest.mark.parametrize("subset", ["train", "val"])
def test_every_default_class_is_dealt_the_least_number_of_times(subset):
    dealt = DEFAULTS.deal(subset)
    counts = Counter(one for classes in dealt for one in classes)
    assert len(counts) == 150
    assert min(counts.values()) >= DEFAULTS.least
    assert all(len(set(classes)) == len(classes) for classes in dealt)
    assert {len(classes) for classes in dealt} == {2, 3, 4}


@pytest.mark.parametrize("imbalance", [1, 1000])
def test_shares_of_pixels_span_what_was_asked(tmp_path, imbalance):
    scenes = dataclasses.replace(
        SCENES, train=400, val=12, classes=12, imbalance=imbalance, least=1
    )
    write_glyphs(tmp_path / "data", scenes)
    pixels = np.zeros(13)
    for mask in masks_of(tmp_path / "data", "train"):
        pixels += np.bincount(mask.ravel(), minlength=13)
    by_rank = pixels[1:][np.argsort(class_ranks(12, "mixed"))]
    ratio = by_rank[0] / by_rank[-1]
    # Outlines have different areas, and a glyph may cover a fifth of another one.
    assert imbalance / 2 < ratio < 2 * imbalance
    slope = np.polyfit(np.linspace(0, 1, 12), np.log10(by_rank), 1)[0]
    assert slope == pytest.approx(-np.log10(imbalance), abs=0.3)


def test_counts_are_geometric_where_nothing_bounds_them():
    ranks = class_ranks(40, "frequent_first")
    counts = class_counts(ranks, 1000, scenes=10**6, total=10**6, least=1)
    assert counts.sum() == 10**6
    np.testing.assert_allclose(counts / counts[0], 1000 ** (-2 / 3 * ranks), rtol=2e-3)


def test_counts_keep_to_their_bounds():
    ranks = class_ranks(40, "frequent_first")
    counts = class_counts(ranks, 10_000, scenes=60, total=180, least=3)
    assert (counts.sum(), counts.min()) == (180, 3)
    counts = class_counts(ranks[:4] * 13, 10_000, scenes=60, total=180, least=3)
    assert (counts.sum(), counts.max()) == (180, 60)


def test_steps_of_five_have_frequent_and_rare_classes():
    ranks = class_ranks(150, "mixed")
    for first in range(100, 150, 5):
        step = ranks[first : first + 5]
        assert step.min() < 0.3 and step.max() > 0.7
    assert np.abs(np.corrcoef(ranks, np.arange(150))[0, 1]) < 0.1
    assert (np.diff(class_ranks(150, "frequent_first")) > 0).all()


def test_a_deal_is_random_and_keeps_the_counts():
    counts, places = np.array([30, 20, 10, 5, 5]), np.full(35, 2)
    deals = [deal(np.random.default_rng(seed), counts, places) for seed in (0, 0, 1)]
    assert deals[0] == deals[1] != deals[2]
    for dealt in deals:
        assert all(len(set(scene)) == 2 for scene in dealt)
        shown = Counter(one for scene in dealt for one in scene)
        assert [shown[one] for one in range(5)] == counts.tolist()


@pytest.mark.parametrize("classes", [2, 7, 150, 253])
def test_names_are_unique_and_tell_pattern_and_family(classes):
    scenes = dataclasses.replace(DEFAULTS, classes=classes, glyphs=(1, 2), val=800)
    names = scenes.names
    assert len(set(names)) == classes
    assert check_class_names(["background", *names], "here") == names
    families = family_count(classes)
    for number, name in enumerate(names):
        family, pattern = family_and_pattern(number, families)
        assert name == f"{pattern} {family + 1:02d}" and pattern in PATTERNS


def test_classes_of_a_family_share_colours_but_no_pattern():
    shapes = make_shapes(150, 0)
    families = family_count(150)
    for family in range(families):
        own = [shapes[n] for n in range(150) if n % families == family]
        assert len({shape.pattern for shape in own}) == len(own) == 6
        assert len({shape.hues for shape in own}) == 1
    assert len({shape.hues for shape in shapes}) == families


def test_a_glyph_fills_the_square_around_it_and_has_both_colours():
    for number, shape in enumerate(make_shapes(60, 1)):
        rng = np.random.default_rng(number)
        colour, cover = render(rng, shape, 48, 20.0)
        inside = cover >= 0.5
        rows, columns = np.nonzero(inside)
        assert max(np.ptp(rows), np.ptp(columns)) >= 24
        assert 0.1 < inside.mean() < np.pi / 4 + 0.02  # a circle fills π/4
        distinct = np.linalg.norm(colour[inside] - colour[inside].mean(0), axis=1)
        assert (distinct.max() > 40) == (shape.pattern != "plain")


def test_most_of_every_glyph_stays_visible(monkeypatch):
    """Every glyph is a square of its own size here: its visible part can be counted."""
    monkeypatch.setattr(
        "kproba.data.kinds.glyph_shapes.render",
        lambda rng, shape, side, angle: (
            np.zeros((side, side, 3), np.float32),
            np.ones((side, side), np.float32),
        ),
    )
    scenes = dataclasses.replace(SCENES, height=(0.4, 0.4))
    grey = [np.full((64, 64, 3), 128, np.uint8)]
    shape = make_shapes(1, 0)[0]
    glyphs = [(shape, label, 1.0) for label in range(1, 5)]
    for seed in range(5):
        _, mask = draw_scene(np.random.default_rng(seed), scenes, glyphs, grey)
        areas = np.bincount(mask.ravel(), minlength=5)[1:]
        assert areas.min() >= VISIBLE * areas.max() > 0


def test_images_differ_from_the_background_where_the_mask_says():
    grey = [np.full((64, 64, 3), 128, np.uint8)]
    for seed, shape in enumerate(make_shapes(12, 0)):
        glyphs = [(shape, 5, 1.0)]
        rng = np.random.default_rng(seed)
        image, mask = draw_scene(rng, SCENES, glyphs, grey)
        seen = np.linalg.norm(image.astype(float) - 128, axis=-1) > 40
        assert (seen & (mask == 5)).sum() >= 0.85 * (seen | (mask == 5)).sum()


def test_rare_classes_are_smaller(dataset):
    ranks = class_ranks(20, "mixed")
    areas = np.zeros((2, 20))
    for mask in masks_of(dataset, "train"):
        counts = np.bincount(mask.ravel(), minlength=21)[1:]
        areas += counts, counts > 0
    mean = areas[0] / areas[1]
    assert mean[ranks < 0.2].mean() > 5 * mean[ranks > 0.8].mean()


def test_scenes_are_a_folder_dataset(dataset, tmp_path):
    names = KINDS["folder"].class_names(dataset, None)
    assert names == SCENES.names
    paths = tmp_path / "index.csv", tmp_path / "report.json"
    index_dataset(*paths, kind="glyphs", folder=dataset, class_count=len(names))
    index = read_index(paths[0])
    assert index["subset"].value_counts().to_dict() == {"train": 60, "val": 30}
    masks = masks_of(dataset, "train") + masks_of(dataset, "val")
    for cell, mask in zip(index["classes"], masks, strict=True):
        assert parse_classes(cell) == frozenset(np.unique(mask).tolist())


def test_saliency_maps_are_drawn_only_if_asked(dataset, tmp_path):
    scenes = dataclasses.replace(SCENES, saliency=True)
    write_glyphs(tmp_path / "with", scenes)
    drawn = contents(tmp_path / "with")
    plain = contents(dataset)
    assert {name: drawn[name] for name in plain} == plain
    assert {name.split("/")[0] for name in drawn.keys() - plain.keys()} == {"saliency"}


def glyph_plan(**settings):
    experiment = {"dataset": "many", "task": "100-5", "methods": ["finetune"]}
    return make_plan(
        datasets={"many": {"kind": "glyphs", **settings}}, experiments=[experiment]
    )


def test_the_plan_draws_the_set_with_all_its_settings():
    plan = glyph_plan(imbalance=50, order="frequent_first")
    settings = plan.datasets.drawing_settings("many")
    assert GlyphScenes(**settings) == dataclasses.replace(
        DEFAULTS,
        imbalance=50,
        order="frequent_first",
        glyphs=[2, 4],
        height=[0.5, 0.8],
    )
    assert plan.datasets.kind("many").name == "glyphs"
    assert len(plan.datasets.groups("many", "100-5")) == 11
    assert plan.datasets.label_names("many")[1] == "plain 01"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"train": 200}, ["`train: 200`", "at least 225", "Raise `train`", "`least`"]),
        ({"val": 100, "least": 2}, ["`val: 100`", "at least 150", "Raise `val`"]),
        (
            {"classes": 3, "glyphs": [2, 4]},
            ["`glyphs: [2, 4]`", "`classes: 3`", "Lower `glyphs`"],
        ),
    ],
)
def test_scenes_that_cannot_be_drawn_are_refused(settings, words):
    with pytest.raises(ConfigError) as error:
        glyph_plan(**settings)
    for word in ("datasets.many", *words):
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"classes": 1000}, ["datasets.many.classes", "at most 253", "1000"]),
        ({"imbalance": 0.5}, ["datasets.many.imbalance", "at least 1", "0.5"]),
        ({"order": "random"}, ["datasets.many.order", "mixed, frequent_first"]),
        ({"glyphs": [4, 2]}, ["datasets.many.glyphs", "smallest value first"]),
        ({"digits": [1, 2]}, ["datasets.many", "unknown key 'digits'"]),
    ],
)
def test_wrong_settings_are_refused(settings, words):
    with pytest.raises(ConfigError) as error:
        glyph_plan(**settings)
    for word in words:
        assert word in str(error.value)
