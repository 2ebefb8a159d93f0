"""Image lists: which images belong to a step, and their files."""

import hashlib
import json
from pathlib import Path

import pandas as pd
import pytest

from kproba.data.splits import (
    in_step,
    parse_classes,
    read_index,
    select_images,
    write_classes,
    write_split,
)
from kproba.data.tasks import Groups, partition_label

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
    with pytest.raises(ValueError, match=rf"\(label 3\) for step 1 \({setting}\)"):
        select_images(_index(a="0 1", b="2"), ((1, 2), (3,)), setting)


def expected_owner(name: str, labels: set[int]) -> int:
    """The rule of "partitioned", written once more."""
    digests = {
        hashlib.sha256(bytes(f"{name} {label}", "ascii")).hexdigest(): label
        for label in labels
    }
    return digests[sorted(digests)[0]]


def test_an_image_of_partitioned_belongs_to_the_class_with_the_smallest_digest():
    for name in map(str, range(50)):
        present, classes = {0, 1, 2, 5, 9, 255}, (1, 2, 3, 5)
        owner = partition_label(name, frozenset(present), classes)
        assert owner == expected_owner(name, {1, 2, 5})
    assert partition_label("a", frozenset({0, 255, 7}), (1, 2)) is None


def test_partitioned_needs_the_classes_of_all_steps():
    with pytest.raises(ValueError, match="classes of all steps"):
        select_images(_index(a="1"), ((1,),), "partitioned")


def test_a_step_of_partitioned_without_images_is_refused():
    index = _index(b="0 1 2")
    assert expected_owner("b", {1, 2}) == 2
    with pytest.raises(ValueError, match=r"\(label 1\) for step 0 \(partitioned\)"):
        select_images(index, ((1,),), "partitioned", classes=(1, 2))


def test_disjoint_step_emptied_by_future_classes_is_refused():
    with pytest.raises(ValueError, match=r"step 0 \(disjoint\).*overlap"):
        select_images(_index(a="1 2"), ((1,), (2,))[:1], "disjoint")


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


def test_split_of_partitioned_divides_among_all_classes(tmp_path, index_file):
    ids = []
    for step, groups in enumerate([((1,),), ((1,), (2, 3))]):
        path = tmp_path / f"{step}.csv"
        write_split(
            [index_file], path, groups=groups, setting="partitioned", classes=(1, 2, 3)
        )
        ids.append(list(read_index(path)["id"]))
    both = expected_owner("0009", {1, 2})  # the only image with classes of two steps
    assert ids[0] == ([] if both == 2 else ["0009"]) + ["0010"]
    assert ids[1] == (["0009"] if both == 2 else []) + ["0011", "null"]


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
    with pytest.raises(ValueError, match=r"1 name.*more.csv, such as 'null', are also"):
        write_split(
            [index_file, more], tmp_path / "s.csv", groups=((2,),), setting="overlap"
        )


def test_split_of_a_step_without_images_is_not_written(tmp_path, index_file):
    split = tmp_path / "step.csv"
    with pytest.raises(ValueError, match="at least one train image"):
        write_split([index_file], split, groups=((7,),), setting="overlap")
    assert [path.name for path in tmp_path.iterdir()] == ["index.csv"]


LABELS = {"cat": 1, "dog": 2, "cow": 3}


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
