"""The ridge regression of a bank, against the plain solution on all one-hot rows."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from direct_bank import PARTS, WIDTH, as_features, build, passes, scene, slow_cells
from gloo_processes import in_processes
from ridge_inputs import SETTINGS, WIDE, features_of, plain_weights, weights_of

from kproba.bank import build as building
from kproba.bank.bank import PrototypeBank
from kproba.bank.build import build_bank, draw_sample, update_bank
from kproba.bank.feature_maps import ReluFeatures
from kproba.bank.fusion import LEAST_EVIDENCE
from kproba.runtime.distributed import Process
from kproba.runtime.records import ArtifactError

OLD, NEW = {"classes": (0, 1, 2)}, {"seed": 1, "classes": (0, 2, 3, 4)}


def ridge(settings=SETTINGS, **changes):
    return replace(settings, **changes)


def assert_equal_weights(found, expected):
    """To a billionth of the largest weight."""
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def chain(scenes, counts, **how):
    """The bank after several steps."""
    bank = None
    for data, classes in zip(scenes, counts, strict=True):
        bank = build(data, SETTINGS, classes=classes, previous=bank, **how)
    return bank


# The map


def test_the_map_is_a_fixed_layer_with_a_relu_in_the_type_of_its_input():
    vectors = np.random.default_rng(0).standard_normal((6, WIDTH))
    phi = ReluFeatures(WIDTH, WIDE, seed=7)
    x = torch.tensor(vectors)
    np.testing.assert_allclose(phi(x), features_of(vectors), rtol=1e-12)
    small = phi(x.float())
    assert small.dtype == torch.float32
    np.testing.assert_allclose(small, features_of(vectors), atol=1e-6)
    # After an input of another type the weights have lost no digit.
    np.testing.assert_allclose(phi(x), features_of(vectors), rtol=1e-12)
    assert phi.weights(x).abs().max() <= 1 / math.sqrt(WIDTH)
    assert phi.weights(x).abs().max() > 0.9 / math.sqrt(WIDTH)


def test_strips_of_the_map_are_its_columns(monkeypatch):
    monkeypatch.setitem(building.make_maps.__globals__["MAPPED"], "cpu", 1)
    x = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(0))
    phi = ReluFeatures(WIDTH, 150, seed=1)
    parts = list(phi.strips(x))
    assert [columns for columns, _ in parts] == [
        *(slice(0, 64), slice(64, 128), slice(128, 150))
    ]
    found = torch.cat([part for _, part in parts], dim=1)
    torch.testing.assert_close(found, phi(x))


def test_features_are_used_as_they_are():
    bank = build(scene(), SETTINGS)
    assert torch.equal(bank.centre, torch.zeros(WIDTH))
    assert torch.equal(bank.spread, torch.ones(WIDTH))
    assert bank.gamma is None and len(bank.means) == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dimension": None}, "Expected a dimension for random ReLU features"),
        ({"maps": 2}, "Expected 1 map of the kind 'relu', but got maps=2"),
    ],
)
def test_a_map_that_cannot_be_drawn_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        build(scene(), ridge(**changes))


# The solution


def test_weights_are_the_plain_ridge_solution():
    data = scene()
    found = weights_of(build(data, SETTINGS))
    assert_equal_weights(found, plain_weights([data], 4))


@pytest.mark.parametrize("regularisation", [1e-3, 100.0])
def test_weights_follow_the_regularisation_which_is_absolute(regularisation):
    data = scene()
    bank = build(data, ridge(regularisation=regularisation))
    expected = plain_weights([data], 4, regularisation=regularisation)
    assert_equal_weights(weights_of(bank), expected)


def test_two_steps_are_one_step_with_all_cells():
    """Old classes and the background come again in the second step."""
    first, second = scene(**OLD), scene(**NEW)
    bank = chain([first, second], [3, 5])
    assert_equal_weights(weights_of(bank), plain_weights([first, second], 5))
    both = tuple(torch.cat(pair) for pair in zip(first, second, strict=True))
    parts = (tuple(range(12)),)
    one = build(both, SETTINGS, classes=5, parts=parts)
    assert torch.equal(bank.count, one.count)
    torch.testing.assert_close(bank.share, one.share)
    assert bank.scatter_count == one.scatter_count == float(one.count.sum())
    torch.testing.assert_close(bank.means[0], one.means[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(bank.scatter[0], one.scatter[0], rtol=1e-9, atol=1e-9)


def test_a_momentum_would_give_another_solution():
    """So the test above notices banks that are not joined exactly."""
    first, second = scene(**OLD), scene(**NEW)
    expected = plain_weights([first, second], 5)
    before = build(first, SETTINGS, classes=3)
    now = build(second, SETTINGS, classes=5)
    moved = update_bank(
        replace(before, settings=ridge(map="rff")),
        replace(now, settings=ridge(map="rff", momentum=0.9)),
    )
    moved = replace(moved, settings=SETTINGS)
    assert np.abs(weights_of(moved) - expected).max() > 1e-3


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("parts", [PARTS, ((5, 0), (4,), (3, 1), (2,))])
def test_any_order_of_steps_and_any_split_of_batches(order, parts):
    scenes = [scene(**OLD), scene(**NEW), scene(seed=2, classes=(0, 1, 5))]
    shuffled = [scenes[number] for number in order]
    bank = chain(shuffled, [6, 6, 6], parts=parts)
    assert_equal_weights(weights_of(bank), plain_weights(scenes, 6))


def test_many_cells_come_in_parts(monkeypatch):
    """Few rows at a time, and the last part is shorter."""
    seen = []
    update = building.Moments.update

    def recorded(self, x, labels, phi):
        seen.append((x.dtype, len(x)))
        update(self, x, labels, phi)

    monkeypatch.setattr(building, "EXACT_NUMBERS", 7 * WIDE)
    monkeypatch.setattr(building.Moments, "update", recorded)
    data = scene()
    assert_equal_weights(weights_of(build(data, SETTINGS)), plain_weights([data], 4))
    assert {dtype for dtype, _ in seen} == {torch.float64}
    assert max(rows for _, rows in seen) == 7 and len(seen) > 10


def test_products_of_large_features_keep_their_digits():
    """In float32 they would lose what λ decides on."""
    features, targets = scene(images=12, cells=(12, 12))
    data = (features * 30, targets)
    parts = (tuple(range(12)),)
    found = weights_of(build(data, SETTINGS, parts=parts))
    expected = plain_weights([data], 4)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found / scale, expected / scale, atol=1e-8)


def in_two(process, folder):
    """Two steps, the images of each divided over the processes."""
    bank = None
    for data, classes in ((scene(**OLD), 3), (scene(**NEW), 5)):
        batches = passes(*data, PARTS[process.rank :: process.world_size])
        sample = draw_sample(batches, SETTINGS, images=6, seed=7, process=process)
        bank = build_bank(
            *(batches, sample, SETTINGS),
            classes=classes,
            seed=7,
            previous=bank,
            keep_temperature=True,
            process=process,
        )
    bank.save(folder / f"bank{process.rank}.safetensors", about={})


def test_two_processes_build_the_bank_of_one(tmp_path):
    in_two(Process(), tmp_path)
    one = PrototypeBank.load(tmp_path / "bank0.safetensors")
    in_processes(2, in_two, tmp_path)
    first, second = (
        PrototypeBank.load(tmp_path / f"bank{rank}.safetensors") for rank in (0, 1)
    )
    assert torch.equal(first.scatter[0], second.scatter[0])
    assert_equal_weights(weights_of(first), weights_of(one))
    assert_equal_weights(
        weights_of(first), plain_weights([scene(**OLD), scene(**NEW)], 5)
    )
    assert first.temperature == pytest.approx(one.temperature)


# The posterior


def test_the_posterior_is_the_softmax_of_the_scores():
    data = scene()
    bank = replace(build(data, SETTINGS), temperature=0.3)
    vectors, _ = slow_cells(*data)
    scores = features_of(vectors) @ plain_weights([data], 4) / 0.3
    expected = torch.tensor(scores).log_softmax(1)
    found = bank.log_posterior(as_features(vectors))
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_temperature_fits_the_sample():
    """No temperature near it has a lower negative log-likelihood."""
    data = scene(distance=0.4)
    bank = build(data, SETTINGS)
    vectors, labels = slow_cells(*data)
    scores = torch.tensor(features_of(vectors) @ plain_weights([data], 4))

    def cost(temperature):
        log_q = (scores / temperature).log_softmax(1)
        return float(F.nll_loss(log_q, torch.tensor(labels).long()))

    fitted = cost(bank.temperature)
    assert all(fitted < cost(bank.temperature * factor) for factor in (0.8, 1.25))
    assert bank.temperature < 1  # the scores are near 0 and 1


def test_the_temperature_of_classes_that_are_told_apart_has_a_bound():
    """So scores that differ by less than 3 are not cut off at `LEAST_EVIDENCE`."""
    features, targets = scene(images=2, cells=(2, 3), distance=40)
    bank = build(
        (features, targets), ridge(dimension=200, regularisation=1e-6), parts=((0, 1),)
    )
    assert 0.99 * math.exp(-3) < bank.temperature < 0.1
    assert 2.9 / bank.temperature < -LEAST_EVIDENCE


def test_a_class_without_cells_is_never_predicted():
    data = scene(classes=(0, 1, 3))
    bank = build(data, SETTINGS)
    log_q = bank.log_posterior(as_features(slow_cells(*data)[0]))
    assert (log_q[:, 2] == -math.inf).all()
    assert log_q[:, [0, 1, 3]].isfinite().all()


def test_a_saved_bank_gives_the_same_posterior_and_can_be_continued(tmp_path):
    first, second = scene(**OLD), scene(**NEW)
    bank = build(first, SETTINGS, classes=3)
    bank.save(tmp_path / "bank.safetensors", about={"model": "abc"})
    loaded = PrototypeBank.load(tmp_path / "bank.safetensors")
    assert loaded.settings == SETTINGS
    features = as_features(slow_cells(*first)[0])
    assert torch.equal(loaded.log_posterior(features), bank.log_posterior(features))
    direct, resumed = (
        build(second, SETTINGS, classes=5, previous=previous, keep_temperature=True)
        for previous in (bank, loaded)
    )
    assert torch.equal(direct.scatter[0], resumed.scatter[0])
    assert torch.equal(direct.means[0], resumed.means[0])
    assert direct.temperature == resumed.temperature == bank.temperature


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"regularisation": None}, "`settings.regularisation` is missing"),
        ({"dimension": None}, "`settings.dimension` is missing"),
        ({"scatter": False}, "`settings.scatter` is missing"),
        ({"maps": 2}, "Expected 1 for `settings.maps`"),
        ({"map": "identity"}, "`settings.ridge` is missing"),
    ],
)
def test_a_description_that_does_not_fit_the_map_is_refused(changes, words, tmp_path):
    bank = build(scene(), SETTINGS)
    bank.settings = ridge(**changes)
    bank.save(tmp_path / "bank.safetensors", about={})
    with pytest.raises(ArtifactError, match=words):
        PrototypeBank.load(tmp_path / "bank.safetensors")
