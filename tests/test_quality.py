"""Pseudo labels against the ground truth that the step does not see."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from kproba.data.labels import UNSURE, LabelMap
from kproba.methods.quality import hidden_confusion, quality_table

# Step 1 introduces raw label 4; 2 and 5 are old (outputs 1 and 2), 3 comes later.
LABEL_MAP = LabelMap(((5, 2), (4,)))
CAT, DOG = 5, 2
NAMES = ("background", "cat", "dog")
OLD = (0, CAT, DOG)  # raw labels of the classes so far


def confusion_of(raw, labels):
    return hidden_confusion(
        torch.tensor(raw, dtype=torch.uint8),
        torch.tensor(labels, dtype=torch.uint8),
        LABEL_MAP,
    )


def test_every_hidden_pixel_is_counted_once_by_truth_and_label():
    raw = [0, 0, CAT, CAT, DOG, 3, 3, 4, 255, DOG]
    labels = [0, 1, 1, 0, UNSURE, 2, 0, 1, 2, 2]
    expected = np.zeros((4, 4), int)
    for truth, label in [
        *((0, 0), (0, 1), (1, 1), (1, 0), (2, 3)),
        *((3, 2), (3, 0), (2, 2)),
    ]:  # the step's own pixels and ignored ones are not judged
        expected[truth, label] += 1
    assert confusion_of(raw, labels).tolist() == expected.tolist()


def test_parts_add_up():
    random = np.random.default_rng(0)
    raw = random.choice([0, 2, 3, 4, 5, 255], (4, 6, 7))
    labels = random.choice([0, 1, 2, UNSURE], (4, 6, 7))
    parts = [confusion_of(raw[i], labels[i]) for i in range(4)]
    assert torch.equal(sum(parts), confusion_of(raw, labels))


def test_the_table_by_hand():
    confusion = torch.tensor(
        [[50, 4, 1, 5], [10, 20, 2, 8], [0, 0, 0, 0], [3, 6, 0, 1]]
    )
    table = quality_table(confusion, OLD, NAMES).set_index("label")
    cat, dog, background = (table.loc[label] for label in (CAT, DOG, 0))
    assert (cat.pixels, cat.labelled, cat.correct, cat.unsure) == (40, 30, 20, 8)
    assert (cat.of_background, cat.of_future) == (4, 6)
    assert cat.precision == pytest.approx(100 * 20 / 30)
    assert cat.recall == 50
    assert cat.iou == pytest.approx(100 * 20 / 50)
    assert (background.pixels, background.labelled, background.of_future) == (60, 63, 3)
    assert background.iou == pytest.approx(100 * 50 / 73)
    # No dog is there: what was taken for one is wrong, and there is nothing to recall.
    assert dog.precision == 0 and dog.iou == 0 and math.isnan(dog.recall)


def test_what_was_never_answered_has_no_precision():
    confusion = torch.zeros(4, 4, dtype=torch.int64)
    confusion[1, 0] = 7
    cat = quality_table(confusion, OLD, NAMES).set_index("label").loc[CAT]
    assert math.isnan(cat.precision) and cat.recall == 0 and cat.iou == 0


def test_masks_that_name_no_old_class_judge_nothing():
    """Pictures that came later, with their new class labelled alone."""
    confusion = torch.zeros(len(OLD) + 1, len(OLD) + 1, dtype=torch.int64)
    confusion[0, 0], confusion[0, 1] = 80, 20  # cats that the masks call background
    cat = quality_table(confusion, OLD, NAMES).set_index("label").loc[CAT]
    assert (cat["labelled"], cat["pixels"]) == (20, 0)
    for column in ("precision", "recall", "iou", "of_background"):
        assert pd.isna(cat[column])
