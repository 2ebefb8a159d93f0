"""First stages that networks have in common: found, and computed once."""

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_banks import bank_of, decision_by
from small_networks import ARCHITECTURE, random_images, randomise_norms
from torch import nn
from training_steps import step_settings

from kproba.bank.decision import Decision
from kproba.bank.predictor import FusedPredictor
from kproba.bank.teacher import BankTeacher
from kproba.data.splits import read_index
from kproba.jobs.step_bank import BankFiles, build_step_bank
from kproba.network import SegmentationNetwork
from kproba.network.files import load_model, save_model
from kproba.network.folding import FoldedConvolution, fold_all
from kproba.network.network import Outputs
from kproba.network.sharing import equal_stages, forward_beside, frozen_stages
from kproba.runtime.compute import Compute
from kproba.runtime.distributed import Process
from kproba.training.checkpoint import Progress, StopFlag
from kproba.training.files import Files
from kproba.training.iteration import Learner, Tally
from kproba.training.loop import training_batches
from kproba.training.networks import Networks, build_networks, networks_of_loop
from kproba.training.optimizer import autocast_type, build_optimizer
from kproba.training.settings import StepSettings
from kproba.training.targets import global_counts, prepare

STAGES = {"efficientnet_lite0": 7, "resnet50": 4}


def network_with(**changes: Any) -> SegmentationNetwork:
    """After training, in evaluation mode."""
    network = SegmentationNetwork(replace(ARCHITECTURE, **changes), [2, 1], seed=1)
    randomise_norms(network)
    return network.eval()


def shift_weight(stage: nn.Module) -> None:
    next(stage.parameters()).data.view(-1)[0] += 1e-3


def shift_mean(stage: nn.Module) -> None:
    norm = next(m for m in stage.modules() if isinstance(m, nn.BatchNorm2d))
    assert norm.running_mean is not None
    norm.running_mean[-1] += 1e-3


# --- which stages are equal -----------------------------------------------------------


@pytest.mark.parametrize("backbone", STAGES)
def test_all_stages_of_a_copy_are_equal(backbone: str) -> None:
    network = network_with(backbone=backbone)
    other = copy.deepcopy(network).requires_grad_(False)
    for module in other.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.num_batches_tracked is not None
            module.num_batches_tracked += 1  # nothing computes with it
    with torch.no_grad():  # what comes behind the backbone does not matter
        other.get_submodule("aspp.project.0").weight.add_(1)
    assert equal_stages(network, other) == STAGES[backbone]
    folded = [fold_all(copy.deepcopy(each)) for each in (network, other)]
    assert equal_stages(*folded) == STAGES[backbone]
    assert equal_stages(network, folded[0]) == 0


@pytest.mark.parametrize("change", [shift_weight, shift_mean])
@pytest.mark.parametrize("number", [0, 1, 3])
@pytest.mark.parametrize("backbone", STAGES)
def test_stages_are_equal_up_to_the_first_that_differs(
    backbone: str, number: int, change: Callable[[nn.Module], None]
) -> None:
    network = network_with(backbone=backbone)
    other = copy.deepcopy(network)
    change(other.backbone.stages()[number])
    assert equal_stages(network, other) == equal_stages(other, network) == number
    assert equal_stages(fold_all(network), fold_all(other)) == number


@pytest.mark.parametrize(
    "changes", [{"output_stride": 8}, {"backbone": "resnet50"}], ids=str
)
def test_networks_of_another_kind_share_nothing(changes: dict[str, Any]) -> None:
    network, other = network_with(), network_with(**changes)
    if "output_stride" in changes:
        other.load_state_dict(network.state_dict())
    assert equal_stages(network, other) == 0


def test_networks_that_normalise_pixels_in_other_ways_share_nothing() -> None:
    network = network_with()
    other = copy.deepcopy(network)
    other.backbone.normalisation = replace(
        other.backbone.normalisation, mean=(0.1, 0.2, 0.3)
    )
    assert equal_stages(network, other) == 0


@pytest.mark.parametrize("stages", [0, 2, 7])
def test_stages_that_do_not_train_are_counted(stages: int) -> None:
    network = network_with(frozen_stages=stages)
    network.set_training_mode(batch_norm=False)
    assert frozen_stages(network) == stages


# --- going on from there --------------------------------------------------------------


def maps_of(outputs: Outputs) -> list[torch.Tensor]:
    return [outputs.backbone, *outputs.blocks, *outputs.logits, *outputs.stages]


