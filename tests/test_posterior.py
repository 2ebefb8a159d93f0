"""What a bank says, against scikit-learn and against slow sums in float64."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from direct_bank import (
    LDA,
    SETTINGS,
    as_features,
    build,
    negative_log_likelihood,
    scene,
    slow_cells,
    slow_log_kappa,
    slow_log_posterior,
)
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from kproba.bank.bank import PrototypeBank

# Posterior


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_identity_map_is_linear_discriminant_analysis(temperature):
    data = scene(images=30, distance=0.8)
    bank = build(data, LDA, parts=(range(30),))
    vectors, labels = slow_cells(*data)
    # scikit-learn's "lsqr" pools the class covariances, each divided by its own n_c
    # and weighted by n_c/n, which is the scatter over n of the bank, not n - C. LDA
    # does not feel the standardisation. What remains is the ridge of 1e-9 and float32.
    lda = LinearDiscriminantAnalysis(solver="lsqr").fit(vectors, labels)
    scores = lda.decision_function(vectors) / temperature
    expected = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    bank = replace(bank, temperature=temperature)
    posterior = bank.log_posterior(as_features(vectors)).exp()
    np.testing.assert_allclose(posterior, expected, atol=1e-4)
    if temperature == 1:
        np.testing.assert_allclose(posterior, lda.predict_proba(vectors), atol=1e-4)
    # Not a case where every answer is certain, and the errors small for that.
    assert (posterior.max(1).values < 0.9).float().mean() > 0.2


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("maps", [1, 3])
def test_the_posterior_averages_the_maps_each_in_its_own_space(maps, temperature):
    data = scene()
    bank = build(data, replace(SETTINGS, maps=maps))
    bank = replace(bank, temperature=temperature)
    vectors = slow_cells(*scene(seed=1))[0][:15]
    found = bank.log_posterior(as_features(vectors))
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, slow_log_posterior(bank, vectors), atol=2e-3)


def test_an_ensemble_is_the_log_mean_of_its_single_maps():
    bank = replace(build(scene()), temperature=2.0)
    features = as_features(slow_cells(*scene(seed=1))[0])
    members = [
        PrototypeBank(
            settings=replace(bank.settings, maps=1),
            seed=bank.seed + number,
            gamma=bank.gamma,
            centre=bank.centre,
            spread=bank.spread,
            count=bank.count,
            share=bank.share,
            means=[bank.means[number]],
            scatter=[bank.scatter[number]],
            scatter_count=bank.scatter_count,
            temperature=bank.temperature,
        ).log_posterior(features)
        for number in range(2)
    ]
    assert not torch.allclose(members[0], members[1], atol=0.1)
    mean = (members[0].exp() + members[1].exp()) / 2
    torch.testing.assert_close(bank.log_posterior(features), mean.log())


@pytest.mark.parametrize("metric", ["euclidean", "mahalanobis"])
@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_kappa_is_the_softmax_of_distances_averaged_over_maps(metric, temperature):
    bank = build(scene())
    vectors = slow_cells(*scene(seed=1))[0][:15]
    found = bank.log_kappa(as_features(vectors), temperature=temperature, metric=metric)
    expected = slow_log_kappa(bank, vectors, temperature, metric)
    # float32 distances have an error of about 1e-5, which τ divides.
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert (found.max(1).values - found.min(1).values).mean() > 0.05


@pytest.mark.parametrize("metric", ["euclidean", "mahalanobis"])
def test_a_tiny_temperature_of_kappa_leaves_the_nearest_prototype(metric):
    bank = build(scene(), replace(SETTINGS, maps=1))
    vectors = slow_cells(*scene(seed=1))[0][:30]
    features = as_features(vectors)
    log_kappa = bank.log_kappa(features, temperature=1e-6, metric=metric)
    assert log_kappa.isfinite().all()
    torch.testing.assert_close(log_kappa.exp().sum(1), torch.ones(30))
    nearest = slow_log_kappa(bank, vectors, 1.0, metric).argmax(1)
    np.testing.assert_array_equal(log_kappa.argmax(1), nearest)


def test_a_class_without_cells_never_wins():
    data = scene(classes=(0, 1, 3))
    bank = build(data, classes=5)
    assert bank.count.tolist()[2::2] == [0, 0]
    features = as_features(slow_cells(*data)[0])
    # Cells whose map lies next to the zeros that stand for a missing mean.
    features = torch.cat([features, bank.centre[None].repeat(5, 1)])
    for log_q in (
        bank.log_posterior(features),
        bank.log_kappa(features, temperature=1.0, metric="euclidean"),
        bank.log_kappa(features, temperature=1.0, metric="mahalanobis"),
        bank.log_kappa(features, temperature=1e-6, metric="euclidean"),
    ):
        assert not log_q.isnan().any()
        assert (log_q[:, [2, 4]] == -math.inf).all()
        torch.testing.assert_close(log_q.exp().sum(1), torch.ones(len(features)))
    assert math.isfinite(bank.temperature)


def test_a_bank_without_scatter_knows_distances_alone():
    data = scene()
    bank = build(data, replace(SETTINGS, scatter=False))
    full = build(data)
    features = as_features(slow_cells(*data)[0])
    assert bank.scatter is None
    with pytest.raises(ValueError, match="scatter"):
        bank.log_posterior(features)
    with pytest.raises(ValueError, match="scatter"):
        bank.log_kappa(features, temperature=1.0, metric="mahalanobis")
    torch.testing.assert_close(
        bank.log_kappa(features, temperature=0.5, metric="euclidean"),
        full.log_kappa(features, temperature=0.5, metric="euclidean"),
    )


# Temperature


@pytest.mark.parametrize("settings", [SETTINGS, LDA], ids=["klda", "lda"])
def test_the_temperature_is_the_best_of_a_fine_grid(settings):
    # Labels half at random: an uncalibrated posterior is far too sure.
    features, targets = scene(distance=4)
    shuffled = targets.flatten()[torch.randperm(120, generator=torch.manual_seed(0))]
    targets[:3] = shuffled.view_as(targets)[:3]
    bank = build((features, targets), settings)
    vectors, labels = slow_cells(features, targets)

    def cost(temperature):
        return negative_log_likelihood(bank, vectors, labels, temperature)

    grid = np.exp(np.arange(-3, 5, 0.02))
    best = grid[np.argmin([cost(temperature) for temperature in grid])]
    assert abs(math.log(best)) > 0.15
    assert abs(math.log(bank.temperature / best)) < 0.03
    assert cost(bank.temperature) < cost(1.0)


def test_calibration_bears_a_class_that_has_no_prototype_yet():
    # Class 2 belongs to an earlier step without a single cell, and is seen only now.
    first = build(scene(classes=(0, 1)), classes=3)
    second = build(scene(seed=1), classes=4, previous=first)
    assert 0.06 < second.temperature < 100  # not at an end of the search
