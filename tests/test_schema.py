"""The schema of the configuration: keys, defaults and what is refused."""

import copy
import re
from collections.abc import Iterator
from functools import cache
from operator import itemgetter
from typing import Any

import jsonschema
import pytest
import yaml
from plan_configs import (
    SCHEMA,
    SCHEMA_PATH,
    checked,
    config,
    experiment,
    make_plan,
    make_run,
    method,
)

from kproba.data.kinds import KINDS
from kproba.methods.rules import RULES
from kproba.methods.terms import TERMS
from kproba.network.backbones import BACKBONES
from kproba.network.heads import HEADS
from kproba.plan.errors import ConfigError
from kproba.plan.methods import SWITCHES
from kproba.plan.old_keys import RENAMED, REPLACED
from kproba.plan.schema import SECTIONS, check


@pytest.fixture(autouse=True, scope="module")
def _schema_is_parsed_once() -> Iterator[None]:
    """Parsing it takes most of the time of a check."""
    parse = cache(yaml.safe_load)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yaml, "safe_load", lambda text: copy.deepcopy(parse(text)))
        yield


# --- the schema itself --------------------------------------------------------------


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


# --- defaults -----------------------------------------------------------------------


def test_defaults_are_filled_at_every_depth():
    filled = checked()
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
    given = config(increment={"learning_rate": {"branch": 0.5}})
    before = copy.deepcopy(given)
    filled = check(given, SCHEMA_PATH)
    assert given == before
    filled["experiments"][0]["methods"].append("other")
    assert check(given, SCHEMA_PATH)["experiments"][0]["methods"][-1] == "joint"


def test_default_of_a_section_holds_beside_given_keys():
    """The increment's own defaults, not those of $defs, fill what is not given."""
    default = SCHEMA["properties"]["increment"]["default"]
    plain = checked()["increment"]
    assert plain["epochs"] == default["epochs"] != checked()["base"]["epochs"]
    assert plain["learning_rate"].items() >= default["learning_rate"].items()
    changed = checked(increment={"batch_size": 8})["increment"]
    assert changed == {**plain, "batch_size": 8}


def test_default_of_a_section_is_merged_down_to_the_leaves():
    plain = checked()["increment"]
    changed = checked(increment={"learning_rate": {"branch": 0.5}})["increment"]
    assert changed == {
        **plain,
        "learning_rate": {**plain["learning_rate"], "branch": 0.5},
    }


def test_given_values_win_over_defaults():
    filled = checked(
        base={"epochs": 3, "gradient_clip": 1.5}, model={"backbone": "resnet50"}
    )
    assert (filled["base"]["epochs"], filled["base"]["gradient_clip"]) == (3, 1.5)
    assert filled["model"]["backbone"] == "resnet50"


@pytest.mark.parametrize(
    ("text", "number"), [("1e-3", 1e-3), ("2E-4", 2e-4), ("1.5e-2", 0.015)]
)
def test_numbers_that_yaml_reads_as_text_become_numbers(text, number):
    config = yaml.safe_load(f"learning_rate: {{ aspp: {text} }}")
    filled = checked(base=config, **method(increment={"weight_decay": text}))
    assert filled["base"]["learning_rate"]["aspp"] == number
    assert filled["methods"]["mine"]["increment"]["weight_decay"] == number


@pytest.mark.parametrize("value", [64.0, "64e0"])
def test_whole_numbers_are_integers_however_they_are_written(value):
    plan = make_plan(
        evaluation={"crop": value},
        base={"batch_size": value},
        **method(increment={"batch_size": value}),
    )
    numbers = [
        plan.config["evaluation"]["crop"],
        plan.config["base"]["batch_size"],
        plan.settings(make_run("mine"), 1)["optimisation"]["batch_size"],
    ]
    assert [repr(number) for number in numbers] == ["64", "64", "64"]


def test_whole_seeds_and_classes_are_integers():
    plan = make_plan(
        tasks={"own": [[1.0], [2.0]]}, **experiment(task="own", seeds=[3.0])
    )
    assert repr(plan.datasets.groups("tiny", "own")) == "((1,), (2,))"
    assert repr(plan.runs[0].seed) == "3"


