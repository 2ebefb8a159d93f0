"""Image lists of VOC and ADE20K against the published counts."""

from collections.abc import Callable, Iterator
from functools import cache

import pandas as pd
import pytest

from kproba.data import splits
from kproba.data.splits import parse_classes, select_images
from kproba.data.tasks import Groups, parse_task

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


def partitioned(index: pd.DataFrame, task: str, count: int) -> list[list[str]]:
    """Ids of the images of every step."""
    groups, classes = parse_task(task, count), range(1, count + 1)
    return [
        list(
            select_images(index, groups[: step + 1], "partitioned", classes=classes)[
                "id"
            ]
        )
        for step in range(len(groups))
    ]


def test_partitioned_puts_every_image_into_one_step(presence_index):
    index = presence_index("voc")
    steps = partitioned(index, "15-1", 20)
    chosen = [name for step in steps for name in step]
    assert len(chosen) == len(set(chosen)) == 10582
    assert sum(map(len, steps[1:])) > 1000  # no step has nearly everything
    groups = parse_task("15-1", 20)
    for step in range(len(groups)):
        overlap = select_images(index, groups[: step + 1], "overlap")
        assert set(steps[step]) <= set(overlap["id"])


def test_tasks_of_the_same_classes_share_step_0_of_partitioned(presence_index):
    index = presence_index("voc")
    by_one, by_five = (partitioned(index, task, 20) for task in ("15-1", "15-5"))
    assert by_one[0] == by_five[0]
    assert sorted(name for step in by_one[1:] for name in step) == by_five[1]
