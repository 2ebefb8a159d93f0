"""The terms of DKD, STAR, Adapter and LGKD against plain formulas in float64."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from loss_inputs import (
    BATCH,
    CELLS,
    CLASSES,
    FIRST_NEW,
    WIDTH,
    assert_same,
    binary_cross_entropy,
    leaves,
    masks_and_counts,
    random,
)

from kproba.methods.builtin import METHODS
from kproba.methods.losses.case import Case
from kproba.methods.losses.star import contrast, uncertainty
from kproba.methods.losses.step import own_totals, step_losses
from kproba.methods.replay import Drawn
from kproba.methods.terms import TERMS
from kproba.network.network import Outputs

# Each cell covers 4 x 4 pixels, so its centre lies between pixels.
PIXELS = (8, 12)
NEW = CLASSES[-1]
OLD = sum(CLASSES[:-1])
SIGMOID_TERMS = [
    name for name, term in TERMS.items() if {"sigmoid", "auxiliary"} & set(term.needs)
]


def uneven_targets():
    """Targets with an image without labels and one without new classes."""
    generator = torch.Generator().manual_seed(5)
    targets = torch.randint(0, 1 + OLD + NEW, (BATCH, *PIXELS), generator=generator)
    targets[torch.rand(targets.shape, generator=generator) < 0.15] = 255
    targets[1] = 255
    targets[2][targets[2] >= FIRST_NEW] = 0
    return targets.to(torch.uint8)


def parts(seed):
    """Features x ≥ 0, weights (C, A) and biases (C,) of all classes, and z_a."""
    x = F.softplus(random(BATCH, WIDTH, *CELLS, seed=seed))
    weights = random(OLD + NEW, WIDTH, seed=seed + 1, scale=0.4)
    biases = random(OLD + NEW, seed=seed + 2, scale=0.4)
    auxiliary = random(BATCH, 1, *CELLS, seed=seed + 3)
    return [x, weights, biases, auxiliary]


def outputs_of(x, weights, biases, auxiliary):
    """The outputs of the head `auxiliary` with these parts."""
    z = torch.einsum("bahw,ca->bchw", x, weights) + biases[:, None, None]
    logits, start = [], 0
    for count in CLASSES:
        logits.append(F.pad(z[:, start : start + count], (0, 0, 0, 0, 1, 0)))
        start += count
    extras = {"weights": weights, "biases": biases, "auxiliary": auxiliary}
    return Outputs(x, [x], logits, (), extras)


def full(z):
    return F.interpolate(z, PIXELS, mode="bilinear", align_corners=False)


def plain_logits(x, weights, biases, _):
    z = (x[:, None] * weights[None, :, :, None, None]).sum(dim=2)
    return z + biases[:, None, None]


def replay_of(dtype=torch.float32):
    means = F.normalize(random(OLD, WIDTH, seed=40).to(dtype), dim=1)
    return Drawn(means, random(7, WIDTH, seed=41).to(dtype), 7, 0.3)


class Inputs:
    """One micro-batch in float32 for our terms, and in float64 for plain formulas."""

    def __init__(self, seed=0):
        self.ours = leaves(parts(seed))
        self.plain = leaves(parts(seed), torch.float64)
        self.teacher = parts(seed + 20)
        # The teacher has no logits of the new classes.
        self.old = [t.double() for t in self.teacher]
        self.old[1], self.old[2] = self.old[1][:OLD], self.old[2][:OLD]
        self.targets = uneven_targets()
        self.masks, self.counts = masks_and_counts(self.targets)

    def case(self, options):
        """The inputs of our terms."""
        teacher = outputs_of(*self.teacher)
        extras = {k: v[:OLD] for k, v in teacher.extras.items() if k != "auxiliary"}
        teacher = teacher._replace(logits=teacher.logits[:-1], extras=extras)
        case = Case(
            outputs_of(*self.ours),
            self.targets,
            self.counts,
            self.masks,
            teacher,
            replay=replay_of(),
            options=options,
        )
        return case

    def value(self, name, **options):
        """The value of one of our terms."""
        options = {**TERMS[name].options, **options}
        case = self.case(options)
        case.totals.update(own_totals(case, [name]))
        (value,) = step_losses(case, {name: 1.0}).values()
        return value

    # Plain values

    @property
    def z(self):
        """Logits of all classes at cells."""
        return plain_logits(*self.plain)

    @property
    def z_old(self):
        """Those of the teacher."""
        return plain_logits(*self.old)

    def mean_bce(self, z, goals):
        """Σ over channels of the mean over everything else."""
        return sum(
            binary_cross_entropy(z[:, c], goals[:, c]).mean() for c in range(z.shape[1])
        )

    def plain_new_bce(self, positive_weight):
        """Σ over new classes of the mean over all pixels."""
        z, total = full(self.z[:, OLD:]), 0
        for c in range(NEW):
            p = 1 / (1 + torch.exp(-z[:, c]))
            positive = self.targets == FIRST_NEW + c
            terms = torch.where(
                positive, -positive_weight * torch.log(p), -torch.log(1 - p)
            )
            total = total + terms.mean()
        return total

    def recognised(self):
        """Class of every pixel by the teacher, 0 for background."""
        best, channel = full(self.z_old.float()).max(dim=1)
        return torch.where(best > 0.5, channel + 1, 0)

    def background(self):
        """Cells with raw label 0 that the teacher calls background."""
        rows = [int((i + 0.5) * PIXELS[0] / CELLS[0]) for i in range(CELLS[0])]
        columns = [int((i + 0.5) * PIXELS[1] / CELLS[1]) for i in range(CELLS[1])]
        found = self.recognised()[:, rows][:, :, columns]
        labels = self.targets[:, rows][:, :, columns]
        return (found == 0) & (labels < FIRST_NEW)

    def share(self):
        """Share of each cell that the teacher recognises."""
        mask = (self.recognised() > 0) & (self.targets < FIRST_NEW)
        mask = mask[:, None].double()
        return F.interpolate(mask, CELLS, mode="bilinear", align_corners=False)[:, 0]


@pytest.mark.parametrize("weight", [1.0, 4.0])
def test_new_bce_sums_over_the_new_classes_and_takes_all_pixels(weight):
    inputs = Inputs()
    assert (inputs.targets == 255).any()
    ours = inputs.value("new_bce", positive_weight=weight)
    assert_same(ours, inputs.plain_new_bce(weight), inputs.ours, inputs.plain)


def test_new_bce_of_step_0_covers_all_classes():
    x, weights, biases, auxiliary = parts(3)
    one = outputs_of(x, weights, biases, auxiliary)
    joined = [F.pad(torch.cat([z[:, 1:] for z in one.logits], 1), (0, 0, 0, 0, 1, 0))]
    targets = uneven_targets()
    _, counts = masks_and_counts(targets)
    case = Case(
        one._replace(logits=joined), targets, counts, options={"positive_weight": 2}
    )
    (value,) = step_losses(case, {"new_bce": 1.0}).values()
    z, total = full(joined[0].double()), 0
    for c in range(1, z.shape[1]):
        positive = (targets == c).double()
        terms = binary_cross_entropy(z[:, c], positive) * (1 + positive)
        total = total + terms.mean()
    torch.testing.assert_close(value.double(), total, rtol=1e-5, atol=1e-6)


def test_the_auxiliary_classifier_learns_that_nothing_is_a_class():
    inputs = Inputs()
    p = 1 / (1 + torch.exp(-full(inputs.plain[3])))
    expected = -torch.log(1 - p).mean()
    assert_same(inputs.value("auxiliary"), expected, inputs.ours, inputs.plain)


def test_class_kd_is_the_bce_to_the_probabilities_of_the_teacher():
    inputs = Inputs()
    goals = 1 / (1 + torch.exp(-full(inputs.z_old)))
    expected = inputs.mean_bce(full(inputs.z[:, :OLD]), goals)
    assert_same(inputs.value("class_kd"), expected, inputs.ours, inputs.plain)


@pytest.mark.parametrize(
    ("name", "part"),
    [("positive_kd", torch.relu), ("negative_kd", lambda w: -(-w).relu())],
)
def test_the_parts_of_the_logits_are_distilled_without_bias(name, part):
    inputs = Inputs()

    def plain_part(x, weights, *_):
        w = part(weights[:OLD])
        return (x[:, None] * w[None, :, :, None, None]).sum(dim=2)

    goals = 1 / (1 + torch.exp(-plain_part(*inputs.old)))
    expected = inputs.mean_bce(plain_part(*inputs.plain), goals)
    assert_same(inputs.value(name), expected, inputs.ours, inputs.plain)


def test_both_parts_and_the_bias_are_the_logit():
    from kproba.methods.losses.dkd import parts_of_logits

    x, weights, biases, _ = parts(5)
    positive, negative = parts_of_logits(x, weights)
    assert (positive >= 0).all() and (negative <= 0).all()
    z = positive + negative + biases[:, None, None]
    torch.testing.assert_close(z, plain_logits(x, weights, biases, None))


def test_replayed_bce_weighs_real_drawn_and_background_features_by_their_number():
    inputs, replay = Inputs(), replay_of(torch.float64)
    x, weights, biases, _ = inputs.plain
    background = inputs.background()
    assert 0 < int(background.sum()) < background.numel()
    n = background.numel()

    def negatives(features):
        z = (features[:, None] * weights[None, OLD:]).sum(dim=2) + biases[OLD:]
        p = 1 / (1 + torch.exp(-z))
        return sum(-torch.log(1 - p[:, c]).mean() for c in range(NEW))

    w_f = len(replay.fakes) / n
    w_b = replay.background_factor * float(background.sum()) / n
    cells = x.permute(0, 2, 3, 1)[background]
    expected = inputs.plain_new_bce(4.0)
    expected = expected + w_f * negatives(replay.fakes) + w_b * negatives(cells)
    expected = expected / (1 + w_f + w_b)
    ours = inputs.value("replayed_bce", positive_weight=4.0)
    assert_same(ours, expected, inputs.ours, inputs.plain)


def test_feature_kd_keeps_what_the_teacher_recognises():
    inputs = Inputs()
    share = inputs.share()
    assert ((share > 0) & (share < 1)).any()
    squares = (inputs.plain[0] - inputs.old[0]) ** 2
    expected = (squares * share[:, None]).sum() / (WIDTH * share.sum())
    assert_same(inputs.value("feature_kd"), expected, inputs.ours, inputs.plain)


def test_contrast_is_the_inverse_distance_to_the_nearest_old_class():
    inputs, means = Inputs(), replay_of(torch.float64).means
    x = inputs.plain[0]
    length = (x**2).sum(dim=1, keepdim=True).sqrt().clamp(min=1e-12)
    terms = []
    for c in range(NEW):
        share = (inputs.targets == FIRST_NEW + c)[:, None].double()
        share = F.interpolate(share, CELLS, mode="bilinear", align_corners=False)
        total = (share * x / length).sum(dim=(0, 2, 3))
        direction = total / (total**2).sum().sqrt()
        terms.append(1 / torch.stack([(direction - m).norm() for m in means]).min())
    expected = torch.stack(terms).mean()
    assert_same(inputs.value("contrast"), expected, inputs.ours, inputs.plain)


def test_a_class_that_is_not_in_the_batch_has_the_distance_1():
    means = F.normalize(random(3, WIDTH, seed=1), dim=1)
    sums = torch.zeros(2, WIDTH)
    assert contrast(sums, means).item() == pytest.approx(1.0)


def test_uncertainty_lowers_the_second_class_of_unsure_pixels():
    inputs = Inputs()
    total = 0
    for image, labels in zip(full(inputs.z), inputs.targets, strict=True):
        for i in range(PIXELS[0]):
            for j in range(PIXELS[1]):
                p = 1 / (1 + torch.exp(-image[:, i, j]))
                first, second = p.sort(descending=True).values[:2]
                best = int(p.argmax()) + 1
                if best == int(labels[i, j]) or first > 0.7:
                    continue
                total = total + (1 - (first.detach() - second)) ** 2
    expected = total / inputs.targets.numel()
    assert expected > 0
    assert_same(inputs.value("uncertainty"), expected, inputs.ours, inputs.plain)
    single = uncertainty(torch.ones(1, 1, 2, 2), torch.zeros(1, 2, 2).byte(), 4)
    assert single.item() == 0  # no second class


@pytest.mark.parametrize("name", SIGMOID_TERMS)
def test_terms_of_micro_batches_add_up_to_those_of_the_batch(name):
    inputs = Inputs()
    whole = inputs.value(name)
    full_case = inputs.case(TERMS[name].options)
    places = [slice(0, 1), slice(1, BATCH)]
    replay = full_case.replay
    cases = []
    for number, place in enumerate(places):
        drawn = slice(0, 3) if number == 0 else slice(3, None)
        student, teacher = (
            Outputs(
                o.backbone[place],
                [o.blocks[0][place]],
                [z[place] for z in o.logits],
                (),
                {k: v[place] if k == "auxiliary" else v for k, v in o.extras.items()},
            )
            for o in (full_case.student, full_case.teacher)
        )
        cases.append(
            replace(
                full_case,
                student=student,
                teacher=teacher,
                targets=inputs.targets[place],
                masks=type(inputs.masks)(*(m[place] for m in inputs.masks)),
                replay=replace(replay, fakes=replay.fakes[drawn]),
                totals={},
                share=1 / len(places),
            )
        )
    totals = {}
    for case in cases:
        for key, value in own_totals(case, [name]).items():
            totals[key] = totals.get(key, 0) + value.detach()
    values = []
    for case in cases:
        case.totals.update(totals)
        values += step_losses(case, {name: 1.0}).values()
    torch.testing.assert_close(sum(values), whole, rtol=1e-5, atol=1e-6)
    kept = {"allow_unused": True, "materialize_grads": True, "retain_graph": True}
    for ours, expected in zip(
        torch.autograd.grad(sum(values), inputs.ours, **kept),
        torch.autograd.grad(whole, inputs.ours, **kept),
        strict=True,
    ):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", SIGMOID_TERMS)
def test_old_classes_learn_only_from_distillation(name):
    inputs = Inputs()
    weights = inputs.ours[1]
    (gradient,) = torch.autograd.grad(
        inputs.value(name), [weights], allow_unused=True, materialize_grads=True
    )
    distils = name in ("class_kd", "positive_kd", "negative_kd", "uncertainty")
    assert bool(gradient[:OLD].any()) == distils


# LGKD


@pytest.mark.parametrize(("name", "new"), [("lgkd", False), ("lgkd_new", True)])
def test_lgkd_moves_the_background_of_the_teacher_to_the_labelled_class(name, new):
    def logits(seed, steps):
        z = [random(BATCH, 1 + n, *CELLS, seed=seed + k) for k, n in enumerate(CLASSES)]
        for each in z[1:]:
            each[:, 0] = 0
        return z[:steps]

    def composed(z):
        return torch.cat([z[0], *(each[:, 1:] for each in z[1:])], dim=1)

    ours, plain = leaves(logits(0, 3)), leaves(logits(0, 3), torch.float64)
    teacher = logits(50, 2)
    targets = uneven_targets()
    masks, counts = masks_and_counts(targets)
    block = torch.zeros(BATCH, 1, *CELLS)
    case = Case(
        Outputs(block, [block], ours),
        targets,
        counts,
        masks,
        Outputs(block, [block], teacher),
    )
    (value,) = step_losses(case, {name: 1.0}).values()

    p = torch.exp(composed(plain))
    p = p / p.sum(dim=1, keepdim=True)
    q = torch.exp(composed(teacher).double())
    q = q / q.sum(dim=1, keepdim=True)
    total, chosen = 0, 0
    for image in range(BATCH):
        for i in range(CELLS[0]):
            for j in range(CELLS[1]):
                row, column = (
                    int((k + 0.5) * PIXELS[d] / CELLS[d]) for d, k in enumerate((i, j))
                )
                label = int(targets[image, row, column])
                is_new = FIRST_NEW <= label != 255
                if is_new != new:
                    continue
                chosen += 1
                goal = [float(v) for v in q[image, :, i, j]] + [0.0] * NEW
                if is_new:
                    goal[label], goal[0] = goal[0], 0.0
                assert sum(goal) == pytest.approx(1)
                total = total - sum(
                    g * torch.log(p[image, c, i, j]) for c, g in enumerate(goal)
                )
    assert chosen
    expected = total / (BATCH * math.prod(CELLS))
    assert_same(value, expected, ours, plain)


def test_the_peers_have_the_weights_of_their_authors():
    dkd, star = METHODS["dkd"], METHODS["star"]
    assert dkd.losses == {
        "auxiliary": 1,
        "class_kd": 5,
        "positive_kd": 5,
        "negative_kd": 5,
    }
    assert dkd.read_options == {"positive_weight": 1}
    assert star.losses == {"feature_kd": 5, "contrast": 0.05}
    assert star.read_options == {"positive_weight": 4}
    assert METHODS["lwf"].losses == {"kd": 100}
