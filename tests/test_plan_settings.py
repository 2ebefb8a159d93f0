"""The settings of a step: what they hold, and what changes them."""

import json
from dataclasses import replace

import pytest
from plan_configs import experiment, make_plan, make_run, method

from kproba.methods.builtin import METHODS
from kproba.plan.errors import ConfigError
from kproba.plan.run import Run

pytestmark = pytest.mark.usefixtures("schema_is_parsed_once")


BASE = make_run("base", task="6")


def test_step_0_depends_on_its_own_classes_alone():
    plain = make_plan().settings(BASE, 0)
    for other in (
        experiment(task="6-4"),
        experiment(methods=["finetune"], seeds=[0, 7]),
        {**method(losses={"gkd": 2}), "increment": {"epochs": 7}},
        {"pseudo_labels": {"rule": "argmax"}, "bank": {"dimension": 8}},
    ):
        assert make_plan(**other).settings(BASE, 0) == plain


def test_step_0_is_trained_as_base_says():
    settings = make_plan(base={"epochs": 3}).settings(BASE, 0)
    assert settings["optimisation"]["epochs"] == 3
    assert settings["groups"] == [[1, 2, 3, 4, 5, 6]]
    assert "class_names" not in settings  # another spelling trains nothing
    assert settings["method"]["cross_entropy"] == "bce"
    assert settings["method"]["losses"] == {}
    assert settings["architecture"]["backbone"]
    assert settings["weights"] == "imagenet"


def test_increment_is_trained_as_increment_and_its_method_say():
    changes = {"increment": {"epochs": 3, "batch_size": 4}}
    mine = method(increment={"batch_size": 8}, losses={"gkd": 7})
    settings = make_plan(**changes, **mine).settings(make_run("mine"), 1)
    assert settings["optimisation"]["epochs"] == 3
    assert settings["optimisation"]["batch_size"] == 8
    assert settings["groups"] == [[1, 2, 3, 4, 5, 6], [7, 8]]
    assert settings["run"]["step"] == 1
    assert settings["architecture"] is settings["weights"] is None
    built_in = METHODS["kproba"].losses
    assert settings["method"]["losses"] == {**built_in, "gkd": 7}


def test_learning_rates_are_part_of_the_settings():
    plan = make_plan(increment={"learning_rate": {"branch": 0.5}})
    optimisation = plan.settings(make_run(), 1)["optimisation"]
    assert optimisation["learning_rate"]["branch"] == 0.5


@pytest.mark.parametrize(
    ("run", "step"), [(BASE, 0), (make_run(), 1), (make_run("finetune"), 2)]
)
def test_settings_survive_their_file(run, step):
    settings = make_plan().settings(run, step)
    assert json.loads(json.dumps(settings)) == settings


@pytest.mark.parametrize(
    "changes",
    [
        {"compute": {"gpus": 4, "threads": 3, "accumulation": 2, "state_minutes": 1}},
        {"compute": {"processes": 2, "batch_size": 2, "workers": 0}},
        {"evaluation": {"policy": "plop", "crop": 64, "examples": 1}},
        experiment(seeds=[3, 0]),
        {"tasks": {"unused": [[1], [2]]}},
        {"methods": {"unused": {"based_on": "kproba", "losses": {"gkd": 9}}}},
    ],
)
def test_machine_test_and_other_runs_do_not_retrain(changes):
    plain, changed = make_plan(), make_plan(**changes)
    for run, step in [(BASE, 0), (make_run(), 1), (make_run("finetune"), 2)]:
        assert changed.settings(run, step) == plain.settings(run, step)
    assert changed.method("kproba").bank == plain.method("kproba").bank


@pytest.mark.parametrize(
    "changes",
    [
        {"increment": {"epochs": 7}},
        {"increment": {"learning_rate": {"old_branches": 0.5}}},
        {"augmentation": {"crop_size": 64}},
    ],
)
def test_what_determines_training_retrains(changes):
    plain, changed = make_plan(), make_plan(**changes)
    assert changed.settings(make_run(), 1) != plain.settings(make_run(), 1)


def test_steps_seeds_and_methods_have_settings_of_their_own():
    plan = make_plan()
    jobs = [
        (make_run(), 1),
        (make_run(), 2),
        (make_run(seed=1), 1),
        (make_run("finetune"), 1),
    ]
    settings = [json.dumps(plan.settings(run, step)) for run, step in jobs]
    assert len(set(settings)) == len(jobs)


def test_methods_with_one_head_share_step_0():
    plan = make_plan()
    bases = {name: method.base for name, method in METHODS.items()}
    softmax = {name for name, base in bases.items() if base == "base_softmax"}
    assert softmax == {"plop", "mib", "lwf", "joint_softmax"}
    for base, head in (("base", "branches"), ("base_softmax", "softmax")):
        settings = plan.settings(Run("tiny", "6", "overlap", base, 0), 0)
        assert settings["architecture"]["head"] == head


def test_no_step_is_trained_after_step_0_of_a_base():
    with pytest.raises(ConfigError, match=r"step 0, because 'base'.*got step 1"):
        make_plan().settings(make_run("base"), 1)


def test_settings_say_how_network_and_bank_teach():
    fused = {"based_on": "barm", "teacher": "fused"}
    names = ["barm", "taught_by_both", "kproba"]
    plan = make_plan(methods={"taught_by_both": fused}, **experiment(methods=names))

    def teaching(name, step):
        run = make_run(name)
        decision = plan.settings(run, step)["decision"]
        inputs = plan.training_inputs(run, step)
        return decision, bool(inputs["bank"]), bool(inputs["feature_network"])

    for name in names:  # step 0's network has mistaken nothing yet
        assert teaching(name, 1) == (None, False, False)
    assert teaching("barm", 2) == (None, False, False)
    for name in ("taught_by_both", "kproba"):
        assert teaching(name, 2) == (plan.method(name).decision, True, True)
        assert teaching(name, 2)[0]["rule"] == "lda"


def test_a_bank_teaches_nothing_without_distillation():
    plan = make_plan(**method(losses={"gkd": 0}))
    assert not plan.method("mine").training_reads_bank(2)
    assert plan.settings(make_run("mine"), 2)["decision"] is None
    changes = {"teacher": "fused", "losses": {"gkd": 0}}
    with pytest.raises(ConfigError, match=r"mine\.teacher: expected 'network'"):
        make_plan(**method(**changes))


def test_prediction_is_no_setting_of_a_training():
    plan = make_plan(**method(prediction="network"))
    run = make_run("mine")
    mine = plan.chain.training(run, 1)
    assert mine == plan.chain.training(replace(run, method="kproba"), 1)
