"""The prototype bank against scikit-learn and against slow sums in float64."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.kernel_approximation import RBFSampler
from sklearn.metrics.pairwise import rbf_kernel

from kproba.bank import feature_maps
from kproba.bank.bank import PrototypeBank, bank_features
from kproba.bank.build import (
    FeatureBatch,
    build_bank,
    draw_sample,
    labelled_cells,
    sampled_images,
    update_bank,
)
from kproba.bank.feature_maps import FourierFeatures
from kproba.bank.moments import Moments
from kproba.bank.settings import BankSettings
from kproba.network.network import Outputs
from kproba.runtime.files import read_json

SETTINGS = BankSettings(
    feature="block",
    map="rff",
    dimension=24,
    maps=2,
    gamma=0.15,
    scatter=True,
    momentum=0.9,
    ridge=1e-2,
    calibration_cells=100_000,  # more than there are: the sample is all cells
)
LDA = replace(SETTINGS, map="identity", dimension=None, maps=1, gamma=None, ridge=1e-9)
WIDTH = 5


def scene(seed=0, classes=(0, 1, 2, 3), images=6, cells=(4, 5), distance=1.2):
    """Gaussian cells with one covariance, uneven classes and some ignored cells."""
    random = np.random.default_rng(seed)
    weights = np.arange(len(classes), 0, -1) / sum(range(len(classes) + 1))
    labels = random.choice(classes, size=(images, *cells), p=weights)
    centres = distance * np.random.default_rng(99).standard_normal((10, WIDTH))
    mixing = np.eye(WIDTH) + 0.4 * np.random.default_rng(98).standard_normal(
        (WIDTH, WIDTH)
    )
    noise = random.standard_normal((images, *cells, WIDTH)) @ mixing
    features = 3 + np.linspace(0.5, 4, WIDTH) * (centres[labels] + noise)
    labels[random.random(labels.shape) < 0.1] = 255
    return (
        torch.tensor(features, dtype=torch.float32).permute(0, 3, 1, 2).contiguous(),
        torch.tensor(labels, dtype=torch.uint8),
    )


PARTS = ((0, 1), (2,), (3, 4, 5))


def passes(features, targets, parts=PARTS):
    return [
        FeatureBatch(features[list(part)], targets[list(part)], part) for part in parts
    ]


def build(
    data, settings=SETTINGS, *, classes=4, seed=7, previous=None, parts=PARTS, **how
):
    batches = passes(*data, parts)
    return build_bank(
        batches,
        draw_sample(batches, settings, images=len(data[0]), seed=seed),
        settings,
        classes=classes,
        seed=seed,
        previous=previous,
        **how,
    )


def slow_cells(features, targets):
    vectors, labels = [], []
    for image, target in zip(features.double().numpy(), targets.numpy(), strict=True):
        for i, j in np.argwhere(target != 255):
            vectors.append(image[:, i, j])
            labels.append(target[i, j])
    return np.array(vectors), np.array(labels)


def direct_moments(vectors, labels, classes):
    counts, means = np.zeros(classes), np.zeros((classes, vectors.shape[1]))
    scatter = np.zeros((vectors.shape[1],) * 2)
    for c in range(classes):
        mine = vectors[labels == c]
        counts[c] = len(mine)
        if len(mine):
            means[c] = mine.mean(0)
        for vector in mine:
            scatter += np.outer(vector - means[c], vector - means[c])
    return counts, means, scatter


def mapped(bank, number, vectors):
    x = (vectors - bank.centre.double().numpy()) / bank.spread.double().numpy()
    phi = bank.maps[number]
    return phi(torch.tensor(x, dtype=torch.float32)).double().numpy()


def inverse_covariance(bank, number):
    covariance = bank.scatter[number].numpy() / bank.scatter_count
    ridge = bank.settings.ridge * np.trace(covariance) / len(covariance)
    return np.linalg.inv(covariance + ridge * np.eye(len(covariance)))


def softmax(scores):
    raised = [math.exp(score - max(scores)) for score in scores]
    return np.array(raised) / sum(raised)


def slow_log_posterior(bank, vectors):
    priors = bank.share.numpy() / bank.share.sum().item()
    total = np.zeros((len(vectors), bank.classes))
    for number, means in enumerate(bank.means):
        inverse, phi = inverse_covariance(bank, number), mapped(bank, number, vectors)
        for row, vector in enumerate(phi):
            scores = []
            for mean, prior in zip(means.numpy(), priors, strict=True):
                difference = vector - mean
                squared = difference @ inverse @ difference
                scores.append(-squared / 2 + math.log(prior))
            total[row] += softmax([score / bank.temperature for score in scores])
    return np.log(total / len(bank.means))


def slow_log_kappa(bank, vectors, temperature, metric):
    total = np.zeros((len(vectors), bank.classes))
    for number, means in enumerate(bank.means):
        inverse = np.eye(means.shape[1])
        if metric == "mahalanobis":
            inverse = inverse_covariance(bank, number)
        for row, vector in enumerate(mapped(bank, number, vectors)):
            distances = [
                math.sqrt((vector - mean) @ inverse @ (vector - mean))
                for mean in means.numpy()
            ]
            total[row] += softmax([-distance / temperature for distance in distances])
    return np.log(total / len(bank.means))


def as_features(vectors):
    return torch.tensor(vectors, dtype=torch.float32)


def negative_log_likelihood(bank, vectors, labels, temperature):
    log_q = replace(bank, temperature=temperature).log_posterior(as_features(vectors))
    return -log_q.double().numpy()[np.arange(len(labels)), labels].mean()


# Random Fourier features


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


# Over the steps


def bank_by_hand(counts, means, scatter, *, shares=None, temperature=1.0):
    counts = torch.tensor(counts, dtype=torch.float64)
    return PrototypeBank(
        settings=LDA,
        seed=1,
        gamma=None,
        centre=torch.zeros(2),
        spread=torch.ones(2),
        count=counts,
        share=counts / counts.sum() if shares is None else torch.tensor(shares),
        means=[torch.tensor(means, dtype=torch.float64)],
        scatter=[torch.tensor(scatter, dtype=torch.float64)],
        scatter_count=float(counts.sum()),
        temperature=temperature,
    )


def test_old_classes_follow_with_momentum_and_new_ones_are_taken_as_measured():
    previous = bank_by_hand(
        [6, 3, 1], [[0, 0], [1, 1], [2, 2]], [[5, 1], [1, 5]], temperature=3.0
    )
    current = bank_by_hand(
        [4, 0, 2, 10],
        [[10, 0], [0, 0], [2, 12], [7, 8]],
        [[2, 0], [0, 3]],
        temperature=4.0,
    )
    bank = update_bank(previous, current)
    expected = [[1, 0], [1, 1], [2, 3], [7, 8]]
    np.testing.assert_allclose(bank.means[0], expected)
    assert bank.scatter[0].tolist() == [[7, 1], [1, 8]]
    assert bank.scatter_count == 10 + 16
    assert bank.count.tolist() == [6, 3, 1, 10]
    np.testing.assert_allclose(bank.share, [0.6, 0.3, 0.1, 10 / 16])
    # The bank of the step before is still read by others.
    assert previous.means[0].tolist() == [[0, 0], [1, 1], [2, 2]]
    assert previous.scatter[0].tolist() == [[5, 1], [1, 5]]


def test_a_class_that_is_shown_for_the_first_time_is_taken_as_measured():
    empty = [[1, 0], [0, 1]]
    previous = bank_by_hand([6, 0, 0], [[2, 2], [0, 0], [0, 0]], empty)
    current = bank_by_hand([0, 3, 0, 9], [[0, 0], [4, 5], [0, 0], [7, 8]], empty)
    bank = update_bank(previous, current)
    assert bank.means[0].tolist() == [[2, 2], [4, 5], [0, 0], [7, 8]]
    assert bank.count.tolist() == [6, 3, 0, 9]
    np.testing.assert_allclose(bank.share, [1, 3 / 12, 0, 9 / 12])
    log_q = bank.log_posterior(torch.tensor([[4.0, 5.0]]))
    assert log_q.argmax() == 1 and log_q[0, 2] == -math.inf


def test_a_later_step_keeps_the_temperature_on_request():
    first = build(scene(classes=(0, 1, 2)), LDA, classes=3, keep_temperature=True)
    assert first.temperature == build(scene(classes=(0, 1, 2)), LDA).temperature
    data = scene(seed=1, classes=(0, 2, 3, 4), distance=0.5)
    after = {"classes": 5, "previous": first}
    own = build(data, LDA, **after)
    kept = build(data, LDA, **after, keep_temperature=True)
    assert kept.temperature == first.temperature != own.temperature
    assert torch.equal(kept.means[0], own.means[0])


def test_a_later_step_keeps_the_maps_and_the_standardisation():
    first = build(scene(classes=(0, 1, 2)), classes=3)
    data = scene(seed=1, classes=(0, 2, 3, 4), distance=2)
    second = build(data, classes=5, seed=50, previous=first)
    assert torch.equal(second.centre, first.centre)
    assert torch.equal(second.spread, first.spread)
    assert second.seed == first.seed and second.gamma == first.gamma
    vectors, labels = slow_cells(*data)
    for number in range(2):
        phi = mapped(first, number, vectors)
        counts, means, scatter = direct_moments(phi, labels, 5)
        old = first.means[number].numpy()
        expected = np.stack(
            [
                0.9 * old[0] + 0.1 * means[0],
                old[1],
                0.9 * old[2] + 0.1 * means[2],
                means[3],
                means[4],
            ]
        )
        np.testing.assert_allclose(second.means[number], expected, atol=1e-6)
        scatter = scatter + first.scatter[number].numpy()
        np.testing.assert_allclose(second.scatter[number], scatter, atol=1e-4)
    assert second.count.tolist() == [*first.count.tolist(), counts[3], counts[4]]
    np.testing.assert_allclose(
        second.log_posterior(as_features(vectors)),
        slow_log_posterior(second, vectors),
        atol=2e-3,
    )


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