@pytest.mark.parametrize("keep", [True, False], ids=["all stages kept", ""])
@pytest.mark.parametrize("shared", [0, 1, 4, 7])
def test_outputs_are_those_of_the_network_alone(shared: int, keep: bool) -> None:
    """Bit by bit, from the stages of a network that differs behind them."""
    network = network_with()
    other = copy.deepcopy(network)
    for stage in other.backbone.stages()[shared:]:
        shift_weight(stage)
    with torch.no_grad():
        other.get_submodule("branches.0.classifier").weight.mul_(2)
    images = random_images()
    network.keep_stages = keep
    expected = network(images)
    other.shared_stages = shared
    assert equal_stages(network, other) == shared
    seen = other(images)
    assert len(seen.stages) == shared
    found = forward_beside(network, seen, images, shared)
    assert len(maps_of(found)) == len(maps_of(expected))
    assert len(found.stages) == (7 if keep else 0)
    for own, alone in zip(maps_of(found), maps_of(expected), strict=True):
        assert torch.equal(own, alone)
    if shared < 7:
        assert not torch.equal(seen.backbone, expected.backbone)


def calls_of_stages(network: SegmentationNetwork) -> Counter[int]:
    """How often the first convolution of each stage runs from now on."""
    calls: Counter[int] = Counter()
    for number, stage in enumerate(network.backbone.stages()):
        kinds = (FoldedConvolution, nn.Conv2d)
        first = next(m for m in stage.modules() if isinstance(m, kinds))

        def count(*_: Any, number: int = number) -> None:
            calls[number] += 1

        first.register_forward_hook(count)
    return calls


def test_a_test_with_a_bank_of_another_network_computes_shared_stages_once() -> None:
    other = network_with()
    network = SegmentationNetwork(ARCHITECTURE, [1, 1]).eval()
    network.backbone.load_state_dict(other.backbone.state_dict())
    for stage in other.backbone.stages()[3:]:
        shift_weight(stage)
    with torch.no_grad():
        bank = bank_of(other, random_images(), "identity")
    network, other = fold_all(network), fold_all(other)
    predictor = FusedPredictor(network, bank, decision_by("lda"), other)
    assert predictor.combination.shared_stages == network.shared_stages == 3
    calls = [calls_of_stages(each) for each in (network, other)]
    with torch.inference_mode():
        ((_, labels),) = predictor.predict_labels(random_images())
        log_s = predictor.predict_logits(random_images())
    assert calls[0] == dict.fromkeys(range(7), 2)
    assert calls[1] == dict.fromkeys(range(3, 7), 2)
    alone = replace(predictor.combination, shared_stages=0)
    object.__setattr__(predictor, "combination", alone)
    with torch.inference_mode():
        assert torch.equal(predictor.predict_logits(random_images()), log_s)
    assert calls[1][0] == 1 and labels.shape == (2, 48, 48)


# --- training -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(
    data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int, str], dict[str, Path]]:
    """Writer of a model of step 0, of one that differs behind 3 stages, and a bank."""
    made: dict[tuple[int, str], dict[str, Path]] = {}

    def write(stages: int, head: str) -> dict[str, Path]:
        if (stages, head) in made:
            return made[stages, head]
        folder = tmp_path_factory.mktemp("models")
        architecture = replace(
            ARCHITECTURE, atrous_rates=(1, 2), frozen_stages=stages, head=head
        )
        network = SegmentationNetwork(architecture, [6], weights="imagenet", seed=1)
        paths = {n: folder / n / "model.safetensors" for n in ("previous", "other")}
        about = {"classes": [{"label": label} for label in range(7)]}
        for name, path in paths.items():
            path.parent.mkdir()
            if name == "other":
                for stage in network.backbone.stages()[3:]:
                    shift_weight(stage)
            save_model(network, path, about=about)
        settings = step_settings(1)
        job = {
            "settings": {
                **{"feature": "backbone", "map": "identity", "scatter": True},
                **{"ridge": 0.01, "calibration_cells": 200},
            },
            "groups": settings["groups"][:1],
            **{"sequential": False, "seed": 0, "keep_temperature": False},
        }
        for name in ("previous", "other"):
            bank = paths[f"bank of {name}"] = folder / f"{name}.safetensors"
            files = BankFiles(paths[name], data / "step0.csv", bank)
            build_step_bank(files, job, Compute(), Process())
        made[stages, head] = paths
        return paths

    return write


def without_sharing(networks: Networks) -> Networks:
    """The same networks, each from its first stage on."""
    bank_teacher = networks.bank_teacher
    if bank_teacher is not None:
        combination = replace(bank_teacher.combination, shared_stages=0)
        bank_teacher = BankTeacher(bank_teacher.network, combination)
    return replace(networks, bank_teacher=bank_teacher, shared_stages=0)


