"""Groups "evaluation", "two-networks" and "sizes": work on whole pictures."""

import statistics
from functools import partial

import torch

from benchmarks.case import Case, two_networks
from benchmarks.inferring import (
    FORWARD,
    LDA,
    LONG,
    WORKS,
    batches_of,
    forward,
    many_sizes,
    noise_bank,
    test,
    works_of,
)
from benchmarks.inputs import CROP, images_of, network_of, targets_of
from benchmarks.measuring import Result, compare
from kproba.bank.decision import Decision
from kproba.bank.predictor import FusedPredictor, NetworkPredictor
from kproba.data.canvases import Size
from kproba.data.loaders import Batch
from kproba.results.evaluation import EvaluationSettings, evaluate


def evaluation() -> list[Result]:
    """Whole evaluation with confusion matrix, compared with the forward pass alone."""
    network = network_of("efficientnet_lite0")
    batches = _single_images(4, 21)

    @torch.inference_mode()
    def forward_alone() -> object:
        return [network(batch.images) for batch in batches]

    settings = EvaluationSettings("ssul", False, None)

    def test_alone() -> object:
        predictor = NetworkPredictor(network)
        return evaluate(predictor, batches, settings, channel_order=range(21))

    ratio, own, other = compare(test_alone, forward_alone)
    return [
        Result(
            "evaluation / forward alone",
            ratio,
            "≤ 1.1",
            f"{own:.2f} s / {other:.2f} s, EfficientNet-Lite0, 4 × {CROP}², 21 classes",
        )
    ]


def _single_images(count: int, classes: int, size: int = CROP) -> list[Batch]:
    """Pictures of noise, one by one."""
    images, targets = images_of(count, size), targets_of(count, size, classes)
    return [
        Batch(image[None], target[None], ["x"], torch.zeros(1, dtype=torch.long))
        for image, target in zip(images, targets, strict=True)
    ]


def two_networks_and_bank() -> list[Result]:
    """Evaluation with a network and the bank of another network."""
    settings = [("EfficientNet-Lite0", "efficientnet_lite0", 21, 4)]
    settings += [("ResNet-50", "resnet50", 101, 2)]
    return [_two_networks(*each) for each in settings]


def _two_networks(
    title: str, backbone: str, classes: int, count: int, size: int = CROP
) -> Result:
    case = Case("cpu", backbone, crop=size)
    network, other = two_networks(case, classes - 1)
    bank = noise_bank(case, classes, network.backbone.channels, LDA)
    predictor = FusedPredictor(network, bank, Decision("lda"), other)
    batches = _single_images(count, classes, size)
    ratio, own, one = compare(
        partial(test, case, predictor, batches, classes),
        partial(forward, case, network, batches),
    )
    return Result(
        "test with two networks and LDA / forward passes of one network",
        ratio,
        "≤ 2.2",
        f"{own:.2f} s / {one:.2f} s, {title}, {count} × {size}², {classes} classes",
    )


def sizes(
    count: int = 60, different: int = 40, long: int = LONG, repeats: int = 3
) -> list[Result]:
    """Bank, pseudo labels and evaluation, for pictures of many sizes or one size."""
    case = Case("cpu", "efficientnet_lite0", crop=129, repeats=repeats)
    several = many_sizes(count, long, different)
    one = [Size(3 * long // 4, long)] * count
    batches = partial(batches_of, case, batch_size=8, classes=21)
    works = works_of(case, batches(several, "own sizes"), 21)
    alone = works_of(case, batches(one, "one size"), 21)[FORWARD]
    names = WORKS[1:-1]  # all with one network
    sides = {FORWARD: alone, **{name: works[name] for name in names}}
    for side in sides.values():
        side()
    rounds = [{n: case.seconds(w) for n, w in sides.items()} for _ in range(repeats)]
    pixels = sum(h * w for h, w in several) / sum(h * w for h, w in one)
    lines = []
    for name in names:
        own = statistics.median(each[name] for each in rounds)
        base = statistics.median(each[FORWARD] for each in rounds)
        lines.append(
            Result(
                f"{name}, {count} pictures of {len(set(several))} sizes / forward "
                f"passes of as many of one size",
                statistics.median(each[name] / each[FORWARD] for each in rounds),
                "≤ 1.3",
                f"{own:.2f} s / {base:.2f} s, EfficientNet-Lite0, long side {long}, "
                f"{pixels:.2f} times the pixels",
            )
        )
    return lines
