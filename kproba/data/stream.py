"""The order of the training images.

The training order is one endless stream: the random orders of all epochs, one after the
other, cut into global batches. Every batch is full, and no image is dropped. Order and
augmentation depend only on seed, epoch and image id. The number of processes, the
number of loader workers and restarts therefore do not change the training data.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from kproba.data.augmentation import keyed_generator


class Item(NamedTuple):
    """One position of the training stream."""

    epoch: int
    image: int  # number of the row of the split; memory images come after these


def count_iterations(images: int, epochs: float, batch_size: int) -> int:
    """Iterations of a training by epochs, 1 at least; the last batch is filled up.

    Args:
        images: Number of images of the split.
        epochs: How often each image is used.
        batch_size: Images per iteration over all processes.
    """
    return max(1, -(-int(images * epochs) // batch_size))


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
        self.iterations = iterations or count_iterations(images, epochs, new_places)
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
