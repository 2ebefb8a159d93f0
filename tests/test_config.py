"""From a configuration to the settings of every job."""

import copy
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from operator import itemgetter
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import yaml

from kproba.data.kinds.digits import CLASS_NAMES
from kproba.methods.builtin import METHODS
from kproba.methods.rules import RULES
from kproba.plan.plan import SWITCHES, Plan, Run
from kproba.plan.schema import ConfigError, check

ROOT = Path(__file__).parent.parent
SCHEMA_PATH = ROOT / "workflow" / "schemas" / "config.schema.yaml"
SCHEMA = yaml.safe_load(SCHEMA_PATH.read_text(encoding="utf-8"))
SHIPPED = sorted((ROOT / "config").glob("*.yaml"))

MINIMAL = {
    "datasets": {"tiny": {"kind": "digits"}},
    "experiments": [{"dataset": "tiny", "task": "6-2"}],
}


@pytest.fixture(autouse=True, scope="module")
def _schema_is_parsed_once() -> Iterator[None]:
    """Parsing it takes most of the time of a check."""
    parse = cache(yaml.safe_load)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yaml, "safe_load", lambda text: copy.deepcopy(parse(text)))
        yield


def _config(**changes: Any) -> dict[str, Any]:
    """MINIMAL with whole top-level keys replaced."""
    return {**copy.deepcopy(MINIMAL), **copy.deepcopy(changes)}


def _checked(**changes: Any) -> dict[str, Any]:
    return check(_config(**changes), SCHEMA_PATH)


def _plan(**changes: Any) -> Plan:
    return Plan(_checked(**changes))


def _experiment(**changes: Any) -> dict[str, Any]:
    return {"experiments": [{**MINIMAL["experiments"][0], **changes}]}


def _method(**changes: Any) -> dict[str, Any]:
    """A method of one's own, `mine`, used by the only experiment."""
    return {
        "methods": {"mine": {"based_on": "kproba", **changes}},
        **_experiment(methods=["mine"]),
    }


def _run(method: str = "kproba", task: str = "6-2", seed: int = 0) -> Run:
    return Run("tiny", task, "overlap", method, seed)


# --- the schema itself -------------------------------------------------------------


