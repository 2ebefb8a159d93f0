"""A bank that follows the bank of the step before."""

import math

import numpy as np
import torch
from direct_bank import (
    LDA,
    as_features,
    build,
    direct_moments,
    mapped,
    scene,
    slow_cells,
    slow_log_posterior,
)

from kproba.bank.bank import PrototypeBank
from kproba.bank.build import update_bank


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
