"""Every loss term against the method's formula, written out plainly in float64."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from loss_inputs import (
    BATCH,
    CELLS,
    FIRST_NEW,
    LEARNING,
    PIXELS,
    WIDTH,
    assert_same,
    binary_cross_entropy,
    branch_logits,
    gradients,
    leaves,
    losses_of,
    masks_and_counts,
    outputs_of,
    plain_bce_per_channel,
    plain_logits,
    plain_protected_logits,
    random,
    uneven_targets,
)

from kproba.methods.builtin import METHODS, base_methods
from kproba.methods.losses.barm import bfd, bga_ce, bga_t, gkd, pb_bce
from kproba.methods.losses.case import Counts, Masks, cell_masks
from kproba.methods.losses.cross_entropy import bce, full_bce
from kproba.methods.method import Method
from kproba.methods.terms import collect_needs
from kproba.network.network import Outputs

OLD = (1, 2, 3)
FURTHER = ("bga_ce", "bga_t", "gkd", "bfd")  # terms beside the cross-entropy


def branch_blocks(seed):
    return [random(BATCH, WIDTH, *CELLS, seed=seed + k).relu() for k in range(3)]


def masked_mean(terms, mask):
    chosen = [
        term for term, inside in zip(terms, mask.flatten(), strict=True) if inside
    ]
    return torch.stack(chosen).mean()


def plain_bga_ce(adaptation, mask):
    return masked_mean(
        [binary_cross_entropy(r, 0.0) for r in adaptation.flatten()], mask
    )


def plain_bga_t(adaptation, mask):
    def triplet(r):
        p = 1 / (1 + torch.exp(-r))
        difference = (p - 1) ** 2 - p**2
        return difference if difference > 0 else 0 * difference

    return masked_mean([triplet(r) for r in adaptation.flatten()], mask)


def plain_gkd(student, teacher):
    total = 0
    for own, other in zip(student, teacher, strict=True):
        for channel in range(own.shape[1]):
            goals = 1 / (1 + torch.exp(-other[:, channel].flatten()))
            pairs = zip(own[:, channel].flatten(), goals, strict=True)
            total += torch.stack([binary_cross_entropy(z, g) for z, g in pairs]).mean()
    return total


def plain_bfd(student, teacher, mask):
    total = 0
    for own, other in zip(student, teacher, strict=True):
        squares = [
            (own[b, channel, i, j] - other[b, channel, i, j]) ** 2
            for b, i, j in mask.nonzero().tolist()
            for channel in range(own.shape[1])
        ]
        total += torch.stack(squares).mean()
    return total


def part_of(outputs, chosen):
    return Outputs(
        outputs.backbone[chosen],
        [g[chosen] for g in outputs.blocks],
        [z[chosen] for z in outputs.logits],
    )


def teacher_outputs():
    return outputs_of(branch_blocks(300)[:-1], branch_logits(400)[:-1])


def test_bce_is_the_mean_over_labelled_pixels_of_the_sum_over_channels():
    # p = 1/2 costs log 2, p = 3/4 costs log 4/3 where positive and log 4 where not.
    logits = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]]).view(1, 2, 1, 2)
    channels = torch.tensor([[[1, 0]]])
    by_hand = (math.log(2) + math.log(2) + math.log(4 / 3) + math.log(2)) / 2
    assert bce(logits, channels, 2).item() == pytest.approx(by_hand)
    negative_for_all = torch.tensor([[[1, 2]]])
    by_hand = (math.log(2) + math.log(2) + math.log(4) + math.log(2)) / 2
    assert bce(logits, negative_for_all, 2).item() == pytest.approx(by_hand)
    ignored = torch.tensor([[[1, 255]]])
    assert bce(logits, ignored, 1).item() == pytest.approx(2 * math.log(2))


def test_bce_stays_exact_for_extreme_logits():
    logits = torch.tensor([200.0, -200.0]).view(1, 2, 1, 1)
    assert bce(logits, torch.tensor([[[0]]]), 1).item() == 0
    assert bce(logits, torch.tensor([[[1]]]), 1).item() == 400


def test_step_0_is_plain_bce_over_all_channels():
    targets = uneven_targets().where(uneven_targets() != 5, torch.tensor(0))
    logits = [random(BATCH, 5, *CELLS, seed=20)]
    ours, plain = leaves(logits), leaves(logits, torch.float64)
    counts = Counts(float((targets != 255).sum()), 0, 0, 0)
    step_0 = base_methods()[METHODS["kproba"].base]
    losses = losses_of(step_0, outputs_of([], ours), targets, counts)
    assert list(losses) == ["bce"]
    expected = plain_bce_per_channel(plain[0], targets).sum()
    assert_same(losses["bce"], expected, ours, plain)


def test_full_bce_teaches_every_channel_like_the_plain_formula():
    targets, logits = uneven_targets(), branch_logits(30)
    ours, plain = leaves(logits), leaves(logits, torch.float64)
    count = float((targets != 255).sum())
    composed = plain_logits(plain)
    expected = plain_bce_per_channel(composed, targets).sum()
    assert_same(full_bce(ours, targets, count), expected, ours, plain)


def test_pb_bce_teaches_background_and_new_classes_like_the_plain_formula():
    targets, logits = uneven_targets(), branch_logits(40)
    ours, plain = leaves(logits), leaves(logits, torch.float64)
    value = pb_bce(ours, targets, float((targets != 255).sum()))
    per_channel = plain_bce_per_channel(plain_protected_logits(plain), targets)
    *old, newest = gradients(value, ours)
    assert all((gradient == 0).all() for gradient in old)
    assert (newest != 0).any(dim=(0, 2, 3)).all()
    torch.testing.assert_close(
        newest.double(), gradients(per_channel.sum(), plain)[-1], rtol=1e-5, atol=1e-7
    )
    # The value lacks the channels of old classes, which nothing can change.
    constant = per_channel[list(OLD)].sum().item()
    assert constant > 0.1
    assert value.item() + constant == pytest.approx(per_channel.sum().item(), rel=1e-5)


@pytest.mark.parametrize(("old", "fits"), [(248, True), (249, False), (995, False)])
def test_pb_bce_refuses_more_classes_than_targets_can_name(old, fits):
    logits = [torch.zeros(1, 1 + old, 2, 2), torch.zeros(1, 6, 2, 2)]
    targets = torch.full((1, 2, 2), min(old + 5, 253), dtype=torch.uint8)
    if fits:
        assert pb_bce(logits, targets, 4.0) == pytest.approx(6 * math.log(2))
        return
    with pytest.raises(ValueError, match=rf"at most 253 classes, .* got {old + 5}\."):
        pb_bce(logits, targets, 4.0)


def test_pb_bce_of_the_first_increment_has_one_old_branch():
    targets = uneven_targets()
    targets[(targets > 4) & (targets != 255)] = 4
    logits = [random(BATCH, 4, *CELLS, seed=50), random(BATCH, 2, *CELLS, seed=51)]
    ours, plain = leaves(logits), leaves(logits, torch.float64)
    value = pb_bce(ours, targets, float((targets != 255).sum()))
    composed = plain_protected_logits(plain)
    expected = plain_bce_per_channel(composed, targets)[[0, 4]].sum()
    assert_same(value, expected, ours, plain)


def test_bga_ce_pushes_background_down_on_new_classes():
    masks, counts = masks_and_counts(uneven_targets())
    r = random(BATCH, *CELLS, seed=60)
    ours, plain = leaves([r]), leaves([r], torch.float64)
    value = bga_ce(ours[0], masks.new, counts.new)
    assert_same(value, plain_bga_ce(plain[0], masks.new), ours, plain)


def test_background_may_fall_on_what_was_recognised_when_a_method_says_so():
    targets = uneven_targets()
    masks, counts = masks_and_counts(targets)
    assert 0 < counts.remaining < counts.background
    centres = F.interpolate(targets[:, None].float(), CELLS, mode="nearest-exact")
    assert torch.equal(masks.remaining, centres[:, 0] == 0)
    ours = leaves(branch_logits(75))
    plain = leaves(branch_logits(75), torch.float64)
    method = Method(losses={"bga_t_remaining": 5.0})
    losses = losses_of(method, outputs_of([], ours), targets, counts, masks)
    expected = 5 * plain_bga_t(plain[-1][:, 0], masks.remaining)
    assert_same(losses["bga_t"], expected, ours, plain)


def test_bga_t_stops_background_from_falling_on_background():
    masks, counts = masks_and_counts(uneven_targets())
    r = random(BATCH, *CELLS, seed=70)
    assert (r[masks.background] > 0).any() and (r[masks.background] < 0).any()
    ours, plain = leaves([r]), leaves([r], torch.float64)
    value = bga_t(ours[0], masks.background, counts.background)
    assert_same(value, plain_bga_t(plain[0], masks.background), ours, plain)


def test_gkd_sums_channels_and_branches_of_the_mean_over_cells():
    student, teacher = branch_logits(80)[:-1], branch_logits(90)[:-1]
    ours, plain = leaves(student), leaves(student, torch.float64)
    value = gkd(ours, teacher, BATCH * CELLS[0] * CELLS[1])
    expected = plain_gkd(plain, [z.double() for z in teacher])
    assert_same(value, expected, ours, plain)


def test_gkd_has_no_gradient_where_student_and_teacher_agree():
    student = leaves(branch_logits(80)[:-1])
    value = gkd(student, [z.detach().clone() for z in student], BATCH)
    assert value > 0
    for gradient in gradients(value, student):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient))


def test_bfd_is_the_mean_squared_error_on_background_summed_over_branches():
    masks, counts = masks_and_counts(uneven_targets())
    student, teacher = branch_blocks(100)[:-1], branch_blocks(110)[:-1]
    ours, plain = leaves(student), leaves(student, torch.float64)
    value = bfd(ours, teacher, masks.background, counts.background)
    expected = plain_bfd(plain, [g.double() for g in teacher], masks.background)
    assert_same(value, expected, ours, plain)


@pytest.mark.parametrize(
    ("term", "cells"), [("bga_t", "background"), ("bga_t_remaining", "remaining")]
)
@pytest.mark.parametrize("known", ["barm", "kproba"])
def test_the_terms_have_the_weights_of_the_paper(known, term, cells):
    weights = dict(METHODS[known].losses)
    assert "bga_t_remaining" not in weights
    weights[term] = weights.pop("bga_t")
    method = replace(METHODS[known], losses=weights)
    targets = uneven_targets()
    masks, counts = masks_and_counts(targets)
    blocks, logits, teacher = branch_blocks(200), branch_logits(210), teacher_outputs()
    ours, our_blocks = leaves(logits), leaves(blocks)
    student = outputs_of(our_blocks, ours)
    losses = losses_of(method, student, targets, counts, masks, teacher)
    plain, plain_blocks = leaves(logits, torch.float64), leaves(blocks, torch.float64)
    per_channel = plain_bce_per_channel(plain_protected_logits(plain), targets)
    teacher_logits = [z.double() for z in teacher.logits]
    teacher_blocks = [g.double() for g in teacher.blocks]
    expected = {
        "bce": per_channel[list(LEARNING)].sum(),
        "bga_ce": 1 * plain_bga_ce(plain[-1][:, 0], masks.new),
        "bga_t": 5 * plain_bga_t(plain[-1][:, 0], getattr(masks, cells)),
        "gkd": 1 * plain_gkd(plain[:-1], teacher_logits),
        "bfd": 4 * plain_bfd(plain_blocks[:-1], teacher_blocks, masks.background),
    }
    assert list(losses) == list(expected)
    for name, value in losses.items():
        assert_same(value, expected[name], ours + our_blocks, plain + plain_blocks)


def test_finetune_is_nothing_but_bce_over_all_channels():
    targets, logits = uneven_targets(), branch_logits(220)
    masks, counts = masks_and_counts(targets)
    ours, plain = leaves(logits), leaves(logits, torch.float64)
    outputs = outputs_of(branch_blocks(230), ours)
    finetune = METHODS["finetune"]
    losses = losses_of(finetune, outputs, targets, counts, masks, teacher_outputs())
    assert list(losses) == ["bce"]
    composed = plain_logits(plain)
    expected = plain_bce_per_channel(composed, targets).sum()
    assert_same(losses["bce"], expected, ours, plain)


@pytest.mark.parametrize("term", FURTHER)
def test_a_term_scales_with_its_own_weight_and_vanishes_at_zero(term):
    targets = uneven_targets()
    masks, counts = masks_and_counts(targets)
    outputs = outputs_of(branch_blocks(200), branch_logits(210))

    def losses(weight):
        method = Method(losses={**dict.fromkeys(FURTHER, 1.0), term: weight})
        return losses_of(method, outputs, targets, counts, masks, teacher_outputs())

    once, thrice, without = losses(1.0), losses(3.0), losses(0.0)
    assert set(without) == set(once) - {term}
    for name, value in once.items():
        factor = 3 if name == term else 1
        assert thrice[name].item() == pytest.approx(factor * value.item())
        assert value.item() > 0


def test_without_a_teacher_nothing_is_distilled():
    targets = uneven_targets()
    masks, counts = masks_and_counts(targets)
    outputs = outputs_of(branch_blocks(200), branch_logits(210))
    method = METHODS["kproba"]
    distilling = {name for name in method.losses if "teacher" in collect_needs([name])}
    assert distilling == {"gkd", "bfd"}
    for name in distilling:
        alone = Method(losses={name: 1.0})
        with pytest.raises(ValueError, match="Expected the outputs of a teacher"):
            losses_of(alone, outputs, targets, counts, masks)
    others = {n: w for n, w in method.losses.items() if n not in distilling}
    losses = losses_of(replace(method, losses=others), outputs, targets, counts, masks)
    assert set(losses) == {"bce", "bga_ce", "bga_t"}


def test_a_term_of_an_increment_is_refused_at_step_0():
    targets = uneven_targets()
    _, counts = masks_and_counts(targets)
    outputs = outputs_of(branch_blocks(200), branch_logits(210))
    for term in ("bga_ce", "bga_t", "bga_t_remaining"):
        with pytest.raises(ValueError, match="Expected M⁺ and M⁻"):
            losses_of(Method(losses={term: 1.0}), outputs, targets, counts)


@pytest.mark.parametrize("label", [0, FIRST_NEW, 255])
def test_an_empty_selection_contributes_zero(label):
    targets = torch.full((BATCH, *PIXELS), label, dtype=torch.uint8)
    masks, counts = masks_and_counts(targets)
    ours, our_blocks = leaves(branch_logits(240)), leaves(branch_blocks(250))
    student, method = outputs_of(our_blocks, ours), METHODS["kproba"]
    losses = losses_of(method, student, targets, counts, masks, teacher_outputs())
    empty = {
        0: {"bga_ce"},
        FIRST_NEW: {"bga_t", "bfd"},
        255: {"bce", "bga_ce", "bga_t", "bfd"},
    }[label]
    for name, value in losses.items():
        assert value.isfinite()
        assert (value == 0) == (name in empty)
        found = gradients(value, ours + our_blocks)
        assert all(gradient.isfinite().all() for gradient in found)
        assert any(gradient.any() for gradient in found) == (name not in empty)


@pytest.mark.parametrize("term", [full_bce, pb_bce])
def test_an_ignored_image_adds_nothing_to_the_cross_entropy(term):
    targets, logits = uneven_targets(), branch_logits(260)
    count = float((targets != 255).sum())
    assert (targets[1] == 255).all()
    others = [0, 2, 3]
    alone = term([z[others] for z in logits], targets[others], count)
    torch.testing.assert_close(term(logits, targets, count), alone)


@pytest.mark.parametrize("parts", [[[0], [1, 2, 3]], [[0, 1], [2], [3]]])
def test_micro_batches_add_up_to_the_global_batch(parts):
    targets, teacher = uneven_targets(), teacher_outputs()
    masks, counts = masks_and_counts(targets)
    whole, whole_blocks = leaves(branch_logits(270)), leaves(branch_blocks(280))
    split, split_blocks = leaves(whole), leaves(whole_blocks)
    method = METHODS["kproba"]

    student = outputs_of(whole_blocks, whole)
    losses = losses_of(method, student, targets, counts, masks, teacher)
    sum(losses.values()).backward()
    sums = dict.fromkeys(losses, 0.0)
    for part in parts:
        partial = losses_of(
            method,
            part_of(outputs_of(split_blocks, split), part),
            targets[part],
            counts,
            Masks(*(mask[part] for mask in masks)),
            part_of(outputs_of(teacher.blocks, teacher.logits), part),
        )
        sum(partial.values()).backward()
        sums = {name: sums[name] + partial[name].item() for name in sums}

    assert sums == pytest.approx({n: v.item() for n, v in losses.items()}, rel=1e-5)
    # The newest block is distilled by nothing, so it gets no gradient from the losses.
    together = zip(whole + whole_blocks[:-1], split + split_blocks[:-1], strict=True)
    for one, other in together:
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-7)
        assert one.grad.any()


@pytest.mark.parametrize("name", ["kproba", "finetune"])
def test_logits_in_half_precision_are_summed_in_single_precision(name):
    targets = uneven_targets()
    masks, counts = masks_and_counts(targets)
    halves = outputs_of(
        [g.bfloat16() for g in branch_blocks(200)],
        [z.bfloat16() for z in branch_logits(210)],
    )
    singles = outputs_of(
        [g.float() for g in halves.blocks], [z.float() for z in halves.logits]
    )
    method, teacher = METHODS[name], teacher_outputs()
    rounded = losses_of(method, halves, targets, counts, masks, teacher)
    exact = losses_of(method, singles, targets, counts, masks, teacher)
    for term, value in rounded.items():
        assert value.dtype == torch.float32
        # Only the background's sum of logits is rounded to eight bits.
        assert value.item() == pytest.approx(exact[term].item(), rel=2e-3)


@pytest.mark.parametrize(
    ("sequential", "background"),
    [(False, [[False, True], [True, False]]), (True, [[False, True], [False, False]])],
)
def test_cells_take_the_label_of_their_centre_pixel(sequential, background):
    # Cells of 4×4 pixels: new | background above old | ignored, contradicted around.
    targets = torch.tensor([[0, 5], [5, 0]]).repeat_interleave(4, 0)
    targets = targets.repeat_interleave(4, 1)[None].to(torch.uint8)
    targets[0, 2, 2], targets[0, 2, 6], targets[0, 6, 2], targets[0, 6, 6] = (
        4,
        0,
        3,
        255,
    )
    masks = cell_masks(targets, FIRST_NEW, (2, 2), sequential=sequential)
    assert masks.new.tolist() == [[[True, False], [False, False]]]
    assert masks.background.tolist() == [background]


def test_cells_of_a_size_that_does_not_divide_the_image():
    # Five pixels in two cells: the centres 1.25 and 3.75 lie in the pixels 1 and 3.
    targets = torch.full((1, 5, 5), 255, dtype=torch.uint8)
    targets[0, 1, 1], targets[0, 3, 3] = 4, 0
    masks = cell_masks(targets, FIRST_NEW, (2, 2), sequential=False)
    assert masks.new.tolist() == [[[True, False], [False, False]]]
    assert masks.background.tolist() == [[[False, False], [False, True]]]


def test_the_first_and_the_last_class_of_a_step_are_new():
    targets = torch.tensor([[[3, 4, 5]]], dtype=torch.uint8)
    masks = cell_masks(targets, FIRST_NEW, (1, 3), sequential=False)
    assert masks.new.tolist() == [[[False, True, True]]]
    assert masks.background.tolist() == [[[True, False, False]]]
