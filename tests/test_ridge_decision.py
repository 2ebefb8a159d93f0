"""A ridge regression that decides alone or with a network, against the formulas."""

import math

import pytest
import torch
import torch.nn.functional as F
from ridge_inputs import features_of, weights_of
from small_banks import bank_of, decision_by, images_of, network_of

from kproba.bank.decision import Decision
from kproba.bank.fusion import Combination, fuse
from kproba.bank.large import PartlyScored
from kproba.bank.predictor import FusedPredictor
from kproba.bank.teacher import BankTeacher
from kproba.methods.labels import Labeller, LabelSettings
from kproba.network.files import save_model
from kproba.network.logits import compose_logits
from kproba.runtime.provenance import fingerprint
from kproba.runtime.records import ArtifactError

SIZE = (64, 48)
ALONE = {"foreground": "both", "probability_weight": 0.0}


@pytest.fixture(scope="module")
def network():
    return network_of(3)


@pytest.fixture(scope="module")
def bank(network):
    return bank_of(network, images_of(*SIZE), "relu")


def test_the_bank_alone_takes_the_largest_interpolated_score(network, bank):
    """SegACIL interpolates the scores, and we the log posterior: one class wins."""
    images = images_of(*SIZE)
    predictor = FusedPredictor(network, bank, decision_by("ridge", **ALONE))
    log_s = predictor.predict_logits(images)
    maps = network(images).backbone
    cells = maps.permute(0, 2, 3, 1).flatten(0, 2)
    scores = bank.maps[0](cells).double() @ torch.tensor(weights_of(bank))
    scores = scores.view(len(images), *maps.shape[2:], -1).permute(0, 3, 1, 2)
    size = {"size": SIZE, "mode": "bilinear", "align_corners": False}
    largest = F.interpolate(scores, **size)
    same = log_s.argmax(1) == largest.argmax(1)
    assert same.double().mean() > 0.999
    assert len(log_s.argmax(1).unique()) == 3
    ((_, quick),) = predictor.predict_labels(images)
    assert (quick == log_s.argmax(1)).double().mean() > 0.999


@pytest.mark.parametrize("bias", [-0.5, 2.0])
@pytest.mark.parametrize("weight", [0.5, 1.0])
def test_labels_of_the_bank_alone_follow_weight_and_bias(network, bank, weight, bias):
    numbers = {**ALONE, "posterior_weight": weight, "foreground_bias": bias}
    predictor = FusedPredictor(network, bank, decision_by("ridge", **numbers))
    images = images_of(*SIZE)
    with torch.inference_mode():
        ((_, quick),) = predictor.predict_labels(images)
    labels = predictor.predict_logits(images).argmax(1)
    assert (quick == labels).double().mean() > 0.999
    plain = FusedPredictor(network, bank, decision_by("ridge", **ALONE))
    assert (labels != plain.predict_logits(images).argmax(1)).any() == (bias != 0)


