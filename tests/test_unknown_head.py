"""The head of SSUL: unknown objects, how they start classes, the rule of its test."""

import copy
from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from loss_inputs import (
    BATCH,
    CELLS,
    FIRST_NEW,
    PIXELS,
    assert_same,
    binary_cross_entropy,
    branch_logits,
    gradients,
    leaves,
    losses_of,
    masks_and_counts,
    outputs_of,
    random,
    uneven_targets,
)
from small_banks import bank_of, decision_by, images_of, network_of
from small_networks import (
    ARCHITECTURE,
    random_images,
    randomise_norms,
    state_of,
)

from kproba.bank import likeliest
from kproba.bank.description import SeenClass
from kproba.bank.fusion import Combination
from kproba.bank.large import PartlyScored
from kproba.bank.predictor import FusedPredictor, NetworkPredictor
from kproba.data import tiles
from kproba.data.labels import UNKNOWN
from kproba.methods.builtin import METHODS, base_methods
from kproba.methods.labels import Labeller, LabelSettings
from kproba.methods.losses.case import Case
from kproba.methods.losses.step import step_losses
from kproba.network import SegmentationNetwork, add_branch, load_model, save_model
from kproba.network.folding import fold
from kproba.network.heads import UnknownHead
from kproba.network.heads.unknown import BACKGROUND, SUREST
from kproba.network.heads.unknown import UNKNOWN as PARTS
from kproba.predict.export import export
from kproba.predict.segmenter import Segmenter
from kproba.training.optimizer import build_optimizer, set_learning_rates
from kproba.training.settings import LearningRates, Optimisation

RATES = LearningRates(backbone=1.0, aspp=2.0, branch=3.0, old_branches=4.0)
OPTIMISATION = Optimisation(
    1, 2, "sgd", RATES, 0.9, 1e-4, 1.0, floor=0.5, gradient_clip=None, precision="auto"
)


@pytest.fixture(scope="module")
def previous() -> SegmentationNetwork:
    """Three classes, background and unknown, with statistics as after training."""
    architecture = replace(ARCHITECTURE, head="unknown")
    network = SegmentationNetwork(architecture, [3], seed=1)
    randomise_norms(network)
    return network.eval()


@pytest.fixture(scope="module")
def trained() -> SegmentationNetwork:
    """A network of two classes whose pixels are of every kind."""
    network = network_of(3, head="unknown")
    with torch.no_grad():
        for name, module in network.branches.named_modules():
            if name.endswith("classifier"):
                module.weight.mul_(4)
        outputs = network(images_of(64, 48))
        z = network.compose(outputs)
        shift = z.median(dim=0).values.median(dim=1).values.median(dim=1).values
        first, second = network.branches
        for layer, value in (
            (first[BACKGROUND[1]], shift[0]),
            (first["classifier"], shift[1]),
            (second["classifier"], shift[2]),
            (first[PARTS[1]], shift[3]),
        ):
            layer.bias -= value
    return network