def iteration(
    data: Path, settings: dict[str, Any], inputs: dict[str, Path], *, sharing: bool
) -> tuple[dict[str, float], dict[str, torch.Tensor], Networks, list[Counter[int]]]:
    """The terms of an iteration, its gradients, the networks and the calls of stages.

    The calls are of student, teacher and the bank's network, as far as there are.
    """
    step, process = StepSettings.from_dict(settings), Process()
    nowhere = data / "nowhere"
    files = Files(
        split=data / "step1.csv",
        **dict.fromkeys(("model", "metrics", "usage", "tensorboard"), nowhere),
        **inputs,
    )
    built = build_networks(step, files, process)
    student = built.student
    generator = torch.Generator().manual_seed(0)
    for parameter in student.parameters():  # distillation has a gradient then
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data += 0.05 * parameter.data.abs().mean() * noise
    optimizer = build_optimizer(student, step.optimisation)
    network, networks = networks_of_loop(built, step, Compute(), process)
    if not sharing:
        networks = without_sharing(networks)
    parts = [networks.student, networks.teacher]
    if networks.bank_teacher is not None:
        parts.append(networks.bank_teacher.combination.feature_network)
    calls = [calls_of_stages(part) for part in parts if part is not None]
    learner = Learner(
        network=network,
        networks=networks,
        optimizer=optimizer,
        scaler=torch.amp.GradScaler(enabled=False),
        precision=autocast_type(step.optimisation.precision, "cpu"),
        settings=step,
        process=process,
    )
    progress = Progress()
    split = read_index(files.split)
    _, loader = training_batches(split, step, files, Compute(), process, progress)
    prepared = [prepare(next(loader), student, step)]
    counts, *_ = global_counts(prepared, StopFlag(), False, process)
    tally = Tally(progress)
    learner.iterate(0, prepared, counts, tally)
    tally.settle()
    named = student.named_parameters()
    gradients = {n: p.grad for n, p in named if p.grad is not None}
    return progress.sums, gradients, networks, calls


FEATURES = {None: "previous", "previous": "previous", "other": "other"}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("method", "trains", "stages", "features", "of_teacher", "of_features"),
    [
        ("kproba", "all", 3, "other", 3, 3),
        ("kproba", "all", 2, "other", 2, 3),
        ("kproba", "all", 5, "other", 5, 3),
        ("kproba", "all", 0, "other", 0, 3),
        ("kproba", "all", 3, "previous", 3, 7),
        ("kproba", "all", 3, None, 3, None),
        ("kproba", "heads", 0, "other", 7, 3),
        ("plop", "all", 3, "no bank", 3, None),  # reads the features of all stages
        ("lwf", "all", 4, "no bank", 4, None),
    ],
)
def test_an_iteration_is_the_same_with_shared_stages(
    data: Path,
    models: Callable[[int, str], dict[str, Path]],
    method: str,
    trains: str,
    stages: int,
    features: str | None,
    of_teacher: int,
    of_features: int | None,
    precision: str,
) -> None:
    """Losses and gradients, bit by bit; and no frozen stage is computed twice."""
    paths = models(stages, "branches" if method == "kproba" else "softmax")
    settings = step_settings(1, method, precision=precision)
    settings["method"]["trains"] = trains
    inputs = {"previous": paths["previous"]}
    if features != "no bank":
        settings["decision"] = Decision(posterior_weight=0.5).to_dict()
        inputs["bank"] = paths[f"bank of {FEATURES[features]}"]
    if features in paths:
        inputs["feature_network"] = paths[features]
    terms, gradients, networks, calls = iteration(data, settings, inputs, sharing=True)
    found, others, _, all_calls = iteration(data, settings, inputs, sharing=False)
    assert terms == found and all(terms.values())
    assert gradients.keys() == others.keys() and len(gradients) > 5
    assert all(torch.equal(g, others[name]) for name, g in gradients.items())
    assert any(g.abs().max() > 0 for g in gradients.values())

    assert networks.shared_stages == of_teacher
    every = dict.fromkeys(range(7), 1)
    if trains == "heads":  # the teacher has the student's features in any case
        assert all_calls[:2] == [every, {}]
        assert calls[:2] == [every, {}]
    else:
        assert all_calls[:2] == [every, every]
        assert calls[:2] == [every, dict.fromkeys(range(of_teacher, 7), 1)]
    assert len(calls) == len(all_calls) == 2 + (of_features is not None)
    if of_features is not None:
        assert all_calls[2] == every
        assert calls[2] == dict.fromkeys(range(of_features, 7), 1)


def test_models_of_the_test_differ_where_it_says(
    models: Callable[[int, str], dict[str, Path]],
) -> None:
    paths = models(3, "branches")
    one, other = (load_model(paths[name]) for name in ("previous", "other"))
    assert equal_stages(one, other) == 3
