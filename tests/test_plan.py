"""From a checked configuration to runs, tasks and the settings of every job."""

import copy
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import yaml
from plan_configs import (
    MINIMAL,
    ROOT,
    SCHEMA_PATH,
    SHIPPED,
    experiment,
    make_plan,
    make_run,
    method,
)

from kproba.data.kinds.digits import CLASS_NAMES
from kproba.methods.builtin import METHODS
from kproba.methods.rules import RULES
from kproba.plan.chain import Run
from kproba.plan.errors import ConfigError
from kproba.plan.plan import Plan
from kproba.plan.schema import check


@pytest.fixture(autouse=True, scope="module")
def _schema_is_parsed_once() -> Iterator[None]:
    """Parsing it takes most of the time of a check."""
    parse = cache(yaml.safe_load)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yaml, "safe_load", lambda text: copy.deepcopy(parse(text)))
        yield


# --- refused by the plan ------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            experiment(dataset="tin"),
            ["experiments.0.dataset", "one of tiny", "'tin' (did you mean 'tiny'?)"],
        ),
        (
            experiment(methods=["kprobe"]),
            ["experiments.0.methods", "(did you mean 'kproba'?)"],
        ),
        (experiment(methods=["base"]), ["experiments.0.methods", "'base'"]),
        (experiment(task="six"), ["experiments.0.task", "like '15-1'", "'six'"]),
        (
            {"tasks": {"birds": [[1]]}, **experiment(task="bird")},
            ["experiments.0.task", "(did you mean 'birds'?)"],
        ),
        (
            experiment(task="6-3"),
            ["experiments.0.task", "10 classes", "not a multiple"],
        ),
        (experiment(task="11-1"), ["experiments.0.task", "10 classes"]),
        (
            {"tasks": {"own": [["one"], ["tow"]]}, **experiment(task="own")},
            ["tasks.own", "'tow' in step 1 (did you mean 'two'?)"],
        ),
        (
            {"tasks": {"own": [["one"], [2]]}, **experiment(task="own")},
            ["tasks.own", "2 is in step 0 and in step 1", "one"],
        ),
        (
            {"methods": {"joint": {"based_on": "kproba"}}},
            ["methods.joint", "built-in method"],
        ),
        (
            {"methods": {"mine": {"based_on": "kprob"}}},
            ["methods.mine.based_on", "(did you mean 'kproba'?)"],
        ),
        (
            {"methods": {"a": {"based_on": "kproba"}, "b": {"based_on": "a"}}},
            ["methods.b.based_on", "'a'"],
        ),
        (
            {
                "datasets": {"own": {"kind": "folder", "path": "no/such/folder"}},
                **experiment(dataset="own"),
            },
            ["datasets.own", "no/such/folder"],
        ),
        (
            {"base": {"batch_size": 9}, "compute": {"processes": 2}},
            ["base.batch_size", "multiple of 2", "got 9"],
        ),
        (
            {"increment": {"batch_size": 6}, "compute": {"accumulation": 4}},
            ["increment", "batch_size", "4 micro-batch(es) = 4", "got 6"],
        ),
        (
            {"base": {"batch_size": 8}, "compute": {"gpus": 3}},
            ["base.batch_size", "multiple of 3"],
        ),
        (
            {**method(increment={"batch_size": 3}), "compute": {"processes": 2}},
            ["increment (of mine)", "got 3"],
        ),
        (
            {"base": {"batch_size": 4}, "compute": {"accumulation": 4}},
            ["base.batch_size", "at least 2 images per micro-batch"],
        ),
        (
            {"compute": {"gpus": 3, "nodes": 2}},
            ["compute.gpus: expected a multiple of compute.nodes = 2", "got 3"],
        ),
        (
            {"compute": {"processes": 1, "nodes": 2}},
            ["compute.processes: expected a multiple of compute.nodes = 2", "got 1"],
        ),
        (
            {"base": {"batch_size": 4}, "compute": {"gpus": 1, "accumulation": 4}},
            ["base.batch_size", "at least 2 images"],
        ),
    ],
)
def test_impossible_plan_is_refused_with_its_key(changes, words):
    with pytest.raises(ConfigError) as error:
        make_plan(**changes)
    missing = [word for word in words if word not in str(error.value)]
    assert not missing, str(error.value)


