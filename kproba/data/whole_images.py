"""Loader of whole images, for banks, pseudo labels and evaluation."""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, Dataset

from kproba.data import tiles
from kproba.data.canvases import Anchor, Size, choose_canvases, pad_pair
from kproba.data.loaders import (
    BYTES_PER_PIXEL,
    Batch,
    Sample,
    make_loader,
    workers_that_fit,
)
from kproba.data.sources import list_sources
from kproba.runtime.distributed import ALONE, Process


class WholeImages(Dataset[Sample]):
    """Whole images with their targets, for banks, pseudo labels and evaluation.

    Args:
        rows: Table that `kproba.data.splits.read_index` returned.
        label_table: (256,) uint8 from raw label to target.
        canvases: The canvas of each image, or None; empty: no image is padded.
        anchor: Corner of the canvas where images are placed.
    """

    def __init__(
        self,
        rows: pd.DataFrame,
        label_table: np.ndarray,
        canvases: Sequence[Size | None] = (),
        anchor: Anchor = "start",
    ):
        self.sources = list_sources(rows)
        self.label_table, self.canvases, self.anchor = label_table, canvases, anchor

    def __len__(self) -> int:
        """Number of images."""
        return len(self.sources)

    def __getitem__(self, index: int) -> Sample:
        source = self.sources[index]
        target = torch.from_numpy(self.label_table[source.read_labels()])
        image, canvas = source.read_image(), None
        if self.canvases:
            canvas = self.canvases[index]
        if canvas is None:
            return Sample(image, target, source.id, index)
        size = Size(*target.shape)
        image, target = pad_pair(image, target, canvas, self.anchor)
        return Sample(image, target, source.id, index, size, self.anchor)


def whole_image_loader(
    rows: pd.DataFrame,
    label_table: np.ndarray,
    *,
    batch_size: int,
    workers: int = 0,
    process: Process = ALONE,
    anchor: Anchor | None = None,
) -> DataLoader[Batch]:
    """Loader of the whole images of one process, in batches of equal size.

    The batches are the same for any number of processes, which take them in turn. They
    hold `kproba.data.tiles.MOST_BATCH_PIXELS` at most, so large images come one by one.
    No image is resized.

    Args:
        rows: As for `WholeImages`, with the columns `width` and `height`.
        label_table: As for `WholeImages`.
        batch_size: Most images in a batch.
        workers: Number of worker processes; fewer if shared memory is short.
        process: This process.
        anchor: Where pictures of several sizes lie on a common canvas
            (`kproba.data.canvases`); None: no image is padded.
    """
    canvases = _canvases(rows, anchor)
    batches = equal_sizes(rows, batch_size, canvases)
    batches = batches[process.rank :: process.world_size]
    of_image = [s.height * s.width for s in _stacked_sizes(rows, canvases)]
    pixels = max((len(batch) * of_image[batch[0]] for batch in batches), default=0)
    workers = workers_that_fit(min(workers, len(batches)), BYTES_PER_PIXEL * pixels)
    images = WholeImages(rows, label_table, canvases, anchor or "start")
    return make_loader(images, batches, workers)


def _canvases(rows: pd.DataFrame, anchor: Anchor | None) -> list[Size | None]:
    if anchor is None:
        return []
    return choose_canvases(_stacked_sizes(rows), tiles.TILE)


def _stacked_sizes(
    rows: pd.DataFrame, canvases: Sequence[Size | None] = ()
) -> list[Size]:
    """The size of every image in its batch: its own size, or the size of its canvas."""
    pairs = zip(rows["height"].tolist(), rows["width"].tolist(), strict=True)
    sizes = [Size(*pair) for pair in pairs]
    if not canvases:
        return sizes
    return [own if on is None else on for own, on in zip(sizes, canvases, strict=True)]


def equal_sizes(
    rows: pd.DataFrame, batch_size: int, canvases: Sequence[Size | None] = ()
) -> list[list[int]]:
    """Numbers of the rows in batches of images of equal size; each row is in one.

    A batch has at most `batch_size` images and `MOST_BATCH_PIXELS`, or one image.

    Args:
        rows: With the columns `width` and `height`.
        batch_size: Most images in a batch.
        canvases: The canvas of each image, or None; empty: no image is padded.
    """
    sizes = _stacked_sizes(rows, canvases)
    most = tiles.MOST_BATCH_PIXELS
    if not canvases:
        return batches_of_one_size(sizes, batch_size, most)
    # Images without a canvas are never in one batch with images on a canvas.
    padded = [canvas is not None for canvas in canvases]
    found = []
    for kind in (True, False):
        numbers = [number for number, each in enumerate(padded) if each == kind]
        chosen = [sizes[number] for number in numbers]
        for batch in batches_of_one_size(chosen, batch_size, most):
            found.append([numbers[place] for place in batch])
    return found


def batches_of_one_size(
    sizes: Iterable[tuple[int, int]], batch_size: int, most_pixels: int | None = None
) -> list[list[int]]:
    """Numbers of images in batches of equal size; each image is in one.

    Args:
        sizes: Width and height of each image.
        batch_size: Most images in a batch.
        most_pixels: Most pixels in a batch of more than one image; None: any number.
    """
    batches: list[list[int]] = []
    open_batch: dict[tuple[int, int], list[int]] = {}
    for number, size in enumerate(sizes):
        batch = open_batch.get(size)
        most = batch_size
        if most_pixels is not None:
            most = most_pixels // max(1, size[0] * size[1])
            most = max(1, min(batch_size, most))
        if batch is None or len(batch) == most:
            batch = open_batch[size] = []
            batches.append(batch)
        batch.append(number)
    return batches
