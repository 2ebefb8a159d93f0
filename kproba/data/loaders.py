"""Loaders of training images; `kproba.data.whole_images` has those of whole images.

The order of the training images is in `kproba.data.stream`.
"""

import logging
import shutil
import signal
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, Dataset

from kproba.data.augmentation import Augmentation, augment, keyed_generator
from kproba.data.canvases import Anchor, Size, places
from kproba.data.labels import UNKNOWN
from kproba.data.memory import Memory, add_known
from kproba.data.sources import Source, list_sources, replace_mask
from kproba.data.stream import Item, TrainingStream

log = logging.getLogger("kproba")

SHARED_MEMORY = Path("/dev/shm")


PREFETCHED = 2  # batches that each worker prepares in advance (default of PyTorch)


BYTES_PER_PIXEL = 4  # three of an image, one of its target


class Batch(NamedTuple):
    """A batch of images with their targets.

    Attributes:
        images: (B, 3, H, W) uint8.
        targets: (B, H, W) uint8 training targets, 255 ignored.
        ids: Ids of the images.
        keys: (B,) int64, a number for each position of the training stream, which seeds
            the dropout of the image. For whole images: the numbers of their rows.
        sizes: Height and width of each image on a canvas; None if all are as large as
            the batch.
        anchor: Corner of the canvas where images are placed.
    """

    images: torch.Tensor
    targets: torch.Tensor
    ids: list[str]
    keys: torch.Tensor
    sizes: tuple[Size, ...] | None = None
    anchor: Anchor = "start"

    @property
    def places(self) -> list[tuple[slice, slice, slice]]:
        """The slices of each image in (B, H, W)."""
        shape = self.targets.shape[-2:]
        sizes = self.sizes or [Size(*shape)] * len(self.ids)
        return places(shape, sizes, self.anchor)


class Sample(NamedTuple):
    """An image (3, H, W) and its target (H, W), as the data sets give them.

    On a canvas, `size` is that of the image and `anchor` is its corner.
    """

    image: torch.Tensor
    target: torch.Tensor
    id: str
    key: int
    size: Size | None = None
    anchor: Anchor = "start"