@pytest.mark.parametrize(
    ("compute", "cores"),
    [
        ({"processes": 3, "threads": 2, "workers": 8}, 6),
        ({"gpus": 2, "threads": 2, "workers": 8}, 16),
        ({"gpus": 2, "threads": 4, "workers": 2}, 8),
        ({"gpus": 4, "nodes": 2, "threads": 1, "workers": 3}, 6),
        ({"processes": 4, "nodes": 2, "threads": 3}, 6),
    ],
)
def test_cores_of_a_job_on_each_node(compute, cores):
    shared = {"batch_size": 12}
    plan = make_plan(compute=compute, base=shared, increment=shared)
    assert plan.compute.cores_per_node == cores


def test_increment_may_train_on_single_images():
    """Batch norm is frozen there, so only step 0 needs two images per micro-batch."""
    make_plan(base={"batch_size": 2}, increment={"batch_size": 1})


def test_several_gpus_may_hold_a_single_image_each():
    """They share the statistics of batch norm."""
    make_plan(base={"batch_size": 2}, compute={"gpus": 2}, increment={"batch_size": 2})


# --- shipped configurations ---------------------------------------------------------


@pytest.mark.parametrize("path", SHIPPED, ids=[path.name for path in SHIPPED])
def test_shipped_configuration_is_right(path):
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    for dataset in config["datasets"].values():
        if dataset["kind"] == "folder":  # a template: its folder is the user's
            steps = config["tasks"]["mine"]
            dataset["classes"] = ["background", *(c for step in steps for c in step)]
    plan = Plan(check(config, SCHEMA_PATH))
    for run in plan.runs:
        for step in plan.steps(run):
            assert plan.settings(run, step)


def test_a_configuration_is_shipped_for_the_tests():
    assert "test.yaml" in [path.name for path in SHIPPED]


# --- the plan -----------------------------------------------------------------------


def test_runs_are_all_combinations_and_none_twice():
    experiment = {"dataset": "tiny", "task": "6-2", "methods": ["kproba", "joint"]}
    plan = make_plan(experiments=[{**experiment, "seeds": [0, 5]}, experiment])
    assert plan.runs == [
        make_run(method, seed=seed) for seed in (0, 5) for method in ("kproba", "joint")
    ]


def test_joint_is_tested_after_the_last_step_only():
    plan = make_plan()
    assert list(plan.steps(make_run("kproba"))) == [0, 1, 2]
    assert list(plan.steps(make_run("finetune"))) == [0, 1, 2]
    assert list(plan.steps(make_run("joint"))) == [2]


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
    assert plan.datasets.base_task("tiny", "6-2") == "6"
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
    assert plan.datasets.index_settings("tiny+1")["folder"] == first


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
    names = {
        task: plan.datasets.base_task("tiny", task)
        for task in ("6-2", "6-4", "8-2", "own")
    }
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
    assert own == plan.datasets.base_task("tiny", "longer")


# --- what determines a job ----------------------------------------------------------

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
    assert settings["class_names"] == ["background", *CLASS_NAMES[:6]]
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


@pytest.mark.parametrize(
    ("setting", "name", "expected"),
    [
        ("overlap", "kproba", True),
        ("disjoint", "kproba", True),
        ("sequential", "kproba", False),  # its labels name the old classes already
        ("overlap", "finetune", False),
    ],
)
def test_pseudo_labels_are_used_where_old_labels_are_hidden(setting, name, expected):
    plan = make_plan(**experiment(setting=setting))
    assert plan.method(name).uses_labels(setting) is expected
    run = Run("tiny", "6-2", setting, name, 0)
    assert bool(plan.training_inputs(run, 1)["pseudo_labels"]) is expected
    assert plan.settings(run, 1)["sequential"] is (setting == "sequential")


def test_switches_of_a_method_win_over_what_it_is_based_on():
    plan = make_plan(**method(use_pseudo_labels=False, cross_entropy="bce"))
    mine = plan.method("mine").method
    assert not mine.use_pseudo_labels
    assert mine.cross_entropy == "bce"
    assert mine.losses == METHODS["kproba"].losses