def _properties(node: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every property of the schema, at whatever depth, with its path."""
    if isinstance(node, dict):
        for name, entry in node.get("properties", {}).items():
            yield f"{path}{name}", entry
            yield from _properties(entry, f"{path}{name}.")
        for key in node.keys() - {"properties", "default", "if"}:
            yield from _properties(node[key], f"{path}{key}.")
    elif isinstance(node, list):
        for entry in node:
            yield from _properties(entry, path)


PROPERTIES = sorted(_properties(SCHEMA), key=itemgetter(0))


def test_schema_is_valid_and_was_walked_through():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert len(PROPERTIES) > 60
    assert "increment" in dict(PROPERTIES)


@pytest.mark.parametrize(
    ("path", "entry"), PROPERTIES, ids=map(itemgetter(0), PROPERTIES)
)
def test_every_key_has_a_description_and_says_what_it_accepts(path, entry):
    assert entry.get("description", "").strip()
    assert {"type", "enum", "const", "$ref", "anyOf"} & entry.keys()


DEFAULTS = [(path, entry) for path, entry in PROPERTIES if "default" in entry]


@pytest.mark.parametrize(("path", "entry"), DEFAULTS, ids=map(itemgetter(0), DEFAULTS))
def test_every_default_is_valid(path, entry):
    jsonschema.validate(entry["default"], {**entry, "$defs": SCHEMA["$defs"]})


def test_optional_keys_have_a_default():
    without = {
        name
        for name, entry in SCHEMA["properties"].items()
        if "default" not in entry and name not in SCHEMA["required"]
    }
    assert not without


# --- defaults ----------------------------------------------------------------------


def test_defaults_are_filled_at_every_depth():
    filled = _checked()
    assert filled["datasets"]["tiny"]["train"] > 0
    assert filled["experiments"][0] == {
        "dataset": "tiny",
        "task": ["6-2"],
        "setting": ["overlap"],
        "methods": ["kproba", "finetune", "joint"],
        "seeds": [0],
    }
    assert filled["tasks"] == filled["methods"] == {}
    assert filled.keys() == SCHEMA["properties"].keys()
    optimisation = SCHEMA["$defs"]["optimisation"]["properties"]
    for section in ("base", "increment"):
        assert filled[section].keys() == optimisation.keys()
        rates = optimisation["learning_rate"]["properties"]
        assert filled[section]["learning_rate"].keys() == rates.keys()


def test_filling_in_does_not_change_what_was_given():
    given = _config(increment={"learning_rate": {"branch": 0.5}})
    before = copy.deepcopy(given)
    filled = check(given, SCHEMA_PATH)
    assert given == before
    filled["experiments"][0]["methods"].append("other")
    assert check(given, SCHEMA_PATH)["experiments"][0]["methods"][-1] == "joint"


def test_default_of_a_section_holds_beside_given_keys():
    """The increment's own defaults, not those of $defs, fill what is not given."""
    default = SCHEMA["properties"]["increment"]["default"]
    plain = _checked()["increment"]
    assert plain["epochs"] == default["epochs"] != _checked()["base"]["epochs"]
    assert plain["learning_rate"].items() >= default["learning_rate"].items()
    changed = _checked(increment={"batch_size": 8})["increment"]
    assert changed == {**plain, "batch_size": 8}


def test_default_of_a_section_is_merged_down_to_the_leaves():
    plain = _checked()["increment"]
    changed = _checked(increment={"learning_rate": {"branch": 0.5}})["increment"]
    assert changed == {
        **plain,
        "learning_rate": {**plain["learning_rate"], "branch": 0.5},
    }


def test_given_values_win_over_defaults():
    filled = _checked(
        base={"epochs": 3, "gradient_clip": 1.5}, model={"backbone": "resnet50"}
    )
    assert (filled["base"]["epochs"], filled["base"]["gradient_clip"]) == (3, 1.5)
    assert filled["model"]["backbone"] == "resnet50"


@pytest.mark.parametrize(
    ("text", "number"), [("1e-3", 1e-3), ("2E-4", 2e-4), ("1.5e-2", 0.015)]
)
def test_numbers_that_yaml_reads_as_text_become_numbers(text, number):
    config = yaml.safe_load(f"learning_rate: {{ aspp: {text} }}")
    filled = _checked(base=config, **_method(increment={"weight_decay": text}))
    assert filled["base"]["learning_rate"]["aspp"] == number
    assert filled["methods"]["mine"]["increment"]["weight_decay"] == number


@pytest.mark.parametrize("value", [64.0, "64e0"])
def test_whole_numbers_are_integers_however_they_are_written(value):
    plan = _plan(
        evaluation={"crop": value},
        base={"batch_size": value},
        **_method(increment={"batch_size": value}),
    )
    numbers = [
        plan.config["evaluation"]["crop"],
        plan.config["base"]["batch_size"],
        plan.step_settings(_run("mine"), 1)["optimisation"]["batch_size"],
    ]
    assert [repr(number) for number in numbers] == ["64", "64", "64"]


def test_whole_seeds_and_classes_are_integers():
    plan = _plan(tasks={"own": [[1.0], [2.0]]}, **_experiment(task="own", seeds=[3.0]))
    assert repr(plan.groups("tiny", "own")) == "((1,), (2,))"
    assert repr(plan.runs[0].seed) == "3"


# --- refused by the schema ---------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"incremnt": {}}, ["unknown key 'incremnt'", "did you mean 'increment'?"]),
        (
            {"base": {"epoch": 3}},
            ["base: unknown key 'epoch'", "did you mean 'epochs'?"],
        ),
        (
            {"base": {"learning_rate": {"asp": 1}}},
            ["base.learning_rate: unknown key", "'aspp'"],
        ),
        ({"base": {"epochs": "many"}}, ["base.epochs: expected number", "'many'"]),
        ({"base": {"epochs": None}}, ["base.epochs: expected number", "None"]),
        ({"base": {"batch_size": 1.5}}, ["base.batch_size: expected integer", "1.5"]),
        ({"base": {"batch_size": True}}, ["base.batch_size: expected integer"]),
        ({"increment": None}, ["increment: expected object", "None"]),
        ({"base": {"epochs": 0}}, ["base.epochs: expected more than 0", "got 0"]),
        ({"base": {"batch_size": 0}}, ["base.batch_size: expected at least 1"]),
        ({"base": {"momentum": 1}}, ["base.momentum: expected less than 1"]),
        (
            {"bank": {"dimension": 513}},
            ["bank.dimension: expected a multiple of 2, but got 513"],
        ),
        ({"bank": {"maps": 101}}, ["bank.maps: expected at most 100", "got 101"]),
        (
            {"base": {"optimizer": "adam"}},
            ["base.optimizer: expected one of sgd, adamw", "did you mean 'adamw'?"],
        ),
        ({"bank": {"gamma": "mean"}}, ["bank.gamma", '"median"', "'mean'"]),
        ({"bank": {"gamma": -1}}, ["bank.gamma", "-1"]),
        ({"augmentation": {"scale": [1.0]}}, ["augmentation.scale"]),
        ({"experiments": []}, ["experiments"]),
        ({"datasets": {}}, ["datasets"]),
        (
            {"datasets": {"tiny": {"kind": "digit"}}},
            ["datasets.tiny.kind", "did you mean 'digits'?"],
        ),
        ({"datasets": {"tiny": {"size": 64}}}, ["datasets.tiny: missing key kind"]),
        (
            {"datasets": {"tiny": {"kind": "folder"}}},
            ["datasets.tiny: missing key path"],
        ),
        (
            {"datasets": {"tiny": {"kind": "digits", "path": "x"}}},
            ["datasets.tiny: unknown key 'path'"],
        ),
        ({"datasets": {"splits": {"kind": "digits"}}}, ["datasets", "splits"]),
        ({"methods": {"base": {"based_on": "kproba"}}}, ["methods", "base"]),
        ({"methods": {"mine": {}}}, ["methods.mine: missing key based_on"]),
        ({"tasks": {"a-b": [[1]]}}, ["tasks", "a-b"]),
        (_experiment(task=62), ["experiments.0.task.0: expected string", "62"]),
        (_experiment(setting="overlapped"), ["experiments.0.setting", "'overlap'"]),
        (_experiment(seeds=[0, 0]), ["experiments.0.seeds"]),
        ({"evaluation": {"policy": "mibs"}}, ["evaluation.policy", "'mib'"]),
    ],
)
def test_wrong_configuration_is_refused_with_its_key(changes, words):
    with pytest.raises(ConfigError) as error:
        _checked(**changes)
    missing = [word for word in words if word not in str(error.value)]
    assert not missing, str(error.value)


