"""The rule `sampled`: labels that are drawn from the probabilities of the network."""

import numpy as np
import pytest
import torch

from kproba.methods.labels import LabelCase, LabelSettings, by_sampling, decide

SAMPLED = LabelSettings("sampled")


def labels_of(log_p: torch.Tensor, origin: tuple[int, int] = (0, 0)) -> torch.Tensor:
    """Labels (H, W) of log p (C, H, W)."""
    return decide(LabelCase(log_p[None], SAMPLED, origin=origin))[0]


@pytest.mark.parametrize("size", [(64, 64), (8, 512), (512, 8)])
def test_labels_have_the_shares_of_the_probabilities(size):
    p = torch.tensor([0.5, 0.3, 0.15, 0.05])
    labels = labels_of(p.log()[:, None, None].expand(4, *size))
    shares = torch.bincount(labels.flatten(), minlength=4) / labels.numel()
    np.testing.assert_allclose(shares, p, atol=0.01)


def test_every_neighbourhood_has_them():
    p = torch.tensor([0.6, 0.4])
    labels = labels_of(p.log()[:, None, None].expand(2, 96, 96)).float()
    around = torch.nn.functional.avg_pool2d(labels[None], 12, stride=4)
    assert float((around - 0.4).abs().max()) < 0.06


def test_probabilities_need_not_be_normalised():
    p = torch.tensor([0.2, 0.1, 0.1])
    shares = torch.bincount(
        labels_of(p.log()[:, None, None].expand(3, 64, 64)).flatten()
    )
    np.testing.assert_allclose(shares / 64**2, [0.5, 0.25, 0.25], atol=0.01)


def test_a_part_of_an_image_has_the_labels_of_the_whole():
    generator = torch.Generator().manual_seed(0)
    log_p = torch.randn(5, 40, 30, generator=generator).log_softmax(0)
    whole = labels_of(log_p)
    part = labels_of(log_p[:, 13:31, 7:22], origin=(13, 7))
    assert torch.equal(part, whole[13:31, 7:22])
    assert not torch.equal(labels_of(log_p[:, 13:31, 7:22]), part)


@pytest.mark.parametrize("certain", [0, 1, 3])
def test_an_impossible_class_is_never_drawn(certain):
    log_p = torch.full((4, 32, 32), -torch.inf)
    log_p[certain] = 0
    assert (labels_of(log_p) == certain).all()


def test_the_last_class_takes_what_rounding_leaves():
    log_p = torch.log(torch.tensor([1 - 1e-12, 1e-12, 0.0]).double())[:, None, None]
    labels = by_sampling(LabelCase(log_p.expand(3, 64, 64)[None], SAMPLED))
    assert labels.max() <= 1
