"""Choices of a bank: whose scatter, the context of a cell, and the size of images."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from direct_bank import (
    LDA,
    SETTINGS,
    as_features,
    build,
    direct_moments,
    mapped,
    scene,
    slow_cells,
    slow_log_posterior,
)
from plan_configs import experiment, make_plan, make_run

from kproba.bank.bank import PrototypeBank, bank_features
from kproba.bank.fusion import fit_to_image, trained_shares
from kproba.jobs.step_bank import scaled_rows
from kproba.network.network import Outputs
from kproba.plan.errors import ConfigError
from kproba.runtime.files import read_json, write_json

pytestmark = pytest.mark.usefixtures("schema_is_parsed_once")

# --- scatter of the classes alone ----------------------------------------------------


@pytest.mark.parametrize("settings", [LDA, SETTINGS], ids=["lda", "klda"])
def test_scatter_leaves_the_background_out(settings):
    data = scene()
    vectors, labels = slow_cells(*data)
    bank = build(data, replace(settings, background=False))
    for number in range(len(bank.scatter)):
        phi = mapped(bank, number, vectors)
        counts, means, _ = direct_moments(phi, labels, 4)
        _, _, scatter = direct_moments(phi[labels > 0], labels[labels > 0], 4)
        np.testing.assert_array_equal(bank.count, counts)
        np.testing.assert_allclose(bank.means[number], means, atol=1e-6)
        np.testing.assert_allclose(bank.scatter[number], scatter, rtol=1e-3, atol=1e-4)
    assert bank.scatter_count == (labels > 0).sum()
    found = bank.log_posterior(as_features(vectors))
    np.testing.assert_allclose(found, slow_log_posterior(bank, vectors), atol=1e-3)


def test_temperature_is_the_best_one_among_the_classes():
    data = scene(distance=0.6)
    vectors, labels = slow_cells(*data)
    bank = build(data, replace(LDA, background=False))
    of_class = labels > 0

    def cost(temperature):
        log_q = replace(bank, temperature=temperature).log_posterior(
            as_features(vectors[of_class])
        )
        among = log_q[:, 1:].double().log_softmax(1).numpy()
        return -among[np.arange(of_class.sum()), labels[of_class] - 1].mean()

    best = cost(bank.temperature)
    assert best < cost(bank.temperature * 1.1)
    assert best < cost(bank.temperature / 1.1)


def test_one_class_alone_is_calibrated_against_the_background():
    data = scene(classes=(0, 1))
    bank = build(data, replace(LDA, background=False), classes=2)
    everything = build(data, LDA, classes=2)
    assert 0.2 < bank.temperature / everything.temperature < 5


def test_classes_without_cells_are_compared_by_distance():
    data = scene(classes=(0,))
    bank = build(data, replace(LDA, background=False), classes=3)
    later = build(
        scene(seed=1, classes=(2,)), replace(LDA, background=False), classes=3
    )
    assert bank.scatter_count == 0
    features = as_features(slow_cells(*scene())[0])
    for each in (bank, later):
        assert torch.isfinite(each.log_posterior(features).max(1).values).all()


def test_a_later_step_adds_the_scatter_of_its_classes():
    settings = replace(LDA, background=False)
    first = build(scene(classes=(0, 1, 2)), settings, classes=3)
    second = build(scene(seed=4, classes=(0, 3)), settings, previous=first)
    alone = build(scene(seed=4, classes=(0, 3)), settings)
    x = slow_cells(*scene(seed=4, classes=(0, 3)))[1]
    assert second.scatter_count == first.scatter_count + (x > 0).sum()
    assert alone.scatter_count == (x > 0).sum()


# --- context -------------------------------------------------------------------------


@pytest.mark.parametrize("feature", ["backbone", "block", "both"])
def test_context_is_the_mean_of_the_cells_around(feature):
    generator = torch.Generator().manual_seed(0)
    backbone = torch.randn(2, 3, 4, 5, generator=generator)
    block = torch.randn(2, 2, 4, 5, generator=generator)
    outputs = Outputs(backbone, [block], [])
    plain = bank_features(outputs, replace(SETTINGS, feature=feature))
    found = bank_features(outputs, replace(SETTINGS, feature=feature, context=3))
    width = plain.shape[1]
    assert torch.equal(found[:, :width], plain)
    values = plain.double().numpy()
    for row in range(4):
        for column in range(5):
            rows = slice(max(0, row - 1), row + 2)
            columns = slice(max(0, column - 1), column + 2)
            mean = values[:, :, rows, columns].mean((2, 3))
            np.testing.assert_allclose(found[:, width:, row, column], mean, atol=1e-6)


# --- sizes ---------------------------------------------------------------------------


def test_rows_are_scaled_by_a_factor_or_to_a_shorter_side():
    rows = pd.DataFrame({"width": [240, 100, 60], "height": [180, 240, 60]})
    assert scaled_rows(rows, {"factor": 1.0}) is rows
    half = scaled_rows(rows, {"factor": 0.5})
    assert half[["width", "height"]].values.tolist() == [[120, 90], [50, 120], [30, 30]]
    crop = scaled_rows(rows, {"shorter_side": 120})
    assert crop[["width", "height"]].values.tolist() == [
        [160, 120],
        [120, 288],
        [120, 120],
    ]
    tiny = scaled_rows(pd.DataFrame({"width": [3], "height": [40]}), {"factor": 0.1})
    assert tiny.values.tolist() == [[1, 4]]


@pytest.mark.parametrize(
    ("sizes", "crop", "expected"),
    [
        (["image"], None, None),
        (["test"], None, None),
        (["image", "test"], None, None),
        ([1], 513, None),
        (["test"], 513, [{"shorter_side": 513}]),
        (["image", "test"], 513, [{"factor": 1.0}, {"shorter_side": 513}]),
        ([0.75, 1.5], None, [{"factor": 0.75}, {"factor": 1.5}]),
    ],
)
def test_sizes_of_the_plan(sizes, crop, expected):
    plan = make_plan(bank={"sizes": sizes}, evaluation={"crop": crop})
    settings = plan.chain.bank(make_run(), 1).settings
    assert settings.get("sizes") == expected


# --- in the plan ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"background": False}),
        ({"scatter": "all", "context": 1}, {}),
        ({"scatter": "classes"}, {"background": False}),
        ({"scatter": "all", "context": 3}, {"context": 3}),
    ],
)
def test_only_other_choices_are_in_the_settings_of_a_bank(changes, expected):
    plan = make_plan(
        methods={"own": {"based_on": "kproba", "bank": changes}},
        **experiment(methods=["own"]),
    )
    settings = plan.chain.bank(make_run("own"), 1).settings["settings"]
    found = {key: settings[key] for key in ("background", "context") if key in settings}
    assert found == expected


@pytest.mark.parametrize(
    "method",
    [
        {"based_on": "kproba", "decision": {"foreground": "both"}},
        {"based_on": "ridge"},
    ],
    ids=["both decide", "ridge"],
)
def test_a_bank_that_decides_on_the_foreground_knows_the_background(method):
    plan = make_plan(
        methods={"own": method},
        bank={"scatter": "classes"},
        **experiment(methods=["own"]),
    )
    settings = plan.chain.bank(make_run("own"), 1).settings["settings"]
    assert "background" not in settings


@pytest.mark.parametrize(
    ("bank", "message"),
    [
        ({"context": 2}, r"bank\.context.*2"),
        ({"scatter": "none"}, r"bank\.scatter.*none"),
        ({"sizes": []}, r"bank\.sizes"),
        ({"sizes": ["large"]}, r"bank\.sizes.*large"),
        ({"sizes": [0.01]}, r"bank\.sizes.*0\.01"),
    ],
)
def test_wrong_choices_are_refused(bank, message):
    with pytest.raises(ConfigError, match=message):
        make_plan(bank=bank)


# --- files ---------------------------------------------------------------------------


def test_a_bank_of_an_earlier_version_can_be_read(tmp_path):
    bank = build(scene(), LDA)
    path = tmp_path / "prototypes.safetensors"
    bank.save(path, about={})
    record = read_json(path.with_suffix(".json"))
    for key in ("background", "context"):
        del record["settings"][key]
    write_json(path.with_suffix(".json"), record)
    assert PrototypeBank.load(path).settings == LDA


def test_choices_are_kept_in_the_file(tmp_path):
    settings = replace(LDA, background=False, context=3)
    data = scene()
    path = tmp_path / "prototypes.safetensors"
    build(data, settings).save(path, about={})
    assert PrototypeBank.load(path).settings == settings


# --- floor of the shares -------------------------------------------------------------


def test_floor_is_a_part_of_the_equal_share():
    share = torch.tensor([90.0, 6.0, 3.99, 0.01], dtype=torch.float64)
    plain = trained_shares(share)
    np.testing.assert_allclose(plain, [0.6, 0.399, 0.001])
    floored = trained_shares(share, 0.25)
    np.testing.assert_allclose(floored, [0.6, 0.399, 0.25 / 3])
    np.testing.assert_allclose(trained_shares(share, 1.0), [0.6, 0.399, 1 / 3])


def test_a_floor_limits_how_much_a_rare_class_gains():
    # A pixel that shows the frequent class, with a little doubt about the rare one.
    log_s = torch.tensor([0.1, 0.86, 0.04]).log().view(1, 3, 1, 1)
    share = torch.tensor([1.0, 0.999, 0.001])
    plain = fit_to_image(log_s, trained_shares(share), 1).exp().flatten()
    floored = fit_to_image(log_s, trained_shares(share, 0.5), 1).exp().flatten()
    assert plain[2] > plain[1]  # the rare class wins without the floor
    assert floored[1] > floored[2]
    ratio = (0.04 / 0.86) * ((0.04 / 0.9) / 0.25) / ((0.86 / 0.9) / 0.999)
    assert math.isclose(floored[2] / floored[1], ratio, rel_tol=1e-4)
    assert torch.allclose(plain[0], floored[0])
