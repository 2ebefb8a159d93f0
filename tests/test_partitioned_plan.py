"""The setting `partitioned` in a plan: splits, shared steps, additions."""

import pytest
from plan_configs import experiment, make_plan
from test_plan_tasks import _folder_with

from kproba.data.kinds.digits import CLASS_NAMES
from kproba.plan.run import Run

pytestmark = pytest.mark.usefixtures("schema_is_parsed_once")


def run_of(task, method="barm", setting="partitioned"):
    return Run("tiny", task, setting, method, 0)


def model_of(plan, run, step):
    return plan.result(run, step).model


def test_step_0_is_shared_by_tasks_of_the_same_classes_and_made_as_a_task_of_one_step():
    plan = make_plan(**experiment(task=["6-2", "6-4"], setting="partitioned"))
    folder = "results/tiny/6of10-partitioned/base/seed0/step0"
    for task in ("6-2", "6-4"):
        for method in ("barm", "finetune"):
            model = model_of(plan, run_of(task, method), 0)
            assert model == f"{folder}/model.safetensors"
    owner = run_of("6of10", "base")
    inputs = plan.training_inputs(owner, 0)
    assert inputs["split"] == "results/splits/tiny/6of10-partitioned/step0.csv"
    assert plan.datasets.groups("tiny", "6of10") == ((1, 2, 3, 4, 5, 6),)
    assert plan.datasets.divided_classes("tiny", "6of10", 0) == tuple(range(1, 11))


def test_another_setting_has_another_step_0():
    plan = make_plan(**experiment(setting=["partitioned", "disjoint"]))
    other = run_of("6-2", setting="disjoint")
    assert model_of(plan, other, 0).startswith("results/tiny/6-disjoint/base/")
    assert plan.chain.split(run_of("6-2"), 0) != plan.chain.split(other, 0)


def test_later_steps_have_their_own_images():
    plan = make_plan(**experiment(task=["6-2", "6-4"], setting="partitioned"))
    first, second = (plan.chain.split(run_of("6-2"), step) for step in (1, 2))
    assert first.selection == second.selection == "partitioned"
    assert first.classes == second.classes == tuple(range(1, 11))


def test_a_task_of_one_step_is_that_of_overlap():
    plan = make_plan(**experiment(task="offline", setting=["overlap", "partitioned"]))
    runs = run_of("offline"), run_of("offline", setting="overlap")
    assert plan.chain.split(runs[0], 0) == plan.chain.split(runs[1], 0)
    assert model_of(plan, runs[0], 0) == model_of(plan, runs[1], 0)


def test_the_order_of_the_classes_matters_to_no_image():
    tasks = {"own": [[3, 1], [2]], "turned": [[3, 1], [2, 4]]}
    plan = make_plan(tasks=tasks, **experiment(task=["own"], setting="partitioned"))
    assert plan.chain.split(run_of("own"), 0).classes == (1, 2, 3)
    plan = make_plan(tasks=tasks, **experiment(task=["turned"], setting="partitioned"))
    assert plan.chain.split(run_of("turned"), 0).classes == (1, 2, 3, 4)


def test_an_addition_changes_no_earlier_step_and_has_all_of_its_images(tmp_path):
    added = _folder_with(tmp_path / "added", [*CLASS_NAMES, "cross"])
    plain = make_plan(**experiment(setting="partitioned"))
    more = make_plan(
        datasets={"tiny": {"kind": "digits", "additions": [added]}},
        **experiment(setting="partitioned"),
    )
    for step in range(3):
        run = run_of("6-2")
        assert plain.chain.split(run, step) == more.chain.split(run, step)
        assert model_of(plain, run, step) == model_of(more, run, step)
    split = more.chain.split(run_of("6-2"), 3)
    assert split.selection == "overlap"
    assert more.datasets.divided_classes("tiny", "6-2", 3) == (11,)


def test_methods_train_on_the_labels_of_overlap():
    plan = make_plan(**experiment(setting="partitioned"))
    settings = plan.settings(run_of("6-2", "kproba"), 1)
    assert settings["sequential"] is False
    assert plan.training_inputs(run_of("6-2", "kproba"), 1)["pseudo_labels"]
