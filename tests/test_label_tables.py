"""Tables from the labels of the masks to training targets and channels."""

import numpy as np
import pytest

from kproba.data.labels import IGNORE, UNSURE, LabelMap
from kproba.data.tasks import parse_task

REORDERED = ((3, 1), (5,), (2, 4))


def _table(default: int, **entries: int) -> np.ndarray:
    table = np.full(256, default, np.uint8)
    for name, value in entries.items():
        table[int(name[1:])] = value
    return table


def test_outputs_follow_the_order_of_the_groups():
    label_map = LabelMap(REORDERED)
    assert label_map.seen == (3, 1, 5, 2, 4)
    assert label_map.channels == 6


@pytest.mark.parametrize(("steps", "first_new"), [(1, 1), (2, 3), (3, 4)])
def test_new_classes_come_last(steps, first_new):
    assert LabelMap(REORDERED[:steps]).first_new == first_new


@pytest.mark.parametrize("setting", ["overlap", "disjoint"])
@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (1, _table(0, _3=1, _1=2, _255=255)),
        (2, _table(0, _5=3, _255=255)),
        (3, _table(0, _2=4, _4=5, _255=255)),
    ],
)
def test_training_target_names_only_new_classes(setting, steps, expected):
    table = LabelMap(REORDERED[:steps], setting).training_table()
    assert table.dtype == np.uint8
    np.testing.assert_array_equal(table, expected)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (1, _table(0, _3=1, _1=2, _255=255)),
        (2, _table(0, _3=1, _1=2, _5=3, _255=255)),
        (3, _table(0, _3=1, _1=2, _5=3, _2=4, _4=5, _255=255)),
    ],
)
def test_sequential_target_names_old_classes_too(steps, expected):
    table = LabelMap(REORDERED[:steps], "sequential").training_table()
    np.testing.assert_array_equal(table, expected)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, _table(255, _0=0, _3=1, _1=2, _5=3)),
        ({"unseen": 0}, _table(0, _3=1, _1=2, _5=3, _255=255)),
        ({"background": 255}, _table(255, _3=1, _1=2, _5=3)),
        (
            {"unseen": 0, "background": 255},
            _table(0, _0=255, _3=1, _1=2, _5=3, _255=255),
        ),
    ],
)
@pytest.mark.parametrize("setting", ["overlap", "disjoint", "sequential"])
def test_ground_truth_names_all_seen_classes(setting, arguments, expected):
    table = LabelMap(REORDERED[:2], setting).evaluation_table(**arguments)
    assert table.dtype == np.uint8
    np.testing.assert_array_equal(table, expected)


def test_ignored_label_is_no_class():
    assert IGNORE not in LabelMap(parse_task("offline", 254)).seen


@pytest.mark.parametrize("classes", [254, 1000])
def test_more_classes_than_a_byte_can_name_are_refused(classes):
    many = LabelMap((tuple(range(1, classes + 1)),))
    words = rf"at most 253 classes, .*one byte.* but got {classes}\. Merge classes"
    for make_table in (many.training_table, many.evaluation_table):
        with pytest.raises(ValueError, match=words):
            make_table()


def test_the_last_class_that_a_byte_can_name_has_its_own_value():
    table = LabelMap((tuple(range(1, 254)),)).training_table()
    assert table[:254].tolist() == list(range(254))
    assert table[UNSURE] == 0 and table[IGNORE] == IGNORE
