"""A prototype bank of one step: moments, cells, sample and files."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from direct_bank import (
    LDA,
    PARTS,
    SETTINGS,
    WIDTH,
    as_features,
    build,
    direct_moments,
    mapped,
    passes,
    scene,
    slow_cells,
)

from kproba.bank.bank import PrototypeBank, bank_features
from kproba.bank.build import draw_sample, labelled_cells, sampled_images
from kproba.bank.feature_maps import FourierFeatures
from kproba.bank.moments import Moments
from kproba.bank.settings import BankSettings
from kproba.network.network import Outputs
from kproba.runtime.files import read_json

# Moments


def moments_of(vectors, labels, parts):
    moments = Moments.empty(4, vectors.shape[1], scatter=True)
    for part in parts:
        moments.update(as_features(vectors[part]), torch.tensor(labels[part]))
    return moments


@pytest.fixture(scope="module")
def sample():
    random = np.random.default_rng(3)
    labels = random.choice([0, 1, 3], size=60)
    # A mean far from zero against the spread: careless sums of squares lose digits.
    vectors = 5 + labels[:, None] + random.standard_normal((60, 6))
    return vectors.astype(np.float32).astype(np.float64), labels


@pytest.mark.parametrize(
    "parts",
    [
        [slice(None)],
        [slice(0, 1), slice(1, 25), slice(25, 60)],
        [slice(25, 60), slice(0, 1), slice(1, 25)],
        [slice(0, 0), slice(0, 60)],
    ],
)
def test_moments_do_not_depend_on_the_batches(sample, parts):
    moments = moments_of(*sample, parts)
    counts, means, scatter = direct_moments(*sample, 4)
    np.testing.assert_array_equal(moments.count, counts)
    np.testing.assert_allclose(moments.mean, means, rtol=1e-6)
    np.testing.assert_allclose(moments.scatter, scatter, atol=2e-3)
    assert not moments.mean[2].any()


def test_moments_without_scatter_have_none(sample):
    moments = Moments.empty(4, 6, scatter=False)
    moments.update(as_features(sample[0]), torch.tensor(sample[1]))
    assert moments.scatter is None
    np.testing.assert_allclose(moments.mean, direct_moments(*sample, 4)[1], rtol=1e-6)


# Cells


def test_a_cell_has_the_label_of_its_centre_pixel_and_ignored_cells_are_dropped():
    targets = torch.zeros(2, 8, 8, dtype=torch.uint8)
    targets[0, 2::4, 2::4] = torch.tensor([[1, 255], [3, 4]])
    targets[1, 2::4, 2::4] = torch.tensor([[255, 6], [255, 255]])
    features = torch.arange(16.0).view(2, 2, 2, 2)
    vectors, labels = labelled_cells(features, targets)
    assert labels.tolist() == [1, 3, 4, 6]
    assert vectors.tolist() == [[0, 4], [2, 6], [3, 7], [9, 13]]


def test_the_bank_reads_the_block_of_branch_0_or_the_backbone_or_both():
    block = torch.ones(1, 2, 1, 1)
    outputs = Outputs(torch.zeros(1, 3, 1, 1), [block, 2 * block], [])
    for feature, expected in (
        ("block", [1, 1]),
        ("backbone", [0, 0, 0]),
        ("both", [0, 0, 0, 1, 1]),
    ):
        found = bank_features(outputs, replace(SETTINGS, feature=feature))
        assert found.flatten().tolist() == expected


# Building


def test_a_bank_equals_the_direct_computation_on_all_cells():
    data = scene()
    bank = build(data)
    vectors, labels = slow_cells(*data)
    np.testing.assert_allclose(bank.centre, vectors.mean(0), rtol=1e-5)
    np.testing.assert_allclose(bank.spread, vectors.std(0, ddof=1), rtol=1e-5)
    assert len(bank.means) == len(bank.scatter) == 2
    for number in range(2):
        phi = mapped(bank, number, vectors)
        counts, means, scatter = direct_moments(phi, labels, 4)
        np.testing.assert_array_equal(bank.count, counts)
        np.testing.assert_allclose(bank.share, counts / counts.sum())
        np.testing.assert_allclose(bank.means[number], means, atol=1e-6)
        np.testing.assert_allclose(bank.scatter[number], scatter, atol=1e-4)
    assert bank.scatter_count == len(labels)
    assert not torch.allclose(bank.means[0], bank.means[1], atol=0.05)


def test_batches_in_another_order_give_the_same_bank():
    data = scene()
    one = build(data)
    other = build(data, parts=((5, 0), (4,), (3, 1), (2,)))
    torch.testing.assert_close(one.centre, other.centre)
    torch.testing.assert_close(one.spread, other.spread)
    torch.testing.assert_close(one.count, other.count)
    for number in range(2):
        # Rounding of float32: in the standardisation and in the matrix products.
        torch.testing.assert_close(
            one.means[number], other.means[number], rtol=1e-5, atol=1e-6
        )
        torch.testing.assert_close(
            one.scatter[number], other.scatter[number], rtol=1e-5, atol=1e-4
        )


def test_a_sample_is_the_same_whatever_the_batches():
    data = scene()
    settings = replace(SETTINGS, calibration_cells=50)
    parts = (PARTS, ((5, 0), (4,), (3, 1), (2,)), ((0, 1, 2, 3, 4, 5),))
    one, *others = (
        draw_sample(passes(*data, part), settings, images=6, seed=2) for part in parts
    )
    assert len(one.labels) == 50 and len(one.cells.unique(dim=0)) == 50
    for other in others:
        assert torch.equal(one.cells, other.cells)
        assert torch.equal(one.labels, other.labels)
    assert not torch.equal(
        one.cells, draw_sample(passes(*data), settings, images=6, seed=3).cells
    )


def test_a_sample_takes_cells_of_every_image_with_their_labels():
    features, targets = scene(images=6, cells=(20, 20))
    settings = replace(SETTINGS, calibration_cells=6 * 64)
    sample = draw_sample(passes(features, targets), settings, images=6, seed=0)
    assert len(sample.labels) == 6 * 64
    for image, target in zip(features, targets, strict=True):
        cells, labels = labelled_cells(image[None], target[None])
        known = {tuple(c): int(k) for c, k in zip(cells.tolist(), labels, strict=True)}
        taken = [
            (tuple(cell), int(label))
            for cell, label in zip(sample.cells.tolist(), sample.labels, strict=True)
            if tuple(cell) in known
        ]
        assert len(taken) == 64
        assert all(known[cell] == label for cell, label in taken)


@pytest.mark.parametrize(("images", "wanted"), [(1, 1), (3, 3), (10, 4), (1000, 4)])
def test_sampled_images_are_spread_over_all(images, wanted):
    settings = replace(SETTINGS, calibration_cells=4 * 64)
    chosen = sampled_images(images, settings)
    assert len(chosen) == wanted and len(set(chosen)) == wanted
    assert chosen[0] == 0 and chosen[-1] == images - 1


def test_a_bank_depends_on_its_seed():
    data = scene()
    one, other = build(data, seed=7), build(data, seed=8)
    assert torch.equal(one.means[0], build(data, seed=7).means[0])
    assert not torch.allclose(one.means[0], other.means[0], atol=0.05)


def test_linear_analysis_needs_neither_dimension_nor_gamma_nor_momentum():
    data = scene()
    least = BankSettings(
        feature="block",
        map="identity",
        scatter=True,
        ridge=1e-9,
        calibration_cells=100_000,
    )
    one, other = build(data, least), build(data, LDA)
    assert torch.equal(one.means[0], other.means[0])
    assert torch.equal(one.scatter[0], other.scatter[0])
    assert one.temperature == other.temperature
    with pytest.raises(ValueError, match="γ and a dimension for random Fourier"):
        build(data, replace(SETTINGS, dimension=None))


def test_a_bank_that_follows_another_needs_a_momentum():
    first = build(scene(classes=(0, 1)), LDA, classes=2)
    with pytest.raises(ValueError, match="Expected a momentum for a bank that has a"):
        build(scene(seed=1), replace(LDA, momentum=None), previous=first)


def test_ignored_cells_change_nothing():
    features, targets = scene()
    spoilt = features.clone()
    spoilt.permute(0, 2, 3, 1)[targets == 255] = 1e6
    one, other = build((features, targets)), build((spoilt, targets))
    assert torch.equal(one.centre, other.centre)
    assert torch.equal(one.means[0], other.means[0])
    assert torch.equal(one.scatter[0], other.scatter[0])


def test_median_gamma_is_one_over_the_median_squared_distance():
    data = scene()
    bank = build(data, replace(SETTINGS, gamma="median"))
    vectors, _ = slow_cells(*data)
    x = (vectors - vectors.mean(0)) / vectors.std(0, ddof=1)
    squared = [((u - v) ** 2).sum() for n, u in enumerate(x) for v in x[:n]]
    assert bank.gamma == pytest.approx(1 / np.median(squared), rel=1e-2)


def test_a_given_gamma_is_used():
    data = scene()
    bank = build(data, replace(SETTINGS, gamma=0.4))
    assert bank.gamma == 0.4
    phi = FourierFeatures(WIDTH, 24, gamma=0.4, seed=7)
    torch.testing.assert_close(bank.maps[0].omega, phi.omega)


def test_a_channel_that_never_fires_is_not_divided_by_zero():
    features, targets = scene()
    features[:, 2] = 0
    bank = build((features, targets))
    assert bank.spread[2] == 1
    assert bank.means[0].isfinite().all()


def test_a_bank_of_ignored_cells_alone_is_refused():
    features, targets = scene()
    with pytest.raises(ValueError, match="labelled cells"):
        build((features, torch.full_like(targets, 255)))


# Files


@pytest.mark.parametrize(
    "settings",
    [SETTINGS, replace(SETTINGS, gamma="median"), LDA],
    ids=["klda", "median", "lda"],
)
def test_a_saved_bank_gives_the_same_posterior(settings, tmp_path):
    data = scene()
    bank = build(data, settings)
    path = tmp_path / "bank.safetensors"
    bank.save(path, about={"model": "abc"})
    loaded = PrototypeBank.load(path)
    features = as_features(slow_cells(*data)[0])
    assert torch.equal(loaded.log_posterior(features), bank.log_posterior(features))
    assert loaded.settings == settings
    assert (loaded.gamma, loaded.temperature) == (bank.gamma, bank.temperature)
    about = read_json(tmp_path / "bank.json")
    assert about["model"] == "abc"
    assert about["cells_per_class"] == bank.count.tolist()


def test_a_saved_bank_without_scatter_gives_the_same_kappa(tmp_path):
    data = scene()
    bank = build(data, replace(SETTINGS, scatter=False))
    bank.save(tmp_path / "bank.safetensors", about={})
    loaded = PrototypeBank.load(tmp_path / "bank.safetensors")
    options = {"temperature": 0.3, "metric": "euclidean"}
    features = as_features(slow_cells(*data)[0])
    assert loaded.scatter is None
    assert torch.equal(
        loaded.log_kappa(features, **options), bank.log_kappa(features, **options)
    )


def test_a_saved_bank_can_be_continued(tmp_path):
    first, data = build(scene(classes=(0, 1)), classes=2), scene(seed=1)
    first.save(tmp_path / "bank.safetensors", about={})
    loaded = PrototypeBank.load(tmp_path / "bank.safetensors")
    direct, resumed = build(data, previous=first), build(data, previous=loaded)
    assert torch.equal(direct.means[1], resumed.means[1])
    assert torch.equal(direct.scatter[1], resumed.scatter[1])
    assert direct.temperature == resumed.temperature


def test_saving_twice_writes_the_same_bytes(tmp_path):
    bank = build(scene())
    for folder in ("one", "other"):
        bank.save(tmp_path / folder / "bank.safetensors", about={"model": "abc"})
    PrototypeBank.load(tmp_path / "one" / "bank.safetensors").save(
        tmp_path / "again" / "bank.safetensors", about={"model": "abc"}
    )
    for name in ("bank.safetensors", "bank.json"):
        one = (tmp_path / "one" / name).read_bytes()
        assert one == (tmp_path / "other" / name).read_bytes()
        assert one == (tmp_path / "again" / name).read_bytes()
