"""Which method makes what several methods would make alike."""

import pytest
from plan_configs import experiment, make_plan, make_run, method

from kproba.methods.builtin import METHODS

pytestmark = pytest.mark.usefixtures("schema_is_parsed_once")


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
