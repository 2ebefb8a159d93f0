"""Quality of the pseudo labels of a step, before the training uses them.

The masks of the training images contain all classes, but a method must not use them.
Here they are the ground truth of the pixels that are background in this step. If no
mask contains an old class (new pictures of an addition), the labels cannot be compared,
and the columns for the quality stay empty.
"""

from collections.abc import Sequence

import pandas as pd
import torch

from kproba.data.labels import UNSURE, LabelMap


def hidden_confusion(
    raw: torch.Tensor, labels: torch.Tensor, label_map: LabelMap
) -> torch.Tensor:
    """Confusion matrix of the background pixels of a step: truth and pseudo label.

    Args:
        raw: Raw labels, any shape, uint8.
        labels: Pseudo labels over S_{t-1} or `UNSURE`, of the same shape.
        label_map: Label map of step t.

    Returns:
        (C + 1, C + 1) int64, C = |S_{t-1}|: rows are the truth, background, the old
        classes in output order and, last, classes of the future; columns the label,
        the last one for unsure pixels.
    """
    old = label_map.seen[: label_map.first_new - 1]
    side = label_map.first_new + 1
    row_of = torch.full((256,), side - 1)
    row_of[[0, *old]] = torch.arange(side - 1)
    hidden = torch.from_numpy(label_map.training_table())[raw.long()] == 0
    columns = labels[hidden].long()
    columns = columns.where(columns != UNSURE, side - 1)
    places = row_of[raw[hidden].long()] * side + columns
    return torch.bincount(places, minlength=side * side).view(side, side)


def quality_table(
    confusion: torch.Tensor, labels: Sequence[int], names: Sequence[str]
) -> pd.DataFrame:
    """Precision, recall and IoU of every class of S_{t-1}.

    Args:
        confusion: From `hidden_confusion`, added up over the images of the step.
        labels: Raw labels of S_{t-1}, 0 first.
        names: Their names.

    Returns:
        One row per class: number of `pixels` of the class, of pixels `labelled` as the
        class, of `correct` and of `unsure` ones; number of labelled pixels that are
        background (`of_background`) or a class of a later step (`of_future`);
        precision, recall and iou in percent, empty where they are not defined.
    """
    counts = confusion.tolist()
    classes = len(labels)
    # Masks without any old class are no ground truth for the labels.
    known = sum(map(sum, counts[1:classes])) > 0
    rows = []
    for index, (label, name) in enumerate(zip(labels, names, strict=True)):
        pixels = sum(counts[index])
        labelled = sum(row[index] for row in counts)
        correct = counts[index][index]
        rows.append(
            {
                "index": index,
                "class": name,
                "label": label,
                "pixels": pixels,
                "labelled": labelled,
                "correct": correct,
                "unsure": counts[index][classes],
                "of_background": (counts[0][index] if index else 0) if known else None,
                "of_future": counts[classes][index],
                "precision": _percent(correct, labelled if known else 0),
                "recall": _percent(correct, pixels if known else 0),
                "iou": _percent(correct, pixels + labelled - correct if known else 0),
            }
        )
    return pd.DataFrame(rows)


def _percent(part: int, whole: int) -> float:
    return 100 * part / whole if whole else float("nan")
