"""The method `ridge`: its plan, and the files of a step that trains nothing."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from gloo_processes import in_processes
from plan_configs import experiment, make_plan, make_run
from safetensors.torch import load_file
from training_runs import train_with
from training_steps import step_settings

from kproba.methods.builtin import METHODS
from kproba.methods.method import Method
from kproba.network.files import load_model
from kproba.plan.errors import ConfigError
from kproba.plan.plan import Plan
from kproba.runtime.compute import Compute
from kproba.runtime.files import read_json

pytestmark = pytest.mark.usefixtures("schema_is_parsed_once")

ALONE = {
    "rule": "ridge",
    "foreground": "both",
    "probability_weight": 0,
    "posterior_weight": 1,
    "foreground_bias": 0,
    "image_prior": 0,
}
RIDGE = make_run("ridge")


def plan_of(base: str = "ridge", *, others: tuple = (), **changes: Any) -> Plan:
    """A plan of a custom method `mine`, and of further methods."""
    mine = {key: changes.pop(key) for key in list(changes) if key not in SECTIONS}
    return make_plan(
        methods={"mine": {"based_on": base, **mine}},
        **experiment(methods=["mine", *others]),
        **changes,
    )


SECTIONS = ("base", "increment", "compute")  # of the configuration, in `plan_of`


# The plan


def test_the_bank_of_ridge_is_of_step_0s_block_and_decides_alone():
    plan = make_plan(
        bank={"network": "after", "feature": "both", "dimension": 8, "maps": 5},
        decision={"image_prior": 3, "probability_weight": 0.5},
        pseudo_labels={"rule": "argmax", "score_threshold": 0.1},
    )
    ridge = plan.method("ridge")
    assert ridge.bank == {
        "feature": "block",
        "map": "relu",
        "scatter": True,
        "ridge": None,
        "calibration_cells": 10000,
        "dimension": 8,
        "regularisation": 1,
    }
    assert ridge.bank_network == "base"
    assert ridge.decision == ALONE
    assert ridge.labels == {
        "rule": "ridge",
        "score_threshold": 0.6,
        "decision": ALONE,
    }
    assert plan.method("kproba").bank_network == "after"


def test_a_custom_method_changes_what_ridge_sets():
    changes = {
        "bank": {"feature": "both", "regularisation": 10},
        "decision": {"foreground_bias": 0.5},
        "pseudo_labels": {"score_threshold": 0.9},
    }
    mine = plan_of(**changes).method("mine")
    assert mine.bank["feature"] == "both" and mine.bank["regularisation"] == 10
    assert mine.decision == {**ALONE, "foreground_bias": 0.5}
    assert mine.labels["score_threshold"] == 0.9


def test_banks_of_later_steps_have_no_momentum_and_keep_the_temperature():
    plan = make_plan(bank={"momentum": 0.5})
    settings = plan.chain.bank(RIDGE, 1).settings
    assert "momentum" not in settings["settings"]
    assert settings["keep_temperature"] is True
    assert plan.chain.bank(make_run(), 1).settings["settings"]["momentum"] == 0.5


def test_a_network_depends_on_nothing_that_a_training_reads():
    """Neither on `increment` nor on labels, which only the bank needs."""
    plan = make_plan()
    settings = plan.settings(RIDGE, 1)
    assert settings["method"]["trains"] == "nothing"
    assert settings["optimisation"]["iterations"] == 0
    other = make_plan(increment={"epochs": 7, "batch_size": 3})
    assert other.settings(RIDGE, 1) == settings
    inputs = plan.training_inputs(RIDGE, 1)
    assert inputs["pseudo_labels"] == [] and inputs["bank"] == []
    assert plan.bank_inputs(RIDGE, 1)["pseudo_labels"]
    assert plan.label_inputs(RIDGE, 1)["bank"]
    assert other.settings(make_run(), 1) != plan.settings(make_run(), 1)


def test_labels_and_their_time_are_those_of_the_bank():
    result = make_plan(**experiment(methods=["ridge"])).result(RIDGE, 1)
    labels = "results/tiny/6-2-overlap/ridge/seed0/step1/pseudo_label"
    assert result.labels == f"{labels}s"
    assert result.quality == f"{labels}_quality.csv"
    assert result.times.keys() == {"training", "pseudo labels", "bank"}
    assert make_plan().result(make_run("finetune"), 1).labels is None


def test_methods_that_differ_in_their_bank_share_networks():
    plan = plan_of(others=("ridge",), pseudo_labels={"score_threshold": 0.9})
    for step in (1, 2):
        ours, theirs = (
            plan.test_inputs(make_run(name), step) for name in ("mine", "ridge")
        )
        assert ours["model"] == theirs["model"]
        assert ours["bank"] != theirs["bank"]


def test_sequential_needs_no_pseudo_labels():
    plan = make_plan(**experiment(methods=["ridge"], setting="sequential"))
    run = next(run for run in plan.runs if run.method == "ridge")
    assert plan.bank_inputs(run, 1)["pseudo_labels"] == []
    assert plan.chain.bank(run, 1).settings["sequential"]


def test_a_batch_that_cannot_be_split_is_no_matter_where_nothing_trains():
    odd = {"increment": {"batch_size": 3}, "compute": {"processes": 2}}
    make_plan(**experiment(methods=["ridge"]), **odd)
    with pytest.raises(ConfigError, match=r"increment \(of finetune\)"):
        make_plan(**experiment(methods=["ridge", "finetune"]), **odd)


@pytest.mark.parametrize(
    ("base", "changes", "words"),
    [
        (
            "ridge",
            {"bank": {"network": "after"}},
            r"mine\.bank\.network: expected base or pretrained.* one .*got 'after'",
        ),
        (
            "kproba",
            {"prediction": "ridge", "bank": {"network": "before"}},
            r"mine\.bank\.network: expected base or pretrained",
        ),
        ("ridge", {"prediction": "network"}, r"mine\.decision: .*prediction: network"),
        (
            "ridge",
            {"decision": {"foreground": "network"}},
            r"mine\.decision: .*but got foreground: network",
        ),
        (
            "ridge",
            {"decision": {"probability_weight": 1}},
            r"mine\.decision: .*but got .*probability_weight: 1",
        ),
        (
            "ridge",
            {"pseudo_labels": {"rule": "confidence"}},
            r"mine\.pseudo_labels\.rule: expected one of lda, .* got 'confidence'",
        ),
        (
            "kproba",
            {"trains": "nothing"},
            r"mine\.losses: expected no loss terms .* but got bga_ce, .*'ridge'",
        ),
        (
            "ridge",
            {"decision": {"rule": "lda"}},
            r"methods\.mine\.decision: unknown key 'rule'",
        ),
    ],
)
def test_what_does_not_fit_is_refused(base, changes, words):
    with pytest.raises(ConfigError, match=words):
        plan_of(base, **changes)


def test_another_analysis_may_decide_alone():
    mine = plan_of(prediction="lda", pseudo_labels={"rule": "lda"}).method("mine")
    assert mine.bank["map"] == "identity" and mine.bank["feature"] == "block"
    assert mine.bank_momentum is not None
    assert mine.decision == {**ALONE, "rule": "lda"}


def test_ridge_can_decide_with_a_network_and_teach():
    plan = plan_of("kproba", prediction="ridge", pseudo_labels={"rule": "ridge"})
    mine = plan.method("mine")
    assert mine.bank["map"] == "relu" and mine.bank["feature"] == "backbone"
    assert mine.decision["rule"] == "ridge"
    assert mine.decision["foreground"] == "network"
    assert plan.settings(make_run("mine"), 2)["decision"] == mine.decision
    assert plan.training_inputs(make_run("mine"), 2)["bank"]


def test_a_method_of_a_table_sets_keys_of_every_section(monkeypatch):
    own = Method(
        cross_entropy="bce",
        increment={"epochs": 3, "learning_rate": {"branch": 0.5}},
        bank={"dimension": 16},
        decision={"image_prior": 2},
        pseudo_labels={"rule": "klda"},
        prediction="klda",
    )
    monkeypatch.setitem(METHODS, "own", own)
    chosen = experiment(methods=["own"])
    plan = make_plan(**chosen, increment={"iterations": 40, "batch_size": 4})
    planned = plan.method("own")
    assert planned.bank["dimension"] == 16
    assert planned.decision["image_prior"] == 2
    optimisation = plan.settings(make_run("own"), 1)["optimisation"]
    assert optimisation["epochs"] == 3 and "iterations" not in optimisation
    assert optimisation["batch_size"] == 4
    assert optimisation["learning_rate"]["branch"] == 0.5
    assert optimisation["learning_rate"]["aspp"] == 0.001
    wrong = Method(cross_entropy="bce", bank={"dimension": 3})
    monkeypatch.setitem(METHODS, "own", wrong)
    with pytest.raises(ConfigError, match=r"methods\.own\.bank\.dimension: .* 2"):
        make_plan(**chosen)


# The files of a step


@pytest.fixture(scope="module")
def kept(data: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Step 1 of `ridge` by one process."""
    out = tmp_path_factory.mktemp("kept")
    (out / "settings.json").write_text(json.dumps(step_settings(1, "ridge")))
    in_processes(1, train_with, data, out, base, Compute())
    return out


