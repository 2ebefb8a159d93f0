"""TODO jobs.images."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from kproba.data.loaders import Batch, whole_image_loader
from kproba.data.tasks import Groups
from kproba.runtime.distributed import ALONE, Process
from kproba.runtime.progress import Stage

Classes = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Reading:
    """How a process reads and passes images; changes speed, never the result.

    Attributes:
        batch_size: Images per forward pass.
        workers: Loader processes.
        process: This one of several that share the images.
    """

    batch_size: int = 8
    workers: int = 0
    process: Process = ALONE

    def batches(self, rows: pd.DataFrame, table: np.ndarray, what: str) -> Stage[Batch]:
        """This process's part of whole images with mapped masks, and how far it is."""
        loader = whole_image_loader(
            rows,
            table,
            batch_size=self.batch_size,
            workers=self.workers,
            process=self.process,
        )
        own: list[list[int]] = loader.batch_sampler  # type: ignore[assignment]
        return Stage(
            loader,
            what,
            sum(map(len, own)),
            size=lambda batch: len(batch.ids),
            shown=self.process.first,
        )


def _tuples(groups: Classes) -> Groups:
    return tuple(tuple(group) for group in groups)
