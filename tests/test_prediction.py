"""Prediction by network and bank against the formula in float64."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from small_banks import (
    CLASSES,
    bank_of,
    decision_by,
    images_of,
    network_of,
    scores_of_lda,
)

from kproba.bank.decision import Decision
from kproba.bank.fusion import Combination
from kproba.bank.predictor import FusedPredictor
from kproba.methods.labels import Labeller, LabelSettings
from kproba.methods.rules import RULES
from kproba.network.logits import compose_logits
from kproba.network.network import SegmentationNetwork
from kproba.plan.schema import load_schema

SCHEMA = Path(__file__).parents[1] / "workflow/schemas/config.schema.yaml"


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return images_of(64, 48)


@pytest.fixture(scope="module", params=["branches", "softmax"])
def network(request: pytest.FixtureRequest) -> SegmentationNetwork:
    return network_of(3, head=request.param)


@pytest.mark.parametrize(("w", "a", "b"), [(1, 1, 0), (0, 1, 0), (0.5, 2, 0.3)])
def test_network_and_lda_are_multiplied(network, images, w, a, b):
    bank = bank_of(network, images, "identity")
    weights = {"probability_weight": w, "posterior_weight": a, "foreground_bias": b}
    decision = decision_by("lda", **weights)
    found = FusedPredictor(network, bank, decision).predict_logits(images)
    assert found.shape == (2, CLASSES, 64, 48)
    outputs = network(images)
    logits = compose_logits(outputs.logits).double()
    size, how = (64, 48), {"mode": "bilinear", "align_corners": False}
    logits = F.interpolate(logits, size, **how)
    if network.architecture.head == "softmax":
        log_p = logits.log_softmax(1)
    else:
        p = logits.sigmoid()
        log_p = (p / p.sum(1, keepdim=True)).log()
    log_q = torch.stack([scores_of_lda(bank, b_i) for b_i in outputs.backbone])
    log_q = F.interpolate(log_q.clamp(min=-60), size, **how)
    p, both = log_p.exp(), (w * log_p + a * log_q + b)[:, 1:].softmax(1)
    expected = torch.cat([p[:, :1], (1 - p[:, :1]) * both], dim=1).log()
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("map_", "rule"), [("identity", "lda"), ("rff", "klda"), ("rff", "kappa")]
)
def test_the_network_says_where_and_both_say_what(network, images, map_, rule):
    bank = bank_of(network, images, map_)
    fused = FusedPredictor(network, bank, decision_by(rule)).predict_logits(images)
    total = fused.exp().sum(dim=1)
    torch.testing.assert_close(total, torch.ones_like(total))
    logits = network.predict_logits(images)
    log_p = network.log_probabilities(logits)
    background = log_p.log_softmax(1)[:, 0]
    torch.testing.assert_close(fused[:, 0], background, rtol=1e-4, atol=1e-4)
    # Where the rule of the labels finds a class, it is the likeliest of the classes.
    combination = Combination(bank, decision_by(rule))
    settings = LabelSettings(rule, decision=decision_by(rule))
    label = Labeller(network, settings, combination).label(images).long()
    found = 1 + fused[:, 1:].argmax(dim=1)
    assert torch.equal(label[label > 0], found[label > 0])
    assert (label > 0).any() or rule == "kappa"  # which knows no shares of classes


def test_the_shares_of_the_bank_are_fitted_to_each_image(network, images):
    bank = bank_of(network, images, "identity")
    plain = FusedPredictor(network, bank, decision_by("lda")).predict_logits(images)
    fitted = FusedPredictor(network, bank, decision_by("lda", image_prior=3))
    share = bank.share[1:].double() / bank.share[1:].double().sum()
    for image, log_s in zip(images, plain.double(), strict=True):
        s = log_s.flatten(1).exp()
        foreground, of_class = 1 - s[0], s[1:] / s[1:].sum(0)
        now = of_class
        for _ in range(3):
            shown = (now * foreground).sum(1) / foreground.sum()
            now = of_class * (shown / share)[:, None]
            now = now / now.sum(0)
        expected = torch.cat([s[:1], foreground * now]).view(CLASSES, 64, 48)
        found = fitted.predict_logits(image[None])[0].double().exp()
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    # What one image shows does not matter to another of the batch.
    both = fitted.predict_logits(images)
    alone = fitted.predict_logits(images[1:])
    torch.testing.assert_close(both[1:], alone, rtol=1e-3, atol=1e-3)


def test_a_bank_without_weight_changes_nothing(network, images):
    bank = bank_of(network, images, "identity")
    decision = decision_by("lda", posterior_weight=0)
    ((_, predicted),) = FusedPredictor(network, bank, decision).predict_labels(images)
    assert predicted.dtype == torch.int64
    assert torch.equal(predicted, network.predict(images).long())
    decision = decision_by("lda", posterior_weight=50)
    ((_, predicted),) = FusedPredictor(network, bank, decision).predict_labels(images)
    assert not torch.equal(predicted, network.predict(images).long())


def test_defaults_of_a_decision_are_those_of_the_configuration():
    keys = load_schema(SCHEMA)["$defs"]["decision"]["properties"]
    defaults = {key: entry["default"] for key, entry in keys.items()}
    assert asdict(Decision()) == {"rule": "lda", **defaults}


@pytest.mark.parametrize(("map_", "rule"), [("identity", "lda"), ("rff", "klda")])
def test_without_a_decision_both_predict_as_the_workflow_does(
    network, images, map_, rule
):
    bank = bank_of(network, images, map_)
    default = FusedPredictor(network, bank)
    expected = decision_by(rule, posterior_weight=0.5, image_prior=1)
    assert default.combination.decision == Decision(rule) == expected
    keys = load_schema(SCHEMA)["$defs"]["decision"]["properties"]
    read = {key: keys[key]["default"] for key in RULES[rule].decision}
    planned = Decision.from_dict({"rule": rule, **read})
    torch.testing.assert_close(
        default.predict_logits(images),
        FusedPredictor(network, bank, planned).predict_logits(images),
        rtol=0,
        atol=0,
    )


def test_bank_of_another_network_reads_the_features_of_that_network(network, images):
    other = SegmentationNetwork(network.architecture, [2], weights="imagenet", seed=9)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    other.eval().requires_grad_(False)
    bank = bank_of(other, images, "identity")
    decision = decision_by("lda")
    predictor = FusedPredictor(network, bank, decision, feature_network=other)
    found = predictor.predict_logits(images)
    stale = FusedPredictor(network, bank, decision).predict_logits(images)
    assert not torch.allclose(found, stale)
    evidence_of_other = Combination(bank, decision).log_evidence(other(images))
    logits = network.predict_logits(images)
    log_p = network.log_probabilities(logits)
    log_q = F.interpolate(evidence_of_other, (64, 48), mode="bilinear")
    both = (log_p.log_softmax(1) + log_q)[:, 1:].log_softmax(1)
    torch.testing.assert_close(found[:, 1:].log_softmax(1), both, rtol=1e-3, atol=1e-3)


def test_bank_of_another_step_is_refused(network, images):
    bank = bank_of(network, images, "identity")
    small = SegmentationNetwork(network.architecture, [1], weights="none").eval()
    with pytest.raises(ValueError, match=r"bank with the 2 classes .* it has 3"):
        FusedPredictor(small, bank)
