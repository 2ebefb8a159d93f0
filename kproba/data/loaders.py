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
from kproba.data.labels import UNKNOWN
from kproba.data.sources import list_sources, replace_mask

log = logging.getLogger("kproba")

SHARED_MEMORY = Path("/dev/shm")


PREFETCHED = 2  # batches that each worker prepares in advance (default of PyTorch)


BYTES_PER_PIXEL = 4  # three of an image, one of its target


class Item(NamedTuple):
    """One position of the training stream."""

    epoch: int
    image: int  # number of the row of the split


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


def count_iterations(images: int, epochs: float, batch_size: int) -> int:
    """Iterations of a training by epochs, 1 at least; the last batch is filled up.

    Args:
        images: Number of images of the split.
        epochs: How often each image is used.
        batch_size: Images per iteration over all processes.
    """
    return max(1, -(-int(images * epochs) // batch_size))


class TrainingStream(Sampler[list[Item]]):
    """Micro-batches of one process, from iteration `start` to the end.

    Global batch i holds the positions i·B to (i+1)·B-1 of the stream. It is cut into as
    many equal parts as there are processes; process r takes part r and cuts it into
    `accumulation` micro-batches.

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

    Raises:
        ValueError: The batch size is not a multiple of processes x accumulation.
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
    ):
        if batch_size % (world_size * accumulation):
            raise ValueError(
                f"Expected the global batch_size {batch_size} to be a multiple of "
                f"processes x accumulation = {world_size} x {accumulation}. Change "
                f"one of the three."
            )
        self.images, self.batch_size, self.seed = images, batch_size, seed
        self.iterations = iterations or count_iterations(images, epochs, batch_size)
        self.micro_batch = batch_size // (world_size * accumulation)
        self.rank, self.accumulation, self.start = rank, accumulation, start

    def __iter__(self) -> Iterator[list[Item]]:
        orders: dict[int, np.ndarray] = {}
        for iteration in range(self.start, self.iterations):
            first = iteration * self.batch_size
            first += self.rank * self.accumulation * self.micro_batch
            for micro in range(self.accumulation):
                begin = first + micro * self.micro_batch
                items = []
                for place in range(begin, begin + self.micro_batch):
                    epoch, position = divmod(place, self.images)
                    if epoch not in orders:
                        orders = {k: v for k, v in orders.items() if k >= epoch - 1}
                        rng = keyed_generator("order", self.seed, epoch)
                        orders[epoch] = rng.permutation(self.images)
                    items.append(Item(epoch, int(orders[epoch][position])))
                yield items

    def __len__(self) -> int:
        """Number of micro-batches of this process from `start` to the end."""
        return (self.iterations - self.start) * self.accumulation


class TrainingImages(Dataset[Sample]):
    """Augmented images and targets of a split.

    If the split names saliency maps (`kproba.data.saliency_table.with_saliency`), the
    salient pixels with the target 0 get the target `UNKNOWN`.

    Args:
        split: Table that `kproba.data.splits.read_index` returned.
        augmentation: Settings of the augmentation.
        seed: Seed of the augmentation.
        label_table: (256,) uint8 from raw label to training target; None if the targets
            come from `pseudo_labels`.
        pseudo_labels: Folder with one target image per id, or None.

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
        self.augmentation, self.seed = augmentation, seed
        self.kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __len__(self) -> int:
        """Number of images in the split."""
        return len(self.sources)

    def __getitem__(self, item: Item) -> Sample:
        name = self.sources[item.image].id
        image, target = self.kept.get(item.image) or self.decode(item.image)
        rng = keyed_generator("augment", self.seed, item.epoch, name)
        image, target = augment(image, target, self.augmentation, rng)
        return Sample(image, target, name, item.epoch * len(self) + item.image)

    def decode(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Image (3, H, W) and target (H, W), uint8, of a row of the split."""
        source = self.sources[number]
        labels = self.label_table[source.read_labels()]
        if source.saliency:
            labels[(labels == 0) & source.read_saliency()] = UNKNOWN
        target = torch.from_numpy(labels)
        return source.read_image(), target

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
