"""Pseudo labels that are sure where the entropy is low (PLOP).

Source: Douillard et al., CVPR 2021, arXiv 2011.11390, and the authors' code.

A background pixel with the likeliest class c is sure if the entropy of its
probabilities p over S_{t-1} is below a threshold τ_c. Unsure pixels take no part in the
training.

- `entropy_median`: τ_c is the median over the pixels of c, as the paper describes. So
  half of the pixels of every class are sure.
- `entropy`: τ_c is what the published code computes. With a sure network, nearly all
  pixels are sure.

The published code differs from the paper in three points. (1) The entropy is a mean
over the classes, not a sum, and is divided by log |S_{t-1}| and by log |S_t|. So most
values are in the first of 100 bins. (2) Its search for the median adds up the numbers
of the bins it has passed, not the pixels in them. So it stops at the first bin that
holds about half of all pixels, or never. (3) If it never stops, the threshold is above
all values.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch

from kproba.bank.views import Place
from kproba.data.labels import UNSURE, LabelMap
from kproba.data.loaders import Batch
from kproba.data.tiles import needs_tiles
from kproba.methods.evidence import PixelEvidence
from kproba.methods.labels import LabelCase
from kproba.network.network import SegmentationNetwork
from kproba.runtime.distributed import ALONE, Process

ENTROPY_BINS = 10_000  # of [0, 1], for the medians
PUBLISHED_BINS = 100  # of [0, 1], in the published code
LOWEST_ENTROPY = 0.001  # below it every pixel is sure
TINY = 1e-8  # that the published code adds in its logarithms


def entropy(log_p: torch.Tensor) -> torch.Tensor:
    """Entropy of p̄ as a share of the largest, log C; (B, C, H, W) to (B, H, W)."""
    log_p = log_p.log_softmax(dim=1)
    return -(log_p.exp() * log_p).sum(dim=1) / math.log(max(log_p.shape[1], 2))


def published_entropy(log_p: torch.Tensor) -> torch.Tensor:
    """The entropy in the published code, (B, C, h, w) to (B, h, w).

    A mean over the classes in place of a sum, divided by log C.
    """
    p = log_p.log_softmax(dim=1).exp()
    return -(p * (p + TINY).log()).mean(dim=1) / math.log(p.shape[1] + TINY)


@torch.inference_mode()
def entropy_thresholds(
    teacher: SegmentationNetwork,
    batches: Iterable[Batch],
    label_map: LabelMap,
    process: Process = ALONE,
) -> torch.Tensor:
    """Median entropy of every class, over the hidden pixels that are taken for it.

    To a ten-thousandth, from counts that add up over processes (Douillard et al., CVPR
    2021).

    Args:
        teacher: Network of step t-1.
        batches: This process's images with their raw labels.
        label_map: Label map of step t: which labels are hidden.
        process: This process of several.

    Returns:
        (C,) float32, at least 0.001.
    """
    counts = _histograms(
        teacher, batches, label_map, process, measure=entropy, bins=ENTROPY_BINS
    )
    below = counts.cumsum(dim=1)
    half = below[:, -1:] / 2
    median = (below < half).sum(dim=1) + 1
    return (median / ENTROPY_BINS).clamp(min=LOWEST_ENTROPY)


@torch.inference_mode()
def published_thresholds(
    teacher: SegmentationNetwork,
    batches: Iterable[Batch],
    label_map: LabelMap,
    process: Process = ALONE,
) -> torch.Tensor:
    """The thresholds of the published code, for `published_entropy`.

    Arguments as for `entropy_thresholds`.

    Returns:
        (C,) float32, at least 0.001 · log |S_t|; infinite where every pixel is sure.
    """
    largest = math.log(label_map.channels)
    counts = _histograms(
        teacher,
        batches,
        label_map,
        process,
        measure=lambda log_p: published_entropy(log_p) / largest,
        bins=PUBLISHED_BINS,
    )
    shares = [published_search(of_class) for of_class in counts.tolist()]
    return largest * torch.tensor(shares, device=counts.device)


def published_search(counts: Sequence[int]) -> float:
    """The threshold of a class as the published code finds it, at least 0.001.

    Args:
        counts: Pixels of the class in each bin of [0, 1].
    """
    half, passed, bins = sum(counts) / 2, 0, len(counts)
    if not half:
        return LOWEST_ENTROPY
    for number in range(bins):
        # Floating-point division there repeats a bin here and there, such as 28 for 29.
        place = int(number / bins * bins)
        if passed <= half <= passed + counts[place]:
            break
        passed += number
    rest = half - passed
    if counts[place]:
        found = number / bins + rest / counts[place] / bins
    else:
        found = math.inf if rest > 0 else 0.0
    return max(found, LOWEST_ENTROPY)


def _histograms(
    teacher: SegmentationNetwork,
    batches: Iterable[Batch],
    label_map: LabelMap,
    process: Process,
    *,
    measure: Callable[[torch.Tensor], torch.Tensor],
    bins: int,
) -> torch.Tensor:
    """Hidden pixels by their likeliest class and by a measure, (C, bins) int64."""
    counts = torch.zeros(
        teacher.channels * bins, dtype=torch.int64, device=process.device
    )
    table = torch.from_numpy(label_map.training_table())
    for batch in batches:
        images = batch.images.to(process.device, non_blocking=True)
        hidden = (table[batch.targets.int()] == 0).to(process.device)
        for log_p, where in _teacher_parts(teacher, images, batch.sizes):
            place = (measure(log_p) * bins).long().clamp(0, bins - 1)
            place += log_p.argmax(dim=1) * bins
            counts += torch.bincount(place[hidden[where]], minlength=len(counts))
    process.add_up(counts)
    return counts.view(-1, bins)


def _teacher_parts(
    teacher: SegmentationNetwork,
    images: torch.Tensor,
    sizes: Sequence[tuple[int, int]] | None,
) -> Iterator[tuple[torch.Tensor, Place]]:
    """Log p of images, whole or in parts, and the slices of each in (B, H, W)."""
    evidence = PixelEvidence(teacher)
    if not needs_tiles(images.shape):
        for place, found in evidence.compute(images, sizes):
            yield found.log_p, place
        return
    for number, image in enumerate(images):
        for rows, columns, part in evidence.in_tiles(image).parts():
            place = (slice(number, number + 1), rows, columns)
            yield evidence.split(part).log_p, place


def by_entropy(case: LabelCase) -> torch.Tensor:
    """`entropy`: argmax p, unsure where its entropy reaches the class's threshold."""
    return _sure_labels(case, published_entropy(case.log_p))


def by_median_entropy(case: LabelCase) -> torch.Tensor:
    """`entropy_median`: the same with the medians of the paper."""
    return _sure_labels(case, entropy(case.log_p))


def _sure_labels(case: LabelCase, measure: torch.Tensor) -> torch.Tensor:
    if case.thresholds is None:
        raise ValueError(
            f"Expected a threshold per class for the rule '{case.settings.rule}', but "
            f"got none."
        )
    label = case.log_p.argmax(dim=1)
    return label.where(measure < case.thresholds[label], UNSURE)
