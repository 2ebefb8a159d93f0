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

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from kproba.methods import Method
from kproba.model import Outputs, compose_logits, training_background, upsample
from kproba.splits import IGNORE


class Masks(NamedTuple):
    """Where the terms of an increment look, at feature resolution (B, h, w) bool.

    Attributes:
        new: M⁺, cells whose raw label is a class of C_t.
        background: M⁻, cells whose raw label is 0.
        remaining: Cells of M⁻ whose pseudo label is 0 too.
    """

    new: torch.Tensor
    background: torch.Tensor
    remaining: torch.Tensor


class Counts(NamedTuple):
    """Denominators over the global batch."""

    pixels: float  # pixels that are not 255
    new: float  # cells of M⁺
    background: float  # cells of M⁻
    cells: float  # all cells
    images: float = 0
    area: float = 0  # all pixels, those that are 255 too
    remaining: float = 0  # cells of M⁻ whose pseudo label is 0


def cell_masks(
    targets: torch.Tensor, first_new: int, size: Sequence[int], *, sequential: bool
) -> Masks:
    """M⁺ and M⁻ at feature resolution, nearest neighbour (the cell's centre pixel).

    A pseudo-labelled target names old classes only where the raw label is 0, so the
    masks can be read from it. Unsure pixels (255 by now) are in none.

    Args:
        targets: ŷ, (B, H, W) uint8.
        first_new: Output index of the first class of C_t.
        size: (h, w).
        sequential: Old classes in the target are true labels (setting "sequential"),
            not pseudo labels; they belong to neither mask.
    """
    cells = F.interpolate(targets[:, None].float(), tuple(size), mode="nearest-exact")
    cells = cells[:, 0]
    new = (cells >= first_new) & (cells != IGNORE)
    remaining = cells == 0
    background = remaining if sequential else cells < first_new
    return Masks(new, background, remaining)


def bce(logits: torch.Tensor, channels: torch.Tensor, count: float) -> torch.Tensor:
    """Per-pixel binary cross-entropy, summed over channels, mean over valid pixels.

    Σ_c softplus(z_c) - z_target, which equals BCE against the one-hot target without
    building it. A pixel of a class that has no channel here is negative for all.

    Args:
        logits: (B, K, H, W), K channels.
        channels: (B, H, W) int64: the positive channel, K for a pixel that is negative
            for all channels, 255 for ignored pixels.
        count: Denominator, valid pixels.
    """
    valid = channels != IGNORE
    negative = F.softplus(logits).sum(dim=1)
    chosen = channels.clamp(max=logits.shape[1] - 1)
    positive = logits.gather(1, chosen[:, None])[:, 0]
    positive = positive * (channels < logits.shape[1])
    return ((negative - positive) * valid).sum() / max(count, 1)


def pb_bce(
    logits: Sequence[torch.Tensor], targets: torch.Tensor, count: float
) -> torch.Tensor:
    """BCE over S_t against ŷ where only background and C_t learn (PB-BCE).

    The logits of old classes carry no gradient, so their channels, a constant for the
    optimiser, are neither upsampled nor added to the value.

    Args:
        logits: z_k of the branches 0..t, each (B, 1 + |C_k|, h, w).
        targets: ŷ in output indices, (B, H, W) uint8, 255 ignored.
        count: Valid pixels.
    """
    new = logits[-1].shape[1] - 1
    first_new = 1 + sum(z.shape[1] - 1 for z in logits[:-1])
    logits = [z.float() for z in logits]  # sums of logits want all their digits
    background = training_background(logits)
    live = torch.cat([background, logits[-1][:, 1:]], dim=1)
    live = upsample(live, targets.shape[-2:])
    return bce(live, _live_channels(targets, first_new, new), count)


def _live_channels(targets: torch.Tensor, first_new: int, new: int) -> torch.Tensor:
    """Output index to channel among [background, C_t]; 1 + new for old classes."""
    table = torch.full((256,), 1 + new, device=targets.device)
    table[0] = 0
    table[first_new : first_new + new] = torch.arange(1, 1 + new)
    table[IGNORE] = IGNORE
    return table[targets.long()]


def full_bce(
    logits: Sequence[torch.Tensor], targets: torch.Tensor, count: float
) -> torch.Tensor:
    """BCE over S_t against the target, every channel learns (step 0, fine-tuning).

    The background's logit is the one of inference. Arguments as in `pb_bce`.
    """
    live = compose_logits([z.float() for z in logits])
    live = upsample(live, targets.shape[-2:])
    return bce(live, targets.long(), count)