@pytest.mark.parametrize("key", ["datasets", "experiments"])
def test_required_keys_are_missed(key):
    config = _config()
    del config[key]
    with pytest.raises(ConfigError, match=f"the top level: missing key {key}"):
        check(config, SCHEMA_PATH)


def test_all_errors_stand_in_one_message():
    with pytest.raises(ConfigError) as error:
        _checked(base={"epochs": 0, "epoch": 1}, bank={"maps": "x"}, compue={})
    lines = str(error.value).splitlines()[1:]
    named = [line.split(":")[0].strip() for line in lines]
    assert sorted(named) == ["bank.maps", "base", "base.epochs", "the top level"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bank": {"maps": 0}}, "methods.mine.bank.maps: expected at least 1"),
        ({"bank": {"mapz": 1}}, "methods.mine.bank: unknown key 'mapz'"),
        (
            {"pseudo_labels": {"rule": "kapa"}},
            "methods.mine.pseudo_labels.rule: expected one of",
        ),
        ({"increment": {"epochs": -1}}, "methods.mine.increment.epochs: expected more"),
        (
            {"increment": {"learning_rate": {"aspp": "fast"}}},
            "methods.mine.increment.learning_rate.aspp: expected number",
        ),
        ({"losses": {"gkd": -1}}, "methods.mine.losses.gkd: expected at least 0"),
        ({"losses": {"gdk": 1}}, "methods.mine.losses: unknown key 'gdk'"),
        ({"model": {}}, "methods.mine: unknown key 'model'"),
    ],
)
def test_changes_of_a_method_are_checked_too(changes, words):
    with pytest.raises(ConfigError) as error:
        _checked(**_method(**changes))
    assert words in str(error.value)


def test_errors_of_all_methods_stand_in_one_message():
    methods = {
        "one": {"based_on": "kproba", "bank": {"maps": 0}, "increment": {"epochs": 0}},
        "two": {"based_on": "kproba", "bank": {"mapz": 1}},
    }
    with pytest.raises(ConfigError) as error:
        _checked(methods=methods)
    for named in ("one.bank.maps", "one.increment.epochs", "two.bank"):
        assert f"methods.{named}" in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"augmentation": {"scale": [2.0, 0.5]}},
        {"datasets": {"tiny": {"kind": "digits", "digits": [4, 2]}}},
        {"datasets": {"tiny": {"kind": "digits", "height": [0.6, 0.2]}}},
    ],
)
def test_smallest_above_largest_is_refused(changes):
    with pytest.raises(ConfigError):
        _plan(**changes)


def test_smallest_may_equal_largest():
    _plan(augmentation={"scale": [1.0, 1.0]})


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("section", "changes"),
    [
        ("base", lambda number: {"learning_rate": {"aspp": number}}),
        ("augmentation", lambda number: {"scale": [0.5, number]}),
    ],
)
def test_nan_and_infinity_are_refused(section, changes, number):
    with pytest.raises(ConfigError, match=section):
        _plan(**{section: changes(number)})


def test_dataset_named_by_a_number_is_refused():
    """YAML reads `2012:` as a number; quotes make it a name."""
    with pytest.raises(ConfigError, match="2012"):
        _plan(datasets={2012: {"kind": "digits"}}, **_experiment(dataset="2012"))


