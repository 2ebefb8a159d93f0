"""Banks of small Gaussian scenes, and slow sums in float64 to compare them with."""

import math
from dataclasses import replace

import numpy as np
import torch

from kproba.bank.build import FeatureBatch, build_bank, draw_sample
from kproba.bank.settings import BankSettings

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