def bga_ce(adaptation: torch.Tensor, new: torch.Tensor, count: float) -> torch.Tensor:
    """On M⁺, BCE(r_t → 0) = softplus(r_t): where a new class is, background falls.

    Args:
        adaptation: r_t, (B, h, w) logits.
        new: M⁺, (B, h, w) bool.
        count: |M⁺|.
    """
    return (F.softplus(adaptation.float()) * new).sum() / max(count, 1)


def bga_t(
    adaptation: torch.Tensor, background: torch.Tensor, count: float
) -> torch.Tensor:
    """On M⁻, max(0, (σ(r_t) - 1)² - σ(r_t)²): background must not be pulled down.

    Arguments as in `bga_ce`, with M⁻.
    """
    probability = adaptation.float().sigmoid()
    triplet = ((probability - 1).square() - probability.square()).clamp(min=0)
    return (triplet * background).sum() / max(count, 1)


def gkd(
    student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor], count: float
) -> torch.Tensor:
    """Distillation of the old branches' logits.

    Σ_{k<t} Σ_channels mean_{batch, space} BCE(z_k → σ(z_k of the teacher)).

    Args:
        student: z_k of the old branches, each (B, 1 + |C_k|, h, w).
        teacher: The same of the teacher.
        count: B·h·w.
    """
    terms = [
        F.binary_cross_entropy_with_logits(
            own.float(), other.float().sigmoid(), reduction="sum"
        )
        for own, other in zip(student, teacher, strict=True)
    ]
    return torch.stack(terms).sum() / max(count, 1)


def bfd(
    student: Sequence[torch.Tensor],
    teacher: Sequence[torch.Tensor],
    background: torch.Tensor,
    count: float,
) -> torch.Tensor:
    """Distillation of the old branches' block features on M⁻.

    Σ_{k<t} mean_{M⁻, channels} (g_k - g_k of the teacher)².

    Args:
        student: g_k of the old branches, each (B, A, h, w).
        teacher: The same of the teacher.
        background: M⁻, (B, h, w) bool.
        count: |M⁻|.
    """
    terms = [
        ((own.float() - other.float()).square().mean(dim=1) * background).sum()
        for own, other in zip(student, teacher, strict=True)
    ]
    return torch.stack(terms).sum() / max(count, 1)


def ce(
    logits: torch.Tensor,
    targets: torch.Tensor,
    count: float,
    certainty: torch.Tensor | None = None,
) -> torch.Tensor:
    """Softmax cross-entropy over S_t against ŷ, -log softmax(z)_ŷ.

    Args:
        logits: z over S_t, (B, |S_t|, H, W).
        targets: ŷ in output indices, (B, H, W) uint8, 255 ignored.
        count: Denominator.
        certainty: ν, a factor per image (B,); None for 1 (PLOP).
    """
    loss = F.cross_entropy(
        logits, targets.long(), ignore_index=IGNORE, reduction="none"
    )
    if certainty is not None:
        loss = loss * certainty[:, None, None]
    return loss.sum() / max(count, 1)


def unbiased_ce(
    logits: torch.Tensor, targets: torch.Tensor, old: int, count: float
) -> torch.Tensor:
    """Softmax cross-entropy in which background may be any old class (MiB).

    Where ŷ = 0: -log Σ_{c < old} softmax(z)_c, elsewhere -log softmax(z)_ŷ.

    Args:
        logits: z over S_t, (B, |S_t|, H, W).
        targets: ŷ in output indices, (B, H, W) uint8, 255 ignored.
        old: |S_{t-1}|, background included.
        count: Valid pixels.
    """
    log_p = logits.log_softmax(dim=1)
    background = log_p[:, :old].logsumexp(dim=1, keepdim=True)
    log_p = torch.cat([background, log_p[:, 1:]], dim=1)
    loss = F.nll_loss(log_p, targets.long(), ignore_index=IGNORE, reduction="none")
    return loss.sum() / max(count, 1)  # summed so, it is deterministic on a GPU


def kd(
    student: torch.Tensor,
    teacher: torch.Tensor,
    count: float,
    temperature: float = 2.0,
) -> torch.Tensor:
    """Cross-entropy of the softened softmax over S_{t-1} (LwF, equations 2 to 4).

    -Σ_c q_c log p_c, with p and q the softmax of z/T of student and teacher.

    Args:
        student: z over S_t, (B, |S_t|, H, W); the new classes are left out.
        teacher: z over S_{t-1}, (B, |S_{t-1}|, H, W).
        count: Pixels.
        temperature: T.
    """
    old = teacher.shape[1]
    log_p = (student[:, :old] / temperature).log_softmax(dim=1)
    q = (teacher / temperature).softmax(dim=1)
    return -(q * log_p).sum() / max(count, 1)


