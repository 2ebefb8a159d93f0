"""Two networks in place of network and bank, against the formulas in float64."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_banks import bank_of, decision_by, images_of, network_of

from kproba.bank.bank import PrototypeBank
from kproba.bank.decision import Decision
from kproba.bank.description import SeenClass, StepDescription, write_description
from kproba.bank.ensemble import fuse_networks
from kproba.bank.fusion import Combination, fit_to_image, trained_shares
from kproba.bank.large import PartlyScored
from kproba.bank.predictor import FusedPredictor, NetworkPredictor
from kproba.bank.teacher import BankTeacher
from kproba.methods.labels import Labeller, LabelSettings
from kproba.network.files import save_model
from kproba.network.layers import get_classifier
from kproba.network.logits import compose_logits
from kproba.network.network import SegmentationNetwork
from kproba.predict.export import Deployed, export
from kproba.predict.info import describe_step
from kproba.predict.segmenter import load
from kproba.runtime.provenance import fingerprint

SIZE = (64, 48)
KNOWN = 3  # background and two classes of step 0
CLASSES = 5  # and two of step 1
RULES = ("step0", "step0_mean")


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return images_of(*SIZE)


@pytest.fixture(scope="module", params=["branches", "softmax"])
def networks(
    request: pytest.FixtureRequest, images: torch.Tensor
) -> tuple[SegmentationNetwork, SegmentationNetwork]:
    """The network of step 1 and that of step 0, which differ in all weights.

    Both take about half of the pixels for background.
    """
    found = []
    for seed, steps in ((3, (2, 2)), (4, (2,))):
        network = network_of(seed, head=request.param, steps=steps)
        with torch.no_grad():
            for branch in network.branches:
                branch.get_submodule("classifier").weight.mul_(3)
            z = compose_logits(network(images).logits)
            bias = get_classifier(network.branches[0]).bias
            assert bias is not None
            bias[0] += (z[:, 1:].logsumexp(dim=1) - z[:, 0]).median()
        found.append(network)
    return found[0], found[1]


@pytest.fixture(scope="module")
def bank(
    networks: tuple[SegmentationNetwork, SegmentationNetwork], images: torch.Tensor
) -> PrototypeBank:
    """Its shares are read for the image prior, and nothing else."""
    found = bank_of(networks[1], images, "identity", CLASSES)
    share = torch.tensor([0.5, 0.2, 0.1, 0.15, 0.05], dtype=torch.float64)
    return replace(found, share=share)


def plain_p(network: SegmentationNetwork, images: torch.Tensor) -> np.ndarray:
    """The network's probabilities of every pixel, (B, H, W, C) float64."""
    logits = compose_logits(network(images).logits).double()
    wide = F.interpolate(logits, SIZE, mode="bilinear", align_corners=False)
    softmax = network.architecture.head == "softmax"
    return (wide.softmax(1) if softmax else wide.sigmoid()).permute(0, 2, 3, 1).numpy()


def plain_scores(p: np.ndarray, first: np.ndarray, decision: Decision) -> np.ndarray:
    """S of pixels by the formulas, one class after the other, (.., C) float64."""
    share = p / p.sum(-1, keepdims=True)
    s = np.zeros_like(p)
    if decision.rule == "step0_mean":
        mixed = p.copy()
        for c in range(1, KNOWN):
            mixed[..., c] = 0.5 * p[..., c] + 0.5 * first[..., c]
        if decision.foreground == "both":
            return mixed / mixed.sum(-1, keepdims=True)
        s[..., 0] = share[..., 0]
        for c in range(1, CLASSES):
            part = mixed[..., c] / mixed[..., 1:].sum(-1)
            s[..., c] = (1 - share[..., 0]) * part
        return s
    group = range(0 if decision.foreground == "both" else 1, KNOWN)
    product = {
        c: p[..., c] ** decision.probability_weight
        * first[..., c] ** decision.posterior_weight
        * np.exp(decision.foreground_bias if c and group[0] == 0 else 0)
        for c in group
    }
    mass = sum(share[..., c] for c in group)
    for c in range(CLASSES):
        inside = c in product
        s[..., c] = (
            mass * product[c] / sum(product.values()) if inside else share[..., c]
        )
    return s


DECISIONS = [
    decision_by("step0", foreground=foreground, **weights)
    for foreground in ("network", "both")
    for weights in (
        {},
        {"posterior_weight": 0.5},
        {"probability_weight": 0.3, "posterior_weight": 2.0, "foreground_bias": 0.7},
        {"probability_weight": 0.0},
    )
]
DECISIONS += [decision_by("step0_mean", foreground=f) for f in ("network", "both")]


def name_of(decision: Decision) -> str:
    """A short name for the list of tests."""
    weights = decision.probability_weight, decision.posterior_weight
    return f"{decision.rule}-{decision.foreground}-{weights}"


