"""The methods that are trained on everything at once, in a plan."""

from dataclasses import replace
from pathlib import Path

import pytest
from plan_configs import experiment, make_plan, make_run

from kproba import artifacts
from kproba.data.kinds.digits import CLASS_NAMES
from kproba.plan.errors import ConfigError
from kproba.plan.jobs import Bank, Test, Training
from kproba.plan.run import Run

pytestmark = pytest.mark.usefixtures("schema_is_parsed_once")

BOTH = ("joint", "joint_softmax")
LAST = 2  # step of 6-2
EPOCHS = {"batch_size": 16, "epochs": 20}
FIRST = {"batch_size": 16, "epochs": 50}


def optimisation(plan, name="joint", **names) -> dict:
    run = replace(make_run(name), **names)
    return plan.settings(run, plan.steps(run)[-1])["optimisation"]


@pytest.mark.parametrize("name", BOTH)
def test_the_iterations_are_those_of_all_steps_with_the_rates_of_step_0(name):
    plan = make_plan(
        base={"batch_size": 4, "iterations": 30, "momentum": 0.5},
        increment={"batch_size": 8, "epochs": 3},
        **experiment(methods=[name]),
    )
    settings = plan.settings(make_run(name), LAST)
    base = plan.settings(Run("tiny", "6", "overlap", "base", 0), 0)
    assert settings["optimisation"] == {
        **{k: v for k, v in base["optimisation"].items() if k != "iterations"},
        "chain": [
            {"batch_size": 4, "iterations": 30},
            {"batch_size": 8, "epochs": 3},
            {"batch_size": 8, "epochs": 3},
        ],
    }
    # Otherwise it is a step 0 of all classes.
    assert settings["groups"] == [list(range(1, 11))]
    assert settings["sequential"] is False
    assert settings["run"]["step"] == LAST
    assert settings["method"]["head"] == ("softmax" if "soft" in name else "branches")
    assert settings["method"]["cross_entropy"] == ("ce" if "soft" in name else "bce")
    assert settings["architecture"]["head"] == settings["method"]["head"]
    assert settings["weights"] == base["weights"]


@pytest.mark.parametrize("setting", ["overlap", "disjoint", "sequential"])
def test_it_reads_all_images_and_the_lists_of_all_steps(setting):
    plan = make_plan(**experiment(setting=setting))
    run = replace(make_run("joint"), setting=setting)
    inputs = plan.training_inputs(run, LAST)
    assert inputs["split"] == "results/splits/tiny/10-overlap/step0.csv"
    # Setting "sequential" has the images of "disjoint".
    images = "overlap" if setting == "overlap" else "disjoint"
    assert inputs["chain"] == [
        f"results/splits/tiny/6-{images}/step0.csv",
        *(f"results/splits/tiny/6-2-{images}/step{step}.csv" for step in (1, 2)),
    ]
    assert inputs["previous"] == inputs["bank"] == inputs["pseudo_labels"] == []
    assert plan.training_inputs(replace(run, method="kproba"), 1)["chain"] == []


def test_it_starts_from_the_weights_of_the_backbone():
    plan = make_plan(model={"backbone": "resnet50"}, **experiment(methods=["joint"]))
    weights = plan.training_inputs(make_run("joint"), LAST)["weights"]
    assert weights == "results/weights/resnet50.safetensors"


def test_a_method_based_on_joint_may_have_increments_of_its_own():
    longer = {"based_on": "joint", "increment": {"epochs": 60, "batch_size": 8}}
    plan = make_plan(methods={"longer": longer}, **experiment(methods=["longer"]))
    own = {"batch_size": 8, "epochs": 60}
    assert optimisation(plan, "longer")["chain"] == [FIRST, own, own]
    assert optimisation(plan, "joint")["chain"] == [FIRST, EPOCHS, EPOCHS]


def test_an_addition_counts_with_its_own_epochs(tmp_path: Path):
    names = "\n".join(["background", *CLASS_NAMES, "cross"])
    (tmp_path / "classes.txt").write_text(names + "\n")
    for part in ("images", "masks"):
        (tmp_path / part / "train").mkdir(parents=True)
    addition = {"path": str(tmp_path), "epochs": 45}
    plan = make_plan(
        datasets={"tiny": {"kind": "digits", "additions": [addition]}},
        increment={"iterations": 7},
        **experiment(methods=["joint"]),
    )
    seven = {"batch_size": 16, "iterations": 7}
    added = {"batch_size": 16, "epochs": 45}
    assert optimisation(plan)["chain"] == [FIRST, seven, seven, added]
    inputs = plan.training_inputs(make_run("joint"), 3)
    assert inputs["split"] == "results/splits/tiny/11-overlap/step0.csv"
    assert len(inputs["chain"]) == 4


