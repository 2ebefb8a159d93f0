"""The terms of LwF, MiB, PLOP and SSUL against their papers' formulas in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from loss_inputs import (
    BATCH,
    CELLS,
    CHANNELS,
    FIRST_NEW,
    LEARNING,
    PIXELS,
    assert_same,
    branch_logits,
    leaves,
    losses_of,
    masks_and_counts,
    outputs_of,
    plain_bce_per_channel,
    plain_protected_logits,
    random,
    uneven_targets,
)

from kproba.methods.builtin import METHODS, base_methods
from kproba.methods.losses.cross_entropy import ce, unbiased_ce
from kproba.methods.losses.distillation import kd, soft_kd, unbiased_kd
from kproba.methods.losses.pod import local_pod, logits_for_pod, pod
from kproba.methods.method import Method
from kproba.network.network import Outputs

NEW = CHANNELS - FIRST_NEW
STAGES = ((3, 8, 6), (4, 5, 4), (2, 2, 3))  # channels, height, width


def softmax_logits(seed):
    """Branch logits of a network with a softmax: nothing adapts the background."""
    logits = branch_logits(seed)
    for z in logits[1:]:
        z[:, 0] = 0
    return logits


def composed(logits):
    """z_0's background and all classes in order."""
    classes = [z[:, 1:] for z in logits]
    return torch.cat([logits[0][:, :1], *classes], dim=1)


def at_full_size(logits):
    z = composed(logits)
    return F.interpolate(z, PIXELS, mode="bilinear", align_corners=False)


def pixels_of(z, targets):
    """(probabilities of a pixel, its label, its image), ignored ones too."""
    p = torch.exp(z) / torch.exp(z).sum(dim=1, keepdim=True)
    for image in range(len(z)):
        for i in range(z.shape[2]):
            for j in range(z.shape[3]):
                yield p[image, :, i, j], int(targets[image, i, j]), image


def plain_ce(z, targets):
    pixels = pixels_of(z, targets)
    terms = [-torch.log(p[label]) for p, label, _ in pixels if label != 255]
    return torch.stack(terms).mean()


def plain_unbiased_ce(z, targets, old):
    terms = []
    for p, label, _ in pixels_of(z, targets):
        if label == 255:
            continue
        terms.append(-torch.log(sum(p[:old]) if label == 0 else p[label]))
    return torch.stack(terms).mean()


def plain_kd(z, old_z, temperature):
    total = 0
    for own, other in zip(
        z.permute(0, 2, 3, 1).reshape(-1, z.shape[1]),
        old_z.permute(0, 2, 3, 1).reshape(-1, old_z.shape[1]),
        strict=True,
    ):
        old = len(other)
        p = torch.exp(own[:old]) ** (1 / temperature)
        q = torch.exp(other) ** (1 / temperature)
        p, q = p / p.sum(), q / q.sum()
        total = total - (q * torch.log(p)).sum()
    return total / (z.numel() / z.shape[1])


def plain_unbiased_kd(z, old_z):
    total = 0
    for own, other in zip(
        z.permute(0, 2, 3, 1).reshape(-1, z.shape[1]),
        old_z.permute(0, 2, 3, 1).reshape(-1, old_z.shape[1]),
        strict=True,
    ):
        old = len(other)
        p = torch.exp(own) / torch.exp(own).sum()
        q = torch.exp(other) / torch.exp(other).sum()
        term = q[0] * torch.log(p[0] + p[old:].sum())
        for c in range(1, old):
            term = term + q[c] * torch.log(p[c])
        total = total - term / old
    return total / (z.numel() / z.shape[1])


def plain_local_pod(x):
    """One image's numbers, region by region: means of squares along both sides."""
    numbers = []
    for scale in (1, 2, 4):
        height, width = x.shape[1] // scale, x.shape[2] // scale
        if not height or not width:
            continue
        for row in range(scale):
            for column in range(scale):
                for channel in x:
                    region = channel[
                        row * height : (row + 1) * height,
                        column * width : (column + 1) * width,
                    ]
                    numbers += [(line**2).mean() for line in region]
                    numbers += [(line**2).mean() for line in region.T]
    return torch.stack(numbers)


