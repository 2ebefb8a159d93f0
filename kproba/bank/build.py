"""Building the bank of a step in one pass over its training images."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F

from kproba.bank.bank import PrototypeBank
from kproba.bank.feature_maps import make_maps
from kproba.bank.moments import Moments
from kproba.bank.ridge import pooled_bank
from kproba.bank.settings import BankSettings
from kproba.data.labels import IGNORE
from kproba.runtime.distributed import ALONE, Process

CELLS_PER_IMAGE = 64  # at least, of the sample
EXACT_NUMBERS = 2**25  # of φ in float64 at once, 256 MiB


class FeatureBatch(NamedTuple):
    """Features and targets of a batch of images, or of one tile of them.

    Attributes:
        features: (B, d, h, w), of the trained network in evaluation mode.
        targets: (B, H, W) uint8, output indices, 255 ignored.
        keys: B numbers of the images. All tiles of an image have its number.
    """

    features: torch.Tensor
    targets: torch.Tensor
    keys: Sequence[int]


class _Drawn:
    """A random sample of the cells of one image, which may come in several tiles.

    Every cell of the image has the same chance.

    Args:
        key: Seed of the sample.
        most: Largest number of cells.

    Attributes:
        vectors, labels: The cells that are drawn so far, (n, d) and (n,), in a random
            order; on the CPU.
    """

    def __init__(self, key: int, most: int):
        self.generator = torch.Generator().manual_seed(key)
        self.most, self.seen = most, 0
        self.vectors, self.labels = torch.empty(0), torch.empty(0)

    def add(self, vectors: torch.Tensor, labels: torch.Tensor) -> None:
        """Draw from the cells (n, d) of a tile and of all earlier tiles."""
        # Take the first places of a random order of all cells so far. The cells that
        # were drawn earlier keep their own random order.
        count = self.seen + len(labels)
        order = torch.randperm(count, generator=self.generator)[: self.most]
        earlier = order < self.seen
        places = order[~earlier] - self.seen
        self.vectors = _merge(earlier, self.vectors, vectors[places].cpu())
        self.labels = _merge(earlier, self.labels, labels[places].cpu())
        self.seen = count


def _merge(
    earlier: torch.Tensor, before: torch.Tensor, new: torch.Tensor
) -> torch.Tensor:
    """Rows of `before` where `earlier` (n,) is set, of `new` elsewhere, in order."""
    merged = new.new_empty(len(earlier), *new.shape[1:])
    merged[~earlier] = new
    if earlier.any():
        merged[earlier] = before[: int(earlier.sum())]
    return merged


class Sample(NamedTuple):
    """Labelled cells in random order: vectors (n, d) float32 and labels (n,) int64."""

    cells: torch.Tensor
    labels: torch.Tensor


def labelled_cells(
    features: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Labelled cells of a feature map.

    Args:
        features: (B, d, h, w).
        targets: (B, H, W) uint8; brought to (h, w) by nearest neighbour, 255 dropped.

    Returns:
        Vectors (n, d) float32 and labels (n,) int64.
    """
    size = features.shape[-2:]
    labels = F.interpolate(targets[:, None].float(), size, mode="nearest-exact")
    labels = labels.flatten().long()
    vectors = features.permute(0, 2, 3, 1).flatten(0, 2).float()
    keep = labels != IGNORE
    return vectors[keep], labels[keep]