def test_a_cross_entropy_brings_a_head_that_fits_it():
    no_losses = dict.fromkeys(METHODS["kproba"].losses, 0)
    plan = make_plan(**method(cross_entropy="ce", losses=no_losses, teacher="network"))
    assert plan.method("mine").method.head == "softmax"
    assert plan.method("kproba").method.head == "branches"


def test_weights_not_named_are_those_of_the_method_it_is_based_on():
    mine = {"based_on": "finetune", "losses": {"gkd": 1}}
    plan = make_plan(methods={"mine": mine})
    assert plan.method("mine").method.losses == {"gkd": 1}


def test_unknown_method_is_refused():
    with pytest.raises(ConfigError, match=r"kproba, barm, .*joint.*'other'"):
        make_plan().method("other")


RFF = {"map": "rff", "maps": 5, "dimension": 8, "gamma": "median"}


@pytest.mark.parametrize(
    ("rule", "metric", "expected"),
    [
        ("klda", "euclidean", {**RFF, "scatter": True}),
        ("klda", "mahalanobis", {**RFF, "scatter": True}),
        ("lda", "euclidean", {"map": "identity", "scatter": True}),
        ("kappa", "euclidean", {**RFF, "scatter": False}),
        ("kappa", "mahalanobis", {**RFF, "scatter": True}),
    ],
)
def test_bank_holds_what_its_rule_reads(rule, metric, expected):
    plan = make_plan(
        bank={"maps": 5, "dimension": 8},
        pseudo_labels={"rule": rule},
        decision={"metric": metric},
    )
    bank = plan.method("kproba").bank
    others = {"feature", "ridge", "calibration_cells"}
    assert {key: bank[key] for key in bank if key not in others} == expected


def test_momentum_is_a_setting_of_later_banks():
    plan = make_plan(bank={"momentum": 0.25})
    first, later = (plan.chain.bank(make_run(), step).settings for step in (0, 1))
    assert "momentum" not in first["settings"]
    assert later["settings"]["momentum"] == 0.25


@pytest.mark.parametrize(
    ("network", "step", "kept"),
    [("base", 0, False), ("base", 1, True), ("after", 1, False), ("before", 2, False)],
)
def test_a_temperature_is_kept_while_the_features_are_of_one_network(
    network, step, kept
):
    plan = make_plan(**method(bank={"network": network}))
    settings = plan.chain.bank(make_run("mine"), step).settings
    assert settings["keep_temperature"] is kept


def test_bank_follows_the_changes_of_a_method():
    plan = make_plan(**method(bank={"maps": 7}, pseudo_labels={"rule": "klda"}))
    assert plan.method("mine").bank["map"] == "rff"
    assert plan.method("mine").bank["maps"] == 7
    assert plan.method("kproba").bank["map"] == "identity"
    plan = make_plan(**method(bank={"ridge": 0.5}))
    assert plan.method("mine").bank == {**plan.method("kproba").bank, "ridge": 0.5}


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("klda", True),
        ("lda", True),
        ("kappa", True),
        ("agree", True),
        ("confidence", False),
        ("argmax", False),
        ("entropy", False),
    ],
)
def test_rule_says_whether_labels_read_a_bank(rule, expected):
    plan = make_plan(pseudo_labels={"rule": rule})
    assert plan.method("kproba").labels_read_bank is expected
    assert bool(plan.label_inputs(make_run(), 1)["bank"]) is expected


def test_import_is_light():
    """Every Snakemake call and every job imports the module."""
    script = "import sys, kproba.plan.plan; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


def test_methods_with_one_head_share_step_0():
    plan = make_plan()
    bases = {name: method.base for name, method in METHODS.items()}
    softmax = {name for name, base in bases.items() if base == "base_softmax"}
    assert softmax == {"plop", "mib", "lwf"}
    for base, head in (("base", "branches"), ("base_softmax", "softmax")):
        settings = plan.settings(Run("tiny", "6", "overlap", base, 0), 0)
        assert settings["architecture"]["head"] == head


def test_no_step_is_trained_after_step_0_of_a_base():
    with pytest.raises(ConfigError, match=r"step 0 of 'base'.*got step 1"):
        make_plan().settings(make_run("base"), 1)


