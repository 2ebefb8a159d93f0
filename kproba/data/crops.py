"""One pass over the training images of a step, as the training crops them."""

import pandas as pd

from kproba.data.augmentation import Augmentation
from kproba.data.labels import LabelMap
from kproba.data.loaders import (
    BYTES_PER_PIXEL,
    Batch,
    Item,
    TrainingImages,
    make_loader,
    workers_that_fit,
)
from kproba.runtime.compute import Compute
from kproba.runtime.distributed import Process
from kproba.runtime.progress import Stage

BEFORE = -1  # the epoch of these crops; the epochs of a training begin with 0


def crop_batches(
    rows: pd.DataFrame,
    label_map: LabelMap,
    augmentation: Augmentation,
    seed: int,
    compute: Compute,
    process: Process,
    what: str,
) -> Stage[Batch]:
    """This process's part of one augmented crop of every image; logs the progress.

    Crops depend only on seed and image. Batches do not depend on the number of
    processes.

    Args:
        rows: Table that `kproba.data.splits.read_index` returned.
        label_map: From raw labels to targets.
        augmentation: Settings of the augmentation.
        seed: Seed of the augmentation.
        compute: Batch size and loader processes.
        process: This process of several.
        what: The work on the images, for the log.
    """
    images = TrainingImages(
        rows,
        augmentation=augmentation,
        seed=seed,
        label_table=label_map.training_table(),
    )
    size = compute.batch_size
    batches = [
        [Item(BEFORE, number) for number in range(start, min(start + size, len(rows)))]
        for start in range(0, len(rows), size)
    ][process.rank :: process.world_size]
    pixels = augmentation.crop_size**2 * size
    workers = workers_that_fit(compute.workers, BYTES_PER_PIXEL * pixels)
    loader = make_loader(images, batches, workers)
    count = sum(map(len, batches))
    return Stage(loader, what, count, size=lambda b: len(b.ids), enabled=process.first)
