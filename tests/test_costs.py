"""The tables of docs/costs.md: rates, formulas, and that the page has them."""

import pytest
from snakemake_calls import ROOT
from test_published_splits import TRAIN_COUNTS

from benchmarks import costs
from kproba.network.architecture import Architecture
from kproba.network.network import SegmentationNetwork


@pytest.fixture(autouse=True)
def _in_the_folder_of_the_project(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_the_page_has_the_computed_tables():
    text = costs.PAGE.read_text()
    assert costs.page(text) == text, "Run `python -m benchmarks.costs`."


def test_rates_are_those_of_the_measured_tables():
    measured = (ROOT / "benchmarks" / "gpu.md").read_text()
    for name, seconds in costs.SECONDS.items():
        assert f"| `{name}` | {seconds} |" in measured
    for name, seconds in (
        ("test, the network alone", costs.NETWORK),
        ("test, network and LDA, two networks", costs.TWO_NETWORKS),
        ("bank, LDA", costs.BANK),
    ):
        assert f"| {name} | {seconds} |" in measured


def test_counts_are_the_published_ones():
    names = {"voc": "voc", "ade20k": "ade"}
    for dataset, tasks in costs.TASKS.items():
        for task, counts in tasks.items():
            assert list(counts) == TRAIN_COUNTS[names[dataset], task, "overlap"]


def test_hours_of_a_small_case():
    """Steps of 80 and 16 images; the rates are round numbers."""
    config = {"base": {"epochs": 10}, "increment": {"epochs": 5}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(costs, "SECONDS", {"finetune": 3.6, "mib": 7.2})
        patch.setattr(costs, "NETWORK", 64 * 3.6)
        patch.setitem(costs.EVALUATED, "voc", 10)
        cost = costs.method_cost("voc", (80, 16), "mib", config)
    assert cost.base == pytest.approx(80 * 10 / 8 * 3.6 / 3600)
    assert cost.increments == pytest.approx(16 * 5 / 8 * 7.2 / 3600)
    assert cost.rest == pytest.approx(2 * 10 * 3.6 / 3600)
    assert cost.disk == pytest.approx(costs.MODEL_MIB / 1024)


def test_hours_of_joint_are_those_of_all_its_iterations():
    """Steps of 80 and 16 images: 100 + 20 iterations, with the batches of step 0."""
    config = {
        "base": {"epochs": 10, "batch_size": 8},
        "increment": {"epochs": 5, "batch_size": 4},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(costs, "SECONDS", {"finetune": 3.6})
        cost = costs.joint_cost("voc", (80, 16), config)
    assert cost.base == pytest.approx(120 * 3.6 / 3600)
    assert cost.increments == 0


def test_the_bank_costs_disk_and_a_second_network():
    config = {"base": {"epochs": 1}, "increment": {"epochs": 1}}
    with_bank, without = (
        costs.method_cost("voc", (10, 10, 10), name, config)
        for name in ("kproba", "barm")
    )
    assert with_bank.disk - without.disk == pytest.approx(3 * costs.BANK_MIB / 1024)
    assert with_bank.rest > without.rest and with_bank.increments > without.increments


def test_sizes_of_models():
    architecture = Architecture(
        backbone="resnet101",
        output_stride=16,
        atrous_rates=(6, 12, 18),
        aspp_channels=256,
        aspp_dropout=0.1,
        bn_momentum=0.01,
    )
    one, two = (
        sum(
            tensor.numel() * tensor.element_size()
            for tensor in SegmentationNetwork(architecture, classes)
            .state_dict()
            .values()
        )
        / 2**20
        for classes in ([15], [15, 1])
    )
    assert one == pytest.approx(costs.MODEL_MIB, abs=0.1)
    assert two - one == pytest.approx(costs.BRANCH_MIB, abs=0.01)