def owners(plan, kind, step):
    """By method: whose folder has its artifact of a kind at a step."""

    def owner(name):
        run = make_run(name)
        job = getattr(plan.chain, kind)(run, step)
        return plan.owner(job, run).run.method

    return {
        name: owner(name)
        for name in METHODS | plan.config["methods"]
        if name != "joint"
    }


def test_what_several_methods_would_make_alike_is_made_once():
    klda = {"pseudo_labels": {"rule": "klda"}}
    methods = {
        # trained otherwise, on the same pseudo labels in step 1
        "without_bfd": {"losses": {"bfd": 0}},
        "faster": {"increment": {"epochs": 1}},
        # trained alike until a bank teaches: another bank or another prediction
        "firm": {"bank": {"ridge": 0.5}},
        "before": {"bank": {"network": "before"}},
        "mapped": {"prediction": "klda"},
        "alone": {"prediction": "network"},
        "weighted": {"decision": {"posterior_weight": 2}},
        "unread": {"bank": {"dimension": 64}},
        "slower": {"bank": {"momentum": 0.5}},
        # trained on labels that the bank gives
        "klda": klda,
        "klda_firm": klda | {"bank": {"ridge": 0.5}},
        "klda_alone": klda | {"prediction": "network"},
    }
    own = {
        name + end: {"based_on": "kproba", **changes, **more}
        for end, more in (("", {}), ("_alone_taught", {"teacher": "network"}))
        for name, changes in methods.items()
    }
    task = {"dataset": "tiny", "task": "4-1"}  # seven steps
    plan = make_plan(methods=own, experiments=[task])

    def made(kind, step, end="", by="kproba"):
        def owner(name):
            run = make_run(name + end, task="4-1")
            job = getattr(plan.chain, kind)(run, step)
            return plan.owner(job, run).run.method

        return {name for name in methods if owner(name) == by}

    alike = {"firm", "before", "mapped", "alone", "weighted", "unread", "slower"}
    assert made("training", 1) == made("labels", 2) == alike
    assert made("labels", 1) == alike | {"without_bfd", "faster"}
    # From step 2 on the bank and how both decide matter to the training.
    for step in (2, 3, 5):
        assert made("training", step) == {"alone", "unread"}
        assert made("labels", step + 1) == {"alone", "unread"}
        assert made("training", step, "_alone_taught", "barm") == alike
        assert made("labels", step + 1, "_alone_taught", "barm") == alike
    # A bank of step 0's features does not depend on how later steps are trained.
    read_alike = {"alone", "weighted", "unread"}
    losses = {"without_bfd"}
    for end in ("", "_alone_taught"):
        assert made("bank", 1, end) == read_alike | losses | {"faster"}
    assert made("bank", 0) == read_alike | losses | {"faster", "slower"}

    def owner(kind, name, step):
        run = make_run(name, task="4-1")
        return plan.owner(getattr(plan.chain, kind)(run, step), run).run.method

    # Those that are like no built-in method make their own, the first of them for all.
    assert owner("test", "klda_firm", 0) == "klda_firm"
    for step in (1, 2):
        assert owner("training", "klda_firm", step) == "klda_firm"
        assert owner("training", "klda_alone", step) == "klda"
        assert owner("labels", "klda_alone", step + 1) == "klda"
        assert owner("bank", "klda_alone", step) == "klda"
    assert owner("test", "klda_alone", 1) == "klda_alone"
    # barm is trained as kproba in step 1, and ssul learns from the same labels then.
    assert owner("training", "barm", 1) == owner("labels", "barm", 2) == "kproba"
    assert owner("training", "barm", 2) == owner("labels", "barm", 3) == "barm"
    assert owner("training", "ssul", 1) == "ssul"
    assert owner("labels", "ssul", 1) == "kproba"
    plan = make_plan(pseudo_labels={"rule": "lda"}, experiments=[task])
    assert owner("training", "barm", 1) == owner("labels", "ssul", 1) == "barm"


def test_owners_do_not_depend_on_which_methods_an_experiment_names():
    for names in (["barm"], ["kproba", "barm"], ["barm", "kproba"]):
        plan = make_plan(**experiment(methods=names))
        assert "/kproba/" in plan.result(make_run("barm"), 1).model
        assert "/barm/" in plan.result(make_run("barm"), 2).model


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