class TrainingImages(Dataset[Sample]):
    """Augmented images and targets of a split, and after them those of a memory.

    An image of the split that is in memory, too, takes part once. Where its target is
    0, it has the label that the memory knows.

    If the split names saliency maps (`kproba.data.saliency_table.with_saliency`), the
    salient pixels with the target 0 get the target `UNKNOWN`.

    Args:
        split: Table that `kproba.data.splits.read_index` returned.
        augmentation: Settings of the augmentation.
        seed: Seed of the augmentation.
        label_table: (256,) uint8 from raw label to training target; None if the targets
            come from `pseudo_labels`.
        pseudo_labels: Folder with one target image per id, or None.
        memory: Old images with their targets, or None.

    Raises:
        ValueError: There is neither a label_table nor a pseudo_labels folder.
    """

    def __init__(
        self,
        split: pd.DataFrame,
        *,
        augmentation: Augmentation,
        seed: int,
        label_table: np.ndarray | None,
        pseudo_labels: Path | None = None,
        memory: Memory | None = None,
    ):
        # Plain tuples, because forking a worker with a data frame costs more.
        self.sources = list_sources(split)
        if pseudo_labels is not None:
            self.sources = [
                replace_mask(source, pseudo_labels) for source in self.sources
            ]
            label_table = np.arange(256, dtype=np.uint8)
        if label_table is None:
            raise ValueError(
                "Expected a label_table or a pseudo_labels folder, but got neither. "
                "Pass one of them."
            )
        self.label_table = label_table
        self.new = len(self.sources)
        self.known: dict[int, Source] = {}  # of rows that the memory has, too
        if memory is not None:
            rows = {source.id: row for row, source in enumerate(self.sources)}
            for source in list_sources(memory.rows):
                old = replace_mask(source, memory.labels)
                if source.id in rows:
                    self.known[rows[source.id]] = old
                else:
                    self.sources.append(old)
        self.augmentation, self.seed = augmentation, seed
        self.kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __len__(self) -> int:
        """Number of images in the split and of those only in memory."""
        return len(self.sources)

    @property
    def old(self) -> int:
        """Number of images that are only in memory."""
        return len(self) - self.new

    def __getitem__(self, item: Item) -> Sample:
        name = self.sources[item.image].id
        image, target = self.kept.get(item.image) or self.decode(item.image)
        rng = keyed_generator("augment", self.seed, item.epoch, name)
        image, target = augment(image, target, self.augmentation, rng)
        return Sample(image, target, name, item.epoch * len(self) + item.image)

    def decode(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Image (3, H, W) and target (H, W), uint8, of a row."""
        source = self.sources[number]
        target = source.read_labels()
        if number < self.new:
            target = self.label_table[target]
        if number in self.known:
            target = add_known(target, self.known[number].read_labels())
        if source.saliency:
            salient = source.read_saliency()
            target = np.where((target == 0) & salient, np.uint8(UNKNOWN), target)
        return source.read_image(), torch.from_numpy(target)

    def keep_decoded(self, budget: float, *, threads: int) -> None:
        """Decode images in advance and keep them, from the first on, as memory allows.

        Worker processes share this memory with their parent.

        Args:
            budget: Bytes of memory.
            threads: Number of threads that decode.
        """
        with ThreadPoolExecutor(threads) as pool:
            for start in range(0, len(self), 64):
                numbers = range(start, min(start + 64, len(self)))
                for number, pair in zip(
                    numbers, pool.map(self.decode, numbers), strict=True
                ):
                    budget -= sum(tensor.nbytes for tensor in pair)
                    if budget < 0:
                        return
                    self.kept[number] = pair


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples that have one size or share one canvas."""
    images, targets, ids, keys, sizes, anchors = zip(*samples, strict=True)
    return Batch(
        torch.stack(images),
        torch.stack(targets),
        list(ids),
        torch.tensor(keys),
        None if sizes[0] is None else sizes,
        anchors[0],
    )


def training_loader(
    images: TrainingImages, stream: TrainingStream, *, workers: int
) -> DataLoader[Batch]:
    """Loader of the micro-batches of one process.

    Args:
        images: The images of the split.
        stream: Positions of the training stream that this process takes.
        workers: Number of worker processes; fewer if shared memory is short.
    """
    pixels = images.augmentation.crop_size**2 * stream.micro_batch
    workers = workers_that_fit(workers, BYTES_PER_PIXEL * pixels)
    return make_loader(images, stream, workers)


def make_loader(
    images: Dataset[Sample],
    batches: Iterable[list[Any]],
    workers: int,
) -> DataLoader[Batch]:
    """A loader of batches of samples.

    Args:
        images: Gives a sample for an entry of a batch.
        batches: Lists of such entries.
        workers: Number of worker processes; 0 loads in this process.
    """
    return DataLoader(
        images,  # type: ignore[arg-type]  # `collate` makes the batches
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=workers,
        worker_init_fn=_leave_signals_to_parent,
        multiprocessing_context="fork" if workers else None,  # shares decoded images
        pin_memory=torch.cuda.is_available(),
    )


def _leave_signals_to_parent(worker: int) -> None:
    """Ignore signals to stop: the parent needs its workers until its state is saved.

    Schedulers signal all processes of a job at once.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def workers_that_fit(workers: int, batch_bytes: int) -> int:
    """Number of loader workers whose batches fit into shared memory, at most `workers`.

    Workers pass batches on in shared memory. Containers often have only 64 MiB of it,
    and a worker that finds it full ends with a bus error. As the number of workers does
    not change results, this function lowers it, with a warning.

    Args:
        workers: Number of workers in the configuration.
        batch_bytes: Size of the largest batch in bytes.
    """
    if workers == 0 or not SHARED_MEMORY.is_dir():
        return workers
    free = shutil.disk_usage(SHARED_MEMORY).free
    fitting = min(workers, int(free // max(1, batch_bytes * (PREFETCHED + 1))))
    if fitting < workers:
        log.warning(
            "%s has %.0f MiB free. This is enough for the batches of %d loader "
            "worker(s), but not of %d. Training uses %d; the result is the same. For "
            "full speed, give the container more shared memory (docker run "
            "--shm-size=8g, or --ipc=host).",
            SHARED_MEMORY,
            free / 2**20,
            fitting,
            workers,
            fitting,
        )
    return fitting
