"""Bank and test on a GPU against the forward passes alone, and the training loader."""

import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.case import Case, line, say, table, two_networks
from benchmarks.inferring import LDA, build_from, forward, noise_bank, test
from benchmarks.inputs import images_of, photographs, targets_of
from kproba.bank.decision import Decision
from kproba.bank.predictor import FusedPredictor, NetworkPredictor
from kproba.bank.settings import BankSettings
from kproba.data.augmentation import Augmentation
from kproba.data.loaders import Batch, TrainingImages, TrainingStream, training_loader

CLASSES = 101
GOAL = "Goal: a test with two networks takes at most 2.2 times the passes of one."


def fourier(dimension: int, *, scatter: bool) -> BankSettings:
    """A bank of three maps of random Fourier features."""
    return BankSettings(
        feature="backbone",
        map="rff",
        dimension=dimension,
        maps=3,
        gamma="median",
        scatter=scatter,
        ridge=0.01,
        calibration_cells=500,
    )


def equal_batches(case: Case, count: int, size: int, classes: int) -> list[Batch]:
    """Square pictures of noise in batches."""
    images = images_of(count, case.crop)
    targets = targets_of(count, case.crop, classes)
    keys = torch.arange(count)
    return [
        Batch(
            images[part],
            targets[part],
            [str(n) for n in range(count)[part]],
            keys[part],
        )
        for part in (slice(k, k + size) for k in range(0, count, size))
    ]


def inference(case: Case) -> None:
    """Whole images of one size in float32: banks and evaluation."""
    torch.backends.cudnn.benchmark = False  # as in these jobs
    count, size = (4, 2) if case.small else (64, 16)
    wide = 64 if case.small else 5000
    batches = equal_batches(case, count, size, CLASSES)
    network, other = two_networks(case, CLASSES - 1)
    shared = min(4, len(network.backbone.stages()) - 1)
    _, near = two_networks(case, CLASSES - 1, shared=shared)
    klda = fourier(64 if case.small else 1024, scatter=True)
    bank = partial(noise_bank, case, CLASSES, network.backbone.channels)
    build = partial(build_from, case, network, batches, CLASSES)
    run = partial(test, case, batches=batches, classes=CLASSES)
    by_lda, by_klda = Decision("lda"), Decision("klda")
    of_lda, of_klda = bank(LDA), bank(klda)
    several = {
        "network and LDA, one network": FusedPredictor(network, of_lda, by_lda),
        "network and LDA, two networks": FusedPredictor(network, of_lda, by_lda, other),
        "network and KLDA, two networks": FusedPredictor(
            network, of_klda, by_klda, other
        ),
        f"network and LDA, two networks with {shared} first stages in common": (
            FusedPredictor(network, of_lda, by_lda, near)
        ),
    }
    alone = "forward passes alone"
    seconds = case.in_turn(
        {
            alone: partial(forward, case, network, batches),
            "bank, LDA": partial(build, LDA),
            f"bank, 3 × {wide} features, means only": partial(
                build, fourier(wide, scatter=False)
            ),
            f"bank, KLDA, 3 × {klda.dimension} features": partial(build, klda),
            "test, the network alone": partial(run, NetworkPredictor(network)),
            **{f"test, {name}": partial(run, each) for name, each in several.items()},
        }
    )
    say(GOAL)
    table(f"{count} images of {case.crop}², {CLASSES} classes", "s", "to the passes")
    for name, own in seconds.items():
        line(name, f"{own:.4f}", f"{own / seconds[alone]:.2f}")


def loading(case: Case, workers: int) -> None:
    """The training loader alone."""
    count, epochs = (8, 1) if case.small else (256, 4)
    with tempfile.TemporaryDirectory() as name:
        images = TrainingImages(
            photographs(Path(name), count),
            augmentation=Augmentation(case.crop, (0.5, 2.0), 0.5),
            seed=0,
            label_table=np.arange(256, dtype=np.uint8),
        )
        table("loading, JPEGs of 375 × 500", "images/s")
        for number in (workers // 4, workers):
            stream = TrainingStream(count, epochs=epochs, batch_size=case.batch, seed=0)
            loader = training_loader(images, stream, workers=number)
            numbers = iter(loader)
            next(numbers)
            started, seen = time.perf_counter(), 0
            for batch in numbers:
                seen += len(batch.ids)
            speed = seen / (time.perf_counter() - started)
            line(f"{number} workers", f"{speed:.0f}")