@pytest.mark.parametrize("foreground", ["network", "both"])
def test_a_network_with_weight_0_brings_no_nan(foreground):
    log_p = torch.zeros(1, 3, 2, 2)
    log_p[:, 2] = -math.inf
    log_q = torch.randn(1, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    numbers = {"foreground": foreground, "probability_weight": 0.0}
    log_s = fuse(log_p, log_q.log_softmax(1), decision_by("ridge", **numbers))
    assert log_s.isfinite().all()
    if foreground == "both":
        torch.testing.assert_close(log_s, log_q.log_softmax(1))


@pytest.mark.parametrize(
    ("rule", "map_"), [("lda", "relu"), ("kappa", "relu"), ("ridge", "rff")]
)
def test_a_rule_that_reads_another_bank_is_refused(network, rule, map_, tmp_path):
    model, path = tmp_path / "model.safetensors", tmp_path / "prototypes.safetensors"
    labels = [{"label": label} for label in range(3)]
    save_model(network, model, about={"classes": labels})
    about = {"model": fingerprint(model)}
    bank_of(network, images_of(*SIZE), map_).save(path, about=about)
    files = {"network": model, "feature_network": None, "device": "cpu"}
    with pytest.raises(ArtifactError, match=f"rule '{rule}' and .* the map '{map_}'"):
        Combination.load(path, Decision(rule), **files)


def linear_log_q(bank, features):
    """Log q of features (d, h, w), (C, h, w) float64."""
    cells = features.double().flatten(1).T.numpy()
    phi = features_of(cells, bank.settings.dimension, bank.seed)
    scores = torch.tensor(phi @ weights_of(bank)) / bank.temperature
    return scores.log_softmax(1).T.reshape(-1, *features.shape[1:])


def test_network_and_ridge_decide_together_as_the_formula_says(network, bank):
    """s_0 = p_0, and s_c of log p and log q; with the shares of all steps as π."""
    images = images_of(*SIZE)
    decision = decision_by("ridge", posterior_weight=0.5, image_prior=1)
    found = FusedPredictor(network, bank, decision).predict_logits(images)
    outputs = network(images)
    p = network.predict_logits(images).double().sigmoid()
    p = p / p.sum(1, keepdim=True)
    log_q = torch.stack([linear_log_q(bank, x) for x in outputs.backbone])
    wide = F.interpolate(log_q, SIZE, mode="bilinear", align_corners=False)
    both = p[:, 1:] * (0.5 * wide[:, 1:]).exp()
    shares = both / both.sum(1, keepdim=True)
    weight = 1 - p[:, :1]
    of_image = (shares * weight).sum((2, 3)) / weight.sum((2, 3))
    trained = bank.count[1:] / bank.count[1:].sum()
    shares = shares * (of_image / trained)[:, :, None, None]
    shares = shares / shares.sum(1, keepdim=True)
    expected = torch.cat([p[:, :1], weight * shares], 1)
    torch.testing.assert_close(found.exp().double(), expected, rtol=2e-3, atol=1e-5)


def test_ridge_teaches(network, bank):
    """On M⁻ the old classes share the network's Σ p by s; w = 0 leaves q alone."""
    images = images_of(*SIZE)
    teacher = BankTeacher(network, Combination(bank, decision_by("ridge", **ALONE)))
    outputs = network(images)
    background = torch.ones(len(images), *outputs.backbone.shape[2:], dtype=torch.bool)
    found = compose_logits(teacher.correct(outputs, outputs, background).logits)
    q = torch.stack([linear_log_q(bank, x) for x in outputs.backbone]).exp()
    whole = compose_logits(outputs.logits)[:, 1:].double().sigmoid().sum(1, True)
    expected = whole * q[:, 1:] / q[:, 1:].sum(1, True)
    torch.testing.assert_close(
        found[:, 1:].sigmoid().double(),
        expected.clamp(1e-5, 1 - 1e-5),
        rtol=2e-3,
        atol=1e-5,
    )


@pytest.mark.parametrize("threshold", [0.0, 0.6, 0.95])
def test_pseudo_labels_need_the_calibrated_posterior(network, bank, threshold):
    images = images_of(*SIZE)
    decision = decision_by("ridge", **ALONE)
    settings = LabelSettings("ridge", score_threshold=threshold, decision=decision)
    labels = Labeller(network, settings, Combination(bank, decision)).label(images)
    log_q = torch.stack([linear_log_q(bank, x) for x in network(images).backbone])
    wide = F.interpolate(log_q, SIZE, mode="bilinear", align_corners=False)
    q, expected = wide.softmax(1).max(1)
    expected = expected.where(q >= threshold, 0)
    assert (labels == expected).double().mean() > 0.998
    assert len(labels.unique()) > 1


def test_tiles_of_an_image_are_averaged_as_probabilities(network, bank):
    """A tile that is the image gives what the image gives."""
    predictor = FusedPredictor(network, bank, decision_by("ridge", **ALONE))
    image = images_of(*SIZE)[0]
    whole = predictor.predict_logits(image[None])[0]
    in_tiles = PartlyScored(predictor, image, 3, device="cpu", tile=64)
    torch.testing.assert_close(
        in_tiles.fitted().exp(), whole.exp(), rtol=1e-4, atol=1e-6
    )
    smaller = PartlyScored(predictor, image, 3, device="cpu", tile=40).fitted()
    assert smaller.isfinite().all()
    torch.testing.assert_close(
        smaller.exp().sum(0), torch.ones(SIZE), rtol=1e-3, atol=1e-3
    )


def test_without_a_decision_the_bank_chooses_its_rule(network, bank):
    assert FusedPredictor(network, bank).combination.decision.rule == "ridge"
