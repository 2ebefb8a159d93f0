"""The classes of every step: tasks, additions, and what tasks share."""

from pathlib import Path

import numpy as np
import pytest
from plan_configs import MINIMAL, experiment, make_plan, make_run

from kproba.data.kinds.digits import CLASS_NAMES
from kproba.plan.errors import ConfigError
from kproba.plan.plan import Plan
from kproba.plan.run import Run

pytestmark = pytest.mark.usefixtures("schema_is_parsed_once")


def test_groups_and_names_grow_with_the_steps():
    plan = make_plan(
        tasks={"own": [["nine", 1], ["two"]]},
        experiments=[
            {"dataset": "tiny", "task": "own"},
            {"dataset": "tiny", "task": "6-2"},
        ],
    )
    assert plan.datasets.groups("tiny", "own") == ((10, 1), (3,))
    assert plan.datasets.groups("tiny", "own", 0) == ((10, 1),)
    assert plan.datasets.names("tiny", plan.datasets.groups("tiny", "own")) == (
        ["background", "nine", "zero", "two"]
    )
    assert plan.datasets.groups("tiny", "6-2", 1) == ((1, 2, 3, 4, 5, 6), (7, 8))
    assert plan.datasets.class_count("tiny") == 10
    assert plan.datasets.label_names("tiny") == dict(enumerate(CLASS_NAMES, start=1))


def test_groups_of_an_unplanned_task_are_refused():
    with pytest.raises(ConfigError, match=r"'tiny'.*'4-2'"):
        make_plan().datasets.groups("tiny", "4-2")


def _folder_with(path: Path, names: list[str]) -> str:
    path.mkdir()
    (path / "classes.txt").write_text("\n".join(["background", *names]) + "\n")
    return str(path)


def test_additions_are_steps_at_the_end_of_every_task(tmp_path):
    first = _folder_with(tmp_path / "first", [*CLASS_NAMES, "cross"])
    second = _folder_with(tmp_path / "second", [*CLASS_NAMES, "cross", "ring", "bar"])
    plan = make_plan(
        datasets={"tiny": {"kind": "digits", "additions": [first, second]}},
        tasks={"own": [["nine", 1], ["two"]]},
        **experiment(task=["6-2", "own"]),
    )
    groups = plan.datasets.groups("tiny", "6-2")
    assert groups[2:] == ((9, 10), (11,), (12, 13))
    assert plan.datasets.groups("tiny", "own")[1:] == ((3,), (11,), (12, 13))
    assert plan.datasets.names("tiny", groups)[-3:] == ["cross", "ring", "bar"]
    assert _base_task(plan, "6-2") == "6"
    counts = [plan.datasets.class_count(part) for part in ("tiny", "tiny+1", "tiny+2")]
    assert counts == [10, 11, 13]


def test_a_step_sees_the_pictures_that_have_come_by_then(tmp_path):
    first = _folder_with(tmp_path / "first", [*CLASS_NAMES, "cross"])
    second = _folder_with(tmp_path / "second", [*CLASS_NAMES, "cross", "ring"])
    plan = make_plan(
        datasets={"tiny": {"kind": "digits", "additions": [first, second]}}
    )
    groups = plan.datasets.groups("tiny", "6-2")
    parts = [
        plan.datasets.parts("tiny", groups[: step + 1]) for step in range(len(groups))
    ]
    assert parts[:3] == [["tiny"]] * 3
    assert parts[3:] == [["tiny", "tiny+1"], ["tiny", "tiny+1", "tiny+2"]]
    [all_at_once] = plan.datasets.groups(
        "tiny", plan.datasets.joint_task("tiny", "6-2")
    )
    assert plan.datasets.parts("tiny", [all_at_once]) == parts[-1]
    assert plan.index_context("tiny+1")["folder"] == first


