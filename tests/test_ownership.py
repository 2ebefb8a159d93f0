"""Which method makes what several methods would make alike."""

from dataclasses import fields

import pytest
from plan_configs import experiment, make_plan, make_run, method

from kproba import artifacts
from kproba.methods.builtin import METHODS
from kproba.plan.errors import ConfigError
from kproba.plan.jobs import Bank, Job, Labels, Split, Test, Training
from kproba.plan.run import Run

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
        if not plan.method(name).method.joint
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
    # barm is trained as kproba in step 1; ssul_light learns from the same labels then.
    assert owner("training", "barm", 1) == owner("labels", "barm", 2) == "kproba"
    assert owner("training", "barm", 2) == owner("labels", "barm", 3) == "barm"
    assert owner("training", "ssul_light", 1) == "ssul_light"
    assert owner("labels", "ssul_light", 1) == "kproba"
    plan = make_plan(pseudo_labels={"rule": "lda"}, experiments=[task])
    assert owner("training", "barm", 1) == owner("labels", "ssul_light", 1) == "barm"


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
    assert fused == ["kproba", "ridge", "without_bfd", "klda", "sure", "weighted"]
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


@pytest.mark.parametrize("network", ["base", "pretrained", "after", "before"])
def test_a_bank_names_the_network_of_its_features(network):
    plan = make_plan(**method(bank={"network": network}))
    first, later = (plan.bank_inputs(make_run("mine"), step) for step in (0, 1))
    base = "results/tiny/6-overlap/base/seed0/step0"
    fixed = f"{base}/model.safetensors"
    if network == "pretrained":
        fixed = "results/tiny/6-overlap/pretrained/seed0/step0/model.safetensors"
    assert first["model"] == fixed
    assert first["untrained"] == (
        f"{base}/settings.json" if network == "before" else []
    )
    assert first["network"] == []
    own = "results/tiny/6-2-overlap/kproba/seed0/step1/model.safetensors"
    is_fixed = network in ("base", "pretrained")
    assert later["model"] == (fixed if is_fixed else own)
    before = network == "before"
    assert later["network"] == (f"{base}/model.safetensors" if before else [])
    # Whoever decides with the bank reads the same features.
    features = plan.test_inputs(make_run("mine"), 1)["feature_network"]
    assert features == (fixed if is_fixed else [])
    # At step 0 the network of step 0 is the step's own.
    features = plan.test_inputs(make_run("mine"), 0)["feature_network"]
    assert features == (fixed if network == "pretrained" else [])
    # The default are the features of a pretrained network.
    for step in (0, 1):
        by_method = owners(plan, "bank", step)
        assert by_method["mine"] == ("kproba" if network == "pretrained" else "mine")


# --- the order of owners ------------------------------------------------------------

OWN = {"wider": {"based_on": "kproba", "losses": {"bfd": 0}}}
FIRST = {"dataset": "tiny", "task": "6-2", "setting": "disjoint", "methods": ["wider"]}


def folders(plan, runs):
    """By run, step and kind: the file that a rule writes for it."""
    return {
        (run, step, type(job)): plan.owner(job, run)
        for run in runs
        for step in plan.steps(run)
        for job in plan.chain.jobs(run, step)
    }


@pytest.mark.parametrize(
    "front",
    [
        {"dataset": "tiny", "task": "6-2", "setting": "overlap"},
        {"dataset": "tiny", "task": "6-2", "setting": ["sequential", "overlap"]},
        {"dataset": "tiny", "task": "5-5", "methods": ["mib"]},
        {"dataset": "tiny", "task": "6-2_r1"},
        {"dataset": "tiny", "task": "6-2_r1", "methods": ["joint"]},
        {"dataset": "tiny", "task": "turned", "methods": ["joint", "kproba"]},
        {"dataset": "tiny", "task": "6-2", "setting": "overlap", "methods": ["joint"]},
        {"dataset": "tiny", "task": "6-2", "setting": "disjoint", "seeds": [3]},
    ],
)
def test_artifacts_stay_where_they_are_when_an_experiment_is_put_in_front(front):
    tasks = {"turned": [[6, 5, 4, 3, 2, 1]]}  # the classes of step 0 of 6-2
    plan = make_plan(methods=OWN, tasks=tasks, experiments=[FIRST])
    later = make_plan(methods=OWN, tasks=tasks, experiments=[front, FIRST])
    assert folders(plan, plan.runs).items() <= folders(later, later.runs).items()


