"""Augmentation and the loaders of a step.

The training order is one endless stream: the permutations of the epochs laid end to
end, cut into global batches. No batch is ever partial and no image is dropped. Order
and augmentation are pure functions of (seed, epoch, image id), so neither the number of
processes nor the number of loader workers nor a restart changes what is trained on.
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
from kproba.data.images import read_image
from kproba.data.label_images import read_label_image
from kproba.runtime.distributed import ALONE, Process

log = logging.getLogger("kproba")

SHARED_MEMORY = Path("/dev/shm")


PREFETCHED = 2  # batches that a worker prepares ahead, PyTorch's default


BYTES_PER_PIXEL = 4  # of an image with its target


class Item(NamedTuple):
    """One place of the training stream."""

    epoch: int
    image: int  # row of the split


class Batch(NamedTuple):
    """What a loader yields.

    Attributes:
        images: (B, 3, H, W) uint8.
        targets: (B, H, W) uint8 training targets, 255 ignored.
        ids: Names of the images.
        keys: (B,) int64, one number per place of the stream; seeds per-image dropout.
    """

    images: torch.Tensor
    targets: torch.Tensor
    ids: list[str]
    keys: torch.Tensor


class TrainingStream(Sampler[list[Item]]):
    """Micro-batches of one process, from iteration `start` to the end.

    The global batch i holds the places i·B..(i+1)·B-1 of the stream. Process r of R
    takes its r-th R-th part, cut into `accumulation` micro-batches.

    Args:
        images: Number of images of the split.
        epochs: How often each image is seen; the last batch is filled up.
        batch_size: Images per iteration over all processes.
        seed: Of the permutations.
        rank: Number of this process.
        world_size: Number of processes.
        accumulation: Micro-batches per iteration and process.
        start: First iteration, for resuming.

    Raises:
        ValueError: The batch cannot be divided by processes and accumulation.
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
    ):
        if batch_size % (world_size * accumulation):
            raise ValueError(
                f"Expected the global batch_size {batch_size} to be a multiple of "
                f"processes x accumulation = {world_size} x {accumulation}. Change "
                f"one of the three."
            )
        self.images, self.batch_size, self.seed = images, batch_size, seed
        self.iterations = max(1, -(-int(images * epochs) // batch_size))
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
        """Number of micro-batches of this process that are still to come."""
        return (self.iterations - self.start) * self.accumulation


class TrainingImages(Dataset[tuple[torch.Tensor, torch.Tensor, str, int]]):
    """Augmented images and targets of a split.

    Args:
        split: Rows with `id`, `image` and `mask`.
        augmentation: Its settings.
        seed: Of the augmentation.
        label_table: (256,) uint8, raw label to training target; None when the targets
            come from `pseudo_labels`.
        pseudo_labels: Folder with one target image per id.
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
        # Python lists of short strings, not a data frame: workers fork cheaply.
        self.ids = split["id"].tolist()
        self.paths = split["image"].tolist()
        if pseudo_labels is not None:
            self.targets = [str(pseudo_labels / f"{name}.png") for name in self.ids]
            label_table = np.arange(256, dtype=np.uint8)
        else:
            self.targets = split["mask"].tolist()
        if label_table is None:
            raise ValueError("Expected a label_table or a pseudo_labels folder.")
        self.label_table = label_table
        self.augmentation, self.seed = augmentation, seed
        self.kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __len__(self) -> int:
        """Number of images in the split."""
        return len(self.ids)

    def __getitem__(self, item: Item) -> tuple[torch.Tensor, torch.Tensor, str, int]:
        name = self.ids[item.image]
        image, target = self.kept.get(item.image) or self.decode(item.image)
        rng = keyed_generator("augment", self.seed, item.epoch, name)
        image, target = augment(image, target, self.augmentation, rng)
        return image, target, name, item.epoch * len(self) + item.image

    def decode(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Image (3, H, W) and target (H, W), uint8, of a row of the split."""
        labels = self.label_table[read_label_image(self.targets[number])]
        return read_image(self.paths[number]), torch.from_numpy(labels)

    def keep_decoded(self, budget: float, *, threads: int) -> None:
        """Decode the first images now and keep them, as many as fit into a budget.

        Worker processes share this memory with their parent.

        Args:
            budget: Bytes.
            threads: How many decode at once.
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
    """Stack equal-sized samples."""
    images, targets, ids, keys = zip(*samples, strict=True)
    return Batch(
        torch.stack(images), torch.stack(targets), list(ids), torch.tensor(keys)
    )


def training_loader(
    images: TrainingImages, stream: TrainingStream, *, workers: int
) -> DataLoader[Batch]:
    """Loader of one process's micro-batches."""
    pixels = images.augmentation.crop_size**2 * stream.micro_batch
    workers = workers_that_fit(workers, BYTES_PER_PIXEL * pixels)
    return _loader(images, stream, workers)


def _loader(
    images: "TrainingImages | WholeImages",
    batches: Iterable[list[Any]],
    workers: int,
) -> DataLoader[Batch]:
    return DataLoader(
        images,  # type: ignore[arg-type]  # the collate function makes the batches
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=workers,
        worker_init_fn=_leave_signals_to_parent,
        multiprocessing_context="fork" if workers else None,  # shares decoded images
        pin_memory=torch.cuda.is_available(),
    )


def _leave_signals_to_parent(worker: int) -> None:
    """Schedulers signal all processes at once; the parent needs its workers to stop."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


class WholeImages(Dataset[tuple[torch.Tensor, torch.Tensor, str, int]]):
    """Images at their own size with mapped masks, for banks, export and evaluation.

    Args:
        rows: Rows with `id`, `image` and `mask`.
        label_table: (256,) uint8, raw label to target.
    """

    def __init__(self, rows: pd.DataFrame, label_table: np.ndarray):
        self.ids = rows["id"].tolist()
        self.paths, self.masks = rows["image"].tolist(), rows["mask"].tolist()
        self.label_table = label_table

    def __len__(self) -> int:
        """Number of images."""
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, str, int]:
        labels = self.label_table[read_label_image(self.masks[index])]
        image = read_image(self.paths[index])
        return image, torch.from_numpy(labels), self.ids[index], index


def whole_image_loader(
    rows: pd.DataFrame,
    label_table: np.ndarray,
    *,
    batch_size: int,
    workers: int = 0,
    process: Process = ALONE,
) -> DataLoader[Batch]:
    """Loader over one process's part of whole images, in batches of one size each.

    The batches are those of a single process, dealt out in turn: every image is in one
    batch of one process, whatever their number, and none is resized or padded.
    `Batch.keys` are the numbers of the rows.
    """
    own = equal_sizes(rows, batch_size)[process.rank :: process.world_size]
    pixels = batch_size * int(max(rows["width"] * rows["height"], default=0))
    workers = workers_that_fit(min(workers, len(own)), BYTES_PER_PIXEL * pixels)
    return _loader(WholeImages(rows, label_table), own, workers)


def equal_sizes(rows: pd.DataFrame, batch_size: int) -> list[list[int]]:
    """Numbers of the rows in batches of images of one size, every row once."""
    sizes = zip(rows["width"], rows["height"], strict=True)
    return batches_of_one_size(sizes, batch_size)


def batches_of_one_size(
    sizes: Iterable[tuple[int, int]], batch_size: int
) -> list[list[int]]:
    """Numbers of images in batches of one size, every image once."""
    batches: list[list[int]] = []
    open_batch: dict[tuple[int, int], list[int]] = {}
    for number, size in enumerate(sizes):
        batch = open_batch.get(size)
        if batch is None or len(batch) == batch_size:
            batch = open_batch[size] = []
            batches.append(batch)
        batch.append(number)
    return batches


def workers_that_fit(workers: int, batch_bytes: int) -> int:
    """As many loader workers as shared memory has room for; says so if fewer.

    Workers hand batches over in shared memory. Containers often have 64 MiB of it, and
    a worker that finds it full dies of a bus error. The number of workers changes no
    result, so fewer are taken.

    Args:
        workers: How many are wanted.
        batch_bytes: Size of the largest batch.
    """
    if workers == 0 or not SHARED_MEMORY.is_dir():
        return workers
    free = shutil.disk_usage(SHARED_MEMORY).free
    fitting = min(workers, int(free // max(1, batch_bytes * (PREFETCHED + 1))))
    if fitting < workers:
        log.warning(
            "%s has %.0f MiB free, room for the batches of %d loader worker(s), not of "
            "%d: using %d. The result is the same. For full speed give the container "
            "more (docker run --shm-size=8g, or --ipc=host).",
            *(SHARED_MEMORY, free / 2**20, fitting, workers, fitting),
        )
    return fitting