# --- refused by the plan -----------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            _experiment(dataset="tin"),
            ["experiments.0.dataset", "one of tiny", "'tin' (did you mean 'tiny'?)"],
        ),
        (
            _experiment(methods=["kprobe"]),
            ["experiments.0.methods", "(did you mean 'kproba'?)"],
        ),
        (_experiment(methods=["base"]), ["experiments.0.methods", "'base'"]),
        (_experiment(task="six"), ["experiments.0.task", "like '15-1'", "'six'"]),
        (
            {"tasks": {"birds": [[1]]}, **_experiment(task="bird")},
            ["experiments.0.task", "(did you mean 'birds'?)"],
        ),
        (
            _experiment(task="6-3"),
            ["experiments.0.task", "10 classes", "not a multiple"],
        ),
        (_experiment(task="11-1"), ["experiments.0.task", "10 classes"]),
        (
            {"tasks": {"own": [["one"], ["tow"]]}, **_experiment(task="own")},
            ["tasks.own", "'tow' in step 1 (did you mean 'two'?)"],
        ),
        (
            {"tasks": {"own": [["one"], [2]]}, **_experiment(task="own")},
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
                **_experiment(dataset="own"),
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
            {**_method(increment={"batch_size": 3}), "compute": {"processes": 2}},
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
        _plan(**changes)
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
    plan = _plan(compute=compute, base=shared, increment=shared)
    assert plan.cores_per_node() == cores


def test_increment_may_train_on_single_images():
    """Batch norm is frozen there, so only step 0 needs two images per micro-batch."""
    _plan(base={"batch_size": 2}, increment={"batch_size": 1})


def test_several_gpus_may_hold_a_single_image_each():
    """They share the statistics of batch norm."""
    _plan(base={"batch_size": 2}, compute={"gpus": 2}, increment={"batch_size": 2})


# --- shipped configurations --------------------------------------------------------


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
            assert plan.step_settings(run, step)


def test_a_configuration_is_shipped_for_the_tests():
    assert "test.yaml" in [path.name for path in SHIPPED]


# --- the plan ----------------------------------------------------------------------


def test_runs_are_all_combinations_and_none_twice():
    experiment = {"dataset": "tiny", "task": "6-2", "methods": ["kproba", "joint"]}
    plan = _plan(experiments=[{**experiment, "seeds": [0, 5]}, experiment])
    assert plan.runs == [
        _run(method, seed=seed) for seed in (0, 5) for method in ("kproba", "joint")
    ]


def test_joint_is_tested_after_the_last_step_only():
    plan = _plan()
    assert list(plan.steps(_run("kproba"))) == [0, 1, 2]
    assert list(plan.steps(_run("finetune"))) == [0, 1, 2]
    assert list(plan.steps(_run("joint"))) == [2]


def test_groups_and_names_grow_with_the_steps():
    plan = _plan(
        tasks={"own": [["nine", 1], ["two"]]},
        experiments=[
            {"dataset": "tiny", "task": "own"},
            {"dataset": "tiny", "task": "6-2"},
        ],
    )
    assert plan.groups("tiny", "own") == ((10, 1), (3,))
    assert plan.groups("tiny", "own", 0) == ((10, 1),)
    assert plan.names("tiny", plan.groups("tiny", "own")) == (
        ["background", "nine", "zero", "two"]
    )
    assert plan.groups("tiny", "6-2", 1) == ((1, 2, 3, 4, 5, 6), (7, 8))
    assert plan.class_count("tiny") == 10
    assert plan.label_names("tiny") == dict(enumerate(CLASS_NAMES, start=1))


def test_groups_of_an_unplanned_task_are_refused():
    with pytest.raises(ConfigError, match=r"'tiny'.*'4-2'"):
        _plan().groups("tiny", "4-2")


def _folder_with(path: Path, names: list[str]) -> str:
    path.mkdir()
    (path / "classes.txt").write_text("\n".join(["background", *names]) + "\n")
    return str(path)


def test_additions_are_steps_at_the_end_of_every_task(tmp_path):
    first = _folder_with(tmp_path / "first", [*CLASS_NAMES, "cross"])
    second = _folder_with(tmp_path / "second", [*CLASS_NAMES, "cross", "ring", "bar"])
    plan = _plan(
        datasets={"tiny": {"kind": "digits", "additions": [first, second]}},
        tasks={"own": [["nine", 1], ["two"]]},
        **_experiment(task=["6-2", "own"]),
    )
    groups = plan.groups("tiny", "6-2")
    assert groups[2:] == ((9, 10), (11,), (12, 13))
    assert plan.groups("tiny", "own")[1:] == ((3,), (11,), (12, 13))
    assert plan.names("tiny", groups)[-3:] == ["cross", "ring", "bar"]
    assert plan.base_task("tiny", "6-2") == "6"
    counts = [plan.class_count(part) for part in ("tiny", "tiny+1", "tiny+2")]
    assert counts == [10, 11, 13]


def test_a_step_sees_the_pictures_that_have_come_by_then(tmp_path):
    first = _folder_with(tmp_path / "first", [*CLASS_NAMES, "cross"])
    second = _folder_with(tmp_path / "second", [*CLASS_NAMES, "cross", "ring"])
    plan = _plan(datasets={"tiny": {"kind": "digits", "additions": [first, second]}})
    groups = plan.groups("tiny", "6-2")
    parts = [plan.parts("tiny", groups[: step + 1]) for step in range(len(groups))]
    assert parts[:3] == [["tiny"]] * 3
    assert parts[3:] == [["tiny", "tiny+1"], ["tiny", "tiny+1", "tiny+2"]]
    [all_at_once] = plan.groups("tiny", plan.joint_task("tiny", "6-2"))
    assert plan.parts("tiny", [all_at_once]) == parts[-1]
    assert plan.index_settings("tiny+1")["folder"] == first


def test_addition_may_have_epochs_of_its_own(tmp_path):
    first = _folder_with(tmp_path / "first", [*CLASS_NAMES, "cross"])
    second = _folder_with(tmp_path / "second", [*CLASS_NAMES, "cross", "ring"])
    additions = [{"path": first, "val_share": 0.5}, {"path": second, "epochs": 50}]
    plan = _plan(datasets={"tiny": {"kind": "digits", "additions": additions}})
    epochs = [
        plan.step_settings(_run(), step)["optimisation"]["epochs"]
        for step in range(1, 5)
    ]
    assert epochs == [20, 20, 20, 50]  # 20 is the default
    shares = [plan.index_settings(part)["val_share"] for part in ("tiny+1", "tiny+2")]
    assert shares == [0.5, 0.2]
    joint = Run("tiny", plan.joint_task("tiny", "6-2"), "overlap", "base", 0)
    assert plan.step_settings(joint, 0)["optimisation"]["epochs"] == 50  # of base


@pytest.mark.parametrize(
    "names",
    [CLASS_NAMES, ["cross"], ["cross", *CLASS_NAMES]],
    ids=["no new class", "known classes missing", "other order"],
)
def test_addition_whose_classes_do_not_go_on_is_refused(tmp_path, names):
    folder = _folder_with(tmp_path / "more", list(names))
    with pytest.raises(ConfigError, match=r"additions: expected .*more/classes.txt"):
        _plan(datasets={"tiny": {"kind": "digits", "additions": [folder]}})


def test_class_names_of_a_folder_come_from_its_file(folder_dataset):
    folder = folder_dataset({"train": {"a": np.zeros((4, 4), np.uint8)}})
    plan = _plan(
        datasets={"pets": {"kind": "folder", "path": str(folder)}},
        **_experiment(dataset="pets", task="2-1"),
    )
    groups = plan.groups("pets", "2-1")
    assert plan.names("pets", groups) == ["background", "cat", "dog", "cow"]


def _two_tasks() -> Plan:
    return _plan(
        tasks={"own": [[2, 1], [4]], "longer": [[1, 2, 4], [3]]},
        experiments=[
            {"dataset": "tiny", "task": task}
            for task in ("6-2", "6-4", "8-2", "own", "longer")
        ],
    )


def test_tasks_with_the_same_first_step_share_it():
    plan = _two_tasks()
    names = {
        task: plan.base_task("tiny", task) for task in ("6-2", "6-4", "8-2", "own")
    }
    assert names["6-2"] == names["6-4"] == "6"
    assert names["8-2"] == "8"
    assert names["own"] not in ("6", "8", "2")
    assert plan.groups("tiny", "6") == ((1, 2, 3, 4, 5, 6),)
    assert plan.groups("tiny", names["own"]) == ((2, 1),)


def test_tasks_with_the_same_classes_share_their_joint_training():
    plan = _two_tasks()
    names = {plan.joint_task("tiny", task) for task in ("6-2", "6-4", "8-2")}
    assert names == {"10"}
    own = plan.joint_task("tiny", "own")
    assert plan.groups("tiny", own) == ((1, 2, 4),)  # whatever the task's order
    assert own == plan.base_task("tiny", "longer")


# --- what determines a job ---------------------------------------------------------

BASE = _run("base", task="6")


def test_step_0_depends_on_its_own_classes_alone():
    plain = _plan().step_settings(BASE, 0)
    for other in (
        _experiment(task="6-4"),
        _experiment(methods=["finetune"], seeds=[0, 7]),
        {**_method(losses={"gkd": 2}), "increment": {"epochs": 7}},
        {"pseudo_labels": {"rule": "argmax"}, "bank": {"dimension": 8}},
    ):
        assert _plan(**other).step_settings(BASE, 0) == plain


def test_step_0_is_trained_as_base_says():
    settings = _plan(base={"epochs": 3}).step_settings(BASE, 0)
    assert settings["optimisation"]["epochs"] == 3
    assert settings["groups"] == [[1, 2, 3, 4, 5, 6]]
    assert settings["class_names"] == ["background", *CLASS_NAMES[:6]]
    assert settings["recipe"]["joint"]
    assert settings["architecture"]["backbone"]
    assert settings["weights"] == "imagenet"


def test_increment_is_trained_as_increment_and_its_method_say():
    changes = {"increment": {"epochs": 3, "batch_size": 4}}
    plan = _plan(**changes, **_method(increment={"batch_size": 8}, losses={"gkd": 7}))
    settings = plan.step_settings(_run("mine"), 1)
    assert settings["optimisation"]["epochs"] == 3
    assert settings["optimisation"]["batch_size"] == 8
    assert settings["groups"] == [[1, 2, 3, 4, 5, 6], [7, 8]]
    assert settings["step"] == 1
    assert settings["architecture"] is settings["weights"] is None
    losses = settings["recipe"]["losses"]
    built_in = plan.recipe("kproba").to_dict()["losses"]
    assert losses == {**built_in, "gkd": 7}


def test_learning_rates_are_part_of_the_settings():
    plan = _plan(increment={"learning_rate": {"branch": 0.5}})
    assert plan.step_settings(_run(), 1)["optimisation"]["branch"] == 0.5


@pytest.mark.parametrize(
    ("run", "step"), [(BASE, 0), (_run(), 1), (_run("finetune"), 2)]
)
def test_settings_survive_their_file(run, step):
    settings = _plan().step_settings(run, step)
    assert json.loads(json.dumps(settings)) == settings


@pytest.mark.parametrize(
    "changes",
    [
        {"compute": {"gpus": 4, "threads": 3, "accumulation": 2, "state_minutes": 1}},
        {"compute": {"processes": 2, "batch_size": 2, "workers": 0}},
        {"evaluation": {"policy": "plop", "crop": 64, "examples": 1}},
        _experiment(seeds=[3, 0]),
        {"tasks": {"unused": [[1], [2]]}},
        {"methods": {"unused": {"based_on": "kproba", "losses": {"gkd": 9}}}},
    ],
)
def test_machine_test_and_other_runs_do_not_retrain(changes):
    plain, changed = _plan(), _plan(**changes)
    for run, step in [(BASE, 0), (_run(), 1), (_run("finetune"), 2)]:
        assert changed.step_settings(run, step) == plain.step_settings(run, step)
    assert changed.bank("kproba") == plain.bank("kproba")


@pytest.mark.parametrize(
    "changes",
    [
        {"increment": {"epochs": 7}},
        {"increment": {"learning_rate": {"old_branches": 0.5}}},
        {"augmentation": {"crop_size": 64}},
    ],
)
def test_what_determines_training_retrains(changes):
    plain, changed = _plan(), _plan(**changes)
    assert changed.step_settings(_run(), 1) != plain.step_settings(_run(), 1)


def test_steps_seeds_and_methods_have_settings_of_their_own():
    plan = _plan()
    jobs = [
        (_run(), 1),
        (_run(), 2),
        (_run(seed=1), 1),
        (_run("finetune"), 1),
    ]
    settings = [json.dumps(plan.step_settings(run, step)) for run, step in jobs]
    assert len(set(settings)) == len(jobs)


@pytest.mark.parametrize(
    ("setting", "method", "expected"),
    [
        ("overlap", "kproba", True),
        ("disjoint", "kproba", True),
        ("sequential", "kproba", False),  # its labels name the old classes already
        ("overlap", "finetune", False),
    ],
)
def test_pseudo_labels_are_used_where_old_labels_are_hidden(setting, method, expected):
    plan = _plan(**_experiment(setting=setting))
    assert plan.uses_pseudo_labels(method, setting) is expected
    settings = plan.step_settings(Run("tiny", "6-2", setting, method, 0), 1)
    assert settings["recipe"]["use_pseudo_labels"] is expected


def test_switches_of_a_method_win_over_what_it_is_based_on():
    plan = _plan(**_method(use_pseudo_labels=False, cross_entropy="bce"))
    recipe = plan.recipe("mine")
    assert not recipe.use_pseudo_labels
    assert recipe.cross_entropy == "bce"
    assert recipe.losses == plan.recipe("kproba").losses


def test_weights_not_named_are_those_of_the_method_it_is_based_on():
    changes = {"based_on": "finetune", "losses": {"gkd": 1}}
    losses = _plan(methods={"mine": changes}).recipe("mine").to_dict()["losses"]
    assert {name for name, weight in losses.items() if weight} == {"gkd"}
    assert losses["gkd"] == 1


def test_unknown_method_has_no_recipe():
    with pytest.raises(ConfigError, match=r"kproba, barm, .*joint.*'other'"):
        _plan().recipe("other")


@pytest.mark.parametrize(
    ("pseudo_labels", "expected"),
    [
        ({"rule": "klda"}, {"map": "rff", "maps": 5, "scatter": True}),
        (
            {"rule": "lda"},
            {"map": "identity", "maps": 1, "scatter": True, "dimension": 2},
        ),
        (
            {"rule": "kappa", "metric": "euclidean"},
            {"map": "rff", "maps": 5, "scatter": False},
        ),
        (
            {"rule": "kappa", "metric": "mahalanobis"},
            {"map": "rff", "maps": 5, "scatter": True},
        ),
        (
            {"rule": "klda", "metric": "euclidean"},
            {"map": "rff", "maps": 5, "scatter": True},
        ),
    ],
)
def test_bank_holds_what_its_rule_reads(pseudo_labels, expected):
    plan = _plan(bank={"maps": 5, "dimension": 8}, pseudo_labels=pseudo_labels)
    bank = plan.bank("kproba")
    assert {key: bank[key] for key in expected} == expected
    assert bank["dimension"] == expected.get("dimension", 8)


def test_bank_follows_the_changes_of_a_method():
    plan = _plan(**_method(bank={"maps": 7}, pseudo_labels={"rule": "klda"}))
    assert plan.bank("mine")["map"] == "rff"
    assert plan.bank("mine")["maps"] == 7
    assert plan.bank("kproba")["map"] == "identity"
    plan = _plan(**_method(bank={"ridge": 0.5}))
    assert plan.bank("mine") == {**plan.bank("kproba"), "ridge": 0.5}


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
def test_rule_says_whether_a_bank_is_built(rule, expected):
    assert _plan(pseudo_labels={"rule": rule}).reads_bank("kproba") is expected


def test_import_is_light():
    """Every Snakemake call and every job imports the module."""
    script = "import sys, kproba.plan.plan; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


def test_methods_of_one_form_of_output_share_step_0():
    plan = _plan()
    bases = {name: plan.base_name(name) for name in METHODS}
    softmax = {name for name, base in bases.items() if base == "base_softmax"}
    assert softmax == {"plop", "mib", "lwf"}
    for base in ("base", "base_softmax"):
        settings = plan.step_settings(Run("tiny", "6", "overlap", base, 0), 0)
        assert settings["architecture"]["softmax"] is (base == "base_softmax")


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
        "weighted": {"pseudo_labels": {"posterior_weight": 2}},
        "unread": {"bank": {"dimension": 64}},
        "slower": {"bank": {"momentum": 0.5}},
        # trained on labels that the bank gives
        "klda": klda,
        "klda_firm": klda | {"bank": {"ridge": 0.5}},
        "klda_alone": klda | {"prediction": "network"},
    }
    plan = _plan(
        methods={
            name + end: {"based_on": "kproba", **own, **more}
            for end, more in (("", {}), ("_untaught", {"teacher": "network"}))
            for name, own in methods.items()
        }
    )

    def made(home, step, end="", by="kproba"):
        return {name for name in methods if home(name + end, step) == by}

    alike = {"firm", "before", "mapped", "alone", "weighted", "unread", "slower"}
    assert made(plan.model_home, 1) == made(plan.label_home, 2) == alike
    assert made(plan.label_home, 1) == alike | {"without_bfd", "faster"}
    # From step 2 on a bank teaches: what it says of a pixel is a training's matter.
    for step in (2, 3, 7):
        assert made(plan.model_home, step) == {"alone", "unread"}
        assert made(plan.label_home, step + 1) == {"alone", "unread"}
        assert made(plan.model_home, step, "_untaught", "barm") == alike
        assert made(plan.label_home, step + 1, "_untaught", "barm") == alike
        assert made(plan.bank_home, step) == {"alone", "unread"}
    read_alike = {"alone", "weighted", "unread"}
    assert made(plan.bank_home, 1) == made(plan.bank_home, 1, "_untaught") == read_alike
    others = {"without_bfd", "faster", "slower"}
    assert made(plan.bank_home, 0) == read_alike | others
    # Those that are like no built-in method make their own, the first of them for all.
    assert plan.fused_home("klda_firm") == "klda_firm"
    for step in (1, 2):
        assert plan.model_home("klda_firm", step) == "klda_firm"
        assert plan.model_home("klda_alone", step) == "klda"
        assert plan.label_home("klda_alone", step + 1) == "klda"
        assert plan.bank_home("klda_alone", step) == "klda"
    assert plan.fused_home("klda_alone") == "klda_alone"
    # barm is trained as kproba in step 1, and ssul learns from the same labels then.
    assert plan.model_home("barm", 1) == plan.label_home("barm", 2) == "kproba"
    assert plan.model_home("barm", 2) == plan.label_home("barm", 3) == "barm"
    assert plan.model_home("ssul", 1) == "ssul"
    assert plan.label_home("ssul", 1) == "kproba"
    plan = _plan(pseudo_labels={"rule": "lda"})
    assert plan.model_home("barm", 1) == plan.label_home("ssul", 1) == "barm"


