"""Group "evaluation": a test against its forward passes."""

import torch

from benchmarks.inputs import CROP, images_of, network_of, targets_of
from benchmarks.measuring import Result, compare
from kproba.bank.predictor import NetworkPredictor
from kproba.data.loaders import Batch
from kproba.results.evaluation import EvaluationSettings, evaluate


def evaluation() -> list[Result]:
    """Forward, upsampling, argmax and confusion matrix against the forward alone."""
    network = network_of("efficientnet_lite0")
    images, targets = images_of(4, CROP), targets_of(4, CROP, 21)

    @torch.inference_mode()
    def forward() -> object:
        return [network(image[None]) for image in images]

    settings = EvaluationSettings("ssul", False, None)
    batches = [
        Batch(image[None], target[None], ["x"], torch.zeros(1))
        for image, target in zip(images, targets, strict=True)
    ]

    def test() -> object:
        predictor = NetworkPredictor(network)
        return evaluate(predictor, batches, settings, channel_order=range(21))

    ratio, own, other = compare(test, forward)
    return [
        Result(
            "evaluation / forward alone",
            ratio,
            "≤ 1.1",
            f"{own:.2f} s / {other:.2f} s, EfficientNet-Lite0, 4 × {CROP}², 21 classes",
        )
    ]