# --- refused by the schema ----------------------------------------------------------


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
        (experiment(task=62), ["experiments.0.task.0: expected string", "62"]),
        (experiment(setting="overlapped"), ["experiments.0.setting", "'overlap'"]),
        (experiment(seeds=[0, 0]), ["experiments.0.seeds"]),
        ({"evaluation": {"policy": "mibs"}}, ["evaluation.policy", "'mib'"]),
    ],
)
def test_wrong_configuration_is_refused_with_its_key(changes, words):
    with pytest.raises(ConfigError) as error:
        checked(**changes)
    missing = [word for word in words if word not in str(error.value)]
    assert not missing, str(error.value)


@pytest.mark.parametrize("key", ["datasets", "experiments"])
def test_required_keys_are_missed(key):
    incomplete = config()
    del incomplete[key]
    with pytest.raises(ConfigError, match=f"the top level: missing key {key}"):
        check(incomplete, SCHEMA_PATH)


def test_all_errors_stand_in_one_message():
    with pytest.raises(ConfigError) as error:
        checked(base={"epochs": 0, "epoch": 1}, bank={"maps": "x"}, compue={})
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
        checked(**method(**changes))
    assert words in str(error.value)


def test_errors_of_all_methods_stand_in_one_message():
    methods = {
        "one": {"based_on": "kproba", "bank": {"maps": 0}, "increment": {"epochs": 0}},
        "two": {"based_on": "kproba", "bank": {"mapz": 1}},
    }
    with pytest.raises(ConfigError) as error:
        checked(methods=methods)
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
        make_plan(**changes)


def test_smallest_may_equal_largest():
    make_plan(augmentation={"scale": [1.0, 1.0]})


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
        make_plan(**{section: changes(number)})


def test_dataset_named_by_a_number_is_refused():
    """YAML reads `2012:` as a number; quotes make it a name."""
    with pytest.raises(ConfigError, match="2012"):
        make_plan(datasets={2012: {"kind": "digits"}}, **experiment(dataset="2012"))


# --- names that tables hold --------------------------------------------------------


def test_schema_lists_what_the_tables_hold():
    properties, definitions = SCHEMA["properties"], SCHEMA["$defs"]
    own = properties["methods"]["additionalProperties"]["properties"]
    assert properties["model"]["properties"]["backbone"]["enum"] == list(BACKBONES)
    assert definitions["pseudo_labels"]["properties"]["rule"]["enum"] == list(RULES)
    assert definitions["dataset"]["properties"]["kind"]["enum"] == list(KINDS)
    assert own["head"]["enum"] == list(HEADS)
    named = {*own["cross_entropy"]["enum"], *own["losses"]["properties"]}
    assert named == TERMS.keys()
    for name, kind in KINDS.items():
        keys = definitions[f"dataset_{name}"]["properties"].keys()
        assert keys == {"kind", "additions", *kind.settings}
    reserved = properties["methods"]["propertyNames"]["not"]["enum"]
    assert {head.base for head in HEADS.values()} <= set(reserved)


def test_schema_knows_the_switches_of_methods():
    own = SCHEMA["properties"]["methods"]["additionalProperties"]["properties"]
    assert own.keys() == {"based_on", "losses", "options", *SWITCHES, *SECTIONS}


RENAMED_KEYS = [
    *((name, key, new) for name, keys in RENAMED.items() for key, new in keys.items()),
    *(
        (f"methods.mine.{name}", key, new)
        for name, keys in RENAMED.items()
        for key, new in keys.items()
        if name in SECTIONS
    ),
]


@pytest.mark.parametrize(("where", "key", "new"), RENAMED_KEYS)
def test_a_renamed_key_is_refused_with_its_new_name(where, key, new):
    section: dict[str, Any] = {key: 1}
    if where.startswith("methods"):
        changes = method(**{where.removeprefix("methods.mine."): section})
    else:
        changes = {where: section}
    with pytest.raises(ConfigError) as error:
        checked(**changes)
    [line] = str(error.value).splitlines()[1:]
    assert line.strip() == f"{where}.{key}: this key is now `{new}`. Rename it."


@pytest.mark.parametrize(("key", "value"), REPLACED)
def test_a_replaced_key_is_refused_with_what_to_write_instead(key, value):
    with pytest.raises(ConfigError) as error:
        checked(**method(**{key: value}))
    [line] = str(error.value).splitlines()[1:]
    remedy = REPLACED[key, value]
    assert line.strip() == f"methods.mine.{key}: this key was removed. {remedy}"