def build_bank(
    batches: Iterable[FeatureBatch],
    sample: Sample,
    settings: BankSettings,
    *,
    classes: int,
    seed: int,
    previous: PrototypeBank | None = None,
    keep_temperature: bool = False,
    process: Process = ALONE,
) -> PrototypeBank:
    """Build the bank of a step in one streaming pass over its training images.

    Standardisation and γ come from the sample before the pass (step 0 only), the
    temperature after it. Memory is bounded by the bank and the sample.

    Args:
        batches: This process's part of the step's images.
        sample: Cells of the step, from `draw_sample`.
        settings: Settings of the bank.
        classes: |S_t|.
        seed: Seed of the maps.
        previous: Bank of step t-1. Its maps and standardisation are kept. Old classes
            with labelled cells in this step move by `settings.momentum`, or exactly
            (`BankSettings.exact`).
        keep_temperature: Use the temperature of `previous`, if there is one, because
            the calibration is too confident in a step with few classes. Features of a
            new network need a new temperature.
        process: This process of several; all get the same bank, but only the first
            calibrates it.
    """
    cells = sample.cells
    if previous is None:
        centre, spread, gamma = _standardisation(cells, settings)
        maps = make_maps(settings, len(centre), gamma, seed)
    else:
        centre, spread, gamma = previous.centre, previous.spread, previous.gamma
        seed, maps = previous.seed, previous.maps
    dimension = len(centre)
    if settings.map != "identity" and settings.dimension is not None:
        dimension = settings.dimension
    empty = partial(Moments.empty, classes, dimension, device=str(cells.device))
    moments = [
        empty(scatter=settings.scatter, background=settings.background) for _ in maps
    ]
    for features, targets, _ in batches:
        vectors, labels = labelled_cells(features, targets)
        x = (vectors - centre) / spread
        for some, of_some in _in_parts(x, labels, settings):
            for part, phi in zip(moments, maps, strict=True):
                part.update(some, of_some, phi)
    for part in moments:
        part.add_up(process)
    bank = _step_bank(settings, seed, gamma, centre, spread, moments)
    if previous is not None:
        bank = update_bank(previous, bank)
    if previous is not None and keep_temperature:
        bank.temperature = previous.temperature
    elif settings.scatter and process.first:
        bank.temperature = _calibrate(bank, *sample)
    return bank


