"""The tables of loss terms, label rules and methods: every name leads to its code."""

from dataclasses import asdict

import pytest
import torch
from loss_inputs import (
    BATCH,
    CELLS,
    branch_logits,
    leaves,
    losses_of,
    masks_and_counts,
    outputs_of,
    random,
    uneven_targets,
)

from kproba.bank.decision import Decision
from kproba.methods.builtin import METHODS, base_methods
from kproba.methods.losses.case import Case
from kproba.methods.losses.step import step_losses
from kproba.methods.method import PRETRAINED, Method
from kproba.methods.rules import DEFAULT_COMBINATION, RULES, scoring_rules
from kproba.methods.terms import (
    NEEDS,
    SALIENCY,
    TERMS,
    Term,
    collect_needs,
    cross_entropies,
    further_terms,
)
from kproba.network.heads import HEADS
from kproba.plan.methods import SWITCHES
from kproba.runtime.references import resolve

EVERY_METHOD = {**METHODS, **base_methods()}


@pytest.mark.parametrize("name", TERMS)
def test_every_term_leads_to_its_code(name):
    term = TERMS[name]
    assert term.name == name and term.description.endswith(".")
    assert callable(resolve(term.function))
    if term.scale is not None:
        assert callable(resolve(term.scale))
    # Some head has what the term needs of one.
    of_head = term.needs - set(NEEDS)
    assert any(of_head <= head.provides for head in HEADS.values())


@pytest.mark.parametrize("name", RULES)
def test_every_rule_leads_to_its_code(name):
    rule = RULES[name]
    assert rule.name == name and rule.description.endswith(".")
    assert callable(resolve(rule.function))
    if rule.prepare is not None:
        assert callable(resolve(rule.prepare))
    assert rule.scores == (rule.name in scoring_rules())
    if rule.combines is not None:
        assert RULES[rule.combines].scores
    assert (rule.combines is None) == (rule.bank is None)
    assert set(rule.decision) <= asdict(Decision()).keys()


@pytest.mark.parametrize("name", EVERY_METHOD)
def test_every_name_in_a_method_is_in_its_table(name):
    method = EVERY_METHOD[name]
    head = HEADS[method.head]
    assert method.base == (PRETRAINED if name == PRETRAINED else head.base)
    assert method.cross_entropy in cross_entropies()
    assert set(method.losses) <= set(further_terms())
    for term in method.terms:
        assert TERMS[term].needs <= head.provides | set(NEEDS)
    if "rule" in method.pseudo_labels:
        rule = RULES[method.pseudo_labels["rule"]]
        assert set(method.pseudo_labels) - {"rule"} <= set(rule.reads)
    assert method.prediction in ("network", "fused", *scoring_rules())


def test_heads_name_terms_and_methods_that_exist():
    bases = {head.base for head in HEADS.values()}
    assert base_methods().keys() == bases | {PRETRAINED}
    for head in HEADS.values():
        assert head.step_0_loss in cross_entropies()
        assert set(head.step_0_terms) <= set(further_terms())
        # At step 0 there are neither masks nor a teacher, but saliency maps.
        needs = collect_needs([head.step_0_loss, *head.step_0_terms])
        assert needs <= head.provides | {SALIENCY}
    assert RULES[DEFAULT_COMBINATION].scores
    assert set(SWITCHES) <= set(Method.__dataclass_fields__)


def test_a_method_that_is_written_for_a_training_is_read_again():
    for method in EVERY_METHOD.values():
        again = Method.from_dict(method.to_dict())
        for name in ("head", "terms", "trains", "start_from_background", "needs"):
            assert getattr(again, name) == getattr(method, name)


def increment(head):
    """The parts of a case of the third step of three, with leaves in the student."""
    logits, blocks = branch_logits(10), 3
    if head != "branches":
        blocks = 1
        for z in logits[1:]:
            z[:, 0] = 0  # nothing adapts the background
    targets = uneven_targets()
    masks, counts = masks_and_counts(targets)
    student = leaves(logits)
    features = [random(BATCH, 5, *CELLS, seed=20 + k) for k in range(blocks)]
    stages = [random(BATCH, 3, *CELLS, seed=30)]
    outputs = outputs_of(leaves(features), student)._replace(stages=leaves(stages))
    if head == "unknown":
        extras = {"unknown": random(BATCH, 1, *CELLS, seed=60)}
        outputs = outputs._replace(extras=extras)
    teacher = outputs_of(features[:-1] or features, branch_logits(40)[:-1])
    teacher = teacher._replace(stages=[random(BATCH, 3, *CELLS, seed=50)])
    return student, Case(outputs, targets, counts, masks, teacher, torch.ones(BATCH))


@pytest.mark.parametrize("name", [name for name in TERMS if TERMS[name].reaches_old])
def test_what_reaches_old_classes_gives_all_their_logits_a_gradient(name):
    """Several processes rely on it: they wait for the gradient of every parameter."""
    needs = TERMS[name].needs
    head = next((head for head in HEADS if head in needs), "branches")
    student, case = increment(head)
    [value] = step_losses(case, {name: 1.0}).values()
    gradients = torch.autograd.grad(value, student, allow_unused=True)
    old = gradients[:-1]
    assert all(gradient is not None for gradient in old)
    assert all(gradient[:, 1:].any() for gradient in old)


def test_a_term_of_a_new_name_counts_with_weight_column_and_scale(monkeypatch):
    def mean_logit(case):
        return case.logits.mean()

    def share_of_new_classes(case):
        return case.new_classes / case.classes

    made_up = Term(
        "made_up",
        "Keeps logits small.",
        mean_logit,
        scale=share_of_new_classes,
        column="size",
    )
    monkeypatch.setitem(TERMS, "made_up", made_up)
    assert "made_up" in further_terms()
    _, case = increment("branches")
    value = case.logits.mean().item()
    [(column, loss)] = step_losses(case, {"made_up": 3.0}).items()
    assert column == "size"
    assert loss.item() == pytest.approx(3 * (2 / 6) * value)

    method = Method(losses={"made_up": 3.0, "bga_ce": 2.0})
    assert method.terms == {"protected_bce": 1.0, "bga_ce": 2.0, "made_up": 3.0}
    parts = (case.student, case.targets, case.counts, case.masks)
    losses = losses_of(method, *parts)
    assert list(losses) == ["bce", "bga_ce", "size"]
    assert losses["size"].item() == pytest.approx(value)


def test_terms_of_one_column_are_added_up(monkeypatch):
    for name in ("one", "two"):
        term = Term(name, "", lambda case: case.logits.sum(), column="both")
        monkeypatch.setitem(TERMS, name, term)
    _, case = increment("branches")
    losses = step_losses(case, {"one": 0.5, "two": 2.0})
    assert list(losses) == ["both"]
    torch.testing.assert_close(losses["both"], 2.5 * case.logits.sum())


def test_a_weight_of_0_leaves_a_term_out():
    method = Method(losses={"gkd": 0.0, "bga_t": 5, "bga_ce": 1})
    assert method.terms == {"protected_bce": 1.0, "bga_ce": 1.0, "bga_t": 5.0}
    assert not method.distils
