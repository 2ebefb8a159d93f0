"""Tasks: names like 15-1, and lists of classes in a configuration."""

import itertools
import re

import pytest

from kproba.data.tasks import canonical_task, parse_task, resolve_groups, without_order

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
    with pytest.raises(ValueError, match=r"Expected a task such as '15-1'.*offline"):
        parse_task(task, 20)


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        *[("15-1", "15-1"), ("15-1_b", "15-1"), ("15-1_r7", "15-1")],
        *[("15-1_7", "15-1_7"), ("offline", "offline"), ("mine_b", "mine_b")],
    ],
)
def test_order_of_the_classes_is_no_other_task(task, expected):
    assert without_order(task) == expected


def test_letter_names_a_published_class_order():
    orders = {"b": (3, 1, 4, 2), "c": (4, 3, 2, 1)}
    assert parse_task("2-1_c", 4, orders) == ((4, 3), (2,), (1,))
    assert parse_task("2-2_b", 4, orders) == ((3, 1), (4, 2))
    with pytest.raises(ValueError, match=r"class order of .*\(r1, .*, b, c\).*'d'"):
        parse_task("2-1_d", 4, orders)
    with pytest.raises(ValueError, match=r"class order of .* random orders\)"):
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


def test_a_random_order_is_its_seed_s_everywhere():
    groups = parse_task("6-2_r1", 10)
    # Written down: a result must not depend on a library's generator.
    assert groups == ((1, 6, 3, 5, 7, 4), (9, 8), (10, 2))
    assert parse_task("6-2_r2", 10) != groups
    assert sorted(label for group in groups for label in group) == list(range(1, 11))
    assert parse_task("4-3_r1", 10)[0] == groups[0][:4]
