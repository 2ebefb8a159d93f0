"""Validation while a network trains, for TensorBoard.

It watches a training and does not change it: what fails here ends the validation and
not the training, and the validation images choose no checkpoint. Large images are
scaled down for it, so that it takes seconds; the test sees them at their own size.
"""

import logging
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from PIL import Image

from kproba.bank.predictor import NetworkPredictor
from kproba.data.drawing import add_legend, paint_overlay
from kproba.data.labels import LabelMap
from kproba.data.pictures import scaled_size
from kproba.data.splits import evenly_spaced
from kproba.data.tasks import Groups
from kproba.data.whole_images import whole_image_loader
from kproba.network.network import SegmentationNetwork
from kproba.results import measures
from kproba.results.evaluation import (
    EvaluationSettings,
    evaluate,
    means,
    select_rows,
    step_of_class,
)
from kproba.runtime.distributed import Process
from kproba.training.curves import Curves

log = logging.getLogger("kproba")

PICTURES = 4  # of the validation images
PANEL = 400  # pixels: the longer side of a picture in TensorBoard
# Size of the font as a share of the width of a sheet. TensorBoard shows a sheet with a
# width of about 350 pixels, so letters have 12.
LETTERS = 12 / 350
LONG_SIDE = 1024  # pixels: longer images are scaled down
PROTOCOL = EvaluationSettings(policy="ssul", ignore_background=False, crop=None)


class Monitor:
    """Tests a network on a few validation images while it trains.

    They are spread evenly over those that hold a class seen so far. Images with a side
    above `LONG_SIDE` pixels are scaled down to it, and the network is tested without
    its bank: the results are for watching, those of the test differ.

    Args:
        indices: Index of the dataset and of each addition that has come so far.
        groups: Raw labels of the classes of the steps 0..t.
        images: Number of images.
        times: How often during the training, the last time at its end.
        names: Names of the classes for the pictures; empty: labels stand there.
    """

    def __init__(
        self,
        indices: Sequence[pd.DataFrame],
        groups: Groups,
        *,
        images: int,
        times: int,
        names: Sequence[str] = (),
    ):
        index = pd.concat(indices, ignore_index=True)
        rows = evenly_spaced(select_rows(index, groups, "plop"), images)
        self.rows = _scaled_down(rows)
        self.steps, self.times = step_of_class(groups), times
        labels = ["background", *(f"label {label}" for g in groups for label in g)]
        self.names = list(names or labels)
        self.table = LabelMap(groups).evaluation_table()
        self.failed = False  # after the first failure validation stops

    def is_due(self, done: int, iterations: int) -> bool:
        """Whether to validate after `done` of all iterations."""
        if self.failed:
            return False
        return done * self.times // iterations > (done - 1) * self.times // iterations

    def validate(
        self, network: SegmentationNetwork, curves: Curves, iteration: int, device: str
    ) -> dict[str, float] | None:
        """Test the network; write its mIoU and the first pictures to the curves.

        The network is in evaluation mode afterwards. What fails here (too little
        memory, an image that cannot be read) ends the validation and not the training.

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
                return self._validate(network, curves, iteration, device)
        except (MemoryError, OSError, RuntimeError, ValueError) as error:
            log.warning("No more validation while training: %s", error)
            self.failed = True
            if device != "cpu":
                torch.cuda.empty_cache()
            return None
        finally:
            torch.backends.cudnn.benchmark = tuned

    def _validate(
        self, network: SegmentationNetwork, curves: Curves, iteration: int, device: str
    ) -> dict[str, float]:
        confusion = evaluate(
            NetworkPredictor(network),
            whole_image_loader(self.rows, self.table, batch_size=1),
            PROTOCOL,
            channel_order=range(len(self.names)),
            process=Process(device=device),
        )
        for name, picture in self._pictures(network, device):
            curves.picture(name, picture, iteration)
        result: dict[str, float] = {"iteration": iteration}
        scores = means(confusion, self.steps, PROTOCOL.policy)
        for measure in measures.step_means():
            value = scores[measure.name]
            if not np.isnan(value):
                result[measure.name] = float(value)
        curves.add_validation(result)
        return result

    def _pictures(
        self, network: SegmentationNetwork, device: str
    ) -> Iterator[tuple[str, Image.Image]]:
        """Image, ground truth and prediction side by side, above one legend."""
        rows = self.rows.iloc[:PICTURES].reset_index(drop=True)
        for batch in whole_image_loader(rows, self.table, batch_size=1):
            image = Image.fromarray(batch.images[0].permute(1, 2, 0).numpy())
            truth = batch.targets[0].numpy().astype(np.uint8)
            labels = network.predict(batch.images.to(device))[0].cpu().numpy()
            sheet = draw_sheet(image, [truth, labels.astype(np.uint8)], self.names)
            yield f"image, truth, prediction/{batch.ids[0]}", sheet


def draw_sheet(
    image: Image.Image, masks: Sequence[np.ndarray], names: Sequence[str]
) -> Image.Image:
    """A photo and overlays of masks side by side, readable as TensorBoard shows them.

    Args:
        image: RGB image.
        masks: Output indices (H, W) uint8 of the image.
        names: Names of the classes by output index.
    """
    scale = PANEL / max(image.size)
    width, height = (max(1, round(scale * side)) for side in image.size)
    photo = image.resize((width, height), Image.Resampling.BICUBIC)
    sheet = Image.new("RGB", (width * (1 + len(masks)), height), "white")
    sheet.paste(photo)
    for number, mask in enumerate(masks, start=1):
        large = Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST)
        panel = paint_overlay(photo, np.asarray(large), len(names))
        sheet.paste(panel, (number * width, 0))
    present = np.unique(np.concatenate([mask.ravel() for mask in masks]))
    return add_legend(sheet, present, names, size=round(LETTERS * sheet.width))


def _scaled_down(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows whose width and height, at which the images are read, have a bound."""
    sizes = [
        scaled_size(size, LONG_SIDE)
        for size in zip(rows["width"], rows["height"], strict=True)
    ]
    return rows.assign(
        width=[width for width, _ in sizes], height=[height for _, height in sizes]
    )