def plain_pod(student, teacher):
    total = 0
    for own, other in zip(student, teacher, strict=True):
        distances = [
            # The order of the numbers does not matter to the distance.
            torch.sqrt(((plain_local_pod(a) - plain_local_pod(b)) ** 2).sum())
            for a, b in zip(own, other, strict=True)
        ]
        total = total + torch.stack(distances).mean()
    return total / len(student)


def assert_same_terms(losses, expected, our_leaves, plain_leaves):
    """Terms that share a graph: each value, and the gradients of uneven sums."""
    assert list(losses) == list(expected)
    for name, value in losses.items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)
    ours, plain = (
        sum(factor * term for factor, term in enumerate(terms.values(), start=1))
        for terms in (losses, expected)
    )
    assert_same(ours, plain, our_leaves, plain_leaves)


def stages_of(seed):
    return [random(BATCH, *shape, seed=seed + k) for k, shape in enumerate(STAGES)]


def softmax_outputs(logits, stages=(), block=None):
    block = random(BATCH, 5, *CELLS, seed=9) if block is None else block
    return Outputs(torch.zeros(BATCH, 1, *CELLS), [block], logits, stages)


def test_ce_is_the_mean_over_labelled_pixels():
    targets, z = uneven_targets(), random(BATCH, CHANNELS, *PIXELS, seed=1)
    ours, plain = leaves([z]), leaves([z], torch.float64)
    count = float((targets != 255).sum())
    assert_same(ce(ours[0], targets, count), plain_ce(plain[0], targets), ours, plain)


def test_unbiased_ce_lets_background_be_any_old_class():
    targets, z = uneven_targets(), random(BATCH, CHANNELS, *PIXELS, seed=2)
    ours, plain = leaves([z]), leaves([z], torch.float64)
    value = unbiased_ce(ours[0], targets, FIRST_NEW, float((targets != 255).sum()))
    assert_same(value, plain_unbiased_ce(plain[0], targets, FIRST_NEW), ours, plain)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_kd_is_the_cross_entropy_of_softened_old_classes(temperature):
    z, old_z = (
        random(BATCH, channels, *CELLS, seed=3) for channels in (CHANNELS, FIRST_NEW)
    )
    ours, plain = leaves([z]), leaves([z], torch.float64)
    value = soft_kd(ours[0], old_z, BATCH * CELLS[0] * CELLS[1], temperature)
    expected = plain_kd(plain[0], old_z.double(), temperature)
    assert_same(value, expected, ours, plain)
    assert (
        torch.autograd.grad(soft_kd(ours[0], old_z, 1), ours)[0][:, FIRST_NEW:] == 0
    ).all()


def test_kd_of_the_field_is_a_mean_over_the_old_classes_at_temperature_1():
    z, old_z = (
        random(BATCH, channels, *CELLS, seed=3) for channels in (CHANNELS, FIRST_NEW)
    )
    ours, plain = leaves([z]), leaves([z], torch.float64)
    value = kd(ours[0], old_z, BATCH * CELLS[0] * CELLS[1])
    expected = plain_kd(plain[0], old_z.double(), 1.0) / FIRST_NEW
    assert_same(value, expected, ours, plain)


def test_unbiased_kd_counts_new_classes_as_background():
    z, old_z = (
        random(BATCH, channels, *CELLS, seed=4) for channels in (CHANNELS, FIRST_NEW)
    )
    ours, plain = leaves([z]), leaves([z], torch.float64)
    value = unbiased_kd(ours[0], old_z, BATCH * CELLS[0] * CELLS[1])
    assert_same(value, plain_unbiased_kd(plain[0], old_z.double()), ours, plain)


