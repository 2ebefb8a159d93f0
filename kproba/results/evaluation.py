"""Evaluation after a step: one confusion matrix, IoU of old, new and all classes.

IoU = TP / (TP + FP + FN) over the whole set, never a mean over images. A *policy*
defines the counted pixels. It is one of the four policies that published tables use
(docs/protocol.md), and every result records it.

| policy    | images              | unseen classes | mean over                       |
|-----------|---------------------|----------------|---------------------------------|
| `ssul`    | all                 | ignored        | background and seen             |
| `plop`    | with ≥ 1 seen class | background     | background and seen             |
| `dkd-ade` | with ≥ 1 seen class | ignored        | background and seen             |
| `mib`     | with ≥ 1 seen class | ignored        | seen classes with ground truth  |

Raw label 0 is counted as background, except for `mib` with `ignore_background`.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from kproba.bank.large import PartlyScored, PixelPredictor
from kproba.bank.views import Place
from kproba.data.labels import IGNORE, LabelMap
from kproba.data.loaders import Batch
from kproba.data.splits import parse_classes
from kproba.data.tasks import Groups
from kproba.data.tiles import needs_tiles
from kproba.results import measures
from kproba.results.measures import ClassScores, class_iou
from kproba.runtime.distributed import ALONE, Process
from kproba.runtime.files import atomic_path, write_json

MOST_SCALED = 2**25  # pixels of an image that is scaled for a crop
Policy = Literal["ssul", "plop", "dkd-ade", "mib"]


class Predictor(PixelPredictor, Protocol):
    """A network, or network and bank (`kproba.bank.predictor`)."""

    def predict_labels(
        self, images: torch.Tensor, sizes: Sequence[tuple[int, int]] | None = None
    ) -> Iterator[tuple[Place, torch.Tensor]]:
        """The likeliest channel of every pixel of images (B, 3, H, W) uint8.

        With `sizes`, the images are on a canvas (`kproba.data.canvases`). Yields the
        slices of some images in (B, H, W) and their labels (b, h, w).
        """


@dataclass(frozen=True)
class EvaluationSettings:
    """Settings of an evaluation.

    Attributes:
        policy: The counted images and pixels; see above.
        ignore_background: Under `mib`: raw label 0 is ignored (ADE20K, where it means
            "unlabelled"). Otherwise it is counted in the confusion matrix, but its IoU
            stays out of MiB's means.
        crop: None: whole images. Else shorter side resized to this many pixels, then
            the centre square, labels too.
        leave_out_absent: Whether the means leave out classes without pixels in the
            evaluated images. This is used if pictures of old classes are not available.
    """

    policy: Policy
    ignore_background: bool
    crop: int | None
    leave_out_absent: bool = False

    @property
    def protocol(self) -> dict[str, Any]:
        """The settings that evaluation.json records."""
        content = asdict(self)
        if not self.leave_out_absent:
            del content["leave_out_absent"]
        return {**content, "checkpoint": "last"}


def select_rows(index: pd.DataFrame, groups: Groups, policy: Policy) -> pd.DataFrame:
    """Validation rows that a policy evaluates after the last step of `groups`."""
    rows = index[index["subset"] == "val"]
    if policy != "ssul":
        seen = frozenset(LabelMap(groups).seen)
        keep = [bool(parse_classes(cell) & seen) for cell in rows["classes"]]
        rows = rows[keep]
    return rows.sort_values("id", ignore_index=True)


def ground_truth_table(groups: Groups, settings: EvaluationSettings) -> np.ndarray:
    """Raw label to ground truth (256,) uint8 after the last step of `groups`."""
    ignored = settings.policy == "mib" and settings.ignore_background
    return LabelMap(groups).evaluation_table(
        unseen=0 if settings.policy == "plop" else IGNORE,
        background=IGNORE if ignored else 0,
    )


def step_of_class(groups: Groups) -> list[int]:
    """Per output index the step that introduced it; background belongs to step 0."""
    return [0, *(step for step, group in enumerate(groups) for _ in group)]


def confusion_matrix(
    truth: torch.Tensor, predicted: torch.Tensor, classes: int
) -> torch.Tensor:
    """Pixels by true class (rows) and predicted class (columns), (C, C) int64.

    Args:
        truth: Any shape, 0..C-1 or 255 (ignored).
        predicted: The same shape, 0..C-1.
        classes: C.
    """
    # Ignored pixels get an extra bin, which is faster than a selection of the others.
    pairs = truth.int() * classes + predicted.int()
    pairs = torch.where(truth == IGNORE, classes**2, pairs).flatten()
    counts = torch.bincount(pairs, minlength=classes**2 + 1)
    return counts[: classes**2].view(classes, classes)


def means(
    confusion: np.ndarray,
    step_of_class: Sequence[int],
    policy: Policy,
    *,
    leave_out_absent: bool = False,
) -> dict[str, float]:
    """Every measure of one step in percent, by name; NaN where it is not defined.

    Args:
        confusion: (C, C) counts, true classes in rows.
        step_of_class: Per output index the step that introduced it, background 0.
        policy: `mib` leaves background and classes without ground truth out; the
            others count a class that is nowhere (no truth, no prediction) as 0.
        leave_out_absent: See `EvaluationSettings`.
    """
    scores = ClassScores.from_confusion(
        confusion, step_of_class, policy, leave_out_absent=leave_out_absent
    )
    return {m.name: m.compute(scores) for m in measures.step_measures()}


def centre_crop(image: torch.Tensor, side: int, *, labels: bool) -> torch.Tensor:
    """Shorter side to `side` pixels, then the centre square; (B, C, H, W) uint8.

    Of an image so long and thin that it would have more than `MOST_SCALED` pixels, only
    the middle is scaled, with a margin that the filter reads.
    """
    height, width = image.shape[-2:]
    scale = side / min(height, width)
    if scale**2 * height * width > MOST_SCALED:
        image = _middle(image, side, scale)
        height, width = image.shape[-2:]
    size = [max(side, round(scale * extent)) for extent in (height, width)]
    if labels:
        image = F.interpolate(image.float(), size, mode="nearest-exact").to(torch.uint8)
    else:
        image = F.interpolate(
            image.float(), size, mode="bilinear", align_corners=False, antialias=True
        )
        image = image.round().clamp(0, 255).to(torch.uint8)
    top, left = ((extent - side) // 2 for extent in size)
    return image[..., top : top + side, left : left + side]


def _middle(image: torch.Tensor, side: int, scale: float) -> torch.Tensor:
    """The part of an image (.., H, W) that a scaled crop of `side` pixels needs."""
    least = math.ceil(side / scale) + 4 * math.ceil(max(1.0, 1 / scale))
    for axis in (-2, -1):
        extent = image.shape[axis]
        # Even or odd like the whole image, so that the middle does not move.
        first = least + (extent - least) % 2
        if first >= extent:
            continue
        scaled = round(scale * extent)

        def apart(
            kept: int, extent: int = extent, scaled: int = scaled
        ) -> tuple[int, float]:
            """Differences in scaling: of the middle, and of the factor."""
            size = round(scale * kept)
            return (size - scaled) % 2, abs(size / kept - scaled / extent)

        kept = min(range(first, min(extent, first + 64), 2), key=apart)
        image = image.narrow(axis, (extent - kept) // 2, kept)
    return image


@torch.inference_mode()
def evaluate(
    predictor: Predictor,
    batches: Iterable[Batch],
    settings: EvaluationSettings,
    *,
    channel_order: Sequence[int],
    process: Process = ALONE,
) -> np.ndarray:
    """Confusion matrix over whole images, (C, C) int64.

    An image with a side above `kproba.data.tiles.TILE` is processed in tiles, as in
    prediction, with the same labels. Its scores are never all in memory.

    Args:
        predictor: Model of the step, on the process's device.
        batches: This process's images and ground truth (`ground_truth_table` applied).
        settings: Only the crop is used here; batches and truth depend on the rest.
        channel_order: Per class of S_t in output order, the predictor's channel for it.
        process: This one of several, which all get the counts of all images.
    """
    classes, device = len(channel_order), process.device
    total = torch.zeros(classes, classes, dtype=torch.int64, device=device)
    for batch in batches:
        images = batch.images.to(device, non_blocking=True)
        truth = batch.targets.to(device, non_blocking=True)
        sizes = batch.sizes
        if settings.crop is not None:
            images = centre_crop(images, settings.crop, labels=False)
            truth = centre_crop(truth[:, None], settings.crop, labels=True)[:, 0]
        order = range(classes)
        for place, predicted in predicted_labels(predictor, images, order, sizes):
            total += confusion_matrix(truth[place], predicted, classes)
    process.add_up(total)
    # Columns are in the order of channels; sort them in the order of the task.
    return total.cpu().numpy()[:, list(channel_order)]


def predicted_labels(
    predictor: Predictor,
    images: torch.Tensor,
    channels: Sequence[int],
    sizes: Sequence[tuple[int, int]] | None = None,
) -> Iterator[tuple[Place, torch.Tensor]]:
    """Labels of images: all at once, or in parts if the images need tiles.

    Args:
        predictor: On the device of the images.
        images: (B, 3, H, W) uint8.
        channels: The predictor's channel of each class.
        sizes: Height and width of each image, where they are on a canvas.

    Yields:
        The slices of the labels in (B, H, W), and the labels (b, h, w) int64: the index
        in `channels` of the channel with the largest score.
    """
    order = list(channels)
    if not needs_tiles(images.shape):
        number_of = torch.tensor(order, device=images.device).argsort()
        for place, labels in predictor.predict_labels(images, sizes):
            yield place, number_of[labels]
        return
    for number, image in enumerate(images):
        tiled = PartlyScored(predictor, image, len(order), device=str(image.device))
        for rows, columns, log_s in tiled.fitted_parts():
            place = (slice(number, number + 1), rows, columns)
            yield place, log_s[order].argmax(dim=0)[None]


def channel_order(
    model_labels: Sequence[int],
    seen: Sequence[int],
    source: str | Path = "the model",
) -> list[int]:
    """Channels of a model in the output order of a task.

    A model trained on all classes at once may have them in another order.

    Args:
        model_labels: Raw label of every channel of the model, 0 first.
        seen: Raw labels of S_t in output order, without background.
        source: The model, for the message.

    Raises:
        ValueError: The model does not have exactly these classes.
    """
    if set(model_labels) != {0, *seen}:
        raise ValueError(
            f"Expected a model with the raw labels {_listed({0, *seen})}, but {source} "
            f"has {_listed(model_labels)}. It belongs to another step or task. Delete "
            f"it and run Snakemake again."
        )
    return [list(model_labels).index(label) for label in (0, *seen)]


def _listed(labels: Iterable[int]) -> str:
    """Labels in ascending order, as text for a message."""
    return ", ".join(map(str, sorted(labels)))


def write_results(
    confusion: np.ndarray,
    evaluation: str | Path,
    table: str | Path,
    *,
    names: Sequence[str],
    step_of_class: Sequence[int],
    settings: EvaluationSettings,
    images: int,
    about: dict[str, Any],
) -> None:
    """Write evaluation.json and confusion.csv.

    Args:
        confusion: (C, C) counts.
        evaluation: JSON with the numbers and every choice that they depend on.
        table: CSV with the counts, true classes in rows.
        names: Class names of S_t in output order.
        step_of_class: Per output index the step that introduced the class.
        settings: Settings of the evaluation; recorded as the protocol.
        images: Number of evaluated images.
        about: Further entries of the JSON, first: the names of run and step.
    """
    iou = class_iou(confusion)
    with atomic_path(table) as temporary:
        pd.DataFrame(confusion, index=list(names), columns=list(names)).to_csv(
            temporary, index_label="true \\ predicted"
        )
    write_json(
        evaluation,
        {
            **about,
            **means(
                confusion,
                step_of_class,
                settings.policy,
                leave_out_absent=settings.leave_out_absent,
            ),
            "protocol": settings.protocol,
            "images": images,
            "without_pixels": [  # in no evaluated image
                name
                for name, pixels in zip(names, confusion.sum(1), strict=True)
                if not pixels
            ],
            "classes": [
                {
                    "index": index,
                    "name": name,
                    "step": step_of_class[index],
                    "iou": iou[index],
                    "pixels": int(confusion[index].sum()),
                }
                for index, name in enumerate(names)
            ],
        },
    )