def test_the_model_is_the_previous_one_with_an_unused_branch(kept, base):
    before, after = load_file(base), load_file(kept / "model.safetensors")
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    added = after.keys() - before.keys()
    assert added and all(name.startswith("branches.1.") for name in added)
    assert read_json(kept / "model.json")["classes_per_step"] == [6, 2]


def test_tables_and_curves_are_there_without_rows(kept):
    table = pd.read_csv(kept / "metrics.csv")
    assert list(table) == ["iteration", "loss"] and table.empty
    usage = read_json(kept / "usage.json")
    assert "images_per_second" not in usage and usage["peak_memory_bytes"] > 0
    assert 0 < usage["seconds"] < 120
    assert read_json(kept / "tensorboard" / "run.json")["step"] == 1
    assert list((kept / "tensorboard").glob("events*"))
    assert not (kept / "training-state.pt").exists()


def test_a_second_call_and_two_processes_write_the_same_model(kept, data, base):
    before = (kept / "model.safetensors").read_bytes()
    in_processes(2, train_with, data, kept, base, Compute())
    assert (kept / "model.safetensors").read_bytes() == before
    first, second = (load_file(kept / f"rank{rank}.safetensors") for rank in (0, 1))
    assert all(torch.equal(second[name], tensor) for name, tensor in first.items())


def test_nothing_of_the_network_can_be_trained(kept):
    network = load_model(kept / "model.safetensors", device="cpu")
    network.requires_grad_(True)
    network.train_only("nothing")
    assert not any(parameter.requires_grad for parameter in network.parameters())
