"""The heads: branches with background adaptation, one softmax, and their table."""

import copy
from dataclasses import replace

import pytest
import torch
from small_networks import (
    ARCHITECTURE,
    assert_equal_states,
    network_after_training,
    random_images,
)

from kproba.methods.builtin import base_methods
from kproba.methods.terms import TERMS, Term
from kproba.network import (
    SegmentationNetwork,
    add_branch,
    compose_logits,
    load_model,
    save_model,
    training_background,
)
from kproba.network.heads import HEADS, BranchHead, Head, ParameterGroup
from kproba.runtime.references import resolve
from kproba.training.optimizer import build_optimizer
from kproba.training.settings import LearningRates, Optimisation


@pytest.fixture(scope="module")
def images():
    return random_images()


@pytest.fixture(scope="module")
def previous():
    return network_after_training()


@pytest.fixture(scope="module")
def grown(previous):
    return add_branch(previous, 2, seed=3).eval()


def channel(*values):
    return torch.tensor(values).view(1, 1, 1, -1)


@torch.inference_mode()
def test_a_new_branch_leaves_the_old_outputs_bit_identical(previous, grown, images):
    before, after = previous(images), grown(images)
    assert torch.equal(before.backbone, after.backbone)
    assert len(before.logits) == 2 and len(after.logits) == len(after.blocks) == 3
    for one, other in zip(before.logits, after.logits[:2], strict=True):
        assert torch.equal(one, other)
    for one, other in zip(before.blocks, after.blocks[:2], strict=True):
        assert torch.equal(one, other)
    old = slice(1, previous.channels)
    one, other = compose_logits(before.logits), compose_logits(after.logits)
    assert torch.equal(one[:, old], other[:, old])


@torch.inference_mode()
def test_a_new_branch_lowers_background_exactly_where_its_adaptation_is_negative(
    previous, grown, images
):
    before = compose_logits(previous(images).logits)[:, 0]
    outputs = grown(images)
    after, adaptation = compose_logits(outputs.logits)[:, 0], outputs.logits[-1][:, 0]
    negative = adaptation < 0
    assert negative.any() and not negative.all()
    assert torch.equal(after[~negative], before[~negative])
    assert torch.equal(after[negative], (before + adaptation)[negative])
    assert (after < before)[negative].all()


def test_inference_adds_only_negative_adaptations_to_the_background():
    logits = [
        torch.cat([channel(1.0, 1.0, 1.0), channel(10.0, 20.0, 30.0)], dim=1),
        torch.cat([channel(2.0, -3.0, -3.0), channel(11.0, 21.0, 31.0)], dim=1),
        torch.cat([channel(-4.0, 5.0, -4.0), channel(12.0, 22.0, 32.0)], dim=1),
    ]
    composed = compose_logits(logits)[0, :, 0]
    assert composed.tolist() == [
        [-3, -2, -6],
        [10, 20, 30],
        [11, 21, 31],
        [12, 22, 32],
    ]


def test_training_background_is_free_of_the_clamp_and_of_earlier_gradients():
    values = [(1.0, 1.0, 1.0), (2.0, -3.0, -3.0), (5.0, 5.0, -4.0)]
    logits = [channel(*value).requires_grad_() for value in values]
    background = training_background(logits)
    assert background.flatten().tolist() == [6, 3, -6]
    background.sum().backward()
    assert logits[0].grad is None and logits[1].grad is None
    assert logits[2].grad.flatten().tolist() == [1, 1, 1]


def test_a_new_block_starts_as_branch_0_with_its_running_statistics(previous, grown):
    first, newest = previous.branches[0].block, grown.branches[-1].block
    assert_equal_states(first.state_dict(), newest.state_dict())
    other = previous.branches[1].block.state_dict()
    assert not torch.equal(other["1.running_mean"], newest[1].running_mean)