def test_a_step_is_told_how_network_and_bank_teach():
    guided = {"based_on": "barm", "teacher": "fused"}
    used = ["barm", "guided", "kproba"]
    experiment = {"dataset": "tiny", "task": "6-2", "methods": used}
    plan = _plan(methods={"guided": guided}, experiments=[experiment])

    def told(name, step):
        run = Run("tiny", "6-2", "overlap", name, 0)
        settings = plan.step_settings(run, step)
        return settings["recipe"]["teacher"], settings["guide"]

    for name in used:  # step 0's network has mistaken nothing yet
        assert told(name, 1) == ("network", None)
    assert told("barm", 2) == ("network", None)
    for name in ("guided", "kproba"):
        assert told(name, 2) == ("fused", plan.prediction_rule(name))
        assert told(name, 2)[1]["rule"] == "lda"


def test_a_bank_teaches_nothing_without_distillation():
    plan = _plan(**_method(losses={"gkd": 0}))
    assert not plan.guided("mine", 2)
    run = Run("tiny", "6-2", "overlap", "mine", 0)
    assert plan.step_settings(run, 2)["recipe"]["teacher"] == "network"
    changes = {"teacher": "fused", "losses": {"gkd": 0}}
    with pytest.raises(ConfigError, match=r"mine\.teacher: expected 'network'"):
        _plan(**_method(**changes))


