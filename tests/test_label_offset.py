"""Masks that store the first class as 0."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from small_pictures import labels_of

from kproba.data.augmentation import Augmentation
from kproba.data.kinds import KINDS
from kproba.data.label_images import write_label_image
from kproba.data.loaders import TrainingImages
from kproba.data.splits import read_index, write_split
from kproba.data.tasks import parse_task
from kproba.data.whole_images import WholeImages


@pytest.fixture
def shifted(folder_dataset, monkeypatch):
    """A folder of a kind whose masks store the first class as 0 and ignore 255."""
    kind = replace(KINDS["folder"], name="shifted", label_offset=1)
    monkeypatch.setitem(KINDS, "shifted", kind)
    masks = {"a": labels_of(), "b": labels_of(2, 1, 255)}
    return folder_dataset({"train": masks, "val": {"c": labels_of(1)}})


def test_label_offset_is_in_the_index_and_added_to_the_labels(shifted, index_of):
    path, report = index_of(shifted, kind="shifted")
    index = read_index(path)
    assert index["label_offset"].tolist() == [1, 1, 1]
    assert index["classes"].tolist() == ["1", "1 2 3 255", "1 2"]
    content = json.loads(report.read_text())
    assert content["images_with_label"] == {"1": 3, "2": 2, "3": 1, "255": 1}
    # A mask of class 1 alone is not empty.
    absent = "class without images"  # the third class, in val
    assert content["warnings_by_kind"] == {"no background": 1, absent: 1}


def test_class_count_is_checked_after_the_label_offset(shifted, index_of):
    with pytest.raises(ValueError, match=r"b\.png: holds the labels 3, .* is 2;"):
        index_of(shifted, kind="shifted", class_count=2)
    write_label_image(shifted / "masks/train/a.png", labels_of(254))
    with pytest.raises(ValueError, match=r"a\.png: Expected mask values from 0 to"):
        index_of(shifted, kind="shifted")


def test_without_an_offset_the_index_has_no_such_column(small_folder, index_of):
    path, _ = index_of(small_folder)
    header = path.read_text().splitlines()[0]
    assert "label_offset" not in header
    assert read_index(path)["label_offset"].tolist() == [0] * 5


def test_split_has_the_offset_only_if_a_row_needs_it(
    shifted, folder_dataset, index_of, tmp_path
):
    groups = parse_task("offline", 3)
    for kind, expected in (("shifted", True), ("folder", False)):
        index, _ = index_of(shifted, kind=kind)
        split = tmp_path / f"{kind}.csv"
        write_split([index], split, groups=groups, setting="overlap")
        assert ("label_offset" in split.read_text()) == expected


def test_loaders_add_the_offset_of_each_row(shifted, index_of):
    """As with an addition of another kind: one row with an offset, one without."""
    index = read_index(index_of(shifted, kind="shifted")[0])
    rows = index[index["id"] == "b"]
    rows = pd.concat([rows, rows.assign(label_offset=0, id="b0")], ignore_index=True)
    table = np.arange(256, dtype=np.uint8)
    stored = labels_of(2, 1, 255)
    with_offset = np.where(stored == 255, 255, stored + 1)
    augmentation = Augmentation(6, (1.0, 1.0), 0.0)
    images = TrainingImages(rows, augmentation=augmentation, seed=0, label_table=table)
    whole = [target for _, target, *_ in (WholeImages(rows, table)[k] for k in (0, 1))]
    decoded = [images.decode(number)[1] for number in (0, 1)]
    for targets in (whole, decoded):
        np.testing.assert_array_equal(targets[0], with_offset)
        np.testing.assert_array_equal(targets[1], stored)


def test_pseudo_labels_have_no_offset(shifted, index_of, tmp_path):
    rows = read_index(index_of(shifted, kind="shifted")[0])
    pseudo_labels = tmp_path / "labels"
    pseudo_labels.mkdir()
    for name in rows["id"]:
        write_label_image(pseudo_labels / f"{name}.png", labels_of(2))
    images = TrainingImages(
        rows,
        augmentation=Augmentation(6, (1.0, 1.0), 0.0),
        seed=0,
        label_table=None,
        pseudo_labels=pseudo_labels,
    )
    np.testing.assert_array_equal(images.decode(0)[1], labels_of(2))
