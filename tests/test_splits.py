"""Tasks, label tables and image lists."""

import itertools
import json
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kproba.data import splits
from kproba.data.labels import IGNORE, LabelMap
from kproba.data.splits import (
    in_step,
    parse_classes,
    read_index,
    select_images,
    write_classes,
    write_split,
)
from kproba.data.tasks import Groups, canonical_task, parse_task, resolve_groups

CLASS_COUNT = {"voc": 20, "ade": 150}

# Training images per step, of docs/protocol.md, section 6.
FROM_10_1 = {
    "overlap": [528, 1177, 444, 482, 3898, 487, 299, 491, 500, 548],
    "disjoint": [188, 868, 227, 201, 3247, 378, 299, 420, 500, 548],
}
FROM_5_1 = {
    "overlap": [385, 1086, 1000, 1081, 264, *FROM_10_1["overlap"]],
    "disjoint": [139, 566, 812, 220, 216, *FROM_10_1["disjoint"]],
}
TRAIN_COUNTS = {
    ("voc", "19-1", "overlap"): [10410, 548],
    ("voc", "19-1", "disjoint"): [10034, 548],
    ("voc", "15-5", "overlap"): [9568, 2145],
    ("voc", "15-5", "disjoint"): [8437, 2145],
    ("voc", "15-1", "overlap"): [9568, 487, 299, 491, 500, 548],
    ("voc", "15-1", "disjoint"): [8437, 378, 299, 420, 500, 548],
    ("voc", "10-1", "overlap"): [6139, *FROM_10_1["overlap"]],
    ("voc", "10-1", "disjoint"): [3706, *FROM_10_1["disjoint"]],
    ("voc", "10-5", "overlap"): [6139, 5542, 2145],
    ("voc", "10-5", "disjoint"): [3706, 4731, 2145],
    ("voc", "5-5", "overlap"): [2836, 3604, 5542, 2145],
    ("voc", "5-5", "disjoint"): [1753, 1953, 4731, 2145],
    ("voc", "5-3", "overlap"): [2836, 2331, 1542, 2095, 4484, 1468],
    ("voc", "5-3", "disjoint"): [1753, 1517, 624, 1296, 3924, 1468],
    ("voc", "5-1", "overlap"): [2836, *FROM_5_1["overlap"]],
    ("voc", "5-1", "disjoint"): [1753, *FROM_5_1["disjoint"]],
    ("voc", "2-2", "overlap"): [
        *(1072, 1151, 1039, 2080, 1345, 1701, 925, 4236, 790, 1048)
    ],
    ("voc", "2-2", "disjoint"): [
        *(653, 936, 303, 1378, 436, 1056, 428, 3625, 719, 1048)
    ],
    ("voc", "2-1", "overlap"): [1072, 698, 461, 654, *FROM_5_1["overlap"]],
    ("voc", "2-1", "disjoint"): [653, 641, 295, 164, *FROM_5_1["disjoint"]],
    ("ade", "100-50", "overlap"): [20192, 9390],
    ("ade", "100-50", "disjoint"): [10806, 9390],
    ("ade", "50-50", "overlap"): [20177, 13186, 9390],
    ("ade", "50-50", "disjoint"): [4838, 5968, 9390],
    ("ade", "100-10", "overlap"): [20192, 1710, 2294, 2747, 4279, 2844],
    ("ade", "100-10", "disjoint"): [10806, 861, 1009, 1445, 3231, 2844],
    ("ade", "100-5", "overlap"): [
        *(20192, 1142, 600, 1234, 1204, 1151, 1874, 1807, 2943, 1238, 1898)
    ],
    ("ade", "100-5", "disjoint"): [
        *(10806, 597, 264, 499, 510, 493, 952, 1040, 2191, 946, 1898)
    ],
    ("ade", "50-20", "overlap"): [20177, 7508, 7905, 4713, 4469, 6075],
    ("ade", "50-20", "disjoint"): [4838, 1940, 2588, 2301, 2454, 6075],
}
TASKS = sorted({(dataset, task) for dataset, task, _ in TRAIN_COUNTS})