def test_labels_and_prediction_that_want_different_banks_are_refused():
    def plan(rule, prediction, **numbers):
        mine = {
            "based_on": "kproba",
            "prediction": prediction,
            "pseudo_labels": {"rule": rule, **numbers},
        }
        experiment = {"dataset": "tiny", "task": "6-2", "methods": ["mine"]}
        return _plan(methods={"mine": mine}, experiments=[experiment])

    for rule, prediction in (("lda", "klda"), ("klda", "lda"), ("agree", "kappa")):
        with pytest.raises(ConfigError, match=rf"mine\.prediction: .*'{rule}'"):
            plan(rule, prediction)
    for rule, prediction in (
        ("agree", "klda"),
        ("klda", "network"),
        ("argmax", "klda"),
    ):
        assert plan(rule, prediction).bank("mine")["map"] == "rff"
    both = plan("kappa", "klda", metric="mahalanobis")
    assert both.bank("mine")["scatter"]
    assert both.prediction_rule("mine")["rule"] == "klda"


def test_a_test_by_network_and_bank_of_step_0_is_made_once():
    methods = {
        "without_bfd": {"based_on": "kproba", "losses": {"bfd": 0}},
        "klda": {"based_on": "kproba", "pseudo_labels": {"rule": "klda"}},
        "sure": {"based_on": "kproba", "pseudo_labels": {"rule": "confidence"}},
        "weighted": {"based_on": "kproba", "pseudo_labels": {"posterior_weight": 2}},
        "alone": {"based_on": "kproba", "prediction": "network"},
    }
    plan = _plan(methods=methods)
    assert [name for name in plan._recipes if plan.fuses(name)] == [
        *("kproba", "without_bfd", "klda", "sure", "weighted")
    ]
    homes = {name: plan.fused_home(name) for name in methods}
    assert homes == {name: name for name in methods} | {"without_bfd": "kproba"} | {
        "sure": "kproba"  # LDA decides, whatever the labels were
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
    plan = _plan(pseudo_labels={"rule": rule, "posterior_weight": 2})
    settings = plan.prediction_rule("kproba")
    assert settings["rule"] == predicts
    assert settings["posterior_weight"] == (0.0 if predicts == "kappa" else 2)
    assert plan.bank("kproba")["map"] == mapped


@pytest.mark.parametrize("network", ["base", "after", "before"])
def test_a_bank_tells_whose_features_it_holds(network):
    plan = _plan(**_method(bank={"network": network}))
    assert plan.bank_network("mine") == network
    assert plan.bank_network("kproba") == "base"
    # At step 0 the network of step 0 is the step's own.
    own = network == "before"
    assert plan.bank_home("mine", 0) == ("mine" if own else "kproba")
    assert plan.bank_home("mine", 1) == ("kproba" if network == "base" else "mine")


def test_prediction_is_no_setting_of_a_training():
    plan = _plan(**_method(prediction="network"))
    run = Run("tiny", "6-2", "overlap", "mine", 0)
    mine = plan.step_settings(run, 1)
    same = plan.step_settings(replace(run, method="kproba"), 1)
    assert mine["recipe"] == same["recipe"]


def test_joint_has_no_bank_to_predict_with():
    with pytest.raises(ConfigError, match=r"mine\.prediction: expected 'network'"):
        _plan(methods={"mine": {"based_on": "joint", "prediction": "lda"}})


def test_a_method_brings_its_rule_and_the_configuration_the_others():
    plan = _plan(pseudo_labels={"rule": "lda", "threshold": 0.5})
    assert plan.section("pseudo_labels", "kproba")["rule"] == "lda"
    barm = plan.section("pseudo_labels", "barm")
    assert (barm["rule"], barm["threshold"]) == ("confidence", 0.7)
    assert plan.section("pseudo_labels", "plop")["rule"] == "entropy"
    mine = {"based_on": "barm", "pseudo_labels": {"threshold": 0.9}}
    plan = _plan(methods={"mine": mine})
    section = plan.section("pseudo_labels", "mine")
    assert (section["rule"], section["threshold"]) == ("confidence", 0.9)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"cross_entropy": "ce"},
            "methods.mine.losses: expected bga_ce, bga_t, gkd, bfd to be 0",
        ),
        (
            {"losses": {"unbiased_kd": 1}},
            "methods.mine.losses: expected unbiased_kd to be 0.*no softmax",
        ),
        ({"scale_by_certainty": True}, "scale_by_certainty: .*'protected_bce'"),
    ],
)
def test_terms_without_their_outputs_are_refused(changes, told):
    with pytest.raises(ConfigError, match=told):
        _plan(**_method(**changes))


