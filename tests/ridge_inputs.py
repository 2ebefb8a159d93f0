"""The ridge regression of a bank by hand, in float64."""

import math

import numpy as np
import torch
from direct_bank import slow_cells

from kproba.bank.ridge import ridge_weights
from kproba.bank.settings import BankSettings

WIDE = 40  # D
LAMBDA = 0.5
SETTINGS = BankSettings(
    feature="block",
    map="relu",
    scatter=True,
    ridge=None,
    calibration_cells=100_000,
    dimension=WIDE,
    regularisation=LAMBDA,
)


def features_of(vectors, dimension=WIDE, seed=7):
    """φ by hand, in float64."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand((vectors.shape[1], dimension), generator=generator)
    weights = (2 * drawn - 1).div(math.sqrt(vectors.shape[1])).double().numpy()
    return np.maximum(vectors @ weights, 0)


def plain_weights(scenes, classes, dimension=WIDE, regularisation=LAMBDA):
    """W by all rows of all scenes at once."""
    parts = [slow_cells(*data) for data in scenes]
    phi = features_of(np.concatenate([part[0] for part in parts]), dimension)
    labels = np.concatenate([part[1] for part in parts])
    gram = phi.T @ phi + regularisation * np.eye(dimension)
    return np.linalg.solve(gram, phi.T @ np.eye(classes)[labels])


def weights_of(bank):
    """W of a bank in float64."""
    found = ridge_weights(
        bank.count, bank.means[0], bank.scatter[0], bank.settings.regularisation
    )
    assert found.dtype == torch.float64
    return found.numpy()