# Validation images that hold a class of the step, of the same section.
VAL_COUNTS = {
    ("voc", "19-1"): [1421, 74],
    ("voc", "15-5"): [1240, 354],
    ("voc", "15-1"): [1240, 85, 57, 90, 84, 74],
    ("voc", "10-1"): [869, 75, 128, 79, 76, 446, 85, 57, 90, 84, 74],
    ("voc", "5-3"): [433, 296, 226, 281, 562, 238],
    ("voc", "2-2"): [169, 173, 169, 246, 194, 200, 155, 508, 147, 158],
    ("ade", "100-50"): [2000, 1018],
    ("ade", "50-50"): [1997, 1341, 1018],
    ("ade", "100-10"): [2000, 163, 268, 368, 466, 317],
    ("ade", "100-5"): [2000, 109, 61, 137, 147, 189, 217, 193, 332, 119, 233],
}

# The classes that 15-1_b adds one by one, and its disjoint counts. Of all orders only
# this one gives these counts; the order within step 0 does not matter to them.
ADDED_BY_15_1_B = (17, 3, 6, 18, 10)
COUNTS_OF_15_1_B = [8452, 294, 696, 385, 491, 264]


# --- tasks -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "class_count", "sizes"),
    [
        ("19-1", 20, [19, 1]),
        ("15-5", 20, [15, 5]),
        ("15-1", 20, [15, 1, 1, 1, 1, 1]),
        ("10-1", 20, [10] + 10 * [1]),
        ("100-50", 150, [100, 50]),
        ("20-1", 20, [20]),
        ("offline", 20, [20]),
    ],
)
def test_task_divides_all_classes_in_order(task, class_count, sizes):
    groups = parse_task(task, class_count)
    assert [len(group) for group in groups] == sizes
    assert list(itertools.chain(*groups)) == list(range(1, class_count + 1))


@pytest.mark.parametrize(
    "task",
    [
        "",
        "15",
        "15-",
        "-1",
        "15-1-1",
        "15-1_",
        "15-1_B",
        "a-b",
        "15_1",
        "15-1 ",
        "joint",
    ],
)
def test_task_of_another_form_is_refused(task):
    with pytest.raises(ValueError, match=r"Expected a task like '15-1'.*offline"):
        parse_task(task, 20)


def test_letter_names_a_published_class_order():
    orders = {"b": (3, 1, 4, 2), "c": (4, 3, 2, 1)}
    assert parse_task("2-1_c", 4, orders) == ((4, 3), (2,), (1,))
    assert parse_task("2-2_b", 4, orders) == ((3, 1), (4, 2))
    with pytest.raises(ValueError, match=r"class order of .*\(r1, .*, b, c\).*'d'"):
        parse_task("2-1_d", 4, orders)
    with pytest.raises(ValueError, match=r"class order of .* random ones\)"):
        parse_task("2-1_b", 4)


@pytest.mark.parametrize("task", ["15-2", "15-7", "21-1", "0-1", "15-0", "0-0"])
def test_task_that_does_not_divide_the_classes_is_refused(task):
    with pytest.raises(ValueError, match=rf"'{task}' to divide .* 20 classes"):
        parse_task(task, 20)


def test_tasks_with_the_same_first_step_share_its_name():
    first_steps = [parse_task(task, 20)[0] for task in ("15-1", "15-5")]
    assert [canonical_task(step) for step in first_steps] == ["15", "15"]


def test_other_classes_or_another_order_have_another_name():
    lists = [(1, 2, 3), (1, 3, 2), (2, 3, 1), (1, 2, 4), (1, 2), (2, 1)]
    names = [canonical_task(classes) for classes in lists]
    assert len(set(names)) == len(lists)
    assert names[0] == "3"
    assert all(re.fullmatch(r"[23]x[0-9a-f]{6}", name) for name in names[1:4])


def test_name_of_a_first_step_does_not_depend_on_its_container():
    assert canonical_task([3, 1]) == canonical_task((3, 1))


# --- label tables ------------------------------------------------------------------

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