def plain_p(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """[p_0 + p_unknown, p_1, ..] of every pixel in float64 (SSUL's test)."""
    z = F.interpolate(logits.double(), size, mode="bilinear", align_corners=False)
    p = 1 / (1 + torch.exp(-z))
    return torch.cat([p[:, :1] + p[:, -1:], p[:, 1:-1]], dim=1)


def assert_argmax(labels: torch.Tensor, p: torch.Tensor) -> None:
    """Labels are the argmax, but for ties, and few are any but all of them."""
    chosen = p.gather(1, labels[:, None].long())[:, 0]
    assert (p.amax(dim=1) - chosen < 1e-5).all()
    assert len(labels.unique()) == p.shape[1]


# Outputs


@torch.inference_mode()
def test_the_outputs_are_those_of_a_block_and_classifier_each(previous):
    grown = add_branch(previous, 2, seed=0).eval()
    outputs = grown(random_images())
    shared = grown.aspp(outputs.backbone)
    first, second = grown.branches
    blocks = [branch["block"](shared) for branch in (first, second)]
    classes = [first["classifier"](blocks[0]), second["classifier"](blocks[1])]
    background = first["background_classifier"](first["background_block"](shared))
    unknown = first["unknown_classifier"](first["unknown_block"](shared))
    assert torch.equal(outputs.blocks[0], blocks[0])  # the one that a bank reads
    assert torch.equal(outputs.blocks[1], blocks[1])
    assert torch.equal(outputs.logits[0], torch.cat([background, classes[0]], 1))
    assert not outputs.logits[1][:, 0].any()  # nothing adapts the background
    assert torch.equal(outputs.logits[1][:, 1:], classes[1])
    assert torch.equal(outputs.extras["unknown"], unknown)
    composed = grown.compose(outputs)
    assert composed.shape[1] == grown.channels + grown.head.hidden == 7
    assert torch.equal(composed, torch.cat([background, *classes, unknown], dim=1))


def test_the_merged_logits_have_the_argmax_of_the_probabilities():
    logits = random(4, 6, 20, 30, seed=3, scale=6)
    merged, p = UnknownHead().merge(logits), plain_p(logits, (20, 30))
    labels = merged.argmax(dim=1)
    assert torch.equal(labels, p.argmax(dim=1))
    assert len(labels.unique()) == 5
    sums = p[:, 0]
    assert (sums > 1).any() and (sums < 1).any()
    expected = (sums / (1 - sums)).log()
    close = sums < 0.999
    found = merged[:, 0][close].double()
    torch.testing.assert_close(found, expected[close], rtol=1e-5, atol=1e-4)
    assert (merged[:, 0][sums > 1 + 1e-6] == SUREST).all()
    torch.testing.assert_close(
        UnknownHead().probabilities(merged.clone())[:, 0].double(), sums.clamp(max=1)
    )


@pytest.mark.parametrize(
    ("background", "unknown", "expected"),
    [
        (-200.0, -200.0, -200 + 0.6931472),  # both underflow as probabilities
        (-60.0, 3.0, 3.0),
        (0.0, 0.0, SUREST),
        (90.0, 90.0, SUREST),
        (200.0, -200.0, SUREST),
        (-1.0, 0.9, 4.2586),  # σ(-1) + σ(0.9) = 0.98
    ],
)
def test_merging_is_exact_at_the_ends(background, unknown, expected):
    logits = torch.tensor([background, 1.0, unknown]).view(1, 3, 1, 1)
    merged = UnknownHead().merge(logits)[0, :, 0, 0]
    if background == -1.0:
        s = torch.tensor([background, unknown]).double().sigmoid().sum()
        expected = float((s / (1 - s)).log())
    torch.testing.assert_close(merged, torch.tensor([expected, 1.0]))


def test_other_heads_have_nothing_to_merge():
    network = network_of(0)
    outputs = network(images_of(48, 48))
    z = network.compose(outputs)
    assert network.head.hidden == 0 and network.head.merge(z) is z
    assert network.head.apart(z) is None


# Prediction


@torch.inference_mode()
def test_every_prediction_follows_the_rule_of_the_test(trained):
    images = images_of(64, 48)
    z = trained.compose(trained(images))
    p = plain_p(z, (64, 48))
    plain = F.interpolate(z.double(), (64, 48), mode="bilinear", align_corners=False)
    merged, alone = p.argmax(dim=1), plain[:, :-1].argmax(dim=1)
    assert (merged != alone).any()  # unknown objects matter here
    assert_argmax(trained.predict(images), p)
    predictor = NetworkPredictor(trained)
    ((_, labels),) = predictor.predict_labels(images)
    assert_argmax(labels, p)
    ((_, scores),) = predictor.predict_scores(images)
    assert_argmax(scores.argmax(dim=1), p)
    shares = p.clamp(max=1) / p.clamp(max=1).sum(dim=1, keepdim=True)
    torch.testing.assert_close(scores.exp().double(), shares, atol=1e-5, rtol=1e-4)


def test_the_fast_labels_leave_out_only_what_cannot_win(monkeypatch):
    logits = random(2, 7, 8, 8, seed=9, scale=3)
    logits[:, 3] = -50  # a class that wins nowhere
    merged = []

    class Watched(UnknownHead):
        def merge(self, logits):
            merged.append(logits.shape[1])
            return super().merge(logits)

    labels = likeliest.largest_logits(logits, (40, 44), Watched())
    assert_argmax_without(labels, plain_p(logits, (40, 44)), left_out=3)
    assert set(merged) == {6}


def test_background_and_unknown_win_together_where_neither_wins_alone():
    logits = torch.tensor([0.0, 1.0, 0.1]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    labels = likeliest.largest_logits(logits, (16, 16), UnknownHead())
    assert not labels.any()  # σ(0) + σ(0.1) > σ(1)
    assert likeliest.largest_logits(logits, (16, 16)).eq(1).all()


def assert_argmax_without(labels, p, *, left_out):
    chosen = p.gather(1, labels[:, None])[:, 0]
    assert (p.amax(dim=1) - chosen < 1e-5).all()
    assert set(labels.unique().tolist()) == set(range(p.shape[1])) - {left_out}


@torch.inference_mode()
def test_a_bank_decides_with_the_merged_background(trained):
    images = images_of(64, 48)
    bank = bank_of(trained, images, "identity")
    fused = FusedPredictor(trained, bank, decision_by("lda"))
    p = plain_p(trained.compose(trained(images)), (64, 48)).clamp(max=1)
    share = p[:, 0] / p.sum(dim=1)
    scores = fused.log_scores(images)
    torch.testing.assert_close(scores[:, 0].exp().double(), share, atol=1e-5, rtol=1e-4)
    ((_, labels),) = fused.predict_labels(images)  # in the fast form
    chosen = scores.gather(1, labels[:, None])[:, 0]
    assert (scores.amax(dim=1) - chosen < 1e-4).all()


@torch.inference_mode()
def test_tiles_average_the_merged_probabilities(trained):
    image = images_of(70, 100)[0]
    parts = PartlyScored(
        NetworkPredictor(trained), image, trained.channels, device="cpu", tile=64
    )
    assert parts.tiles > 1
    log_s = parts.fitted()
    assert log_s.shape == (3, 70, 100)
    # In a corner, which one tile alone shows.
    corner = image[None, :, :64, :64].contiguous()
    ((_, scores),) = NetworkPredictor(trained).predict_scores(corner)
    torch.testing.assert_close(log_s[:, :4, :4].exp(), scores[0, :, :4, :4].exp())


@pytest.mark.parametrize("ending", ["onnx", "pt"])
def test_exported_files_give_the_same(trained, tmp_path: Path, ending):
    classes = [
        SeenClass(0, "background", 0),
        SeenClass(1, "a", 0),
        SeenClass(2, "b", 1),
    ]
    segmenter = Segmenter(NetworkPredictor(copy.deepcopy(trained)), classes, [0, 1, 2])
    path = tmp_path / f"model.{ending}"
    assert export(segmenter, path) < 1e-4
    images = images_of(80, 96)
    if ending == "onnx":
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        p = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    else:
        p = torch.jit.load(path)(images)
    with torch.inference_mode():
        z = trained.compose(trained(images))
    expected = plain_p(z, (80, 96)).clamp(max=1)
    expected = expected / expected.sum(dim=1, keepdim=True)
    torch.testing.assert_close(p.double(), expected, atol=1e-4, rtol=1e-3)


# Pseudo labels


def confident(p: torch.Tensor, threshold: float) -> torch.Tensor:
    """SSUL's rule: the argmax of all channels, if it is a class with p ≥ threshold."""
    best, label = p.max(dim=1)
    is_class = (label > 0) & (label < p.shape[1] - 1)
    return label * (is_class & (best >= threshold))


@torch.inference_mode()
@pytest.mark.parametrize("in_tiles", [False, True])
def test_a_pseudo_label_is_likelier_than_background_and_unknown_each(
    trained, in_tiles, monkeypatch
):
    images, threshold = images_of(64, 48), 0.55
    if in_tiles:  # of one tile, so that its scores are not averaged with others
        monkeypatch.setattr("kproba.methods.labels.needs_tiles", lambda shape: True)
    settings = LabelSettings("confidence", threshold=threshold)
    labels = Labeller(trained, settings).label(images).long()
    z = F.interpolate(
        trained.compose(trained(images)).double(),
        (64, 48),
        **{"mode": "bilinear", "align_corners": False},
    )
    p = 1 / (1 + torch.exp(-z))
    expected = confident(p, threshold)
    unclear = (p - threshold).abs().amin(dim=1) < 1e-5
    assert torch.equal(labels[~unclear], expected[~unclear])
    assert len(labels.unique()) == 3
    # With one channel for both, some of these pixels would be background.
    merged = plain_p(trained.compose(trained(images)), (64, 48))
    assert ((expected > 0) & (merged.argmax(dim=1) == 0)).any()


@torch.inference_mode()
def test_rules_with_a_bank_get_its_evidence_beside_the_hidden_channel(
    trained, monkeypatch
):
    images = images_of(64, 48)
    bank, decision = bank_of(trained, images, "identity"), decision_by("lda")
    settings = LabelSettings("agree", threshold=0.9, decision=decision)
    labeller = Labeller(trained, settings, Combination(bank, decision))
    whole = labeller.label(images)
    monkeypatch.setattr("kproba.methods.labels.needs_tiles", lambda shape: True)
    assert tiles.TILE >= 64
    assert (labeller.label(images) != whole).float().mean() < 1e-3  # rounding
    assert len(whole.unique()) > 1


# Increments


def test_new_classes_start_as_the_unknown_class(previous):
    before = state_of(previous)
    grown = add_branch(previous, 2, seed=7, start_from_background=True)
    first, new = grown.branches
    old = first["unknown_block"].state_dict()
    assert all(torch.equal(new["block"].state_dict()[key], old[key]) for key in old)
    assert not torch.equal(old["1.running_mean"], torch.zeros(8))
    for row in range(2):
        assert torch.equal(
            new["classifier"].weight[row], first["unknown_classifier"].weight[0]
        )
        assert torch.equal(
            new["classifier"].bias[row], first["unknown_classifier"].bias[0]
        )
    after = grown.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    with torch.inference_mode():
        outputs = grown.eval()(random_images())
    unknown = outputs.extras["unknown"]
    torch.testing.assert_close(outputs.logits[1][:, 1:], unknown.expand(-1, 2, -1, -1))


def test_the_background_trains_with_a_ten_thousandth_of_the_rate(previous):
    grown = add_branch(previous, 2, seed=0)
    grown = add_branch(grown, 1, seed=0)
    groups = grown.head.parameter_groups(grown)
    assert {n: (g.rate, g.factor) for n, g in groups.items()} == {
        "backbone": ("backbone", 1),
        "aspp": ("aspp", 1),
        "branch": ("branch", 1),
        "background": ("branch", 1e-4),
        "old_branches": ("old_branches", 1),
    }
    optimizer = build_optimizer(grown, OPTIMISATION)  # refuses what is named twice
    rates = set_learning_rates(optimizer, OPTIMISATION, 0, 10)
    assert rates["lr_background"] == pytest.approx(3e-4) == rates["lr_branch"] * 1e-4
    rates = set_learning_rates(optimizer, OPTIMISATION, 10, 10)
    assert rates["lr_background"] == pytest.approx(1e-4 * OPTIMISATION.floor)
    assert rates["lr_branch"] == OPTIMISATION.floor
    old = {id(p) for m in groups["old_branches"].modules for p in m.parameters()}
    first, second, _ = grown.branches
    parts = [first["block"], first["classifier"], *second.children()]
    assert old == {id(p) for part in parts for p in part.parameters()}


def test_step_0_trains_everything_with_the_rates_of_the_configuration(previous):
    groups = previous.head.parameter_groups(previous)
    assert [*groups] == ["backbone", "aspp", "branch", "old_branches"]
    assert groups["branch"].modules == [previous.branches[0]]
    build_optimizer(previous, OPTIMISATION)


@pytest.mark.parametrize("folded", [False, True])
def test_a_step_leaves_everything_else_byte_identical(previous, folded):
    grown = add_branch(previous, 2, seed=0)
    grown.requires_grad_(True)
    grown.set_training_mode(batch_norm=False)
    grown.train_only("newest")
    student = fold(grown) if folded else grown
    optimizer = build_optimizer(grown, OPTIMISATION)
    before = state_of(grown)
    student.dropout.keys = torch.tensor([1, 2])
    images = random_images()
    targets = torch.zeros(2, 48, 48, dtype=torch.uint8)
    targets[:, :10], targets[:, 10:20], targets[:, 20:30] = 4, UNKNOWN, 2
    case = Case(student(images), targets, masks_and_counts(targets)[1])
    [value] = step_losses(case, METHODS["ssul"].terms).values()
    value.backward()
    optimizer.step()
    changed = {
        k for k, v in grown.state_dict().items() if not torch.equal(v, before[k])
    }
    learning = (
        "branches.1.",
        *(f"branches.0.{name}" for name in (*PARTS, *BACKGROUND)),
    )
    expected = {
        key
        for key, parameter in grown.named_parameters()
        if key.startswith(learning) and parameter.requires_grad
    }
    assert changed == expected
    assert {key.rsplit(".", 1)[0] for key in changed} == {
        *("branches.1.block.0", "branches.1.classifier"),
        *("branches.0.unknown_block.0", "branches.0.unknown_classifier"),
        *("branches.0.background_block.0", "branches.0.background_classifier"),
    }


def test_newest_trains_the_newest_step_alone_with_other_heads():
    network = add_branch(network_of(0), 1, seed=0)
    network.requires_grad_(True)
    network.set_training_mode(batch_norm=False)
    network.train_only("newest")
    learning = {k for k, p in network.named_parameters() if p.requires_grad}
    assert learning == {
        *("branches.2.block.0.weight", "branches.2.classifier.weight"),
        "branches.2.classifier.bias",
    }


def test_a_model_of_several_steps_is_read_again(previous, tmp_path):
    grown = add_branch(previous, 2, seed=0).eval()
    save_model(grown, tmp_path / "model.safetensors", about={})
    again = load_model(tmp_path / "model.safetensors", device="cpu").eval()
    images = random_images()
    with torch.inference_mode():
        assert torch.equal(again.predict_logits(images), grown.predict_logits(images))


# The loss


def targets_with_unknown():
    """Targets with every label, unknown objects in the background, and 255."""
    targets = uneven_targets()
    generator = torch.Generator().manual_seed(8)
    salient = torch.rand(targets.shape, generator=generator) < 0.4
    targets[(targets == 0) & salient] = UNKNOWN
    return targets


def plain_unknown_bce(logits, unknown, targets):
    """The mean over pixels of Σ_c BCE in SSUL's order of the channels, in loops."""
    z = torch.cat([unknown, *logits], dim=1)
    z = F.interpolate(z, PIXELS, mode="bilinear", align_corners=False)
    terms = []
    for image, labels in zip(z, targets.tolist(), strict=True):
        for row, line in enumerate(labels):
            for column, label in enumerate(line):
                if label == 255:
                    continue
                positive = 0 if label == UNKNOWN else 1 + label
                pixel = [
                    binary_cross_entropy(image[c, row, column], float(c == positive))
                    for c in range(z.shape[1])
                ]
                terms.append(torch.stack(pixel).sum())
    return torch.stack(terms).mean()


@pytest.mark.parametrize("method", [METHODS["ssul"], base_methods()["base_unknown"]])
def test_the_loss_is_the_plain_formula(method):
    logits = branch_logits(300)
    # Later steps do not adapt the background, so they have classes alone.
    learned = [logits[0], *(z[:, 1:] for z in logits[1:])]
    learned.append(random(BATCH, 1, *CELLS, seed=310))
    targets = targets_with_unknown()
    assert {0, UNKNOWN, FIRST_NEW, 255} <= set(targets.unique().tolist())
    masks, counts = masks_and_counts(targets)
    ours, plain = leaves(learned), leaves(learned, torch.float64)
    losses = losses_of(method, outputs_with(ours), targets, counts, masks)
    assert list(losses) == ["bce"]
    expected = plain_unknown_bce(plain[:-1], plain[-1], targets)
    assert_same(losses["bce"], expected, ours, plain)


def outputs_with(learned):
    """Outputs of the head, with zeros where a step would adapt the background."""
    first, *later, unknown = learned
    logits = [first, *(F.pad(z, (0, 0, 0, 0, 1, 0)) for z in later)]
    return outputs_of([], logits)._replace(extras={"unknown": unknown})


def test_a_batch_without_labels_gives_a_loss_of_0():
    targets = torch.full((BATCH, *PIXELS), 255, dtype=torch.uint8)
    masks, counts = masks_and_counts(targets)
    learned = [branch_logits(320)[0], random(BATCH, 1, *CELLS, seed=321)]
    ours = leaves(learned)
    student = outputs_with(ours)
    [value] = losses_of(METHODS["ssul"], student, targets, counts, masks).values()
    assert value == 0 and all(not g.any() for g in gradients(value, ours))
