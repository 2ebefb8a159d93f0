"""The loss terms, each a plain function of tensors.

Every term is a sum divided by a count that the caller names. The loop passes counts of
the whole global batch, so that processes and micro-batches add up to exactly the mean
over the global batch, however unevenly new classes and background are spread over them.
An empty selection has the sum 0 and contributes 0, never NaN.

Symbols: z logits, y raw label (0: background, old or future), ŷ pseudo-labelled target,
M⁺ = {y ∉ {0, 255}}, M⁻ = {y = 0}, r_t the background adaptation of the newest branch.
Sources, in this order: Zhang & Gao, ECCV 2024 (arXiv 2407.09838); Li & Hoiem, ECCV
2016 (arXiv 1606.09282, LwF); Cermelli et al., CVPR 2020 (arXiv 2002.00718, MiB);
Douillard et al., CVPR 2021 (arXiv 2011.11390, PLOP); docs/method.md.
"""

import torch

from kproba.methods.losses.barm import bfd, bga_ce, bga_t, gkd, pb_bce
from kproba.methods.losses.case import Case, Counts, Masks
from kproba.methods.losses.cross_entropy import (
    ce,
    full_bce,
    full_logits,
    unbiased_ce,
)
from kproba.methods.losses.distillation import kd, unbiased_kd
from kproba.methods.losses.pod import pod_terms
from kproba.methods.method import Method
from kproba.network.network import Outputs


def step_losses(
    student: Outputs,
    teacher: Outputs | None,
    targets: torch.Tensor,
    masks: Masks | None,
    counts: Counts,
    method: Method,
    certainty: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """The weighted terms of one micro-batch; their sum is the loss.

    Args:
        student: As in `Case`, from here on.
        teacher: None at step 0 too.
        targets: ŷ.
        masks: None at step 0.
        counts: Denominators.
        method: Which terms, with which weights.
        certainty: ν.
    """
    if masks is None:
        if method.softmax:
            return {"ce": ce(full_logits(student, targets), targets, counts.pixels)}
        return {"bce": full_bce(student.logits, targets, counts.pixels)}
    case = Case(student, teacher, targets, masks, counts, certainty)
    terms = softmax_terms if method.softmax else branch_terms
    return {**terms(case, method), **pod_terms(case, method)}


def branch_terms(case: Case, method: Method) -> dict[str, torch.Tensor]:
    """The terms of an increment whose network has a branch per step."""
    student, teacher, targets, masks, counts, _ = case
    weights = method.losses
    cross_entropy = pb_bce if method.cross_entropy == "protected_bce" else full_bce
    losses = {"bce": cross_entropy(student.logits, targets, counts.pixels)}
    adaptation = student.logits[-1][:, 0]
    if weights.bga_ce:
        term = bga_ce(adaptation, masks.new, counts.new)
        losses["bga_ce"] = weights.bga_ce * term
    if weights.bga_t:
        if method.keeps_background == "raw":
            term = bga_t(adaptation, masks.background, counts.background)
        else:
            term = bga_t(adaptation, masks.remaining, counts.remaining)
        losses["bga_t"] = weights.bga_t * term
    if teacher is not None and weights.gkd:
        term = gkd(student.logits[:-1], teacher.logits, counts.cells)
        losses["gkd"] = weights.gkd * term
    if teacher is not None and weights.bfd:
        term = bfd(
            student.blocks[:-1], teacher.blocks, masks.background, counts.background
        )
        losses["bfd"] = weights.bfd * term
    return losses


def softmax_terms(case: Case, method: Method) -> dict[str, torch.Tensor]:
    """The terms of an increment whose network ends in a softmax, at full resolution."""
    student, teacher, targets, _, counts, certainty = case
    weights = method.losses
    logits = full_logits(student, targets)
    old = 1 + sum(z.shape[1] - 1 for z in student.logits[:-1])
    if method.cross_entropy == "unbiased_ce":
        losses = {"ce": unbiased_ce(logits, targets, old, counts.pixels)}
    elif certainty is not None:  # over all pixels, also those it is not sure of
        losses = {"ce": ce(logits, targets, counts.area, certainty)}
    else:
        losses = {"ce": ce(logits, targets, counts.pixels)}
    if teacher is not None and (weights.kd or weights.unbiased_kd):
        taught = full_logits(teacher, targets)
        if weights.kd:
            losses["kd"] = weights.kd * kd(logits, taught, counts.area)
        if weights.unbiased_kd:
            term = unbiased_kd(logits, taught, counts.area)
            losses["unbiased_kd"] = weights.unbiased_kd * term
    return losses
