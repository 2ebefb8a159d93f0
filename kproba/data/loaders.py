"""Loaders of training images and of whole images.

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

from kproba.data import tiles
from kproba.data.augmentation import Augmentation, augment, keyed_generator
from kproba.data.sources import list_sources, replace_mask
from kproba.runtime.distributed import ALONE, Process

log = logging.getLogger("kproba")

SHARED_MEMORY = Path("/dev/shm")


PREFETCHED = 2  # batches that each worker prepares in advance, PyTorch's default


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
    """

    images: torch.Tensor
    targets: torch.Tensor
    ids: list[str]
    keys: torch.Tensor


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
        by_epochs = max(1, -(-int(images * epochs) // batch_size))
        self.iterations = iterations or by_epochs
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


class TrainingImages(Dataset[tuple[torch.Tensor, torch.Tensor, str, int]]):
    """Augmented images and targets of a split.

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

    def __getitem__(self, item: Item) -> tuple[torch.Tensor, torch.Tensor, str, int]:
        name = self.sources[item.image].id
        image, target = self.kept.get(item.image) or self.decode(item.image)
        rng = keyed_generator("augment", self.seed, item.epoch, name)
        image, target = augment(image, target, self.augmentation, rng)
        return image, target, name, item.epoch * len(self) + item.image

    def decode(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Image (3, H, W) and target (H, W), uint8, of a row of the split."""
        source = self.sources[number]
        target = torch.from_numpy(self.label_table[source.read_labels()])
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


def collate(samples: Sequence[tuple[torch.Tensor, torch.Tensor, str, int]]) -> Batch:
    """Stack samples of one size."""
    images, targets, ids, keys = zip(*samples, strict=True)
    return Batch(
        torch.stack(images), torch.stack(targets), list(ids), torch.tensor(keys)
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
    return _loader(images, stream, workers)


def _loader(
    images: "TrainingImages | WholeImages",
    batches: Iterable[list[Any]],
    workers: int,
) -> DataLoader[Batch]:
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


class WholeImages(Dataset[tuple[torch.Tensor, torch.Tensor, str, int]]):
    """Whole images with their targets, for banks, pseudo labels and tests.

    Args:
        rows: Table that `kproba.data.splits.read_index` returned.
        label_table: (256,) uint8 from raw label to target.
    """

    def __init__(self, rows: pd.DataFrame, label_table: np.ndarray):
        self.sources = list_sources(rows)
        self.label_table = label_table

    def __len__(self) -> int:
        """Number of images."""
        return len(self.sources)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, str, int]:
        source = self.sources[index]
        target = torch.from_numpy(self.label_table[source.read_labels()])
        return source.read_image(), target, source.id, index


def whole_image_loader(
    rows: pd.DataFrame,
    label_table: np.ndarray,
    *,
    batch_size: int,
    workers: int = 0,
    process: Process = ALONE,
) -> DataLoader[Batch]:
    """Loader of the whole images of one process, in batches of equal size.

    The batches are the same for any number of processes, which take them in turn. They
    hold `kproba.data.tiles.MOST_BATCH_PIXELS` at most, so large images come one by one.
    No image is resized or padded.

    Args:
        rows: As for `WholeImages`, with the columns `width` and `height`.
        label_table: As for `WholeImages`.
        batch_size: Most images in a batch.
        workers: Number of worker processes; fewer if shared memory is short.
        process: This process.
    """
    batches = equal_sizes(rows, batch_size)[process.rank :: process.world_size]
    of_image = (rows["width"] * rows["height"]).tolist()
    pixels = max((len(batch) * of_image[batch[0]] for batch in batches), default=0)
    workers = workers_that_fit(min(workers, len(batches)), BYTES_PER_PIXEL * pixels)
    return _loader(WholeImages(rows, label_table), batches, workers)


def equal_sizes(rows: pd.DataFrame, batch_size: int) -> list[list[int]]:
    """Numbers of the rows in batches of images of equal size; each row is in one.

    A batch has at most `batch_size` images and `MOST_BATCH_PIXELS`, or one image.
    """
    sizes = zip(rows["width"], rows["height"], strict=True)
    return batches_of_one_size(sizes, batch_size, tiles.MOST_BATCH_PIXELS)


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
            "%s has %.0f MiB free, which is enough for the batches of %d loader "
            "worker(s), but not of %d. Using %d; the result is the same. For full "
            "speed, give the container more (docker run --shm-size=8g, or --ipc=host).",
            SHARED_MEMORY,
            free / 2**20,
            fitting,
            workers,
            fitting,
        )
    return fitting
