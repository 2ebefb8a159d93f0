"""What TensorBoard shows of a step: curves, and now and then what the network sees.

kproba tensorboard results/digits/6-2-overlap    # all steps and methods, in order

Everything here watches a training and changes nothing of it: a full disk ends the
curves and not the run, and the validation images choose no checkpoint.
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from kproba.data.drawing import overlay
from kproba.data.labels import IGNORE, LabelMap
from kproba.data.loaders import whole_image_loader
from kproba.data.splits import evenly_spaced, read_indices
from kproba.data.tasks import Groups
from kproba.network.network import SegmentationNetwork
from kproba.results.evaluation import (
    EvaluationSettings,
    evaluate,
    means_of,
    select_rows,
    step_of_class,
)
from kproba.runtime.distributed import Process
from kproba.training.curves import Curves

log = logging.getLogger("kproba")

PICTURES = 4  # of the images that are looked at


PROTOCOL = EvaluationSettings(policy="ssul", ignore_background=False, crop=None)


class Monitor:
    """Looks at a few validation images while a network trains.

    They are spread evenly over those that hold a class seen so far. The network is
    asked alone, without its bank; the numbers are for watching, the test's are others.

    Args:
        indices: Index of the dataset and of the additions that have come so far.
        groups: Raw labels of the classes of the steps 0..t.
        names: Of S_t in output order.
        images: How many images.
        times: How often during the training, the last time at its end.
    """

    def __init__(
        self,
        indices: Sequence[str | Path],
        groups: Groups,
        names: Sequence[str],
        *,
        images: int,
        times: int,
    ):
        index = pd.concat(read_indices(indices), ignore_index=True)
        self.rows = evenly_spaced(select_rows(index, groups, "plop"), images)
        self.steps, self.names, self.times = step_of_class(groups), names, times
        self.table = LabelMap(groups).evaluation_table()
        self.failed = False  # once, and nobody looks again

    def due(self, done: int, iterations: int) -> bool:
        """Whether to look after `done` of all iterations."""
        if self.failed:
            return False
        return done * self.times // iterations > (done - 1) * self.times // iterations

    def look(
        self, network: SegmentationNetwork, curves: Curves, iteration: int, device: str
    ) -> dict[str, float] | None:
        """Test the network and write old, new and all, and the first pictures.

        The network is in evaluation mode afterwards. What fails here (too little
        memory, an image that cannot be read) ends the looks and not the training.

        Returns:
            The iteration and mIoU of old, new and all, as far as they exist; None if it
            failed.
        """
        network.eval()
        tuned = torch.backends.cudnn.benchmark
        # Images differ in size: nothing here is worth tuning or compiling for.
        torch.backends.cudnn.benchmark = False
        try:
            with torch.compiler.set_stance("force_eager"):
                return self._look(network, curves, iteration, device)
        except (OSError, RuntimeError, ValueError) as error:
            log.warning("No more looks at validation images: %s", error)
            self.failed = True
            if device != "cpu":
                torch.cuda.empty_cache()
            return None
        finally:
            torch.backends.cudnn.benchmark = tuned

    def _look(
        self, network: SegmentationNetwork, curves: Curves, iteration: int, device: str
    ) -> dict[str, float]:
        confusion = evaluate(
            network,
            whole_image_loader(self.rows, self.table, batch_size=1),
            PROTOCOL,
            channel_order=range(len(self.names)),
            process=Process(device=device),
        )
        for name, picture in self._pictures(network, device):
            curves.picture(name, picture, iteration)
        look: dict[str, float] = {"iteration": iteration}
        for measure, value in means_of(confusion, self.steps, PROTOCOL.policy).items():
            if measure != "hiou" and not np.isnan(value):
                look[measure] = float(value)
        curves.add_look(look)
        return look

    def _pictures(
        self, network: SegmentationNetwork, device: str
    ) -> Iterator[tuple[str, Image.Image]]:
        """Image, ground truth and prediction side by side."""
        some = self.rows.iloc[:PICTURES].reset_index(drop=True)
        for batch in whole_image_loader(some, self.table, batch_size=1):
            image = Image.fromarray(batch.images[0].permute(1, 2, 0).numpy())
            truth = batch.targets[0].numpy()
            found = network.predict(batch.images.to(device))[0].cpu().numpy()
            masks = (np.where(truth == IGNORE, 0, truth), found)
            shown = [image, *(overlay(image, mask, self.names) for mask in masks)]
            size = sum(one.width for one in shown), max(one.height for one in shown)
            sheet, left = Image.new("RGB", size, "white"), 0
            for one in shown:
                sheet.paste(one, (left, 0))
                left += one.width
            yield f"image, truth, prediction/{batch.ids[0]}", sheet
