"""What a method is in a plan: its losses, labels, bank and prediction."""

from dataclasses import replace

import pytest
from plan_configs import experiment, make_plan, make_run, method

from kproba.methods.builtin import METHODS
from kproba.methods.method import Method, Recipe
from kproba.methods.rules import RULES
from kproba.plan.errors import ConfigError
from kproba.plan.run import Run

pytestmark = pytest.mark.usefixtures("schema_is_parsed_once")


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


RFF = {"map": "rff", "maps": 5, "dimension": 8, "gamma": "median"}
CLASSES = {"scatter": True, "background": False}


@pytest.mark.parametrize(
    ("rule", "metric", "expected"),
    [
        ("klda", "euclidean", {**RFF, **CLASSES}),
        ("klda", "mahalanobis", {**RFF, **CLASSES}),
        ("lda", "euclidean", {"map": "identity", **CLASSES}),
        ("kappa", "euclidean", {**RFF, "scatter": False}),
        ("kappa", "mahalanobis", {**RFF, **CLASSES}),
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
        ("entropy_median", False),
    ],
)
def test_rule_says_whether_labels_read_a_bank(rule, expected):
    plan = make_plan(pseudo_labels={"rule": rule})
    assert plan.method("kproba").labels_read_bank is expected
    assert bool(plan.label_inputs(make_run(), 1)["bank"]) is expected


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
        (
            {"cross_entropy": "ce"},
            r"methods.mine.losses: .*bga_ce, .*'softmax'.*need branches",
        ),
        (
            {"losses": {"unbiased_kd": 1}},
            r"methods.mine.losses: .*unbiased_kd .*'branches'.*need softmax",
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
        for name in ("kproba", "barm", "ssul_light", "plop"):
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


# --- weights by dataset and task ---------------------------------------------------

PUBLISHED = {
    "voc": {"kind": "voc", "path": "datasets/voc"},
    "ade": {"kind": "ade20k", "path": "datasets/ade"},
    "tiny": {"kind": "digits"},
}


def weights(name: str, dataset: str, task: str, **changes) -> dict[str, float]:
    """The weights in settings.json of step 1."""
    run = {"dataset": dataset, "task": task, "methods": [name]}
    plan = make_plan(datasets=PUBLISHED, experiments=[run], **changes)
    settings = plan.settings(Run(dataset, task, "overlap", name, 0), 1)
    assert "recipes" not in settings["method"]
    return settings["method"]["losses"]


@pytest.mark.parametrize(
    ("name", "dataset", "task", "expected"),
    [
        ("plop", "voc", "15-1", {"pod": 0.01, "pod_logits": 0.0005}),
        ("plop", "tiny", "6-2", {"pod": 0.01, "pod_logits": 0.0005}),
        ("plop", "ade", "100-50", {"pod": 0.001, "pod_logits": 0.00001}),
        ("plop", "ade", "100-10_r3", {"pod": 0.001, "pod_logits": 0.00001}),
        ("mib", "voc", "15-1", {"unbiased_kd": 100}),
        ("mib", "voc", "15-1_b", {"unbiased_kd": 100}),
        ("mib", "voc", "15-1_r7", {"unbiased_kd": 100}),
        ("mib", "voc", "15-5", {"unbiased_kd": 10}),
        ("mib", "voc", "5-1", {"unbiased_kd": 10}),
        ("mib", "ade", "100-10", {"unbiased_kd": 10}),
    ],
)
def test_weights_are_those_of_the_authors_for_dataset_and_task(
    name, dataset, task, expected
):
    assert weights(name, dataset, task) == expected


def test_a_weight_that_a_method_names_wins_over_the_authors():
    mine = {"based_on": "plop", "losses": {"pod": 0.02}}
    own = weights("mine", "ade", "100-50", methods={"mine": mine})
    assert own == {"pod": 0.02, "pod_logits": 0.00001}
    mine = {"based_on": "mib", "losses": {"unbiased_kd": 0}}
    assert weights("mine", "voc", "15-1", methods={"mine": mine}) == {}
    mine = {"based_on": "mib", "losses": {"unbiased_kd": 10}}
    assert weights("mine", "voc", "15-1", methods={"mine": mine}) == {"unbiased_kd": 10}


def test_weights_by_dataset_must_fit_a_changed_head(monkeypatch):
    """A recipe that adds a term is checked like the terms of the method."""
    added = Recipe(kinds=("voc",), losses={"kd": 1.0})
    changed = replace(METHODS["finetune"], recipes=(added,))
    monkeypatch.setitem(METHODS, "finetune", changed)
    mine = {"mine": {"based_on": "finetune"}}
    with pytest.raises(
        ConfigError, match=r"methods\.mine\.losses: expected kd to be 0"
    ):
        make_plan(methods=mine)
    make_plan(methods={"mine": {"based_on": "finetune", "losses": {"kd": 0}}})


def test_the_last_of_several_recipes_counts():
    recipes = (
        Recipe(losses={"gkd": 2.0, "bfd": 0.0}),
        Recipe(tasks=("15-1", "15-5"), losses={"gkd": 3.0}),
    )
    mine = Method(losses={"gkd": 1.0, "bfd": 4.0}, recipes=recipes)
    assert mine.for_run("voc", "15-5_c").losses == {"gkd": 3.0}
    assert mine.for_run("voc", "10-1").losses == {"gkd": 2.0}
    assert mine.losses == {"gkd": 1.0, "bfd": 4.0}  # not changed