# --- which images ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("present", "overlap", "disjoint"),
    [
        ({0, 255}, False, False),
        ({0, 1}, False, False),  # only an old class
        ({0, 3}, False, False),  # only a future class
        ({2}, True, True),
        ({0, 2, 255}, True, True),
        ({0, 1, 2}, True, True),
        ({0, 2, 3}, True, False),
        ({1, 2, 3, 255}, True, False),
    ],
)
def test_image_belongs_to_a_step_by_its_classes(present, overlap, disjoint):
    old_and_new, new = frozenset({1, 2}), frozenset({2})
    for setting, expected in [
        ("overlap", overlap),
        ("disjoint", disjoint),
        ("sequential", disjoint),
    ]:
        assert in_step(frozenset(present), old_and_new, new, setting) is expected


def _index(**classes_of: str) -> pd.DataFrame:
    rows = [
        {"id": name, "subset": "train", "classes": cell}
        for name, cell in classes_of.items()
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(("cell", "labels"), [("0 3 255", {0, 3, 255}), ("", set())])
def test_classes_cell_is_a_set_of_labels(cell, labels):
    assert parse_classes(cell) == labels


def test_old_classes_of_a_reordered_task_are_the_real_ones():
    """Classes below the smallest new one would be only class 1 here, not 4."""
    index = _index(old_and_new="0 2 4", future="1 2 3", new="2", old="1 4")
    chosen = select_images(index, ((4, 1), (2,)), "disjoint")
    assert list(chosen["id"]) == ["new", "old_and_new"]


def test_selection_is_sorted_and_keeps_to_its_subset():
    index = _index(c="1", a="0 1 2", d="0", b="2")
    index.loc[index["id"] == "b", "subset"] = "val"
    assert list(select_images(index, ((1, 2),), "overlap")["id"]) == ["a", "c"]
    assert list(select_images(index, ((1, 2),), "overlap", "val")["id"]) == ["b"]


@pytest.mark.parametrize("setting", ["overlap", "disjoint", "sequential"])
def test_step_without_images_is_refused(setting):
    with pytest.raises(ValueError, match=rf"\[3\] for step 1 \({setting}\)"):
        select_images(_index(a="0 1", b="2"), ((1, 2), (3,)), setting)


def test_disjoint_step_emptied_by_future_classes_is_refused():
    with pytest.raises(ValueError, match=r"step 0 \(disjoint\).*overlap"):
        select_images(_index(a="1 2"), ((1,), (2,))[:1], "disjoint")


@pytest.fixture(scope="module")
def ids_of_steps(presence_index) -> Iterator[Callable[..., list[list[str]]]]:
    """Ids of the training images of every step, each task selected once."""

    @cache
    def select(dataset: str, groups: Groups, setting: str) -> list[list[str]]:
        index = presence_index(dataset)
        return [
            list(select_images(index, groups[: step + 1], setting)["id"])
            for step in range(len(groups))
        ]

    with pytest.MonkeyPatch.context() as patch:
        # The same cells come back for every step: reading them takes most of the time.
        patch.setattr(splits, "parse_classes", cache(parse_classes))
        yield select


@pytest.mark.parametrize(("dataset", "task", "setting"), TRAIN_COUNTS)
def test_published_training_counts(ids_of_steps, dataset, task, setting):
    groups = parse_task(task, CLASS_COUNT[dataset])
    counts = [len(step) for step in ids_of_steps(dataset, groups, setting)]
    assert counts == TRAIN_COUNTS[dataset, task, setting]


def test_published_training_counts_of_a_reordered_task(ids_of_steps):
    first = tuple(c for c in range(1, 21) if c not in ADDED_BY_15_1_B)
    groups = (first, *((label,) for label in ADDED_BY_15_1_B))
    counts = [len(step) for step in ids_of_steps("voc", groups, "disjoint")]
    assert counts == COUNTS_OF_15_1_B


@pytest.mark.parametrize(("dataset", "task"), TASKS)
def test_disjoint_steps_partition_the_images_with_a_class(
    presence_index, ids_of_steps, dataset, task
):
    index = presence_index(dataset)
    train = index[index["subset"] == "train"]
    with_class = {
        name
        for name, cell in zip(train["id"], train["classes"], strict=True)
        if set(cell.split()) - {"0", "255"}
    }
    groups = parse_task(task, CLASS_COUNT[dataset])
    steps = ids_of_steps(dataset, groups, "disjoint")
    chosen = [name for step in steps for name in step]
    assert len(chosen) == len(set(chosen)) == {"voc": 10582, "ade": 20196}[dataset]
    assert set(chosen) == with_class


@pytest.mark.parametrize(("dataset", "task"), TASKS)
def test_disjoint_is_part_of_overlap_and_equal_in_the_last_step(
    ids_of_steps, dataset, task
):
    groups = parse_task(task, CLASS_COUNT[dataset])
    overlap, disjoint = (
        ids_of_steps(dataset, groups, setting) for setting in ("overlap", "disjoint")
    )
    assert all(set(d) <= set(o) for d, o in zip(disjoint, overlap, strict=True))
    assert disjoint[-1] == overlap[-1]


@pytest.mark.parametrize(("dataset", "task"), [("voc", "15-1"), ("ade", "100-10")])
def test_every_image_of_a_step_holds_one_of_its_classes(
    presence_index, ids_of_steps, dataset, task
):
    index = presence_index(dataset)
    cells = dict(zip(index["id"], index["classes"], strict=True))
    groups = parse_task(task, CLASS_COUNT[dataset])
    for group, step in zip(
        groups, ids_of_steps(dataset, groups, "overlap"), strict=True
    ):
        new = {str(label) for label in group}
        assert all(new & set(cells[name].split()) for name in step)


def test_sequential_images_are_those_of_disjoint(presence_index):
    groups = parse_task("15-1", 20)[:2]
    disjoint, sequential = (
        select_images(presence_index("voc"), groups, setting)
        for setting in ("disjoint", "sequential")
    )
    pd.testing.assert_frame_equal(disjoint, sequential)


@pytest.mark.parametrize(("dataset", "task"), VAL_COUNTS)
def test_published_validation_counts(presence_index, dataset, task):
    groups = parse_task(task, CLASS_COUNT[dataset])
    counts = [
        len(
            select_images(
                presence_index(dataset), groups[: step + 1], "overlap", subset="val"
            )
        )
        for step in range(len(groups))
    ]
    assert counts == VAL_COUNTS[dataset, task]


# --- tasks of the configuration ----------------------------------------------------

LABELS = {"cat": 1, "dog": 2, "cow": 3}


def test_groups_may_name_or_number_the_classes():
    listed = [["cow", 1], ["dog"]]
    assert resolve_groups(listed, LABELS, where="tasks.mine") == ((3, 1), (2,))


@pytest.mark.parametrize("entry", [0, 4, -1, 255, "cat ", "horse", "background"])
def test_unknown_class_is_refused(entry):
    with pytest.raises(ValueError, match=r"tasks\.mine.*numbers 1 to 3") as error:
        resolve_groups([["cat"], [entry]], LABELS, where="tasks.mine")
    assert f"{entry!r} in step 1" in str(error.value)


def test_unknown_class_comes_with_the_suggestion():
    with pytest.raises(ValueError, match=r"'horse' in step 0 <horse>"):
        resolve_groups(
            [["horse"]], LABELS, where="tasks.mine", suggest=lambda w: f" <{w}>"
        )


@pytest.mark.parametrize(
    "listed", [[["cat"], ["cat"]], [["cat"], [1]], [[1, "dog"], ["cow", 1]]]
)
def test_class_in_two_steps_is_refused(listed):
    with pytest.raises(ValueError, match=r"tasks\.mine.*in step 0 and in step 1"):
        resolve_groups(listed, LABELS, where="tasks.mine")


def test_class_twice_in_one_step_is_refused():
    with pytest.raises(ValueError, match="every class in one step"):
        resolve_groups([["cat", 1]], LABELS, where="tasks.mine")


# --- files -------------------------------------------------------------------------

INDEX = """id,image,mask,width,height,subset,classes
0010,i/0010.png,m/0010.png,4,3,train,0 1
0009,i/0009.png,m/0009.png,4,3,train,1 2 255
null,i/null.png,m/null.png,4,3,train,2
0011,i/0011.png,m/0011.png,4,3,train,0 3
0012,i/0012.png,m/0012.png,4,3,val,1
"""


@pytest.fixture
def index_file(tmp_path: Path) -> Path:
    path = tmp_path / "index.csv"
    path.write_text(INDEX)
    return path


def test_index_keeps_ids_and_classes_as_text(index_file):
    index = read_index(index_file)
    assert list(index["id"]) == ["0010", "0009", "null", "0011", "0012"]
    assert index["classes"].iloc[2] == "2"
    assert index["width"].iloc[0] == 4


def test_index_of_numbers_stays_text(tmp_path):
    lines = INDEX.splitlines()
    (tmp_path / "index.csv").write_text("\n".join((lines[0], lines[4], lines[5])))
    index = read_index(tmp_path / "index.csv")
    assert list(index["id"]) == ["0011", "0012"]


def test_split_holds_the_rows_of_the_step(tmp_path, index_file):
    split = tmp_path / "step.csv"
    write_split([index_file], split, groups=((1,), (2,)), setting="overlap")
    assert split.read_text() == (
        "id,image,mask,width,height,subset,classes\n"
        "0009,i/0009.png,m/0009.png,4,3,train,1 2 255\n"
        "null,i/null.png,m/null.png,4,3,train,2\n"
    )


@pytest.mark.parametrize("setting", ["overlap", "disjoint", "sequential"])
def test_appended_step_leaves_earlier_splits_as_they_are(tmp_path, index_file, setting):
    def written(name: str, groups: Groups) -> list[bytes]:
        paths = [tmp_path / f"{name}{step}.csv" for step in range(len(groups))]
        for step, path in enumerate(paths):
            write_split([index_file], path, groups=groups[: step + 1], setting=setting)
        return [path.read_bytes() for path in paths]

    before = written("before", ((1,), (2,)))
    after = written("after", ((1,), (2,), (3,)))
    assert after[:2] == before
    assert after[2] not in before


def test_split_takes_images_of_additions_too(tmp_path, index_file):
    more, split = tmp_path / "more.csv", tmp_path / "step.csv"
    more.write_text(f"{INDEX.splitlines()[0]}\nnew,i/new.png,m/new.png,4,3,train,0 2\n")
    groups = ((1,), (2,))
    write_split([index_file, more], split, groups=groups, setting="overlap")
    assert list(read_index(split)["id"]) == ["0009", "new", "null"]


def test_name_in_two_parts_of_a_dataset_is_refused(tmp_path, index_file):
    more = tmp_path / "more.csv"
    more.write_text(f"{INDEX.splitlines()[0]}\nnull,i/n.png,m/n.png,4,3,train,2\n")
    with pytest.raises(ValueError, match=r"1 of .*more.csv, such as 'null', are in"):
        write_split(
            [index_file, more], tmp_path / "s.csv", groups=((2,),), setting="overlap"
        )


def test_split_of_a_step_without_images_is_not_written(tmp_path, index_file):
    split = tmp_path / "step.csv"
    with pytest.raises(ValueError, match="at least one train image"):
        write_split([index_file], split, groups=((7,),), setting="overlap")
    assert [path.name for path in tmp_path.iterdir()] == ["index.csv"]


def test_classes_file_lists_output_index_label_name_and_step(tmp_path):
    path = tmp_path / "classes.json"
    names = {label: name for name, label in LABELS.items()}
    write_classes(path, groups=((3, 1), (2,)), names=names, setting="disjoint")
    assert json.loads(path.read_text()) == {
        "setting": "disjoint",
        "steps": 2,
        "classes": [
            {"index": 0, "label": 0, "name": "background", "step": 0},
            {"index": 1, "label": 3, "name": "cow", "step": 0},
            {"index": 2, "label": 1, "name": "cat", "step": 0},
            {"index": 3, "label": 2, "name": "dog", "step": 1},
        ],
    }


def test_ignored_label_is_no_class():
    assert IGNORE not in LabelMap(parse_task("offline", 254)).seen


def test_a_random_order_is_its_seed_s_everywhere():
    groups = parse_task("6-2_r1", 10)
    # Written down: a result must not depend on a library's generator.
    assert groups == ((1, 6, 3, 5, 7, 4), (9, 8), (10, 2))
    assert parse_task("6-2_r2", 10) != groups
    assert sorted(label for group in groups for label in group) == list(range(1, 11))
    assert parse_task("4-3_r1", 10)[0] == groups[0][:4]
