"""Random Fourier features against scikit-learn and their kernel."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.kernel_approximation import RBFSampler
from sklearn.metrics.pairwise import rbf_kernel

from kproba.bank import feature_maps
from kproba.bank.feature_maps import FourierFeatures


def test_fourier_features_follow_the_formula_of_scikit_learn():
    x = np.random.default_rng(0).standard_normal((12, 4)).astype(np.float32)
    phi = FourierFeatures(4, 32, gamma=0.3, seed=1)
    sampler = RBFSampler(gamma=0.3, n_components=32, random_state=0).fit(x)
    sampler.random_weights_ = phi.omega.numpy()
    sampler.random_offset_ = phi.beta.numpy()
    expected = sampler.transform(x)
    np.testing.assert_allclose(phi(torch.tensor(x)).numpy(), expected, atol=1e-6)


def test_fourier_features_draw_from_the_spectrum_of_the_kernel():
    phi = FourierFeatures(20, 3000, gamma=0.3, seed=1)
    normal = stats.norm(scale=math.sqrt(2 * 0.3))
    uniform = stats.uniform(scale=2 * math.pi)
    for half in (slice(None, 1500), slice(1500, None)):
        omega, beta = phi.omega[:, half], phi.beta[half] % (2 * math.pi)
        assert stats.kstest(omega.flatten().numpy(), normal.cdf).pvalue > 0.01
        assert stats.kstest(beta.numpy(), uniform.cdf).pvalue > 0.01


def test_fourier_features_come_in_pairs_of_cosine_and_sine():
    phi = FourierFeatures(4, 600, gamma=0.3, seed=1)(torch.randn(9, 4))
    squares = phi.square().view(9, 2, 300).sum(1)
    torch.testing.assert_close(squares, torch.full((9, 300), 2 / 600))
    with pytest.raises(ValueError, match=r"Expected an even dimension .* but got 601"):
        FourierFeatures(4, 601, gamma=0.3, seed=1)


def test_strips_of_fourier_features_are_their_columns(monkeypatch):
    x = torch.randn(9, 4)
    phi = FourierFeatures(4, 600, gamma=0.3, seed=1)
    whole = phi(x)
    monkeypatch.setitem(feature_maps.MAPPED, "cpu", 9 * 70)
    seen = torch.zeros(600)
    for columns, part in phi.strips(x):
        torch.testing.assert_close(part, whole[:, columns])
        seen[columns] += 1
    assert seen.tolist() == [1] * 600


@pytest.mark.parametrize("gamma", [0.05, 0.5])
def test_fourier_features_approximate_the_gaussian_kernel(gamma):
    x = np.random.default_rng(1).standard_normal((15, 4)).astype(np.float32)
    phi = FourierFeatures(4, 20_000, gamma, seed=2)(torch.tensor(x)).numpy()
    # The error of one entry has a standard deviation below 1/sqrt(20 000) = 0.007.
    np.testing.assert_allclose(phi @ phi.T, rbf_kernel(x, gamma=gamma), atol=0.03)


def test_fourier_features_depend_on_the_seed_alone():
    x = torch.ones(1, 3)
    torch.manual_seed(1)
    one = FourierFeatures(3, 8, 0.5, seed=4)(x)
    torch.manual_seed(2)
    assert torch.equal(FourierFeatures(3, 8, 0.5, seed=4)(x), one)
    assert not torch.allclose(FourierFeatures(3, 8, 0.5, seed=5)(x), one)
