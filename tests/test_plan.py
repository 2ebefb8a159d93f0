"""What a plan refuses, and the runs that it holds."""

import subprocess
import sys
from dataclasses import replace

import pytest
import yaml
from plan_configs import (
    ROOT,
    SCHEMA_PATH,
    SHIPPED,
    experiment,
    make_plan,
    make_run,
    method,
)

from kproba.network.backbones import BACKBONES
from kproba.plan.errors import ConfigError
from kproba.plan.plan import Plan
from kproba.plan.schema import check

pytestmark = pytest.mark.usefixtures("schema_is_parsed_once")


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
        (experiment(task="six"), ["experiments.0.task", "such as '15-1'", "'six'"]),
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


def test_a_backbone_without_imagenet_weights_refuses_them(monkeypatch):
    entry = replace(BACKBONES["efficientnet_lite0"], read_pretrained=None)
    monkeypatch.setitem(BACKBONES, "efficientnet_lite0", entry)
    model = {"backbone": "efficientnet_lite0"}
    make_plan(model={**model, "weights": "none"})
    with pytest.raises(ConfigError, match=r"model.weights: .*no ImageNet weights"):
        make_plan(model={**model, "weights": "imagenet"})


def test_cores_of_a_job_follow_from_the_configuration():
    shared = {"batch_size": 12}
    compute = {"gpus": 4, "nodes": 2, "threads": 1, "workers": 3}
    plan = make_plan(compute=compute, base=shared, increment=shared)
    assert plan.compute.cores_per_node == 6


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


def test_unknown_method_is_refused():
    with pytest.raises(ConfigError, match=r"kproba, barm, .*joint.*'other'"):
        make_plan().method("other")


def test_import_is_light():
    """Every Snakemake call and every job imports the module."""
    script = "import sys, kproba.plan.plan; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


@pytest.mark.parametrize("name", ["digits", "ablation"])
def test_comparisons_run_the_embedded_example_as_it_is_shipped(name):
    shipped, compared = (
        yaml.safe_load((ROOT / "config" / path).read_text())
        for path in ("config.yaml", f"comparisons/{name}.yaml")
    )
    for content in (shipped, compared):
        content.pop("experiments")
    compared.pop("methods", None)
    shipped.pop("joint")  # it is shorter there, for speed
    assert compared == shipped
    assert Plan(
        check(
            yaml.safe_load((ROOT / f"config/comparisons/{name}.yaml").read_text()),
            ROOT / "workflow/schemas/config.schema.yaml",
        )
    ).runs