def test_with_base_it_is_the_step_0_of_all_classes():
    plan = make_plan(
        joint={"training": "base"},
        **experiment(
            task=["6-2", "6-2_r1"], setting=["overlap", "disjoint"], methods=[*BOTH]
        ),
    )
    models = {plan.result(run, LAST).model for run in plan.runs}
    assert models == {
        f"results/tiny/10-overlap/{base}/seed0/step0/model.safetensors"
        for base in ("base", "base_softmax")
    }
    one_step = Run("tiny", "10", "overlap", "base", 0)
    assert "chain" not in plan.settings(one_step, 0)["optimisation"]
    assert plan.training_inputs(one_step, 0)["chain"] == []


@pytest.mark.parametrize("training", ["chain", "base"])
def test_of_a_single_step_both_trainings_are_the_same(training):
    plan = make_plan(
        joint={"training": training}, **experiment(task="offline", methods=["joint"])
    )
    [run] = plan.runs
    model = "results/tiny/10-overlap/base/seed0/step0/model.safetensors"
    assert plan.result(run, 0).model == model


def test_another_value_is_refused():
    with pytest.raises(ConfigError, match=r"joint\.training.*chain.*base"):
        make_plan(joint={"training": "both"})


# --- owners ------------------------------------------------------------------------


def test_each_task_and_setting_has_a_training_of_its_own():
    plan = make_plan(
        **experiment(
            task=["6-2", "6-2_r1", "8-2"],
            setting=["overlap", "disjoint", "sequential"],
            methods=["kproba", *BOTH],
            seeds=[0, 3],
        )
    )
    owners: dict[str, set] = {}
    for run in plan.runs:
        if run.method not in BOTH:
            continue
        step = plan.steps(run)[-1]
        path = plan.result(run, step).model
        owners.setdefault(path, set()).add(run)
        setting = "overlap" if run.setting == "overlap" else "disjoint"
        assert path == artifacts.fill(
            artifacts.MODEL, vars(replace(run, setting=setting)), step=step
        )
        # The training that is written there is the one that the run needs.
        owner = plan.owner(plan.chain.training(run, step), run)
        written = plan.chain.training(owner.run, owner.step)
        assert written == plan.chain.training(run, step)
    assert len(owners) == 3 * 2 * 2 * 2
    # Disjoint and sequential steps have the same images, so they share the training.
    assert all(
        len(runs) == (2 if "disjoint" in path else 1) for path, runs in owners.items()
    )


def test_no_two_jobs_are_written_to_one_place():
    methods = {
        "longer": {"based_on": "joint", "increment": {"epochs": 60}},
        "same": {"based_on": "joint"},
        "joint_bank": {"based_on": "joint", "prediction": "fused"},
    }
    names = ["kproba", "mib", *BOTH, *methods]
    plan = make_plan(
        methods=methods,
        **experiment(
            task=["6-2", "6-2_r1", "offline"],
            setting=["overlap", "disjoint"],
            methods=names,
        ),
    )
    written: dict[tuple, str] = {}
    for run in plan.runs:
        for step in range(len(plan.datasets.groups(run.dataset, run.task))):
            for job in plan.chain.jobs(run, step):
                place = plan.owner(job, run)
                key = (type(job).__name__, place.run, place.step)
                assert written.setdefault(key, job.digest) == job.digest
    place = plan.owner(plan.chain.training(make_run("same"), LAST), make_run("same"))
    assert place.run.method == "joint"
    place = plan.owner(plan.chain.training(make_run("longer"), LAST), make_run())
    assert place.run.method == "longer"


def test_names_of_the_classes_are_in_the_order_of_the_outputs():
    plan = make_plan(**experiment(task="6-2_r1", methods=["joint", "finetune"]))
    joint, finetune = plan.runs
    assert plan.trained_names(joint, LAST) == ["background", *CLASS_NAMES]
    groups = plan.datasets.groups("tiny", "6-2_r1")
    names = plan.datasets.names("tiny", groups)
    assert plan.trained_names(finetune, LAST) == names
    assert names != ["background", *CLASS_NAMES]


