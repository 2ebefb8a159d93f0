"""Banks of noise, pictures of many sizes in memory, and the jobs that run on them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import numpy as np
import pandas as pd
import torch

from benchmarks.case import Case, two_networks
from benchmarks.inputs import images_of, targets_of
from kproba.bank.bank import PrototypeBank, bank_features
from kproba.bank.build import FeatureBatch, Sample, build_bank
from kproba.bank.decision import Decision
from kproba.bank.fusion import Combination
from kproba.bank.predictor import FusedPredictor, NetworkPredictor
from kproba.bank.settings import BankSettings
from kproba.bank.views import views
from kproba.data import tiles
from kproba.data.canvases import Size, choose_canvases, pad_pair
from kproba.data.loaders import Batch, collate
from kproba.data.loaders import Sample as Picture
from kproba.data.whole_images import equal_sizes
from kproba.methods.labels import Labeller, LabelSettings
from kproba.network.backbones import backbone_entry
from kproba.network.network import SegmentationNetwork
from kproba.results.evaluation import EvaluationSettings, Predictor, evaluate
from kproba.runtime.distributed import Process

LDA = BankSettings(
    feature="backbone",
    map="identity",
    scatter=True,
    ridge=0.01,
    calibration_cells=500,
)
KINDS = ("one size", "canvases", "own sizes")  # how pictures are put into batches
FORWARD = "forward passes"
WORKS = (
    FORWARD,
    "bank",
    "pseudo labels, network",
    "pseudo labels, network and LDA",
    "test, network",
    "test, network and LDA of another",
)
LONG = 500  # pixels: the longer side of VOC's pictures


# --- banks ---------------------------------------------------------------------------


def noise_sample(case: Case, classes: int, channels: int) -> Sample:
    """Cells of noise, as a bank is calibrated with."""
    generator = torch.Generator().manual_seed(0)
    cells = torch.rand(4 * classes, channels, generator=generator)
    labels = torch.arange(4 * classes) % classes
    return Sample(cells.to(case.device), labels.to(case.device))


def noise_bank(
    case: Case, classes: int, channels: int, settings: BankSettings = LDA
) -> PrototypeBank:
    """A bank with prototypes of all classes; no network is needed for it."""
    sample = noise_sample(case, classes, channels)
    maps = sample.cells.T.reshape(1, channels, -1, 1)
    targets = sample.labels.to(torch.uint8).reshape(1, -1, 1)
    batch = FeatureBatch(maps, targets, [0])
    with torch.inference_mode():
        bank = build_bank([batch], sample, settings, classes=classes, seed=0)
    return bank.to(case.device)


def build_from(
    case: Case,
    network: SegmentationNetwork,
    batches: Iterable[Batch],
    classes: int,
    settings: BankSettings = LDA,
) -> object:
    """Build a bank of pictures, as `kproba.jobs.step_bank` does it."""
    sample = noise_sample(case, classes, network.backbone.channels)

    def features() -> Iterator[FeatureBatch]:
        for batch in batches:
            images = batch.images.to(case.device, non_blocking=True)
            targets = batch.targets.to(case.device, non_blocking=True)
            for view in views(network, images, batch.sizes):
                maps = bank_features(view.outputs, settings)
                keys = batch.keys[view.place[0]].tolist()
                yield FeatureBatch(maps, targets[view.place], keys)

    with torch.inference_mode():
        return build_bank(features(), sample, settings, classes=classes, seed=0)


# --- pictures ------------------------------------------------------------------------


def many_sizes(count: int, long: int = LONG, different: int = 150) -> list[Size]:
    """Sizes of pictures like VOC's: some of them frequent, in a fixed order.

    Args:
        count: Number of pictures.
        long: The longer side of all of them; the shorter one has at least 55 % of it.
        different: Number of different sizes, an even one.
    """
    sides = np.linspace(0.55 * long, 0.994 * long, different // 2).round().astype(int)
    pairs = [(int(side), long) for side in sides]
    found = [Size(*pair) for pair in pairs] + [Size(*pair[::-1]) for pair in pairs]
    weights = np.full(len(found), 0.4 / len(found))
    for share, part in ((0.75, 0.4), (0.666, 0.2)):  # of the longer side
        weights[int(np.abs(sides - share * long).argmin())] += part
    generator = np.random.default_rng(0)
    more = generator.choice(len(found), max(0, count - len(found)), p=weights)
    sizes = [*found[:count], *(found[number] for number in more)]
    return [sizes[number] for number in generator.permutation(len(sizes))]


def batches_of(
    case: Case,
    sizes: Sequence[Size],
    kind: str,
    *,
    batch_size: int,
    classes: int,
) -> list[Batch]:
    """Pictures of noise in batches: on canvases, or with others of the same size.

    They are parts of one picture, so they need almost no time.
    """
    side = max(max(size) for size in sizes)
    image, target = images_of(1, side)[0], targets_of(1, side, classes)[0]
    anchor = backbone_entry(case.backbone).anchor
    assert anchor is not None
    canvases = choose_canvases(sizes, tiles.TILE) if kind == "canvases" else []
    rows = pd.DataFrame(sizes, columns=["height", "width"])

    def picture(number: int) -> Picture:
        size, name = sizes[number], str(number)
        pair = image[:, : size.height, : size.width], target[: size[0], : size[1]]
        canvas = canvases[number] if canvases else None
        if canvas is None:
            return Picture(*pair, name, number)
        return Picture(*pad_pair(*pair, canvas, anchor), name, number, size, anchor)

    groups = equal_sizes(rows, batch_size, canvases)
    batches = [collate([picture(number) for number in group]) for group in groups]
    if case.kind == "cuda":
        pinned = (b.images.pin_memory() for b in batches)
        batches = [b._replace(images=i) for b, i in zip(batches, pinned, strict=True)]
    return batches


# --- jobs ----------------------------------------------------------------------------


@torch.inference_mode()
def forward(case: Case, network: SegmentationNetwork, batches: list[Batch]) -> None:
    """Only the forward passes of a network."""
    for batch in batches:
        images = batch.images.to(case.device, non_blocking=True)
        for _ in views(network, images, batch.sizes):
            pass


def label(case: Case, labeller: Labeller, batches: list[Batch]) -> None:
    """Pseudo labels, copied to the CPU but not written."""
    for batch in batches:
        images = batch.images.to(case.device, non_blocking=True)
        hidden = (batch.targets == 0).to(case.device, non_blocking=True)
        labeller.label(images, hidden, batch.sizes).cpu()


def test(
    case: Case, predictor: Predictor, batches: list[Batch], classes: int
) -> np.ndarray:
    """An evaluation, from pictures in memory to the confusion matrix."""
    settings = EvaluationSettings("ssul", False, None)
    process = Process(device=case.device)
    return evaluate(
        predictor, batches, settings, channel_order=range(classes), process=process
    )


test.__test__ = False  # type: ignore[attr-defined]  # not for pytest


def works_of(
    case: Case, batches: list[Batch], classes: int
) -> dict[str, Callable[[], object]]:
    """Every entry of `WORKS` on some batches."""
    network, other = two_networks(case, classes - 1)
    bank = noise_bank(case, classes, network.backbone.channels)
    decision = Decision("lda")
    by_network = Labeller(network, LabelSettings("confidence", threshold=0.7))
    by_both = Labeller(
        network,
        LabelSettings("lda", decision=decision),
        Combination(bank, decision),
    )
    alone = NetworkPredictor(network)
    fused = FusedPredictor(network, bank, decision, other)
    works = (
        partial(forward, case, network, batches),
        partial(build_from, case, network, batches, classes),
        partial(label, case, by_network, batches),
        partial(label, case, by_both, batches),
        partial(test, case, alone, batches, classes),
        partial(test, case, fused, batches, classes),
    )
    return dict(zip(WORKS, works, strict=True))


def distinct_shapes(batches: Iterable[Batch]) -> int:
    """How many different shapes of batches a network gets."""
    return len({tuple(batch.images.shape) for batch in batches})