def test_labels_and_prediction_that_want_different_banks_are_refused():
    def mine(rule, prediction, **decision):
        changes = {"prediction": prediction, "pseudo_labels": {"rule": rule}}
        return make_plan(**method(**changes, decision=decision)).method("mine")

    for rule, prediction in (("lda", "klda"), ("klda", "lda"), ("agree", "kappa")):
        with pytest.raises(ConfigError, match=rf"mine\.prediction: .*'{rule}'"):
            mine(rule, prediction)
    for rule, prediction in (
        ("agree", "klda"),
        ("klda", "network"),
        ("argmax", "klda"),
    ):
        assert mine(rule, prediction).bank["map"] == "rff"
    both = mine("kappa", "klda", metric="mahalanobis")
    assert both.bank["scatter"]
    assert both.decision["rule"] == "klda"


def test_a_test_by_network_and_bank_of_step_0_is_made_once():
    methods = {
        "without_bfd": {"based_on": "kproba", "losses": {"bfd": 0}},
        "klda": {"based_on": "kproba", "pseudo_labels": {"rule": "klda"}},
        "sure": {"based_on": "kproba", "pseudo_labels": {"rule": "confidence"}},
        "weighted": {"based_on": "kproba", "decision": {"posterior_weight": 2}},
        "alone": {"based_on": "kproba", "prediction": "network"},
    }
    plan = make_plan(methods=methods)
    fused = [name for name in plan.methods if plan.method(name).test_reads_bank]
    assert fused == ["kproba", "without_bfd", "klda", "sure", "weighted"]
    by_method = owners(plan, "test", 0)
    assert {name: by_method[name] for name in methods} == {
        "without_bfd": "kproba",
        "klda": "klda",
        "sure": "kproba",  # LDA decides, whatever the labels were
        "weighted": "weighted",
        "alone": "base",
    }
    results = plan.results(plan.runs)
    assert {result.bank is None for result in results if result.step == 0} == {
        True,
        False,
    }


@pytest.mark.parametrize(
    ("rule", "predicts", "mapped"),
    [
        ("lda", "lda", "identity"),
        ("klda", "klda", "rff"),
        ("kappa", "kappa", "rff"),
        ("agree", "klda", "rff"),
        ("confidence", "lda", "identity"),
        ("argmax", "lda", "identity"),
        ("entropy", "lda", "identity"),
    ],
)
def test_rule_of_the_prediction_scores_and_has_the_bank_that_it_reads(
    rule, predicts, mapped
):
    plan = make_plan(pseudo_labels={"rule": rule}, decision={"posterior_weight": 2})
    kproba = plan.method("kproba")
    assert kproba.decision["rule"] == predicts
    assert kproba.decision.get("posterior_weight") == (
        None if predicts == "kappa" else 2
    )
    assert kproba.bank["map"] == mapped


@pytest.mark.parametrize("network", ["base", "after", "before"])
def test_a_bank_names_the_network_of_its_features(network):
    plan = make_plan(**method(bank={"network": network}))
    first, later = (plan.bank_inputs(make_run("mine"), step) for step in (0, 1))
    base = "results/tiny/6-overlap/base/seed0/step0"
    assert first["model"] == f"{base}/model.safetensors"
    assert first["untrained"] == (
        f"{base}/settings.json" if network == "before" else []
    )
    assert first["network"] == []
    own = "results/tiny/6-2-overlap/kproba/seed0/step1/model.safetensors"
    assert later["model"] == (f"{base}/model.safetensors" if network == "base" else own)
    before = network == "before"
    assert later["network"] == (f"{base}/model.safetensors" if before else [])
    # Whoever decides with the bank reads the same features.
    features = plan.test_inputs(make_run("mine"), 1)["feature_network"]
    assert features == (f"{base}/model.safetensors" if network == "base" else [])
    assert plan.test_inputs(make_run("mine"), 0)["feature_network"] == []
    # At step 0 the network of step 0 is the step's own.
    by_method = owners(plan, "bank", 0)
    assert by_method["mine"] == ("mine" if before else "kproba")
    by_method = owners(plan, "bank", 1)
    assert by_method["mine"] == ("kproba" if network == "base" else "mine")