def test_artifacts_stay_where_they_are_when_a_method_is_added_behind():
    plan = make_plan(methods=OWN, experiments=[FIRST])
    more = OWN | {"narrower": {"based_on": "kproba", "losses": {"gkd": 0}}}
    later = make_plan(methods=more, experiments=[FIRST])
    assert folders(plan, plan.runs) == folders(later, plan.runs)


# --- the inputs of the rules --------------------------------------------------------

FILES = {
    Split: artifacts.SPLIT,
    Training: artifacts.MODEL,
    Bank: artifacts.BANK,
    Labels: artifacts.LABELS,
}
INPUTS = {
    Training: "training_inputs",
    Bank: "bank_inputs",
    Labels: "label_inputs",
    Test: "test_inputs",
}
# What rules read that is not the artifact of a job.
OF_NO_JOB = {"weights", "validation", "indices"}


@pytest.mark.parametrize("task", ["6-2", "6-2_r1"])
@pytest.mark.parametrize("setting", ["overlap", "sequential"])
@pytest.mark.parametrize("network", ["base", "after", "before"])
def test_a_rule_reads_the_artifacts_of_the_jobs_that_its_job_holds(
    network, setting, task
):
    own = {
        name: {
            "based_on": based_on,
            "prediction": "fused",
            "bank": {"network": network},
        }
        for name, based_on in (("mine", "kproba"), ("joint_bank", "joint"))
    }
    methods = ["mine", "mib", "joint", "joint_bank"]
    plan = make_plan(
        methods=own, **experiment(task=task, methods=methods, setting=setting)
    )
    seen = set()
    for run in plan.runs:
        for step in plan.steps(run):
            for job in plan.chain.jobs(run, step):
                if isinstance(job, Split):
                    continue
                inputs = dict(getattr(plan, INPUTS[type(job)])(run, step))
                chain = inputs.pop("chain", [])
                splits = getattr(job, "chain", ())
                assert chain == [plan.path(j, run, artifacts.SPLIT) for j in splits]
                read = {
                    path
                    for key, path in inputs.items()
                    if key not in OF_NO_JOB and path
                }
                held = [getattr(job, field.name) for field in fields(job)]
                jobs = [value for value in held if isinstance(value, Job)]
                if isinstance(job, Bank) and job.untrained:
                    # The untrained network is made from the settings of its training.
                    read.discard(inputs["untrained"])
                expected = {plan.path(j, run, FILES[type(j)]) for j in jobs}
                extra = read - expected
                bank = getattr(job, "bank", None)
                if bank is not None:  # the network of the bank's features
                    extra -= {plan.path(bank.model, run, artifacts.MODEL)}
                assert expected <= read and not extra, (run, step, job)
                seen.add(type(job))
    without = {Labels} if setting == "sequential" else set()
    assert seen == set(INPUTS) - without


# --- what no plan has ---------------------------------------------------------------


@pytest.mark.parametrize("kind", ["training", "bank", "labels", "test"])
def test_an_unknown_method_is_refused_by_name(kind):
    plan = make_plan()
    with pytest.raises(ConfigError, match=r"a method of .*kproba.*'kprob'"):
        getattr(plan.chain, kind)(make_run("kprob"), 1)


@pytest.mark.parametrize("kind", ["split", "training", "bank", "labels", "test"])
@pytest.mark.parametrize("step", [-1, 7])
def test_a_step_that_the_task_does_not_have_is_refused(kind, step):
    plan = make_plan()
    with pytest.raises(ConfigError, match=f"task '6-2' .*0 to 2, but got step {step}"):
        getattr(plan.chain, kind)(make_run(), step)


def test_a_job_of_another_plan_has_no_owner_here():
    run = Run("tiny", "6-2", "overlap", "wider", 0)
    job = make_plan(methods=OWN).chain.training(run, 1)
    with pytest.raises(ConfigError, match=r"Expected a job of the plan for .*wider"):
        make_plan().owner(job, run)