def _in_parts(
    x: torch.Tensor, labels: torch.Tensor, settings: BankSettings
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Cells x (n, d) with their labels (n,), as the statistics take them.

    Exact statistics take them in float64, because products in float32 would lose the
    digits that decide where λ is small. φ is then large, so few cells come at once.
    """
    if not settings.exact:
        yield x, labels
        return
    rows = max(1, EXACT_NUMBERS // (settings.dimension or x.shape[1]))
    for some, of_some in zip(x.split(rows), labels.split(rows), strict=True):
        yield some.double(), of_some


def sampled_images(images: int, settings: BankSettings) -> list[int]:
    """Numbers of the evenly spaced images that the sample is drawn from."""
    count = min(images, -(-settings.calibration_cells // CELLS_PER_IMAGE))
    spread = [round(i * (images - 1) / max(1, count - 1)) for i in range(count)]
    return list(dict.fromkeys(spread))


def draw_sample(
    batches: Iterable[FeatureBatch],
    settings: BankSettings,
    *,
    images: int,
    seed: int,
    process: Process = ALONE,
) -> Sample:
    """Draw up to `calibration_cells` labelled cells, the same number per image.

    The cells of an image depend only on the seed, its key and its tiles. So the sample
    is the same for any batches and any number of processes.

    Args:
        batches: This process's part of the images.
        settings: Settings of the bank.
        images: Number of images over all processes.
        seed: Seed of the sample.
        process: This process of several; all get the whole sample.

    Raises:
        ValueError: No labelled cell.
    """
    per_image = max(CELLS_PER_IMAGE, -(-settings.calibration_cells // max(images, 1)))
    of_image: dict[int, _Drawn] = {}
    device = torch.device(process.device)
    for features, targets, keys in batches:
        for feature, target, key in zip(features, targets, keys, strict=True):
            number = int(key)
            if number not in of_image:
                of_image[number] = _Drawn((seed << 32) + number, per_image)
            of_image[number].add(*labelled_cells(feature[None], target[None]))
            device = feature.device
    drawn = {key: (image.vectors, image.labels) for key, image in of_image.items()}
    for part in process.gather(drawn):
        drawn.update(part)
    parts = [drawn[key] for key in sorted(drawn)]
    if not sum(len(labels) for _, labels in parts):
        raise ValueError(
            "Expected labelled cells for the bank, but the images have none."
        )
    vectors, classes = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    # In random order, so that every part of the sample is a sample itself.
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(classes), generator=generator)
    order = order[: settings.calibration_cells]
    return Sample(vectors[order].to(device), classes[order].to(device))


def _standardisation(
    sample: torch.Tensor, settings: BankSettings
) -> tuple[torch.Tensor, torch.Tensor, float | None]:
    """Centre, spread and γ from a sample of cells (n, d); 0, 1 and None for "relu"."""
    if settings.map == "relu":
        return torch.zeros_like(sample[0]), torch.ones_like(sample[0]), None
    centre = sample.mean(0)
    # A channel that never fires keeps its value instead of being divided by zero.
    spread = sample.std(0)
    spread = torch.where(spread > 1e-6, spread, torch.ones_like(spread))
    if settings.map == "identity":
        return centre, spread, None
    if settings.gamma is None:
        raise ValueError("Expected γ or 'median' for Fourier features, but got None.")
    if settings.gamma != "median":
        return centre, spread, float(settings.gamma)
    x = ((sample - centre) / spread)[:2000]
    squared = torch.cdist(x.double(), x.double()).square()
    pairs = torch.triu_indices(len(x), len(x), offset=1, device=x.device)
    median = squared[pairs[0], pairs[1]].median()
    return centre, spread, 1 / max(float(median), 1e-12)


def _step_bank(
    settings: BankSettings,
    seed: int,
    gamma: float | None,
    centre: torch.Tensor,
    spread: torch.Tensor,
    moments: Sequence[Moments],
) -> PrototypeBank:
    count = moments[0].count
    scatter = [part.scatter for part in moments if part.scatter is not None]
    return PrototypeBank(
        settings=settings,
        seed=seed,
        gamma=gamma,
        centre=centre,
        spread=spread,
        count=count,
        share=count / count.sum().clamp(min=1),
        means=[part.mean for part in moments],
        scatter=scatter if settings.scatter else None,
        scatter_count=moments[0].scatter_count,
        temperature=1.0,
    )


def update_bank(previous: PrototypeBank, current: PrototypeBank) -> PrototypeBank:
    """Return the bank after a step: update the old classes and add the new ones.

    A class of S_{t-1} (background included) that the step shows moves by the momentum
    m: μ ← m μ + (1-m) μ^(t); count and share stay those of the step that labelled it.
    A class that no step has shown so far is taken as measured. The scatter adds up.
    With `BankSettings.exact`, all statistics become those of all cells together.

    Args:
        previous: Bank over S_{t-1}.
        current: Statistics of step t alone, over S_t, in the same maps.

    Raises:
        ValueError: `current` has no momentum.
    """
    if current.settings.exact:
        return pooled_bank(previous, current)
    old = previous.classes
    momentum = current.settings.momentum
    if momentum is None:
        raise ValueError(
            "Expected a momentum for a bank that has a previous one, but got None. Set "
            "BankSettings.momentum."
        )
    seen_again = (current.count[:old] > 0)[:, None]
    first = previous.count == 0
    means = []
    for before, now in zip(previous.means, current.means, strict=True):
        moved = torch.where(
            seen_again, momentum * before + (1 - momentum) * now[:old], before
        )
        moved = torch.where(first[:, None], now[:old], moved)
        means.append(torch.cat([moved, now[old:]]))
    scatter = None
    if previous.scatter is not None and current.scatter is not None:
        pairs = zip(previous.scatter, current.scatter, strict=True)
        scatter = [before + now for before, now in pairs]
    return replace(
        current,
        count=_known_first(previous.count, current.count, first),
        share=_known_first(previous.share, current.share, first),
        means=means,
        scatter=scatter,
        scatter_count=previous.scatter_count + current.scatter_count,
    )


def _known_first(
    before: torch.Tensor, now: torch.Tensor, first: torch.Tensor
) -> torch.Tensor:
    """Values (C,): those of classes with a prototype are kept, others are replaced."""
    old = len(before)
    return torch.cat([torch.where(first, now[:old], before), now[old:]])


def _calibrate(
    bank: PrototypeBank, sample: torch.Tensor, labels: torch.Tensor
) -> float:
    """Temperature with the lowest negative log-likelihood of the sample's labels.

    Golden-section search over log T in [-3, 5]; the mean over the sample's cells. If
    the scatter leaves the background out, the bank tells classes apart, so only their
    cells count, among the classes. One class alone would fit with any temperature; then
    the background counts.
    """
    first = 0 if bank.settings.background or len(labels[labels > 0].unique()) < 2 else 1
    sample, labels = sample[labels >= first], labels[labels >= first] - first

    def cost(log_temperature: float) -> float:
        bank.temperature = math.exp(log_temperature)
        log_q = bank.log_posterior(sample)
        if first:
            log_q = log_q[:, first:].log_softmax(1)
        return float(F.nll_loss(log_q.double(), labels))

    low, high = -3.0, 5.0
    ratio = (math.sqrt(5) - 1) / 2
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    cost_left, cost_right = cost(left), cost(right)
    while high - low > 1e-3:
        if cost_left < cost_right:
            high, right, cost_right = right, left, cost_left
            left = high - ratio * (high - low)
            cost_left = cost(left)
        else:
            low, left, cost_left = left, right, cost_right
            right = low + ratio * (high - low)
            cost_right = cost(right)
    return math.exp((low + high) / 2)