def test_a_new_classifier_is_kaiming_normal_without_bias(previous):
    classifier = add_branch(previous, 999, seed=0).branches[-1].classifier
    assert classifier.weight.shape == (1000, 8, 1, 1)
    # 8000 draws: the standard error of the deviation is below one per cent.
    assert classifier.weight.std().item() == pytest.approx((2 / 8) ** 0.5, rel=0.04)
    assert classifier.weight.mean().item() == pytest.approx(0, abs=0.03)
    assert not classifier.bias.any()


@pytest.fixture(scope="module")
def softmax(previous):
    """Backbone, ASPP and branch 0 of `previous`, answering with one softmax."""
    network = SegmentationNetwork(replace(ARCHITECTURE, head="softmax"), [3, 2], seed=1)
    state = previous.state_dict()
    shared = {key: state[key] for key in network.state_dict() if key in state}
    shared = {k: v for k, v in shared.items() if not k.startswith("branches.1")}
    network.load_state_dict(shared, strict=False)
    return network.eval()


@torch.inference_mode()
def test_classes_of_a_softmax_share_the_features_of_branch_0(softmax, images):
    outputs = softmax(images)
    assert len(outputs.blocks) == 1
    added = softmax.branches[1].classifier
    expected = torch.nn.functional.conv2d(outputs.blocks[0], added.weight, added.bias)
    torch.testing.assert_close(outputs.logits[1][:, 1:], expected)
    composed = compose_logits(outputs.logits)
    assert composed.shape[1] == softmax.channels == 6
    assert torch.equal(composed[:, :4], outputs.logits[0])
    assert torch.equal(composed[:, 4:], outputs.logits[1][:, 1:])


@torch.inference_mode()
def test_new_classes_share_the_probability_that_was_the_background_s(softmax, images):
    before = compose_logits(softmax(images).logits).softmax(dim=1)
    grown = add_branch(softmax, 3, seed=4, start_from_background=True).eval()
    after = compose_logits(grown(images).logits).softmax(dim=1)
    torch.testing.assert_close(after[:, 1:6], before[:, 1:])
    for channel_of in (0, 6, 7, 8):
        torch.testing.assert_close(after[:, channel_of], before[:, 0] / 4)
    again = compose_logits(softmax(images).logits).softmax(dim=1)
    assert torch.equal(again, before)  # the network of the step before is as it was


def test_new_classes_of_a_softmax_are_random_by_default(softmax):
    weights = [
        add_branch(softmax, 3, seed=seed).branches[-1].classifier.weight
        for seed in (4, 4, 5)
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert len(weights[0].unique(dim=0)) == 3


def test_a_model_with_a_softmax_comes_back(softmax, images, tmp_path):
    grown = add_branch(softmax, 2, seed=4).eval()
    save_model(grown, tmp_path / "model.safetensors", about={})
    loaded = load_model(tmp_path / "model.safetensors")
    assert loaded.architecture.head == "softmax"
    torch.testing.assert_close(
        loaded.predict_logits(images), grown.predict_logits(images)
    )


# What heads offer to losses, decisions and the optimizer


def test_probabilities_are_sigmoids_of_branches_and_one_softmax(grown, softmax):
    logits = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    sigmoids = grown.log_probabilities(logits).exp()
    torch.testing.assert_close(sigmoids, 1 / (1 + (-logits).exp()))
    one = softmax.log_probabilities(logits).exp()
    torch.testing.assert_close(one, logits.exp() / logits.exp().sum(1, keepdim=True))


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("steps", [[3], [3, 2], [3, 2, 1]])
def test_every_parameter_is_in_one_group(name, steps):
    network = SegmentationNetwork(replace(ARCHITECTURE, head=name), steps)
    groups = network.head.parameter_groups(network)
    assert {
        group.rate for group in groups.values()
    } <= LearningRates.__annotations__.keys()
    grouped = [
        id(parameter)
        for group in groups.values()
        for module in group.modules
        for parameter in module.parameters()
    ]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(parameter) for parameter in network.parameters()}


def names_of(network, group):
    parts = {id(module): name for name, module in network.named_modules()}
    return [parts[id(module)] for module in group.modules]


