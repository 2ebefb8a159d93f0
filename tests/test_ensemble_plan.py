"""Which networks and banks a combination needs: in a prediction and in the plan."""

from typing import Any

import pytest
import torch
import yaml
from plan_configs import ROOT, experiment, make_plan, make_run
from small_banks import bank_of, decision_by, images_of, network_of

from kproba.bank.fusion import Combination, fit_to_image, trained_shares
from kproba.bank.predictor import FusedPredictor, NetworkPredictor
from kproba.network.network import SegmentationNetwork
from kproba.plan.errors import ConfigError

pytestmark = pytest.mark.usefixtures("schema_is_parsed_once")

SIZE = (64, 48)
CLASSES = 5  # background, two classes of step 0 and two of step 1


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return images_of(*SIZE)


# Networks that do not have to run


class Calls:
    """Counts the forward passes of a network."""

    def __init__(self, network: SegmentationNetwork):
        self.count = 0
        # Not that of the whole network, which may continue from shared stages.
        network.aspp.register_forward_hook(self._add)

    def _add(self, *_: Any) -> None:
        self.count += 1


def run_all(predictor: FusedPredictor, images: torch.Tensor) -> torch.Tensor:
    """Scores, after labels and scores by batches."""
    list(predictor.predict_labels(images))
    list(predictor.predict_scores(images))
    return predictor.predict_logits(images)


def test_a_bank_that_decides_alone_runs_only_the_network_of_its_features(images):
    network, first = network_of(3, steps=(2, 2)), network_of(4, steps=(2,))
    bank = bank_of(first, images, "identity", CLASSES)
    alone = decision_by("lda", foreground="both", probability_weight=0.0)
    calls = [Calls(each) for each in (network, first)]
    found = run_all(FusedPredictor(network, bank, alone, first), images)
    assert [each.count for each in calls] == [0, 3]
    expected = Combination(bank, alone, first).log_evidence_of_pixels(
        first(images), SIZE
    )
    torch.testing.assert_close(found.softmax(1), expected.softmax(1))


@pytest.mark.parametrize("rule", ["lda", "klda", "ridge"])
def test_evidence_without_a_weight_is_not_computed(images, rule):
    """Only the network and the class shares are left."""
    network, first = network_of(3, steps=(2, 2)), network_of(4, steps=(2,))
    map_ = {"lda": "identity", "klda": "rff", "ridge": "relu"}[rule]
    bank = bank_of(first, images, map_, CLASSES)
    calls = Calls(first)
    decision = decision_by(rule, posterior_weight=0.0, image_prior=1)
    found = run_all(FusedPredictor(network, bank, decision, first), images)
    assert calls.count == 0
    log_p = NetworkPredictor(network).log_scores(images).double()
    expected = fit_to_image(log_p, trained_shares(bank.share), 1).float()
    torch.testing.assert_close(found.exp(), expected.exp(), rtol=1e-4, atol=1e-6)


# The plan

MEAN = {"rule": "step0_mean", "foreground": "network", "image_prior": 1}
STEP0 = {
    "rule": "step0",
    "foreground": "network",
    "probability_weight": 1.0,
    "posterior_weight": 0.5,
    "image_prior": 1,
}


def plan_of(*, base: str = "barm", **changes: Any) -> Any:
    return make_plan(
        methods={"mine": {"based_on": base, **changes}},
        **experiment(methods=["mine"], task="5-1"),
    )


@pytest.mark.parametrize(("rule", "expected"), [("step0", STEP0), ("step0_mean", MEAN)])
def test_a_plan_shares_networks_and_the_bank_of_lda(rule, expected):
    names = ("ensemble", "other", "barm")
    methods = {
        "ensemble": {"based_on": "barm", "prediction": rule},
        "other": {
            "based_on": "barm",
            "prediction": "lda",
            "bank": {"network": "base"},
        },
    }
    plan = make_plan(methods=methods, **experiment(methods=list(names), task="5-1"))
    assert plan.method("ensemble").decision == expected
    runs = [make_run(name, "5-1") for name in names]
    for step in range(3):
        results = [plan.result(run, step) for run in runs]
        assert len({result.model for result in results}) == 1
        assert results[0].bank == results[1].bank and results[2].bank is None
        assert len({result.evaluation for result in results}) == 3
    inputs = plan.test_inputs(runs[0], 2)
    assert inputs["feature_network"] == plan.result(runs[0], 0).model
    assert inputs["bank"] == results[0].bank


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"prediction": "step0", "bank": {"network": "after"}},
            r"mine\.bank\.network: expected 'base'.*'step0' reads the network of step",
        ),
        (
            {"pseudo_labels": {"rule": "step0_mean"}, "bank": {"network": "before"}},
            r"mine\.bank\.network: expected 'base'.*'step0_mean'",
        ),
        (
            {"base": "joint", "prediction": "step0_mean"},
            r"mine\.prediction: expected a rule of one network.*the method is joint",
        ),
        (
            {"base": "ridge", "prediction": "step0", "pseudo_labels": {"rule": "lda"}},
            r"mine\.prediction: .*the method trains nothing, but got 'step0'",
        ),
    ],
)
def test_what_has_no_second_network_is_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        plan_of(**changes)


def test_the_first_network_may_teach_and_label():
    plan = plan_of(base="kproba", prediction="step0", pseudo_labels={"rule": "step0"})
    run = make_run("mine", "5-1")
    assert plan.settings(run, 2)["decision"] == STEP0
    assert plan.training_inputs(run, 2)["feature_network"]
    assert plan.method("mine").labels["decision"] == STEP0


def test_the_comparison_trains_the_networks_of_barm_only():
    """config/comparisons/where_from.yaml differs in predictions and banks."""
    path = ROOT / "config" / "comparisons" / "where_from.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    [named] = content["experiments"]
    assert set(named["methods"]) == {"barm", *content["methods"]}
    plan = make_plan(
        methods=content["methods"],
        **experiment(methods=[*named["methods"], "finetune"], task="5-1"),
    )
    runs = {name: make_run(name, "5-1") for name in named["methods"]}
    results = {name: plan.result(run, 2) for name, run in runs.items()}
    models = {result.model for result in results.values()}
    assert models == {plan.result(runs["barm"], 2).model}
    assert plan.result(make_run("finetune", "5-1"), 2).model not in models
    assert len({result.evaluation for result in results.values()}) == len(runs)
    # None; three maps, two of them also with the scatter of all cells; the bank of
    # version 0.2; and the two banks whose shares the networks of two steps read, with
    # the scatter of the classes or of all cells.
    banks = {result.bank for result in results.values()}
    assert len(banks) == 1 + 3 + 2 + 1 + 2, banks
