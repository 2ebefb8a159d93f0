"""Every rule by hand on a 3×3 image, and the exported targets."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from kproba.bank.bank import PrototypeBank
from kproba.bank.fusion import PseudoLabelSettings, evidence, fit_to_image
from kproba.bank.settings import BankSettings
from kproba.data.labels import UNSURE, LabelMap
from kproba.data.loaders import Batch
from kproba.methods.export import export
from kproba.methods.labels import (
    ENTROPY_BINS,
    decide,
    entropy,
    entropy_thresholds,
    pseudo_label,
)
from kproba.methods.rules import RULES_THAT_SCORE, RULES_WITH_BANK
from kproba.network.heads import compose_logits
from kproba.network.network import Outputs

# Probabilities p of the teacher (sigmoids) and q of the bank over background and two
# classes, for the nine pixels of an image; p·q decides by hand below.
P = [
    [(0.9, 0.2, 0.1), (0.1, 0.8, 0.1), (0.1, 0.1, 0.75)],
    [(0.3, 0.6, 0.2), (0.3, 0.6, 0.5), (0.6, 0.5, 0.1)],
    [(0.5, 0.6, 0.1), (0.7, 0.75, 0.1), (0.2, 0.3, 0.4)],
]
Q = [
    [(0.8, 0.1, 0.1), (0.2, 0.7, 0.1), (0.1, 0.85, 0.05)],
    [(0.1, 0.8, 0.1), (0.1, 0.3, 0.6), (0.3, 0.6, 0.1)],
    [(0.7, 0.2, 0.1), (0.5, 0.4, 0.1), (0.4, 0.35, 0.25)],
]


def rule(name, **changes):
    numbers = {
        "threshold": 0.7,
        "score_threshold": 0.0,
        "foreground": "both",
        "probability_weight": 1.0,
        "posterior_weight": 1.0,
        "foreground_bias": 0.0,
        "image_prior": 0,
        "temperature": 1.0,
        "metric": "euclidean",
    }
    return PseudoLabelSettings(rule=name, **{**numbers, **changes})


def image(values):
    # (3, 3) pixels of 3 probabilities -> (1, 3, 3, 3), classes first
    return torch.tensor(values).permute(2, 0, 1)[None]


def decision(settings, *, with_bank=True):
    log_evidence = image(Q).log() if with_bank else None
    labels = decide(image(P).logit(), log_evidence, settings)
    assert labels.dtype == torch.uint8
    return labels.tolist()[0]


def test_argmax_takes_the_most_probable_class():
    assert decision(rule("argmax"), with_bank=False) == [
        [0, 1, 2],
        [1, 1, 0],
        [1, 1, 2],
    ]


def test_confidence_answers_background_below_the_threshold():
    assert decision(rule("confidence"), with_bank=False) == [
        [0, 1, 2],
        [0, 0, 0],
        [0, 1, 0],
    ]


def test_confidence_follows_its_threshold():
    assert decision(rule("confidence", threshold=0.55), with_bank=False) == [
        [0, 1, 2],
        [1, 1, 0],
        [1, 1, 0],
    ]
    # A threshold on the sigmoid, not on a probability normalised over the classes:
    # 0.8 of pixel (0, 1) is above 0.79, 0.75 of pixel (0, 2) below.
    assert decision(rule("confidence", threshold=0.79), with_bank=False) == [
        [0, 1, 0],
        [0, 0, 0],
        [0, 0, 0],
    ]


def test_agree_takes_a_class_that_is_sure_or_that_the_bank_confirms():
    # (0, 2): sure, the bank denies it. (1, 0): unsure, the bank confirms it.
    # (1, 1), (2, 0), (2, 2): unsure and denied. (1, 2): the bank alone is not enough.
    assert decision(rule("agree")) == [[0, 1, 2], [1, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize("settings", [rule(name) for name in RULES_THAT_SCORE])
def test_fusion_takes_the_largest_product(settings):
    # For instance (0, 2): 0.1·0.85 > 0.75·0.05, and (2, 2): 0.3·0.35 > 0.4·0.25.
    assert decision(settings) == [[0, 1, 1], [1, 2, 1], [0, 0, 1]]


def expected_by_hand(foreground, threshold, weight):
    """Labels of P and Q by the formula, pixel by pixel in float64."""
    labels = []
    for p, q in zip(np.reshape(P, (9, 3)), np.reshape(Q, (9, 3)), strict=True):
        share = p / p.sum()
        both = share * q**weight
        if foreground == "network":
            s = [share[0], *((1 - share[0]) * both[1:] / both[1:].sum())]
        else:
            s = both / both.sum()
        labels.append(int(np.argmax(s)) if max(s) >= threshold else 0)
    return np.reshape(labels, (3, 3)).tolist()


@pytest.mark.parametrize("threshold", [0.0, 0.4, 0.55, 0.7, 1.0])
@pytest.mark.parametrize("weight", [0.5, 1.0])
@pytest.mark.parametrize("foreground", ["network", "both"])
@pytest.mark.parametrize("name", ["klda", "lda"])
def test_a_label_needs_the_threshold_of_both_together(
    name, foreground, weight, threshold
):
    settings = rule(
        name,
        foreground=foreground,
        score_threshold=threshold,
        posterior_weight=weight,
    )
    assert decision(settings) == expected_by_hand(foreground, threshold, weight)


@pytest.mark.parametrize("name", RULES_THAT_SCORE)
def test_where_the_network_says_how_much_the_bank_says_which(name):
    # (0, 2) and (2, 2) change their class as above. The bank makes no class of the
    # background of (1, 2), and no background of (2, 0) and (2, 1).
    settings = rule(name, foreground="network")
    assert decision(settings) == expected_by_hand("network", 0, 1)
    assert decision(settings) == [[0, 1, 1], [1, 2, 0], [1, 1, 1]]
    # No bias moves the background then.
    biased = rule(name, foreground="network", foreground_bias=9.0)
    assert decision(biased) == decision(settings)


def test_an_image_prior_follows_what_the_image_shows():
    # Three pixels: two are surely class 1, the third is undecided between 1 and 2.
    of_class = torch.tensor([[0.9, 0.9, 0.5], [0.1, 0.1, 0.5]])
    share = torch.tensor([7.0, 0.5, 0.5])

    def fitted(background, share, iterations):
        s = torch.cat([background[None], (1 - background) * of_class])
        found = fit_to_image(s.log().view(1, 3, 1, 3), share, iterations)
        found = found.exp().view(3, 3)
        torch.testing.assert_close(found.sum(0), torch.ones(3))
        torch.testing.assert_close(found[0], background)
        return (found[1] / (1 - background)).tolist()

    alike = torch.full((3,), 0.2)
    # Shares in the image 2.3/3 and 0.7/3: 0.9·2.3 : 0.1·0.7 and 2.3 : 0.7.
    expected = [2.07 / 2.14, 2.07 / 2.14, 2.3 / 3.0]
    assert fitted(alike, share, 1) == pytest.approx(expected, rel=1e-5)
    first = sum(expected) / 3
    odds = first / (1 - first)
    assert fitted(alike, share, 2)[2] == pytest.approx(odds / (1 + odds), rel=1e-5)
    # A class that training showed three times as often has to show more.
    rare = fitted(alike, torch.tensor([7.0, 3.0, 1.0]), 1)
    assert rare[2] == pytest.approx(2.3 / 3 / (2.3 / 3 + 0.7))
    # Pixels that are background tell nothing.
    sure = torch.tensor([1 - 1e-7, 1 - 1e-7, 0.2])
    assert fitted(sure, share, 5)[2] == pytest.approx(0.5, abs=1e-4)
    nothing = fit_to_image(torch.tensor([0.0, -90.0, -90.0]).view(1, 3, 1, 1), share, 3)
    assert nothing.isfinite().all()


def test_image_prior_of_hidden_pixels_alone():
    """What the raw labels name says nothing of the classes that they do not."""
    share = torch.tensor([0.4, 0.3, 0.3])
    settings = rule("lda", foreground="network", image_prior=2)
    logits, log_evidence = image(P).logit(), image(Q).log()
    hidden = torch.zeros(1, 3, 3, dtype=torch.bool)
    hidden[:, :, 1:] = True
    found = decide(logits, log_evidence, settings, share=share, counted=hidden)
    part = decide(logits[..., 1:], log_evidence[..., 1:], settings, share=share)
    whole = decide(logits, log_evidence, settings, share=share)
    assert torch.equal(found[..., 1:], part)
    assert whole.tolist() == [[[0, 1, 1], [1, 1, 0], [1, 1, 1]]]
    with pytest.raises(ValueError, match="shares"):
        decide(logits, log_evidence, settings)


@pytest.mark.parametrize("name", ["klda", "lda"])
def test_the_posterior_counts_with_its_weight(name):
    # Weight 1/2: (0, 2) is 0.75·√0.05 > 0.1·√0.85, (2, 2) is 0.4·√0.25 > 0.3·√0.35.
    half = rule(name, posterior_weight=0.5)
    assert decision(half) == [[0, 1, 2], [1, 2, 1], [0, 0, 2]]
    without = rule(name, posterior_weight=0.0)
    assert decision(without) == decision(rule("argmax"), with_bank=False)


@pytest.mark.parametrize("name", ["klda", "lda"])
def test_the_foreground_bias_moves_every_class_against_the_background(name):
    # exp(0.3) = 1.35 turns (2, 1), 0.75·0.4·1.35 > 0.7·0.5, and no other pixel.
    more = rule(name, foreground_bias=0.3)
    assert decision(more) == [[0, 1, 1], [1, 2, 1], [0, 1, 1]]
    # exp(-1) = 0.37 turns (1, 2), 0.5·0.6·0.37 < 0.6·0.3, and (2, 2).
    less = rule(name, foreground_bias=-1.0)
    assert decision(less) == [[0, 1, 1], [1, 2, 0], [0, 0, 0]]


@pytest.mark.parametrize("name", ["kappa", "agree", "confidence", "argmax"])
def test_the_numbers_of_fusion_touch_no_other_rule(name):
    changed = rule(name, foreground_bias=9.0, posterior_weight=9.0)
    with_bank = name in RULES_WITH_BANK
    assert decision(changed, with_bank=with_bank) == decision(
        rule(name), with_bank=with_bank
    )


@pytest.mark.parametrize("name", ["argmax", "confidence"])
def test_rules_without_a_bank_ignore_its_evidence(name):
    assert decision(rule(name)) == decision(rule(name), with_bank=False)


@pytest.mark.parametrize("name", ["klda", "lda", "kappa", "agree"])
def test_rules_with_a_bank_refuse_to_do_without(name):
    with pytest.raises(ValueError, match=name):
        decision(rule(name), with_bank=False)


def test_deciding_leaves_logits_and_evidence_as_they_are():
    logits, log_evidence = image(P).logit(), image(Q).log()
    before = logits.clone(), log_evidence.clone()
    decide(logits, log_evidence, rule("klda", foreground_bias=1.0))
    assert torch.equal(logits, before[0]) and torch.equal(log_evidence, before[1])


def test_extreme_logits_do_not_hide_the_evidence():
    logits = torch.tensor([-200.0, -199.0]).view(1, 2, 1, 1)
    log_evidence = torch.tensor([-0.1, -3.0]).view(1, 2, 1, 1)
    assert decide(logits, log_evidence, rule("klda")).item() == 0
    assert decide(logits, None, rule("argmax")).item() == 1


# With a bank: one feature, prototypes of the classes 0 and 1 at 0 and 10, class 2 has
# none; variance 4. So log q_1 - log q_0 = (10 g - 50) / 4.


def bank_of(*, feature="block", scatter=True):
    return PrototypeBank(
        settings=BankSettings(
            feature=feature,
            map="identity",
            dimension=1,
            maps=1,
            gamma=1.0,
            scatter=scatter,
            momentum=0.9,
            ridge=0.0,
            calibration_cells=10,
        ),
        seed=0,
        gamma=None,
        centre=torch.zeros(1),
        spread=torch.ones(1),
        count=torch.tensor([5.0, 5.0, 0.0], dtype=torch.float64),
        share=torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64),
        means=[torch.tensor([[0.0], [10.0], [0.0]], dtype=torch.float64)],
        scatter=[torch.tensor([[40.0]], dtype=torch.float64)] if scatter else None,
        scatter_count=10.0,
        temperature=1.0,
    )


FEATURES = torch.tensor([[0.0, 10.0], [4.0, 6.0]])


class Teacher:
    """A network with given outputs."""

    def __init__(self, outputs_of, *, softmax=False, channels=3):
        self.outputs_of, self.channels = outputs_of, channels
        self.architecture = SimpleNamespace(softmax=softmax)

    def __call__(self, images):
        """Outputs that answer to images, whatever they are."""
        return self.outputs_of(images)

    def predict_logits(self, images):
        """At the size of the images."""
        return compose_logits(self(images).logits)


def teacher_with(probabilities, *, block=FEATURES, backbone=FEATURES):
    logits = torch.tensor(probabilities).logit().view(1, -1, 1, 1).expand(1, -1, 2, 2)
    outputs = Outputs(backbone[None, None], [block[None, None]], [logits])
    return Teacher(lambda images: outputs)


def pixels(size):
    return torch.zeros(1, 3, *size, dtype=torch.uint8)


@pytest.mark.parametrize("feature", ["block", "backbone"])
def test_evidence_keeps_the_place_of_every_cell(feature):
    other = torch.full((2, 2), 99.0)
    options = {"block": other, "backbone": other, feature: FEATURES}
    outputs = teacher_with([0.5, 0.5, 0.5], **options)(None)
    log_q = evidence(outputs, bank_of(feature=feature), rule("klda"))
    assert log_q.shape == (1, 3, 2, 2)
    torch.testing.assert_close((log_q[:, 1] - log_q[:, 0])[0], (10 * FEATURES - 50) / 4)


def test_evidence_of_kappa_is_the_distance_over_the_temperature():
    outputs = teacher_with([0.5, 0.5, 0.5])(None)
    bank = bank_of(scatter=False)
    log_kappa = evidence(outputs, bank, rule("kappa", temperature=2.0))
    expected = (FEATURES - (10 - FEATURES)) / 2
    torch.testing.assert_close((log_kappa[:, 1] - log_kappa[:, 0])[0], expected)
    # With a variance of 4, Mahalanobis halves the distances.
    settings = rule("kappa", temperature=2.0, metric="mahalanobis")
    log_kappa = evidence(outputs, bank_of(), settings)
    torch.testing.assert_close((log_kappa[:, 1] - log_kappa[:, 0])[0], expected / 2)


@pytest.mark.parametrize("name", ["klda", "kappa", "agree"])
def test_labels_follow_the_bank_where_the_teacher_hesitates(name):
    probabilities = [0.5, 0.52, 0.3]
    labels = pseudo_label(
        teacher_with(probabilities), bank_of(), pixels((2, 2)), rule(name)
    )
    assert labels.tolist() == [[[0, 1], [0, 1]]]


@pytest.mark.parametrize("name", ["klda", "kappa", "agree"])
def test_a_class_without_prototype_spoils_no_pixel(name):
    # The missing class has the evidence 0: between cells its logarithm must not turn
    # the answer into nonsense.
    labels = pseudo_label(
        teacher_with([0.5, 0.52, 0.51]), bank_of(), pixels((8, 8)), rule(name)
    )
    assert labels.shape == (1, 8, 8)
    assert labels[0, :, 0].tolist() == [0] * 8
    assert labels[0, :, 7].tolist() == [1] * 8
    assert set(labels.unique().tolist()) == {0, 1}


@pytest.mark.parametrize("name", ["argmax", "confidence"])
def test_rules_without_a_bank_give_the_same_labels_beside_one(name):
    teacher, settings = teacher_with([0.5, 0.8, 0.3]), rule(name)
    hesitating = teacher_with([0.5, 0.6, 0.3])
    for each in (teacher, hesitating):
        alone = pseudo_label(each, None, pixels((4, 4)), settings)
        beside = pseudo_label(each, bank_of(), pixels((4, 4)), settings)
        assert torch.equal(alone, beside)
    assert (pseudo_label(teacher, None, pixels((4, 4)), settings) == 1).all()


def test_rules_with_a_bank_refuse_to_label_without():
    with pytest.raises(ValueError, match="klda"):
        pseudo_label(teacher_with([0.5] * 3), None, pixels((2, 2)), rule("klda"))


def test_labels_come_from_the_composed_background():
    # z_0 = 1 falls by min(r_1, 0): below class 1 where r_1 = -3, unchanged for 4.
    branch_0 = torch.tensor([[1.0, 1.0], [0.0, 0.0]]).view(1, 2, 1, 2)
    branch_1 = torch.tensor([[-3.0, 4.0], [-9.0, -9.0]]).view(1, 2, 1, 2)
    outputs = Outputs(torch.zeros(1, 1, 1, 2), [], [branch_0, branch_1])
    teacher = Teacher(lambda _: outputs)
    labels = pseudo_label(teacher, None, pixels((1, 2)), rule("argmax"))
    assert labels.tolist() == [[[1, 0]]]


# Export: the teacher reads its answer from the first channel of the image.

NAMES = ["background", "cat", "dog"]
NEW = 3  # output index of the step's own class
LABEL_MAP = LabelMap(((1, 2), (NEW,)))


def answered(images):
    answer = torch.nn.functional.one_hot(images[:, 0].long(), len(NAMES))
    logits = 8 * answer.permute(0, 3, 1, 2).float() - 4
    return Outputs(logits, [logits], [logits])


reading_teacher = Teacher(answered)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("step")
    random = np.random.default_rng(0)
    answers = random.integers(0, 3, (3, 6, 7)).astype(np.uint8)
    answers[2] = 0  # an image in which nothing is found
    targets = random.choice([0, NEW, 255], (3, 6, 7), p=[0.6, 0.2, 0.2])
    targets = targets.astype(np.uint8)
    ids = ["2007_000032", "b", "c"]

    def batch(part):
        images = torch.tensor(answers[part])[:, None].expand(-1, 3, -1, -1)
        keys = torch.arange(3)[part]
        return Batch(images, torch.tensor(targets[part]), ids[part], keys)

    batches = [batch(slice(0, 2)), batch(slice(2, 3))]
    images = folder / "pseudo_labels"
    table = folder / "pseudo_labels.csv"
    export(
        reading_teacher,
        None,
        batches,
        images,
        table,
        table.with_name("quality.csv"),
        settings=rule("argmax"),
        names=NAMES,
        label_map=LABEL_MAP,
    )
    return SimpleNamespace(
        ids=ids, answers=answers, targets=targets, images=images, table=table
    )


def exported_labels(exported):
    return [
        np.array(Image.open(exported.images / f"{name}.png")) for name in exported.ids
    ]


def test_export_fills_background_and_nothing_else(exported):
    assert sorted(path.name for path in exported.images.iterdir()) == sorted(
        f"{name}.png" for name in exported.ids
    )
    found = exported_labels(exported)
    for labels, target, answer in zip(
        found, exported.targets, exported.answers, strict=True
    ):
        assert labels.shape == target.shape and labels.dtype == np.uint8
        np.testing.assert_array_equal(labels[target == NEW], NEW)
        np.testing.assert_array_equal(labels[target == 255], 255)
        np.testing.assert_array_equal(labels[target == 0], answer[target == 0])
    assert {1, 2} <= set(found[0].flatten())


def test_export_writes_palette_images(exported):
    for name in exported.ids:
        with Image.open(exported.images / f"{name}.png") as written:
            assert (written.format, written.mode) == ("PNG", "P")
            colours = np.array(written.getpalette()).reshape(-1, 3)
        # VOC's colours: black background, then dark red and dark green.
        assert colours[:3].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0]]


def test_the_table_counts_what_the_images_show(exported):
    table = pd.read_csv(exported.table, dtype={"id": str})
    assert list(table["id"]) == exported.ids
    pairs = zip(exported_labels(exported), exported.targets, strict=True)
    for row, (labels, target) in zip(table.itertuples(), pairs, strict=True):
        assert row.pixels == target.size
        assert row.background == (target == 0).sum()
        assert row.cat == (labels == 1).sum()
        assert row.dog == (labels == 2).sum()
        assert row.recovered == row.cat + row.dog
    assert table["recovered"].tolist()[2] == 0 and table["recovered"].sum() > 0


def test_exporting_twice_writes_the_same_bytes(exported, tmp_path):
    images = torch.tensor(exported.answers)[:, None].expand(-1, 3, -1, -1)
    batch = Batch(images, torch.tensor(exported.targets), exported.ids, torch.arange(3))
    again, table = tmp_path / "labels", tmp_path / "labels.csv"
    export(
        reading_teacher,
        None,
        [batch],
        again,
        table,
        table.with_name("quality.csv"),
        settings=rule("argmax"),
        names=NAMES,
        label_map=LABEL_MAP,
    )
    assert table.read_bytes() == exported.table.read_bytes()
    for path in exported.images.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes()


def test_a_second_export_replaces_the_first(tmp_path):
    folder, table = tmp_path / "labels", tmp_path / "labels.csv"
    for name in ("old", "new"):
        batch = Batch(
            pixels((2, 2)), torch.zeros(1, 2, 2).byte(), [name], torch.ones(1)
        )
        export(
            reading_teacher,
            None,
            [batch],
            folder,
            table,
            table.with_name("quality.csv"),
            settings=rule("argmax"),
            names=NAMES,
            label_map=LABEL_MAP,
        )
    assert [path.name for path in folder.iterdir()] == ["new.png"]
    assert list(pd.read_csv(table)["id"]) == ["new"]


def test_a_failed_export_leaves_nothing(tmp_path):
    folder, table = tmp_path / "labels", tmp_path / "labels.csv"

    def broken():
        yield Batch(pixels((2, 2)), torch.zeros(1, 2, 2).byte(), ["a"], torch.ones(1))
        raise OSError("an image that cannot be read")

    with pytest.raises(OSError, match="cannot be read"):
        export(
            reading_teacher,
            None,
            broken(),
            folder,
            table,
            table.with_name("quality.csv"),
            settings=rule("argmax"),
            names=NAMES,
            label_map=LABEL_MAP,
        )
    assert list(tmp_path.iterdir()) == []


# The rule of PLOP: a class is sure where its entropy is below its median.


def sharp(sharpness, label):
    """Logits (3, *sharpness.shape) that favour a class so much."""
    logits = torch.zeros(3, *sharpness.shape)
    logits[label] = sharpness
    return logits


def plain_entropy(logits):
    p = torch.softmax(logits.double(), dim=0)
    return -(p * p.log()).sum(dim=0) / np.log(3)


def teacher_of(logits):
    outputs = Outputs(logits, [logits], [logits])
    return Teacher(lambda images: outputs, softmax=True)


def test_entropy_is_a_share_of_the_largest():
    logits = torch.tensor([[2.0, 0.0], [0.5, 0.0], [-1.0, 0.0]])
    found = entropy(logits.view(1, 3, 1, 2))
    torch.testing.assert_close(found[0, 0].double(), plain_entropy(logits))
    assert found[0, 0, 1].item() == pytest.approx(1)


def test_thresholds_are_the_medians_over_hidden_pixels_of_each_class():
    sharpness = torch.linspace(0.5, 5, 40).view(4, 10)
    logits = torch.stack([sharp(sharpness, 0), sharp(sharpness.flip(0), 1)])
    targets = torch.zeros(2, 4, 10, dtype=torch.uint8)
    targets[0, :, 7:] = NEW  # labelled: no business of the pseudo labels
    targets[1, 0] = 255
    batch = Batch(logits, targets, ["a", "b"], torch.arange(2))
    thresholds = entropy_thresholds(teacher_of(logits), [batch], LABEL_MAP)
    for label, shown in enumerate(targets == 0):
        expected = plain_entropy(logits[label])[shown].median()
        assert thresholds[label].item() == pytest.approx(expected.item(), abs=0.02)
        sure = plain_entropy(logits[label])[shown] < thresholds[label]
        assert sure.double().mean().item() == pytest.approx(0.5, abs=0.05)
    assert thresholds[2].item() == pytest.approx(0.001)  # never answered


def test_thresholds_do_not_depend_on_how_images_are_dealt_out():
    random = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(4, 3, 6, 5, generator=random)
    targets = torch.zeros(4, 6, 5, dtype=torch.uint8)

    def part(chosen):
        kept = logits[chosen]
        batch = Batch(kept, targets[chosen], [], torch.arange(4)[chosen])
        return entropy_thresholds(teacher_of(kept), [batch], LABEL_MAP)

    whole = part(slice(0, 4))
    assert ((whole > 1 / ENTROPY_BINS) & (whole < 1)).all()
    order = torch.tensor([2, 0, 3, 1])
    assert torch.equal(part(order), whole)


def test_unsure_pixels_get_no_label():
    logits = torch.stack([sharp(torch.tensor([[0.1, 4.0]]), 1)])
    labels = decide(
        logits,
        None,
        rule("entropy"),
        softmax=True,
        thresholds=torch.tensor([0.5, 0.5, 0.5]),
    )
    assert labels.tolist() == [[[UNSURE, 1]]]
    with pytest.raises(ValueError, match="threshold per class"):
        decide(logits, None, rule("entropy"), softmax=True)


def test_export_tells_what_is_unsure(tmp_path):
    sharpness = torch.linspace(0.5, 5, 20).view(4, 5)
    logits = sharp(sharpness, 1)[None]
    targets = torch.zeros(1, 4, 5, dtype=torch.uint8)
    targets[0, 3, 4] = NEW
    batch = Batch(logits, targets, ["a"], torch.arange(1))
    export(
        teacher_of(logits),
        None,
        [batch],
        tmp_path / "labels",
        tmp_path / "labels.csv",
        tmp_path / "quality.csv",
        settings=rule("entropy"),
        names=NAMES,
        label_map=LABEL_MAP,
    )
    labels = np.array(Image.open(tmp_path / "labels/a.png"))
    assert set(np.unique(labels)) == {1, NEW, UNSURE}
    row = pd.read_csv(tmp_path / "labels.csv").iloc[0]
    assert (row.background, row.recovered, row.unsure) == (
        19,
        (labels == 1).sum(),
        (labels == UNSURE).sum(),
    )
    assert row.recovered + row.unsure == row.background


def test_confidence_of_a_softmax_is_that_of_the_softmax():
    logits = torch.tensor([3.0, 3.5, 3.0]).view(1, 3, 1, 1)
    assert decide(logits, None, rule("confidence")).item() == 1  # sigmoid .97
    assert decide(logits, None, rule("confidence"), softmax=True).item() == 0  # .45