def test_prediction_is_no_setting_of_a_training():
    plan = make_plan(**method(prediction="network"))
    run = make_run("mine")
    mine = plan.chain.training(run, 1)
    assert mine == plan.chain.training(replace(run, method="kproba"), 1)


def test_joint_has_no_bank_to_predict_with():
    with pytest.raises(ConfigError, match=r"mine\.prediction: expected 'network'"):
        make_plan(methods={"mine": {"based_on": "joint", "prediction": "lda"}})


def test_a_method_brings_its_rule_and_the_configuration_the_others():
    plan = make_plan(pseudo_labels={"rule": "lda", "threshold": 0.5})
    assert plan.method("kproba").labels["rule"] == "lda"
    barm = plan.method("barm").labels
    assert barm == {"rule": "confidence", "threshold": 0.7}
    assert plan.method("plop").labels == {"rule": "entropy"}
    mine = {"based_on": "barm", "pseudo_labels": {"threshold": 0.9}}
    plan = make_plan(methods={"mine": mine})
    assert plan.method("mine").labels == {"rule": "confidence", "threshold": 0.9}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cross_entropy": "ce"}, r"methods.mine.losses: .*'softmax'.*bga_ce needs"),
        (
            {"losses": {"unbiased_kd": 1}},
            r"methods.mine.losses: .*'branches'.*unbiased_kd needs softmax",
        ),
        (
            {"head": "softmax"},
            r"methods.mine.cross_entropy: .*protected_bce needs branches",
        ),
    ],
)
def test_terms_without_their_outputs_are_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        make_plan(**method(**changes))


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
    assert plan.datasets.base_task("tiny", "6-2") != plan.datasets.base_task(
        "tiny", "6-2_r1"
    )
    # The labels of all classes are the same in every order: one joint training.
    assert plan.datasets.joint_task("tiny", "6-2") == plan.datasets.joint_task(
        "tiny", "6-2_r1"
    )


@pytest.mark.parametrize("name", ["digits", "ablation"])
def test_comparisons_run_the_embedded_example_as_it_is_shipped(name):
    shipped, compared = (
        yaml.safe_load((ROOT / "config" / path).read_text())
        for path in ("config.yaml", f"comparisons/{name}.yaml")
    )
    for content in (shipped, compared):
        content.pop("experiments")
    compared.pop("methods", None)
    assert compared == shipped
    assert Plan(
        check(
            yaml.safe_load((ROOT / f"config/comparisons/{name}.yaml").read_text()),
            ROOT / "workflow/schemas/config.schema.yaml",
        )
    ).runs


def test_numbers_that_a_rule_does_not_read_change_nothing():
    changes = {
        "threshold": 0.3,
        "score_threshold": 0.3,
        "foreground": "both",
        "foreground_bias": 2.0,
        "image_prior": 3,
        "temperature": 3.0,
        "metric": "mahalanobis",
        "probability_weight": 0.5,
        "posterior_weight": 0.25,
    }
    labels = ("threshold", "score_threshold")
    lda = {"rule": "lda"}
    plain = make_plan(pseudo_labels=lda)
    for key, value in changes.items():
        section = {key: value}
        changed = make_plan(
            pseudo_labels=lda | (section if key in labels else {}),
            decision={} if key in labels else section,
        )
        for name in ("kproba", "barm", "ssul", "plop"):
            rule = RULES["lda"]
            read = {*rule.reads, *rule.decision} - {"foreground_bias"}
            read = read if name == "kproba" else set()
            same = changed.method(name).labels == plain.method(name).labels
            assert same is (key not in read), (name, key)
    both = [{"foreground": "both", "foreground_bias": bias} for bias in (0, 2)]
    plans = [make_plan(pseudo_labels=lda, decision=keys) for keys in both]
    assert plans[0].method("kproba").labels != plans[1].method("kproba").labels
    # `lda` has no map, whatever the bank's settings of maps.
    for bank in ({"dimension": 64}, {"maps": 7}, {"gamma": 0.5}):
        changed = make_plan(bank=bank, pseudo_labels=lda)
        assert changed.method("kproba").bank == plain.method("kproba").bank


def test_joint_has_no_pseudo_labels():
    mine = {"based_on": "joint", "use_pseudo_labels": True}
    plan = make_plan(methods={"mine": mine})
    assert not plan.method("mine").uses_labels("overlap")