def unbiased_kd(
    student: torch.Tensor, teacher: torch.Tensor, count: float
) -> torch.Tensor:
    """Distillation in which new classes count as background (MiB).

    -1/|S_{t-1}| Σ_c q_c log p̂_c, with q the teacher's softmax, p the student's, and
    p̂_0 = p_0 + Σ_{c new} p_c, p̂_c = p_c for the old classes.

    Args:
        student: z over S_t, (B, |S_t|, H, W).
        teacher: z over S_{t-1}, (B, |S_{t-1}|, H, W).
        count: Pixels.
    """
    old = teacher.shape[1]
    log_p = student.log_softmax(dim=1)
    background = torch.cat([log_p[:, :1], log_p[:, old:]], dim=1)
    background = background.logsumexp(dim=1, keepdim=True)
    log_p = torch.cat([background, log_p[:, 1:old]], dim=1)
    return -(teacher.softmax(dim=1) * log_p).sum() / old / max(count, 1)


POD_SCALES = (1, 2, 4)


def local_pod(features: torch.Tensor) -> torch.Tensor:
    """Squared features, averaged over width and over height of every region.

    The map is cut into s × s regions for s = 1, 2, 4 (PLOP, Local POD). Cells
    that are left over when s does not divide a side belong to no region.

    Args:
        features: (B, C, h, w).

    Returns:
        (B, Σ_s s² C (h_s + w_s)), h_s and w_s being the sides of a region.
    """
    squares = features.float().square()
    parts = []
    for scale in POD_SCALES:
        height, width = (extent // scale for extent in features.shape[-2:])
        if not height or not width:
            continue  # a map smaller than the grid
        cut = squares[..., : height * scale, : width * scale]
        regions = cut.unflatten(-1, (scale, width)).unflatten(-3, (scale, height))
        parts += [regions.mean(dim=-1).flatten(1), regions.mean(dim=-3).flatten(1)]
    return torch.cat(parts, dim=1)


def pod(
    student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor], count: float
) -> torch.Tensor:
    """Distance of the local PODs, 1/L Σ_l ‖Φ(f_l) - Φ(f_l of the teacher)‖.

    Args:
        student: L feature maps, each (B, C, h, w).
        teacher: The same of the teacher.
        count: Images.
    """
    terms = [
        torch.linalg.vector_norm(local_pod(own) - local_pod(other), dim=1).sum()
        for own, other in zip(student, teacher, strict=True)
    ]
    return torch.stack(terms).sum() / len(terms) / max(count, 1)


def logits_for_pod(logits: torch.Tensor, old: int) -> torch.Tensor:
    """Logits over S_t to S_{t-1}: those of new classes are added to background's."""
    new = logits[:, old:].sum(dim=1, keepdim=True)
    return torch.cat([logits[:, :1] + new, logits[:, 1:old]], dim=1)


class Case(NamedTuple):
    """One micro-batch as the terms of an increment see it.

    Attributes:
        student: Outputs of the network that trains.
        teacher: Outputs of step t-1's network; None if nothing is distilled.
        targets: ŷ, (B, H, W) uint8, 255 ignored.
        masks: M⁺ and M⁻.
        counts: Denominators.
        certainty: Share of each image's background that the pseudo labels are sure of,
            (B,); None where that does not matter.
    """

    student: Outputs
    teacher: Outputs | None
    targets: torch.Tensor
    masks: Masks
    counts: Counts
    certainty: torch.Tensor | None = None


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


def pod_terms(case: Case, method: Method) -> dict[str, torch.Tensor]:
    """Local POD of stages, first block and logits; more, the fewer classes are new.

    Each is a share of the mean over all L maps and grows with √(|S_t| / |C_t|), as in
    the authors' code.
    """
    student, teacher, _, _, counts, _ = case
    weights = method.losses
    if teacher is None or not (weights.pod or weights.pod_logits):
        return {}
    own = [*student.stages, student.blocks[0]]
    other = [*teacher.stages, teacher.blocks[0]]
    new = student.logits[-1].shape[1] - 1
    classes = 1 + sum(z.shape[1] - 1 for z in student.logits)
    schedule, maps = math.sqrt(classes / new), len(own) + 1
    losses = {}
    if weights.pod:
        term = pod(own, other, counts.images) * len(own) / maps
        losses["pod"] = weights.pod * schedule * term
    if weights.pod_logits:
        logits, taught = (
            compose_logits([z.float() for z in outputs.logits])
            for outputs in (student, teacher)
        )
        logits = logits_for_pod(logits, classes - new)
        term = pod([logits], [taught], counts.images) / maps
        losses["pod_logits"] = weights.pod_logits * schedule * term
    return losses


def full_logits(outputs: Outputs, targets: torch.Tensor) -> torch.Tensor:
    """Logits over all classes at the targets' size, (B, |S|, H, W) float32."""
    logits = compose_logits([z.float() for z in outputs.logits])
    return upsample(logits, targets.shape[-2:])