def test_the_newest_branch_has_a_rate_of_its_own(grown):
    groups = grown.head.parameter_groups(grown)
    assert names_of(grown, groups["branch"]) == ["branches.2"]
    assert names_of(grown, groups["old_branches"]) == ["branches.0", "branches.1"]
    assert names_of(grown, groups["aspp"]) == ["aspp"]


def test_the_classifiers_of_a_softmax_share_a_rate_from_step_1_on(softmax):
    groups = softmax.head.parameter_groups(softmax)
    names = ["branches.0.classifier", "branches.1.classifier"]
    assert names_of(softmax, groups["branch"]) == names
    assert names_of(softmax, groups["aspp"]) == ["aspp", "branches.0.block"]
    assert "old_branches" not in groups
    first = SegmentationNetwork(replace(ARCHITECTURE, head="softmax"), [3])
    groups = first.head.parameter_groups(first)
    assert names_of(first, groups["branch"]) == ["branches.0"]


# The table


@pytest.mark.parametrize("entry", HEADS.values(), ids=HEADS)
def test_every_entry_leads_to_a_head(entry):
    assert HEADS[entry.name] is entry
    assert isinstance(resolve(entry.implementation)(), Head)


def test_unknown_heads_are_refused():
    with pytest.raises(ValueError, match=r"heads .*softmax.*, but got 'mlp'"):
        SegmentationNetwork(replace(ARCHITECTURE, head="mlp"), [1])


def test_a_head_of_another_package_needs_no_more_than_an_entry(monkeypatch, images):
    class Squared(resolve(HEADS["branches"].implementation)):
        def log_probabilities(self, logits):
            return -logits.square()

    entry = replace(HEADS["branches"], name="squared", implementation=Squared)
    monkeypatch.setitem(HEADS, "squared", entry)
    network = SegmentationNetwork(replace(ARCHITECTURE, head="squared"), [1]).eval()
    network = add_branch(network, 2, seed=0)
    logits = compose_logits(network(images).logits)
    assert torch.equal(network.log_probabilities(logits), -logits.square())


def test_what_a_head_adds_to_its_outputs_reaches_the_loss_terms(previous, images):
    class TwoBlocks(BranchHead):
        def extras(self, branches, blocks):
            return {"sum": blocks[0] + blocks[1]}

    network = copy.deepcopy(previous)
    assert dict(network(images).extras) == {}
    network.head = TwoBlocks()
    outputs = network(images)
    assert torch.equal(outputs.extras["sum"], outputs.blocks[0] + outputs.blocks[1])


def test_further_terms_of_step_0_come_from_the_head(monkeypatch):
    monkeypatch.setitem(TERMS, "small", Term("small", "Small logits.", torch.mean))
    entry = replace(HEADS["branches"], step_0_terms={"small": 2.0})
    monkeypatch.setitem(HEADS, "branches", entry)
    bases = base_methods()
    assert bases["base"].terms == {"bce": 1.0, "small": 2.0}
    assert bases["base_softmax"].terms == {"ce": 1.0}


@pytest.mark.parametrize("times", [0, 2])
def test_a_head_names_every_parameter_once(previous, times):
    class Forgetful(BranchHead):
        def parameter_groups(self, network):
            groups = super().parameter_groups(network)
            twice = ParameterGroup(times * groups["aspp"].modules, "aspp")
            return groups | {"aspp": twice}

    rates = LearningRates(0.1, 0.2, 0.3, 0.4)
    values = (1, 2, "sgd", rates, 0.9, 1e-4, 0.9, 1e-6, None, "float32")
    settings = Optimisation(*values)
    network = copy.deepcopy(previous).requires_grad_(True)
    groups = build_optimizer(network, settings).param_groups
    assert {g["name"]: g["lr"] for g in groups} == vars(rates)
    assert {group["weight_decay"] for group in groups} == {1e-4}
    network.head = Forgetful()
    with pytest.raises(ValueError, match=rf"names aspp\S+ {times} times.*Forgetful"):
        build_optimizer(network, settings)