@pytest.mark.parametrize("shape", [*STAGES, (2, 9, 7), (1, 1, 1)])
def test_local_pod_averages_squares_along_both_sides_of_every_region(shape):
    x = random(BATCH, *shape, seed=5)
    for found, image in zip(local_pod(x), x.double(), strict=True):
        expected = plain_local_pod(image).sort().values
        sorted_ = found.double().sort().values
        torch.testing.assert_close(sorted_, expected, rtol=1e-5, atol=1e-7)


def test_pod_is_the_mean_distance_over_maps_and_images():
    student, teacher = stages_of(10), stages_of(20)
    ours, plain = leaves(student), leaves(student, torch.float64)
    value = pod(ours, teacher, BATCH)
    expected = plain_pod(plain, [f.double() for f in teacher])
    assert_same(value, expected, ours, plain)


def test_pod_of_equal_features_has_no_gradient_and_no_nan():
    student = leaves(stages_of(10))
    value = pod(student, [f.detach().clone() for f in student], BATCH)
    assert value == 0
    assert all((g == 0).all() for g in torch.autograd.grad(value, student))


def lwf_terms(z, other, targets):
    return {"ce": plain_ce(z, targets), "kd": 100 * plain_kd(z, other, 1.0) / FIRST_NEW}


def mib_terms(z, other, targets):
    return {
        "ce": plain_unbiased_ce(z, targets, FIRST_NEW),
        "unbiased_kd": 10 * plain_unbiased_kd(z, other),
    }


@pytest.mark.parametrize(("method", "terms"), [("lwf", lwf_terms), ("mib", mib_terms)])
def test_distilling_methods_are_a_cross_entropy_and_a_distillation(method, terms):
    targets, logits = uneven_targets(), softmax_logits(30)
    masks, counts = masks_and_counts(targets)
    ours, plain = leaves(logits), leaves(logits, torch.float64)
    old_logits = softmax_logits(40)[:-1]
    student, teacher = softmax_outputs(ours), softmax_outputs(old_logits)
    losses = losses_of(METHODS[method], student, targets, counts, masks, teacher)
    z, other = at_full_size(plain), at_full_size([t.double() for t in old_logits])
    assert_same_terms(losses, terms(z, other, targets), ours, plain)


def test_plop_is_scaled_ce_and_pod_of_features_and_logits():
    targets, logits = uneven_targets(), softmax_logits(70)
    masks, counts = masks_and_counts(targets)
    certainty = torch.tensor([1.0, 0.3, 0.0, 0.6])
    old_logits = softmax_logits(80)[:-1]
    stages, block = stages_of(90), random(BATCH, 5, *CELLS, seed=91)
    old_stages, old_block = stages_of(95), random(BATCH, 5, *CELLS, seed=96)
    leaf = leaves([*logits, *stages, block])
    student = softmax_outputs(leaf[:3], leaf[3:-1], leaf[-1])
    teacher = softmax_outputs(old_logits, old_stages, old_block)
    case = (student, targets, counts, masks, teacher, certainty)
    losses = losses_of(METHODS["plop"], *case)
    plain = leaves([*logits, *stages, block], torch.float64)
    assert list(losses) == ["ce", "pod", "pod_logits"]

    # Cross-entropy over all pixels of the batch, ignored ones adding nothing.
    total = 0
    for p, label, image in pixels_of(at_full_size(plain[:3]), targets):
        if label != 255:
            total = total - certainty[image].double() * torch.log(p[label])
    assert_same(losses["ce"], total / targets.numel(), leaf, plain)

    maps, schedule = len(STAGES) + 2, math.sqrt(CHANNELS / NEW)
    old = [f.double() for f in (*old_stages, old_block)]
    features = plain_pod(plain[3:], old) * (maps - 1) / maps
    assert_same(losses["pod"], 0.01 * schedule * features, leaf, plain)

    z = composed(plain[:3])
    background = z[:, :1] + z[:, FIRST_NEW:].sum(dim=1, keepdim=True)
    z = torch.cat([background, z[:, 1:FIRST_NEW]], dim=1)
    other = composed([t.double() for t in old_logits])
    expected = 0.0005 * schedule * plain_pod([z], [other]) / maps
    assert_same(losses["pod_logits"], expected, leaf, plain)


