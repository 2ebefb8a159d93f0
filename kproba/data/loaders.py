"""Loaders of training images; `kproba.data.whole_images` has those of whole images.

The training order is one endless stream: the random orders of all epochs, one after the
other, cut into global batches. Every batch is full, and no image is dropped. Order and
augmentation depend only on seed, epoch and image id. The number of processes, the
number of loader workers and restarts therefore do not change the training data.
"""

import logging
import shutil
import signal
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from kproba.data.augmentation import Augmentation, augment, keyed_generator
from kproba.data.canvases import Anchor, Size, places
from kproba.data.memory import Memory, add_known
from kproba.data.sources import Source, list_sources, replace_mask

log = logging.getLogger("kproba")

SHARED_MEMORY = Path("/dev/shm")


PREFETCHED = 2  # batches that each worker prepares in advance (default of PyTorch)


BYTES_PER_PIXEL = 4  # three of an image, one of its target


class Item(NamedTuple):
    """One position of the training stream."""

    epoch: int
    image: int  # number of the row of the split; memory images come after these


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


class OldImages(NamedTuple):
    """Images in memory that have places of their own in every global batch.

    Attributes:
        images: Their number.
        share: Their share of the places, above 0 and below 1.
    """

    images: int
    share: float

    def places(self, batch_size: int) -> int:
        """Places in a global batch: share·B rounded half up, at least 1, at most B-1.

        Raises:
            ValueError: A batch of one image has no place for an old one.
        """
        if batch_size < 2:
            raise ValueError(
                f"Expected a global batch_size of at least 2 for a memory with a "
                f"share, but got {batch_size}. Raise batch_size, or set memory.share "
                f"to null."
            )
        return min(max(int(self.share * batch_size + 0.5), 1), batch_size - 1)


class TrainingStream(Sampler[list[Item]]):
    """Micro-batches of one process, from iteration `start` to the end.

    Global batch i holds the positions i·B to (i+1)·B-1 of the stream. It is cut into as
    many equal parts as there are processes; process r takes part r and cuts it into
    `accumulation` micro-batches.

    With `old`, the first places of a global batch come from a stream over the images of
    the split, and the others from a second stream, over the images in memory. Each has
    its own epochs.

    Args:
        images: Number of images of the split.
        epochs: How often each image is used. The last batch is filled with images of
            the next epoch.
        batch_size: Images per iteration over all processes.
        seed: Seed of the random orders.
        rank: Number of this process.
        world_size: Number of processes.
        accumulation: Micro-batches per iteration and process.
        start: First iteration, if training resumes.
        iterations: Number of iterations in place of `epochs`; None: by epochs.
        old: Images in memory with a share of every batch. Epochs count the images of
            the split.

    Raises:
        ValueError: The batch size is not a multiple of processes x accumulation, or is
            1 and there are old images.
    """

    def __init__(
        self,
        images: int,
        *,
        epochs: float,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        accumulation: int = 1,
        start: int = 0,
        iterations: int | None = None,
        old: OldImages | None = None,
    ):
        if batch_size % (world_size * accumulation):
            raise ValueError(
                f"Expected the global batch_size {batch_size} to be a multiple of "
                f"processes x accumulation = {world_size} x {accumulation}. Change "
                f"one of the three."
            )
        self.images, self.batch_size, self.seed = images, batch_size, seed
        self.old_images = old.images if old else 0
        self.old_places = old.places(batch_size) if old else 0
        new_places = batch_size - self.old_places
        by_epochs = max(1, -(-int(images * epochs) // new_places))
        self.iterations = iterations or by_epochs
        self.micro_batch = batch_size // (world_size * accumulation)
        self.rank, self.accumulation, self.start = rank, accumulation, start

    def __iter__(self) -> Iterator[list[Item]]:
        orders: dict[str, dict[int, np.ndarray]] = {"order": {}, "old order": {}}
        for iteration in range(self.start, self.iterations):
            first = iteration * self.batch_size
            first += self.rank * self.accumulation * self.micro_batch
            for micro in range(self.accumulation):
                begin = first + micro * self.micro_batch
                places = range(begin, begin + self.micro_batch)
                yield [self._item(place, orders) for place in places]

    def _item(self, place: int, orders: dict[str, dict[int, np.ndarray]]) -> Item:
        """The image at a place of all global batches; `orders` keeps the newest."""
        iteration, position = divmod(place, self.batch_size)
        new_places = self.batch_size - self.old_places
        if position < new_places:
            kind, images, first = "order", self.images, 0
            place = iteration * new_places + position
        else:  # rows of the memory come after those of the split
            kind, images, first = "old order", self.old_images, self.images
            place = iteration * self.old_places + position - new_places
        epoch, position = divmod(place, images)
        known = orders[kind]
        if epoch not in known:
            for old in [key for key in known if key < epoch - 1]:
                del known[old]
            rng = keyed_generator(kind, self.seed, epoch)
            known[epoch] = rng.permutation(images)
        return Item(epoch, first + int(known[epoch][position]))

    def __len__(self) -> int:
        """Number of micro-batches of this process from `start` to the end."""
        return (self.iterations - self.start) * self.accumulation


class TrainingImages(Dataset[Sample]):
    """Augmented images and targets of a split, and after them those of a memory.

    An image of the split that is in memory, too, takes part once. Where its target is
    0, it has the label that the memory knows.

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