def test_a_sweep_is_every_combination_once():
    sweep = {
        "task": ["6-2", "6-2_r1", "4-3"],
        "setting": ["overlap", "disjoint"],
        "methods": ["kproba", "mib"],
        "seeds": [0, 1, 2],
    }
    plan = _plan(experiments=[{**MINIMAL["experiments"][0], **sweep}])
    assert len(set(plan.runs)) == len(plan.runs) == 3 * 2 * 2 * 3
    ordered, shuffled = (plan.groups("tiny", task) for task in ("6-2", "6-2_r1"))
    assert [len(group) for group in ordered] == [len(group) for group in shuffled]
    assert ordered != shuffled
    assert plan.base_task("tiny", "6-2") != plan.base_task("tiny", "6-2_r1")
    # The labels of all classes are the same in every order: one joint training.
    assert plan.joint_task("tiny", "6-2") == plan.joint_task("tiny", "6-2_r1")


@pytest.mark.parametrize("name", ["digits", "ablation"])
def test_comparisons_run_the_embedded_example_as_it_is_shipped(name):
    shipped, compared = (
        yaml.safe_load((ROOT / "config" / path).read_text())
        for path in ("config.yaml", f"benchmarks/{name}.yaml")
    )
    for content in (shipped, compared):
        content.pop("experiments")
    compared.pop("methods", None)
    assert compared == shipped
    assert Plan(
        check(
            yaml.safe_load((ROOT / f"config/benchmarks/{name}.yaml").read_text()),
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
    lda = {"rule": "lda"}
    plain = _plan(pseudo_labels=lda)
    for key, value in changes.items():
        changed = _plan(pseudo_labels=lda | {key: value})
        for name in ("kproba", "barm", "ssul", "plop"):
            of_kproba = set(RULES["lda"]) - {"foreground_bias"}
            read = of_kproba if name == "kproba" else set()
            same = changed.pseudo_label_rule(name) == plain.pseudo_label_rule(name)
            assert same is (key not in read), (name, key)
    both = [lda | {"foreground": "both", "foreground_bias": b} for b in (0, 2)]
    rules = [_plan(pseudo_labels=keys).pseudo_label_rule("kproba") for keys in both]
    assert rules[0] != rules[1]
    # The map of `lda` is none, whatever the bank's settings of maps.
    for bank in ({"dimension": 64}, {"maps": 7}, {"gamma": 0.5}):
        lda = {"pseudo_labels": {"rule": "lda"}}
        assert _plan(bank=bank, **lda).bank("kproba") == _plan(**lda).bank("kproba")


def test_joint_has_no_pseudo_labels():
    mine = {"based_on": "joint", "use_pseudo_labels": True}
    plan = _plan(methods={"mine": mine})
    assert not plan.uses_pseudo_labels("mine", "overlap")


def test_schema_knows_the_rules_and_switches_of_methods():
    rules = SCHEMA["$defs"]["pseudo_labels"]["properties"]["rule"]["enum"]
    assert rules == list(RULES)
    own = SCHEMA["properties"]["methods"]["additionalProperties"]["properties"]
    others = {"based_on", "losses", "bank", "pseudo_labels", "increment"}
    assert own.keys() - others == SWITCHES
