"""Every rule by hand on a 3×3 image, alone and with a bank."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from label_inputs import (
    FEATURES,
    Teacher,
    bank_of,
    decide_by,
    labeller_of,
    pixels,
    rule,
    teacher_with,
)
from small_networks import ARCHITECTURE

from kproba.bank.decision import Decision
from kproba.bank.fusion import Combination, fit_to_image, trained_shares
from kproba.methods.labels import (
    LabelCase,
    LabelSettings,
    decide,
)
from kproba.methods.rules import RULES, scoring_rules
from kproba.network.network import Outputs, SegmentationNetwork

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


def image(values):
    # (3, 3) pixels of 3 probabilities -> (1, 3, 3, 3), classes first
    return torch.tensor(values).permute(2, 0, 1)[None]


def labels_by(settings, *, with_bank=True):
    log_evidence = image(Q).log() if with_bank else None
    log_p = F.logsigmoid(image(P).logit())
    return decide_by(settings, log_p, log_evidence).tolist()[0]


def test_argmax_takes_the_most_probable_class():
    assert labels_by(rule("argmax"), with_bank=False) == [
        [0, 1, 2],
        [1, 1, 0],
        [1, 1, 2],
    ]


def test_confidence_answers_background_below_the_threshold():
    assert labels_by(rule("confidence"), with_bank=False) == [
        [0, 1, 2],
        [0, 0, 0],
        [0, 1, 0],
    ]


def test_confidence_follows_its_threshold():
    assert labels_by(rule("confidence", threshold=0.55), with_bank=False) == [
        [0, 1, 2],
        [1, 1, 0],
        [1, 1, 0],
    ]
    # A threshold on the sigmoid, not on a probability normalised over the classes:
    # 0.8 of pixel (0, 1) is above 0.79, 0.75 of pixel (0, 2) below.
    assert labels_by(rule("confidence", threshold=0.79), with_bank=False) == [
        [0, 1, 0],
        [0, 0, 0],
        [0, 0, 0],
    ]


def test_agree_takes_a_class_that_is_sure_or_that_the_bank_confirms():
    # (0, 2): sure, the bank denies it. (1, 0): unsure, the bank confirms it.
    # (1, 1), (2, 0), (2, 2): unsure and denied. (1, 2): the bank alone is not enough.
    assert labels_by(rule("agree")) == [[0, 1, 2], [1, 0, 0], [0, 1, 0]]


# All rules that score, but for the one that takes a mean.
MULTIPLIED = [rule(name) for name in scoring_rules() if name != "step0_mean"]


@pytest.mark.parametrize("settings", MULTIPLIED)
def test_fusion_takes_the_largest_product(settings):
    # For instance (0, 2): 0.1·0.85 > 0.75·0.05, and (2, 2): 0.3·0.35 > 0.4·0.25.
    assert labels_by(settings) == [[0, 1, 1], [1, 2, 1], [0, 0, 1]]


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
    assert labels_by(settings) == expected_by_hand(foreground, threshold, weight)


@pytest.mark.parametrize("name", scoring_rules())
def test_where_the_network_says_how_much_the_bank_says_which(name):
    # (0, 2) and (2, 2) change their class as above. The bank makes no class of the
    # background of (1, 2), and no background of (2, 0) and (2, 1).
    settings = rule(name, foreground="network")
    assert labels_by(settings) == expected_by_hand("network", 0, 1)
    assert labels_by(settings) == [[0, 1, 1], [1, 2, 0], [1, 1, 1]]
    # No bias moves the background then.
    biased = rule(name, foreground="network", foreground_bias=9.0)
    assert labels_by(biased) == labels_by(settings)


def test_an_image_prior_follows_what_the_image_shows():
    # Three pixels: two are surely class 1, the third is undecided between 1 and 2.
    of_class = torch.tensor([[0.9, 0.9, 0.5], [0.1, 0.1, 0.5]])
    share = torch.tensor([7.0, 0.5, 0.5])

    def fitted(background, share, iterations):
        s = torch.cat([background[None], (1 - background) * of_class])
        found = fit_to_image(
            s.log().view(1, 3, 1, 3), trained_shares(share), iterations
        )
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
    # Pixels that are background say nothing of the classes.
    sure = torch.tensor([1 - 1e-7, 1 - 1e-7, 0.2])
    assert fitted(sure, share, 5)[2] == pytest.approx(0.5, abs=1e-4)
    log_s = torch.tensor([0.0, -90.0, -90.0]).view(1, 3, 1, 1)
    nothing = fit_to_image(log_s, trained_shares(share), 3)
    assert nothing.isfinite().all()


def test_image_prior_of_hidden_pixels_alone():
    """What the raw labels name says nothing of the classes that they do not."""
    share = torch.tensor([0.4, 0.3, 0.3])
    settings = rule("lda", foreground="network", image_prior=2)
    bank = replace(bank_of(), share=share)
    log_p, log_evidence = F.logsigmoid(image(P).logit()), image(Q).log()
    hidden = torch.zeros(1, 3, 3, dtype=torch.bool)
    hidden[:, :, 1:] = True
    found = decide_by(settings, log_p, log_evidence, bank=bank, hidden=hidden)
    part = decide_by(settings, log_p[..., 1:], log_evidence[..., 1:], bank=bank)
    whole = decide_by(settings, log_p, log_evidence, bank=bank)
    assert torch.equal(found[..., 1:], part)
    assert whole.tolist() == [[[0, 1, 1], [1, 1, 0], [1, 1, 1]]]
    with pytest.raises(ValueError, match="Expected a prototype bank"):
        decide(LabelCase(log_p, settings, log_evidence))  # shares come from the bank


@pytest.mark.parametrize("name", ["klda", "lda"])
def test_the_posterior_counts_with_its_weight(name):
    # Weight 1/2: (0, 2) is 0.75·√0.05 > 0.1·√0.85, (2, 2) is 0.4·√0.25 > 0.3·√0.35.
    half = rule(name, posterior_weight=0.5)
    assert labels_by(half) == [[0, 1, 2], [1, 2, 1], [0, 0, 2]]
    without = rule(name, posterior_weight=0.0)
    assert labels_by(without) == labels_by(rule("argmax"), with_bank=False)


@pytest.mark.parametrize("name", ["klda", "lda"])
def test_the_foreground_bias_moves_every_class_against_the_background(name):
    # exp(0.3) = 1.35 turns (2, 1), 0.75·0.4·1.35 > 0.7·0.5, and no other pixel.
    more = rule(name, foreground_bias=0.3)
    assert labels_by(more) == [[0, 1, 1], [1, 2, 1], [0, 1, 1]]
    # exp(-1) = 0.37 turns (1, 2), 0.5·0.6·0.37 < 0.6·0.3, and (2, 2).
    less = rule(name, foreground_bias=-1.0)
    assert labels_by(less) == [[0, 1, 1], [1, 2, 0], [0, 0, 0]]


@pytest.mark.parametrize("name", ["kappa", "agree", "confidence", "argmax"])
def test_the_numbers_of_fusion_touch_no_other_rule(name):
    changed = rule(name, foreground_bias=9.0, posterior_weight=9.0)
    with_bank = RULES[name].bank is not None
    assert labels_by(changed, with_bank=with_bank) == labels_by(
        rule(name), with_bank=with_bank
    )


@pytest.mark.parametrize("name", ["argmax", "confidence"])
def test_rules_without_a_bank_ignore_its_evidence(name):
    assert labels_by(rule(name)) == labels_by(rule(name), with_bank=False)


@pytest.mark.parametrize("name", ["klda", "lda", "kappa", "agree"])
def test_rules_with_a_bank_refuse_to_do_without(name):
    with pytest.raises(ValueError, match=name):
        labels_by(rule(name), with_bank=False)


def test_deciding_leaves_probabilities_and_evidence_as_they_are():
    log_p, log_evidence = F.logsigmoid(image(P).logit()), image(Q).log()
    before = log_p.clone(), log_evidence.clone()
    decide_by(rule("klda", foreground_bias=1.0), log_p, log_evidence)
    assert torch.equal(log_p, before[0]) and torch.equal(log_evidence, before[1])


def test_extreme_logits_do_not_hide_the_evidence():
    log_p = F.logsigmoid(torch.tensor([-200.0, -199.0]).view(1, 2, 1, 1))
    log_evidence = torch.tensor([-0.1, -3.0]).view(1, 2, 1, 1)
    assert decide_by(rule("klda"), log_p, log_evidence).item() == 0
    assert decide_by(rule("argmax"), log_p).item() == 1


def test_an_unknown_rule_is_refused():
    log_p = F.logsigmoid(image(P).logit())
    with pytest.raises(ValueError, match=r"rules lda, .* but got 'best'"):
        decide(LabelCase(log_p, LabelSettings("best")))


# With a bank


@pytest.mark.parametrize("feature", ["block", "backbone"])
def test_evidence_keeps_the_place_of_every_cell(feature):
    other = torch.full((2, 2), 99.0)
    options = {"block": other, "backbone": other, feature: FEATURES}
    outputs = teacher_with([0.5, 0.5, 0.5], **options)(None)
    combination = Combination(bank_of(feature=feature), Decision("klda"))
    log_q = combination.log_evidence(outputs)
    assert log_q.shape == (1, 3, 2, 2)
    torch.testing.assert_close((log_q[:, 1] - log_q[:, 0])[0], (10 * FEATURES - 50) / 4)


def test_evidence_of_kappa_is_the_distance_over_the_temperature():
    outputs = teacher_with([0.5, 0.5, 0.5])(None)
    decision = Decision("kappa", temperature=2.0)
    log_kappa = Combination(bank_of(scatter=False), decision).log_evidence(outputs)
    expected = (FEATURES - (10 - FEATURES)) / 2
    torch.testing.assert_close((log_kappa[:, 1] - log_kappa[:, 0])[0], expected)
    # With a variance of 4, Mahalanobis halves the distances.
    decision = replace(decision, metric="mahalanobis")
    log_kappa = Combination(bank_of(), decision).log_evidence(outputs)
    torch.testing.assert_close((log_kappa[:, 1] - log_kappa[:, 0])[0], expected / 2)


@pytest.mark.parametrize("name", ["klda", "kappa", "agree"])
def test_labels_follow_the_bank_where_the_teacher_hesitates(name):
    probabilities = [0.5, 0.52, 0.3]
    labeller = labeller_of(teacher_with(probabilities), rule(name), bank_of())
    labels = labeller.label(pixels((2, 2)))
    assert labels.tolist() == [[[0, 1], [0, 1]]]


@pytest.mark.parametrize("name", ["klda", "kappa", "agree"])
def test_a_class_without_prototype_spoils_no_pixel(name):
    # The missing class has the evidence 0: between cells its logarithm must not turn
    # the answer into nonsense.
    teacher = teacher_with([0.5, 0.52, 0.51])
    labels = labeller_of(teacher, rule(name), bank_of()).label(pixels((8, 8)))
    assert labels.shape == (1, 8, 8)
    assert labels[0, :, 0].tolist() == [0] * 8
    assert labels[0, :, 7].tolist() == [1] * 8
    assert set(labels.unique().tolist()) == {0, 1}


@pytest.mark.parametrize("name", ["argmax", "confidence"])
def test_rules_without_a_bank_give_the_same_labels_beside_one(name):
    teacher, settings = teacher_with([0.5, 0.8, 0.3]), rule(name)
    hesitating = teacher_with([0.5, 0.6, 0.3])
    for each in (teacher, hesitating):
        alone = labeller_of(each, settings).label(pixels((4, 4)))
        beside = labeller_of(each, settings, bank_of()).label(pixels((4, 4)))
        assert torch.equal(alone, beside)
    assert (labeller_of(teacher, settings).label(pixels((4, 4))) == 1).all()


def test_rules_with_a_bank_refuse_to_label_without():
    labeller = labeller_of(teacher_with([0.5] * 3), rule("klda"))
    with pytest.raises(ValueError, match="klda"):
        labeller.label(pixels((2, 2)))


def test_a_network_of_more_classes_than_a_byte_can_name_is_refused():
    many = SegmentationNetwork(ARCHITECTURE, [1000])
    with pytest.raises(ValueError, match=r"at most 253 classes, .* but got 1000\."):
        labeller_of(many, rule("argmax"))
    assert labeller_of(SegmentationNetwork(ARCHITECTURE, [253]), rule("argmax"))


def test_labels_come_from_the_composed_background():
    # z_0 = 1 falls by min(r_1, 0): below class 1 where r_1 = -3, unchanged for 4.
    branch_0 = torch.tensor([[1.0, 1.0], [0.0, 0.0]]).view(1, 2, 1, 2)
    branch_1 = torch.tensor([[-3.0, 4.0], [-9.0, -9.0]]).view(1, 2, 1, 2)
    outputs = Outputs(torch.zeros(1, 1, 1, 2), [], [branch_0, branch_1])
    teacher = Teacher(lambda _: outputs)
    labels = labeller_of(teacher, rule("argmax")).label(pixels((1, 2)))
    assert labels.tolist() == [[[1, 0]]]


def test_confidence_of_a_softmax_is_that_of_the_softmax():
    logits = torch.tensor([3.0, 3.5, 3.0]).view(1, 3, 1, 1)
    outputs = Outputs(logits, [], [logits])
    labels = {
        head: labeller_of(Teacher(lambda _: outputs, head=head), rule("confidence"))
        .label(pixels((1, 1)))
        .item()
        for head in ("branches", "softmax")
    }
    assert labels == {"branches": 1, "softmax": 0}  # sigmoid .97, softmax .45
