"""A decision, a small network and bank, and what the bank says, in float64."""

from collections.abc import Sequence

import numpy as np
import torch

from kproba.bank.bank import PrototypeBank, bank_features
from kproba.bank.build import FeatureBatch, build_bank, draw_sample
from kproba.bank.decision import Decision
from kproba.bank.settings import BankSettings
from kproba.network.architecture import Architecture
from kproba.network.network import SegmentationNetwork

CLASSES = 3


def decision_by(rule: str, **changes: float) -> Decision:
    """Weights of 1 and no image prior, where nothing else is given."""
    return Decision(rule, **({"posterior_weight": 1.0, "image_prior": 0} | changes))


def images_of(height: int, width: int) -> torch.Tensor:
    """Two images of noise, (2, 3, height, width) uint8."""
    size, generator = (2, 3, height, width), torch.Generator().manual_seed(0)
    return torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)


def network_of(
    seed: int, *, head: str = "branches", steps: Sequence[int] = (1, 1)
) -> SegmentationNetwork:
    """A small network, of two steps of one class each if nothing else is given."""
    architecture = Architecture(
        "efficientnet_lite0", 16, (1, 2), 8, 0.1, 0.01, head=head
    )
    network = SegmentationNetwork(architecture, steps, weights="imagenet", seed=seed)
    return network.eval().requires_grad_(False)


def bank_of(
    network: SegmentationNetwork,
    images: torch.Tensor,
    map_: str,
    classes: int = CLASSES,
) -> PrototypeBank:
    """A bank of the features of some images with random labels."""
    of_map = {
        "identity": {"ridge": 0.1},
        "rff": {"ridge": 0.1, "dimension": 64, "maps": 2, "gamma": "median"},
        "relu": {"ridge": None, "dimension": 64, "regularisation": 0.1},
    }
    settings = BankSettings(
        feature="backbone",
        map=map_,
        scatter=True,
        calibration_cells=100,
        **of_map[map_],
    )
    generator = torch.Generator().manual_seed(1)
    size = (2, *images.shape[-2:])
    targets = torch.randint(0, classes, size, dtype=torch.uint8, generator=generator)
    batch = FeatureBatch(bank_features(network(images), settings), targets, [0, 1])
    sample = draw_sample([batch], settings, images=2, seed=0)
    return build_bank([batch], sample, settings, classes=classes, seed=0)


def scores_of_lda(bank: PrototypeBank, features: torch.Tensor) -> torch.Tensor:
    """Log q of features (d, h, w), (C, h, w) float64, as Gaussian densities."""
    x = ((features.double().flatten(1).T - bank.centre) / bank.spread).numpy()
    covariance = (bank.scatter[0] / bank.scatter_count).numpy()
    ridge = bank.settings.ridge * covariance.diagonal().mean()
    precision = np.linalg.inv(covariance + ridge * np.eye(len(covariance)))
    means, share = bank.means[0].numpy(), bank.share.numpy()
    columns = []
    for mean, part in zip(means, share, strict=True):
        apart = x - mean
        square = np.einsum("ni,ij,nj->n", apart, precision, apart)
        columns.append(np.log(part) - square / 2)
    scores = torch.from_numpy(np.stack(columns)) / bank.temperature
    return scores.log_softmax(0).view(-1, *features.shape[1:])
