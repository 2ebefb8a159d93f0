"""Quality of the pseudo labels of a step, before anything is trained on them.

The masks of the training images name all classes, which a method must not see; here
they are the ground truth of the pixels that the step calls background. Where a mask
names no old class at all (pictures that came later), the labels cannot be judged, and
the columns that judge stay empty.
"""

from collections.abc import Sequence

import pandas as pd
import torch

from kproba.data.labels import UNSURE, LabelMap


def hidden_confusion(
    raw: torch.Tensor, labels: torch.Tensor, label_map: LabelMap
) -> torch.Tensor:
    """Confusion of the pixels that a step calls background: truth and pseudo label.

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
        One row per class: `pixels` that are of it, how many were `labelled` so,
        `correct`, left `unsure`, and how many of those labelled so are really
        background (`of_background`) or a class of the future (`of_future`); precision,
        recall and iou in percent, empty where nothing was labelled or is there.
    """
    counts = confusion.tolist()
    classes = len(labels)
    # Masks that name no old class at all cannot tell what is right and what is wrong.
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
