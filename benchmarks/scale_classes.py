"""What `benchmarks.scale` measures of the stages that grow with the number of classes.

Some parts take any number of classes, also more than the 253 that masks can name. Where
labels are bytes, more are refused (`kproba.data.labels.check_room_for_classes`). Inputs
are random features and blocks of classes; networks are not trained. Everything is on
one thread. Each function returns the work, with its inputs already made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from benchmarks.scale_works import Work
    from kproba.bank.bank import PrototypeBank
    from kproba.bank.build import FeatureBatch
    from kproba.bank.fusion import Combination
    from kproba.network.network import Outputs, SegmentationNetwork

BACKBONE = "efficientnet_lite0"
WIDTH = 320  # channels of its features
SIDE = 128  # pixels of a picture
CELLS = SIDE // 16
BANK_BATCHES, BANK_IMAGES, BANK_CELLS = 8, 8, 32  # 65,536 cells
BATCH = 4  # pictures of an iteration
TESTED = 16  # pictures of an evaluation
NEW = 5  # classes of the step that is trained


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    import torch

    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _labels(channels: int, *shape: int, seed: int = 0) -> torch.Tensor:
    """Labels 0..channels-1 in blocks, int64; 255 is ignored, so no class has it."""
    import torch
    import torch.nn.functional as F

    count, *size = shape
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, channels, (count, 1, 8, 8), generator=generator)
    coarse[coarse == 255] = 0
    return F.interpolate(coarse.double(), size)[:, 0].long()


def _batches(classes: int) -> Iterator[FeatureBatch]:
    """Features with labels of all classes, as `FeatureBatch`."""
    from kproba.bank.build import FeatureBatch

    shape = BANK_IMAGES, BANK_CELLS, BANK_CELLS
    for number in range(BANK_BATCHES):
        features = _random(BANK_IMAGES, WIDTH, BANK_CELLS, BANK_CELLS, seed=number)
        labels = _labels(1 + classes, *shape, seed=number)
        keys = range(number * BANK_IMAGES, (number + 1) * BANK_IMAGES)
        yield FeatureBatch(features, labels, keys)


def build_bank(classes: int) -> Work:
    """Sample and statistics of a bank by LDA, as the default has it."""
    import torch

    from kproba.bank.build import build_bank, draw_sample
    from kproba.bank.settings import BankSettings

    torch.set_num_threads(1)
    settings = BankSettings("backbone", "identity", True, 0.1, 1000)
    batches = list(_batches(classes))

    def work() -> PrototypeBank:
        images = BANK_BATCHES * BANK_IMAGES
        sample = draw_sample(batches, settings, images=images, seed=0)
        return build_bank(batches, sample, settings, classes=1 + classes, seed=0)

    return work


def _bank(classes: int) -> PrototypeBank:
    """A bank with statistics of all classes, made up in float64 as `build_bank` has."""
    import torch

    from kproba.bank.bank import PrototypeBank
    from kproba.bank.settings import BankSettings

    torch.set_num_threads(1)
    channels = 1 + classes
    share = torch.full((channels,), 1 / channels, dtype=torch.float64)
    return PrototypeBank(
        settings=BankSettings("backbone", "identity", True, 0.1, 1000),
        seed=0,
        gamma=None,
        centre=torch.zeros(WIDTH),
        spread=torch.ones(WIDTH),
        count=share * 10_000,
        share=share,
        means=[_random(channels, WIDTH).double()],
        scatter=[10_000 * torch.eye(WIDTH, dtype=torch.float64)],
        scatter_count=10_000.0,
        temperature=1.0,
    )


def log_posterior(classes: int) -> Work:
    """Log q of 16,384 cells."""
    bank, cells = _bank(classes), _random(16_384, WIDTH)
    return lambda: bank.log_posterior(cells)


def _decided(classes: int) -> tuple[SegmentationNetwork, Combination, Outputs]:
    """A network, a bank that decides with it, and outputs for one picture."""
    from benchmarks.inputs import network_of
    from kproba.bank.decision import Decision
    from kproba.bank.fusion import Combination
    from kproba.network.network import Outputs

    combination = Combination(_bank(classes), Decision())
    network = network_of(BACKBONE, classes)
    logits = _random(1, 1 + classes, CELLS, CELLS, seed=1)
    return (
        network,
        combination,
        Outputs(_random(1, WIDTH, CELLS, CELLS), [], [logits]),
    )


def scores(classes: int) -> Work:
    """Log s of all classes for every pixel, with the prior of the image."""
    from kproba.bank.fusion import pixel_log_probabilities

    network, combination, outputs = _decided(classes)
    size = SIDE, SIDE

    def work() -> torch.Tensor:
        log_p = pixel_log_probabilities(network, outputs, size)
        log_q = combination.log_evidence_of_pixels(outputs, size)
        return combination.fit(combination.log_scores(log_p, log_q))

    return work


def likeliest(classes: int) -> Work:
    """The label of every pixel, by the same rule."""
    from kproba.bank.likeliest import likeliest_classes
    from kproba.bank.views import View

    network, combination, outputs = _decided(classes)
    view = View((slice(None),), (SIDE, SIDE), outputs, outputs)
    return lambda: likeliest_classes(network, combination, view)


def pseudo_labels(classes: int) -> Work:
    """Pseudo labels of pictures, with the network that makes its features."""
    from benchmarks.inputs import images_of
    from kproba.methods.labels import Labeller, LabelSettings

    network, combination, _ = _decided(classes)
    settings = LabelSettings("lda", decision=combination.decision)
    labeller, images = Labeller(network, settings, combination), images_of(BATCH, SIDE)
    return lambda: labeller.label(images)


def _networks(classes: int) -> tuple[SegmentationNetwork, SegmentationNetwork]:
    """Teacher and student of a step with the last `NEW` classes."""
    import torch

    from benchmarks.inputs import network_of
    from kproba.network.network import add_branch

    torch.set_num_threads(1)
    teacher = network_of(BACKBONE, classes - NEW)
    student = add_branch(teacher, NEW, seed=0).requires_grad_(True)
    student.set_training_mode(batch_norm=False)
    student.dropout.keys = torch.arange(BATCH)
    return teacher, student


def head(classes: int) -> Work:
    """ASPP and head of an iteration, forward and backward, without losses."""
    import torch

    _, student = _networks(classes)
    features = _random(BATCH, WIDTH, CELLS, CELLS)

    def work() -> None:
        logits = student.heads(features).logits
        torch.stack([part.square().sum() for part in logits]).sum().backward()

    return work


def iteration(classes: int) -> Work:
    """ASPP, head and losses of an iteration, forward and backward."""
    import torch

    from kproba.methods.builtin import METHODS
    from kproba.methods.losses.case import Case, Counts, cell_masks
    from kproba.methods.losses.step import step_losses

    teacher, student = _networks(classes)
    features = _random(BATCH, WIDTH, CELLS, CELLS)
    targets = _labels(1 + classes, BATCH, SIDE, SIDE)
    targets[:, : SIDE // 4] = classes
    masks = cell_masks(targets, 1 + classes - NEW, (CELLS, CELLS), sequential=False)
    sums: dict[str, Any] = {
        "pixels": targets.ne(255).sum(),
        "new": masks.new.sum(),
        "background": masks.background.sum(),
        "cells": masks.new.numel(),
        "remaining": masks.remaining.sum(),
    }
    counts = Counts(**{key: float(value) for key, value in sums.items()})

    def work() -> float:
        with torch.no_grad():
            taught = teacher.heads(features)
        case = Case(student.heads(features), targets, counts, masks, taught)
        terms: dict[str, Any] = step_losses(case, METHODS["kproba"].terms)
        loss = torch.stack(list(terms.values())).sum()
        loss.backward()
        return float(loss.detach())

    return work


def confusion(classes: int) -> Work:
    """The counts of an evaluation, and all its measures."""
    import torch

    from kproba.results.evaluation import confusion_matrix, means

    torch.set_num_threads(1)
    truth = _labels(1 + classes, TESTED, SIDE, SIDE)
    predicted = _labels(1 + classes, TESTED, SIDE, SIDE, seed=1)
    steps = [0] * (1 + classes - NEW) + [1] * NEW

    def work() -> dict[str, float]:
        total = torch.zeros(1 + classes, 1 + classes, dtype=torch.int64)
        for true, found in zip(truth.split(4), predicted.split(4), strict=True):
            total += confusion_matrix(true, found, 1 + classes)
        return means(total.numpy(), steps, "ssul")

    return work