@pytest.mark.parametrize("decision", DECISIONS, ids=name_of)
def test_scores_are_those_of_the_formula(networks, bank, images, decision):
    network, first = networks
    predictor = FusedPredictor(network, bank, decision, first)
    found = predictor.predict_logits(images).exp().permute(0, 2, 3, 1)
    expected = plain_scores(plain_p(network, images), plain_p(first, images), decision)
    assert np.allclose(expected.sum(-1), 1)
    assert np.allclose(found.numpy(), expected, rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("rule", RULES)
def test_the_first_network_changes_only_what_it_knows(networks, bank, images, rule):
    """Later classes keep their share, and the pixels do change."""
    network, first = networks
    alone = NetworkPredictor(network).log_scores(images).exp()
    s = FusedPredictor(network, bank, decision_by(rule), first).predict_logits(images)
    s = s.exp()
    assert (s[:, 1:KNOWN] - alone[:, 1:KNOWN]).abs().max() > 0.05
    torch.testing.assert_close(s[:, 0], alone[:, 0], rtol=1e-4, atol=1e-6)
    if rule == "step0":
        later = s[:, KNOWN:], alone[:, KNOWN:]
        torch.testing.assert_close(*later, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("prior", [0, 1, 3])
@pytest.mark.parametrize("decision", DECISIONS, ids=name_of)
def test_labels_are_those_of_the_largest_score(networks, bank, images, decision, prior):
    network, first = networks
    decision = replace(decision, image_prior=prior)
    predictor = FusedPredictor(network, bank, decision, first)
    ((_, labels),) = predictor.predict_labels(images)
    log_s = predictor.predict_logits(images)
    if prior:
        p = plain_p(network, images), plain_p(first, images)
        s = torch.from_numpy(plain_scores(*p, decision)).permute(0, 3, 1, 2)
        fitted = fit_to_image(s.log(), trained_shares(bank.share), prior).float()
        torch.testing.assert_close(log_s.exp(), fitted.exp(), rtol=1e-3, atol=1e-5)
    of_label = log_s.gather(1, labels[:, None])[:, 0]
    assert (log_s.amax(dim=1) - of_label).max() < 1e-4
    assert len(labels.unique()) >= 2


def test_the_image_prior_reads_the_shares_of_the_bank(networks, bank, images):
    network, first = networks
    decision = decision_by("step0", image_prior=1)
    other = replace(bank, share=bank.share.flip(0))
    found = [
        FusedPredictor(network, each, decision, first).predict_logits(images).exp()
        for each in (bank, other)
    ]
    assert (found[0] - found[1]).abs().max() > 0.01


@pytest.mark.parametrize("rule", RULES)
def test_the_features_of_the_bank_are_not_read(networks, bank, images, rule):
    network, first = networks
    means = [torch.full_like(mean, torch.nan) for mean in bank.means]
    other = replace(bank, means=means, scatter=None)
    for each in (bank, other):
        predictor = FusedPredictor(network, each, decision_by(rule), first)
        assert predictor.predict_logits(images).isfinite().all()


def test_at_step_0_the_mean_is_the_network_itself(networks, images):
    _, first = networks
    bank = bank_of(first, images, "identity", KNOWN)
    for foreground in ("network", "both"):
        decision = decision_by("step0_mean", foreground=foreground)
        s = FusedPredictor(first, bank, decision).predict_logits(images)
        alone = NetworkPredictor(first).log_scores(images)
        torch.testing.assert_close(s.exp(), alone.exp(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("decision", DECISIONS, ids=name_of)
def test_scores_of_few_probabilities_by_hand(decision):
    """Also with probabilities near 0, in float64."""
    p = np.array([[0.9, 1e-9, 1e-12, 0.3, 0.1], [0.01, 0.7, 0.6, 0.2, 0.9]])
    first = np.array([[0.5, 1e-8, 0.2], [0.3, 0.1, 0.9]])
    log_p, log_first = (
        torch.from_numpy(x).T[None, :, :, None].log() for x in (p, first)
    )
    padded = F.pad(log_first, (0, 0, 0, 0, 0, CLASSES - KNOWN))
    found = fuse_networks(log_p, padded, KNOWN, decision).exp()[0, :, :, 0].T.numpy()
    assert np.allclose(found, plain_scores(p, first, decision), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("rule", RULES)
def test_tiles_are_averaged_as_probabilities(networks, bank, images, rule):
    """A tile that is the image gives what the image gives."""
    network, first = networks
    predictor = FusedPredictor(network, bank, decision_by(rule, image_prior=1), first)
    whole = predictor.predict_logits(images[:1])[0]
    in_tiles = PartlyScored(predictor, images[0], CLASSES, device="cpu", tile=64)
    torch.testing.assert_close(
        in_tiles.fitted().exp(), whole.exp(), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("threshold", [0.0, 0.3])
def test_pseudo_labels_are_those_of_the_scores(networks, bank, images, rule, threshold):
    network, first = networks
    decision = decision_by(rule)
    settings = LabelSettings(rule, score_threshold=threshold, decision=decision)
    combination = Combination(bank, decision, first, head=network.head)
    labels = Labeller(network, settings, combination.beside(network)).label(images)
    s = plain_scores(plain_p(network, images), plain_p(first, images), decision)
    expected = s.argmax(-1) * (s.max(-1) >= threshold)
    assert (labels.numpy() == expected).mean() > 0.999
    assert len(labels.unique()) >= 2


def test_the_first_network_can_correct_the_teacher(images):
    """p'_c = (Σ p) s_c / (1 - s_0), cell by cell."""
    network, first = network_of(3, steps=(2, 2)), network_of(4, steps=(2,))
    bank = bank_of(first, images, "identity", CLASSES)
    decision = decision_by("step0")
    combination = Combination(bank, decision, first, head=network.head)
    outputs = network(images)
    teacher = BankTeacher(network, combination)
    everywhere = torch.ones_like(outputs.backbone[:, 0], dtype=torch.bool)
    corrected = teacher.correct(outputs, teacher.features(outputs, images), everywhere)
    found = compose_logits(corrected.logits)[:, 1:].sigmoid().double()
    p, p0 = (
        compose_logits(each(images).logits).double().sigmoid().permute(0, 2, 3, 1)
        for each in (network, first)
    )
    s = plain_scores(p.numpy(), p0.numpy(), decision)[..., 1:]
    expected = p[..., 1:].sum(-1).numpy()[..., None] * s / s.sum(-1, keepdims=True)
    expected = np.clip(expected, 1e-5, 1 - 1e-5)
    assert np.allclose(
        found.permute(0, 2, 3, 1).numpy(), expected, rtol=1e-3, atol=1e-6
    )


def test_without_a_head_the_evidence_is_refused(networks, bank, images):
    network, first = networks
    combination = Combination(bank, decision_by("step0"), first)
    with pytest.raises(ValueError, match=r"head of the networks for the rule 'step0'"):
        combination.log_evidence(combination.features(network(images), images))


# Files


def write_step(
    folder: Path,
    networks: tuple[SegmentationNetwork, SegmentationNetwork],
    bank: PrototypeBank,
    decision: Decision,
) -> None:
    """The files of an evaluated step 1."""
    first = folder / "step0" / "model.safetensors"
    paths = (folder / "model.safetensors", first)
    for path, network in zip(paths, networks, strict=True):
        path.parent.mkdir(exist_ok=True)
        labels = [{"label": label} for label in range(network.channels)]
        save_model(network, path, about={"classes": labels})
    bank.save(folder / "prototypes.safetensors", about={"model": fingerprint(first)})
    run = {"dataset": "pets", "task": "2-2", "setting": "overlap", "method": "mine"}
    description = StepDescription(
        network=paths[0],
        bank=folder / "prototypes.safetensors",
        feature_network=first,
        decision=decision.to_dict(),
        classes=tuple(SeenClass(c, f"class {c}", int(c > 2)) for c in range(CLASSES)),
        channels=tuple(range(CLASSES)),
        about={**run, "seed": 0, "step": 1},
    )
    write_description(folder / "predictor.json", description)


@pytest.mark.parametrize("rule", RULES)
def test_a_step_is_loaded_and_exported(networks, bank, images, rule, tmp_path):
    """The head comes from the record of the model."""
    decision = decision_by(rule, image_prior=1)
    write_step(tmp_path, networks, bank, decision)
    segmenter = load(tmp_path)
    found = segmenter.predict(images[0]).probabilities
    expected = FusedPredictor(networks[0], bank, decision, networks[1])
    s = expected.predict_logits(images[:1])[0].exp().numpy()
    assert np.allclose(found, s, rtol=1e-3, atol=1e-5)
    for ending in ("onnx", "pt"):
        assert export(segmenter, tmp_path / f"model.{ending}") < 1e-4
    lines = "\n".join(describe_step(tmp_path))
    assert f"prediction: network and network of step 0 ({rule})" in lines


def test_a_combination_of_files_has_the_head(networks, bank, images, tmp_path):
    write_step(tmp_path, networks, bank, decision_by("step0"))
    combination = Combination.load(
        tmp_path / "prototypes.safetensors",
        decision_by("step0"),
        network=tmp_path / "model.safetensors",
        feature_network=tmp_path / "step0" / "model.safetensors",
        device="cpu",
    )
    features = combination.features(networks[0](images), images)
    found = combination.log_evidence_of_pixels(features, SIZE).permute(0, 2, 3, 1)
    expected = plain_p(networks[1], images)
    assert np.allclose(found[..., :KNOWN].exp().numpy(), expected, rtol=1e-3, atol=1e-6)
    assert not found[..., KNOWN:].any()


@pytest.mark.parametrize("decision", DECISIONS, ids=name_of)
def test_an_exported_model_gives_the_same(networks, bank, images, decision):
    """Traced at one size and run at another one, with an image prior."""

    class Step:
        predictor = FusedPredictor(
            networks[0], bank, replace(decision, image_prior=1), networks[1]
        )
        channels = range(CLASSES)

    model = Deployed(Step()).eval()
    with torch.no_grad():
        traced = torch.jit.trace(model, images, check_trace=False)
        other = images_of(40, 72)[:1]
        difference = (traced(other) - model(other)).abs()
    assert difference.quantile(0.999) < 1e-3
