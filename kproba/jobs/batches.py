"""Whole images for the jobs that run a network forward.

Several processes share the images. They take the batches of a single process in turn,
so every image is used once, and batches do not depend on the number of processes.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from kproba.data import tiles
from kproba.data.canvases import Anchor
from kproba.data.loaders import Batch
from kproba.data.whole_images import whole_image_loader
from kproba.runtime.compute import Compute
from kproba.runtime.distributed import Process
from kproba.runtime.progress import Stage


def image_batches(
    rows: pd.DataFrame,
    table: np.ndarray,
    compute: Compute,
    process: Process,
    what: str,
    anchor: Anchor | None = None,
) -> Stage[Batch]:
    """This process's part of whole images with mapped masks; logs the progress.

    Args:
        rows: Rows of an index or a split.
        table: (256,) uint8, raw label to target.
        compute: Batch size and loader processes.
        process: This process of several.
        what: The work on the images, for the log, such as "evaluating".
        anchor: Where pictures of several sizes lie on a canvas. It is used only on a
            GPU, because a CPU is equally fast for all sizes.
    """
    loader = whole_image_loader(
        rows,
        table,
        batch_size=compute.batch_size,
        workers=compute.workers,
        process=process,
        anchor=None if process.device == "cpu" else anchor,
    )
    batches: list[list[int]] = loader.batch_sampler  # type: ignore[assignment]
    return Stage(
        loader,
        what,
        sum(map(len, batches)),
        size=lambda batch: len(batch.ids),
        enabled=process.first,
    )


def cut_batch(batch: Batch) -> Iterator[Batch]:
    """The batch itself, or its parts one after the other if the images are large.

    The parts have sides of at most `kproba.data.tiles.TILE` pixels, do not overlap and
    cover the images once, so everything in them is counted once. Near a cut, the
    network does not see the pixels beyond it. So within its field of view, some
    features differ from those of the whole image. Overlapping parts would cost almost
    twice the time.

    Args:
        batch: Images of one size.
    """
    height, width = batch.targets.shape[-2:]
    for rows, columns in tiles.cuts(height, width, tiles.TILE):
        yield batch._replace(
            images=batch.images[..., rows, columns],
            targets=batch.targets[..., rows, columns],
        )


def to_groups(groups: list[list[int]]) -> tuple[tuple[int, ...], ...]:
    """Class groups from JSON."""
    return tuple(tuple(group) for group in groups)