# --- with a bank -------------------------------------------------------------------


def bank_plan(based_on="joint", training="chain", **changes):
    own = {"joint_bank": {"based_on": based_on, "prediction": "fused", **changes}}
    return make_plan(
        methods=own,
        joint={"training": training},
        **experiment(task="6-2_r1", methods=["joint_bank"]),
    )


@pytest.mark.parametrize("based_on", BOTH)
@pytest.mark.parametrize("training", ["chain", "base"])
def test_the_bank_is_built_in_one_step_from_all_images(based_on, training):
    plan = bank_plan(based_on, training)
    [run] = plan.runs
    kinds = [type(job).__name__ for job in plan.chain.jobs(run, LAST)]
    assert kinds == ["Split", "Training", "Test", "Bank"]
    assert [type(job).__name__ for job in plan.chain.jobs(run, 1)] == ["Split"]
    bank = plan.chain.bank(run, LAST)
    assert isinstance(bank, Bank)
    assert bank.settings["groups"] == [list(range(1, 11))]
    assert "momentum" not in bank.settings["settings"]
    assert bank.settings["keep_temperature"] is False
    assert bank.previous is None and bank.labels is None
    inputs = plan.bank_inputs(run, LAST)
    assert inputs["split"] == "results/splits/tiny/10-overlap/step0.csv"
    assert inputs["model"] == (
        "results/tiny/10-overlap/pretrained/seed0/step0/model.safetensors"
    )
    assert inputs["pseudo_labels"] == inputs["previous"] == inputs["network"] == []


def test_the_bank_predicts_with_the_network():
    plan = bank_plan(decision={"image_prior": 3})
    [run] = plan.runs
    settings = plan.test_settings(run, LAST)
    assert settings["decision"]["rule"] == "lda"
    assert settings["decision"]["image_prior"] == 3
    assert plan.result(run, LAST).joint
    inputs = plan.test_inputs(run, LAST)
    # Pretrained features do not depend on the training, so it is the bank of a step 0.
    bank = "results/tiny/10-overlap/kproba/seed0/step0/prototypes.safetensors"
    assert inputs["bank"] == plan.result(run, LAST).bank == bank
    assert inputs["feature_network"] == (
        "results/tiny/10-overlap/pretrained/seed0/step0/model.safetensors"
    )
    assert inputs["model"] == (
        "results/tiny/6-2_r1-overlap/joint/seed0/step2/model.safetensors"
    )
    assert bank in plan.for_next_step()


def test_the_bank_may_use_the_untrained_network():
    plan = bank_plan(bank={"network": "before"})
    [run] = plan.runs
    inputs = plan.bank_inputs(run, LAST)
    assert inputs["untrained"] == (
        "results/tiny/6-2_r1-overlap/joint/seed0/step2/settings.json"
    )


def test_with_base_the_bank_is_that_of_the_task_offline():
    methods = {"joint_bank": {"based_on": "joint", "prediction": "fused"}}
    plan = make_plan(
        methods=methods,
        joint={"training": "base"},
        **experiment(task=["6-2", "offline"], methods=["kproba", "joint_bank"]),
    )
    joint, offline = make_run("joint_bank"), make_run("kproba", task="offline")
    assert plan.chain.bank(joint, LAST) == plan.chain.bank(offline, 0)
    assert plan.result(joint, LAST).bank == plan.result(offline, 0).bank


def test_without_a_bank_there_is_none():
    plan = make_plan(**experiment(methods=["joint"]))
    kinds = [type(job) for job in plan.chain.jobs(make_run("joint"), LAST)]
    assert Bank not in kinds and {Training, Test} <= set(kinds)
    with pytest.raises(ConfigError, match=r"'joint', which predicts with the network"):
        plan.chain.bank(make_run("joint"), LAST)


def test_other_combinations_are_still_refused():
    mine = {"based_on": "joint", "prediction": "klda", "teacher": "fused"}
    with pytest.raises(ConfigError, match=r"mine\.teacher: expected 'network'"):
        make_plan(methods={"mine": mine})
    mine = {"based_on": "joint", "cross_entropy": "ce", "head": "branches"}
    with pytest.raises(ConfigError, match=r"mine\.cross_entropy"):
        make_plan(methods={"mine": mine})