def test_addition_may_have_epochs_of_its_own(tmp_path):
    first = _folder_with(tmp_path / "first", [*CLASS_NAMES, "cross"])
    second = _folder_with(tmp_path / "second", [*CLASS_NAMES, "cross", "ring"])
    additions = [{"path": first, "val_share": 0.5}, {"path": second, "epochs": 50}]
    plan = make_plan(datasets={"tiny": {"kind": "digits", "additions": additions}})
    epochs = [
        plan.settings(make_run(), step)["optimisation"]["epochs"]
        for step in range(1, 5)
    ]
    assert epochs == [20, 20, 20, 50]  # 20 is the default
    shares = [
        plan.datasets.index_settings(part)["val_share"] for part in ("tiny+1", "tiny+2")
    ]
    assert shares == [0.5, 0.2]
    joint = Run("tiny", plan.datasets.joint_task("tiny", "6-2"), "overlap", "base", 0)
    assert plan.settings(joint, 0)["optimisation"]["epochs"] == 50  # of base


@pytest.mark.parametrize(
    "names",
    [CLASS_NAMES, ["cross"], ["cross", *CLASS_NAMES]],
    ids=["no new class", "known classes missing", "other order"],
)
def test_addition_whose_classes_do_not_go_on_is_refused(tmp_path, names):
    folder = _folder_with(tmp_path / "more", list(names))
    with pytest.raises(ConfigError, match=r"additions: expected .*more/classes.txt"):
        make_plan(datasets={"tiny": {"kind": "digits", "additions": [folder]}})


def test_class_names_of_a_folder_come_from_its_file(folder_dataset):
    folder = folder_dataset({"train": {"a": np.zeros((4, 4), np.uint8)}})
    plan = make_plan(
        datasets={"pets": {"kind": "folder", "path": str(folder)}},
        **experiment(dataset="pets", task="2-1"),
    )
    groups = plan.datasets.groups("pets", "2-1")
    assert plan.datasets.names("pets", groups) == ["background", "cat", "dog", "cow"]


def _base_task(plan: Plan, task: str) -> str:
    """The task whose folder has the training of step 0."""
    run = make_run(task=task)
    return plan.owner(plan.chain.training(run, 0), run).run.task


def _two_tasks() -> Plan:
    return make_plan(
        tasks={"own": [[2, 1], [4]], "longer": [[1, 2, 4], [3]]},
        experiments=[
            {"dataset": "tiny", "task": task}
            for task in ("6-2", "6-4", "8-2", "own", "longer")
        ],
    )


def test_tasks_with_the_same_first_step_share_it():
    plan = _two_tasks()
    names = {task: _base_task(plan, task) for task in ("6-2", "6-4", "8-2", "own")}
    assert names["6-2"] == names["6-4"] == "6"
    assert names["8-2"] == "8"
    assert names["own"] not in ("6", "8", "2")
    assert plan.datasets.groups("tiny", "6") == ((1, 2, 3, 4, 5, 6),)
    assert plan.datasets.groups("tiny", names["own"]) == ((2, 1),)


def test_tasks_with_the_same_classes_share_their_joint_training():
    plan = _two_tasks()
    names = {plan.datasets.joint_task("tiny", task) for task in ("6-2", "6-4", "8-2")}
    assert names == {"10"}
    own = plan.datasets.joint_task("tiny", "own")
    assert plan.datasets.groups("tiny", own) == (
        (1, 2, 4),
    )  # whatever the task's order
    assert own == _base_task(plan, "longer")


def test_a_sweep_is_every_combination_once():
    sweep = {
        "task": ["6-2", "6-2_r1", "4-3"],
        "setting": ["overlap", "disjoint"],
        "methods": ["kproba", "mib"],
        "seeds": [0, 1, 2],
    }
    plan = make_plan(experiments=[{**MINIMAL["experiments"][0], **sweep}])
    assert len(set(plan.runs)) == len(plan.runs) == 3 * 2 * 2 * 3
    ordered, shuffled = (
        plan.datasets.groups("tiny", task) for task in ("6-2", "6-2_r1")
    )
    assert [len(group) for group in ordered] == [len(group) for group in shuffled]
    assert ordered != shuffled
    assert _base_task(plan, "6-2") != _base_task(plan, "6-2_r1")
    # The labels of all classes are the same in every order: one joint training.
    assert plan.datasets.joint_task("tiny", "6-2") == plan.datasets.joint_task(
        "tiny", "6-2_r1"
    )