def test_logits_for_pod_have_the_channels_of_the_teacher():
    z = torch.arange(6.0).view(1, 6, 1, 1)
    assert logits_for_pod(z, 4).flatten().tolist() == [0 + 4 + 5, 1, 2, 3]


def test_ssul_light_teaches_background_and_new_classes_alone():
    targets, logits = uneven_targets(), branch_logits(100)
    masks, counts = masks_and_counts(targets)
    ours, plain = leaves(logits), leaves(logits, torch.float64)
    losses = losses_of(
        METHODS["ssul_light"], outputs_of([], ours), targets, counts, masks
    )
    assert list(losses) == ["bce"]
    per_channel = plain_bce_per_channel(plain_protected_logits(plain), targets)
    expected = per_channel[list(LEARNING)].sum()
    assert_same(losses["bce"], expected, ours, plain)


@pytest.mark.parametrize("method", ["lwf", "mib", "plop"])
def test_step_0_of_a_softmax_is_plain_ce(method):
    targets = uneven_targets()
    targets[(targets > 2) & (targets != 255)] = 0
    _, counts = masks_and_counts(targets)
    logits = [random(BATCH, 3, *CELLS, seed=110)]
    ours, plain = leaves(logits), leaves(logits, torch.float64)
    step_0 = base_methods()[METHODS[method].base]
    losses = losses_of(step_0, softmax_outputs(ours), targets, counts)
    assert list(losses) == ["ce"]
    assert_same(losses["ce"], plain_ce(at_full_size(plain), targets), ours, plain)


@pytest.mark.parametrize("label", [0, FIRST_NEW, 255])
@pytest.mark.parametrize("method", ["lwf", "mib", "plop"])
def test_uniform_targets_give_finite_terms_and_gradients(method, label):
    targets = torch.full((BATCH, *PIXELS), label, dtype=torch.uint8)
    masks, counts = masks_and_counts(targets)
    ours = leaves(softmax_logits(120))
    student = softmax_outputs(ours)
    teacher = softmax_outputs(softmax_logits(130)[:-1])
    case = (student, targets, counts, masks, teacher, torch.zeros(BATCH))
    losses = losses_of(METHODS[method], *case)
    for value in losses.values():
        assert value.isfinite()
    total = sum(losses.values())
    gradients = torch.autograd.grad(total, ours, allow_unused=True)
    assert all(g is None or g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("method", ["lwf", "mib", "plop"])
def test_parts_of_a_batch_add_up_to_the_whole(method):
    targets, logits = uneven_targets(), softmax_logits(140)
    masks, counts = masks_and_counts(targets)
    student = softmax_outputs(logits, stages_of(150))
    teacher = softmax_outputs(softmax_logits(160)[:-1], stages_of(170))
    certainty = torch.tensor([1.0, 0.3, 0.0, 0.6])

    def losses(chosen):
        return losses_of(
            METHODS[method],
            part_of(student, chosen),
            targets[chosen],
            counts,
            type(masks)(*(mask[chosen] for mask in masks)),
            part_of(teacher, chosen),
            certainty[chosen],
        )

    whole, parts = losses(slice(0, 4)), [losses([0, 2]), losses([1]), losses([3])]
    for name, value in whole.items():
        total = sum(part[name] for part in parts)
        torch.testing.assert_close(total, value)


def part_of(outputs, chosen):
    return Outputs(
        outputs.backbone[chosen],
        [g[chosen] for g in outputs.blocks],
        [z[chosen] for z in outputs.logits],
        [f[chosen] for f in outputs.stages],
    )


def test_pod_can_be_added_to_branches():
    targets = uneven_targets()
    masks, counts = masks_and_counts(targets)
    method = Method(losses={"pod": 1.0})
    student = softmax_outputs(branch_logits(180), stages_of(190))
    teacher = softmax_outputs(branch_logits(185)[:-1], stages_of(195))
    losses = losses_of(method, student, targets, counts, masks, teacher)
    assert set(losses) == {"bce", "pod"}