def test_what_replaces_a_renamed_or_replaced_key_is_accepted():
    checked(
        compute={"val_times": 1, "val_images": 2},
        decision={"posterior_weight": 1, "image_prior": 2},
        **method(cross_entropy="certain_ce", losses={"bga_t": 0, "bga_t_remaining": 5}),
    )


@pytest.mark.parametrize(
    ("changes", "where", "value"),
    [
        ({"base": {"epochs": "2"}}, ("base", "epochs"), 2),
        ({"base": {"epochs": "2.5"}}, ("base", "epochs"), 2.5),
        ({"compute": {"deterministic": "true"}}, ("compute", "deterministic"), True),
        ({"evaluation": {"crop": "null"}}, ("evaluation", "crop"), None),
        ({"evaluation": {"crop": "64"}}, ("evaluation", "crop"), 64),
        ({"evaluation": {"policy": "mib"}}, ("evaluation", "policy"), "mib"),
        (
            {"augmentation": {"scale": ["0.5", "2"]}},
            ("augmentation", "scale"),
            [0.5, 2],
        ),
        (
            {"base": {"learning_rate": {"aspp": "1e-3"}}},
            ("base", "learning_rate", "aspp"),
            0.001,
        ),
    ],
)
def test_text_of_the_command_line_is_read_as_in_the_file(changes, where, value):
    """`--config 'base={epochs: 2}'`: Snakemake hands such values over as text."""
    found = checked(**changes)
    for key in where:
        found = found[key]
    assert found == value and type(found) is type(value)


def test_text_stays_text_where_text_is_wanted():
    names = ["background", "1", "true", "null"]
    dataset = {"tiny": {"kind": "folder", "path": "2", "classes": names}}
    found = checked(datasets=dataset)["datasets"]["tiny"]
    assert found["classes"] == names and found["path"] == "2"


@pytest.mark.parametrize("value", ["two", "[1]", "{a: 1}", "1 2", "yes please", ""])
def test_other_text_is_refused_as_it_came(value):
    with pytest.raises(ConfigError, match=re.escape(f"got {value!r}")):
        checked(base={"epochs": value})


@pytest.mark.parametrize(
    "changes",
    [
        {"datasets": {"tiny\n": {"kind": "digits"}}},
        {"datasets": {"reports": {"kind": "digits"}}},
        {"datasets": {"weights": {"kind": "digits"}}},
        {"datasets": {"x" * 101: {"kind": "digits"}}},
        {"tasks": {"mine\n": [["zero"], ["one"]]}},
        {"methods": {"mine\n": {"based_on": "kproba"}}},
        {"methods": {"m" * 101: {"based_on": "kproba"}}},
        {"report": "a/b"},
        {"report": "a\n"},
        {"report": ".."},
        {"extensions": ["a.py\n"]},
    ],
    ids=str,
)
def test_names_that_are_no_good_for_files_are_refused(changes):
    with pytest.raises(ConfigError):
        checked(**changes)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("evaluation", "crop", 1_000_000),
        ("evaluation", "crop", 0),
        ("base", "batch_size", 0),
        ("increment", "batch_size", -1),
        ("compute", "batch_size", 0),
        ("base", "iterations", 0),
        ("augmentation", "crop_size", 10**6),
    ],
)
def test_numbers_have_bounds(section, key, value):
    with pytest.raises(
        ConfigError, match=rf"{section}\.{key}: expected at (least|most)"
    ):
        checked(**{section: {key: value}})


@pytest.mark.parametrize("section", ["base", "increment"])
def test_a_section_counts_epochs_or_iterations(section):
    assert checked(**{section: {"iterations": 7}})[section]["iterations"] == 7
    with pytest.raises(ConfigError, match=f"{section}: expected epochs or iterations"):
        checked(**{section: {"iterations": 7, "epochs": 2}})


def test_iterations_are_among_the_settings_where_they_are_given():
    run = make_run()
    plain = make_plan().settings(run, 1)["optimisation"]
    assert "iterations" not in plain
    plan = make_plan(increment={"iterations": 7})
    assert plan.settings(run, 1)["optimisation"]["iterations"] == 7
    assert "iterations" not in plan.settings(make_run("base", "6"), 0)["optimisation"]
    own = method(increment={"epochs": 3})
    mine = make_plan(increment={"iterations": 7}, **own)
    assert "iterations" not in mine.settings(make_run("mine"), 1)["optimisation"]
