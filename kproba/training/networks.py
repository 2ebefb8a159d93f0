"""The networks of a training: the student and its teachers."""

import logging
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from kproba.bank.fusion import Combination
from kproba.bank.teacher import BankTeacher
from kproba.methods.method import Method
from kproba.methods.replay import Replay
from kproba.methods.terms import STAGES, TERMS
from kproba.network.batch_norm import synchronise
from kproba.network.files import load_model
from kproba.network.folding import fold, fold_all
from kproba.network.network import SegmentationNetwork, add_branch
from kproba.network.record import read_model_record
from kproba.network.sharing import equal_stages, frozen_stages
from kproba.runtime.compute import Compute
from kproba.runtime.distributed import Process
from kproba.runtime.records import REMAKE, ArtifactError
from kproba.training.files import Files
from kproba.training.graphs import record_backbones, unsuitable
from kproba.training.optimizer import autocast_type
from kproba.training.settings import StepSettings

log = logging.getLogger("kproba")


@dataclass(frozen=True)
class Networks:
    """The student and its teachers.

    Attributes:
        student: The network that is trained.
        teacher: The frozen network of step t-1; None if no term needs it.
        bank_teacher: The bank that corrects the teacher; None if there is none.
        shared_stages: Number of first stages that the teacher takes from the student's
            outputs.
        replay: Draws features of old classes; None if no term needs them.
    """

    student: SegmentationNetwork
    teacher: SegmentationNetwork | None = None
    bank_teacher: BankTeacher | None = None
    shared_stages: int = 0
    replay: Replay | None = None


def build_networks(settings: StepSettings, files: Files, process: Process) -> Networks:
    """The networks of a step on the device of this process.

    Raises:
        ValueError: The settings need a bank but there is none, or it was built with
            another model.
    """
    method, device = settings.method, process.device
    if files.previous is None:
        student = build_first_network(settings, files.weights)
        student = _on_device(student, device)
        student.set_training_mode(batch_norm=True)
        return Networks(student)
    previous = load_model(files.previous, device="cpu")
    _check_previous(previous, settings, files.previous)
    student = add_branch(
        previous,
        len(settings.groups[-1]),
        seed=settings.seed + settings.step,
        start_from_background=method.start_from_background,
    )
    student.requires_grad_(True)
    student.keep_stages = previous.keep_stages = STAGES in method.needs
    student = _on_device(student, device)
    # Batch norms keep the values of step 0, because later steps show too few classes.
    student.set_training_mode(batch_norm=False, dropout=method.dropout)
    if method.trains != "all":
        student.train_only(method.trains)
    if not method.distils:
        return Networks(student)
    teacher = _on_device(previous, device)
    return Networks(student, teacher, _bank_teacher(settings, files, teacher, device))


def _check_previous(
    previous: SegmentationNetwork, settings: StepSettings, path: Path
) -> None:
    """Refuse a model of another step, task or head.

    Raises:
        ArtifactError: It is not the model of the previous step.
    """
    seen = settings.label_map.seen[: settings.label_map.first_new - 1]
    record = read_model_record(path)
    per_step = [len(group) for group in settings.groups[:-1]]
    fits = previous.classes_per_step == per_step and record.has_labels([0, *seen])
    if not fits or previous.architecture.head != settings.method.head:
        raise ArtifactError(
            f"Expected {path} to be the model of the previous step with the head "
            f"{settings.method.head} and the labels {', '.join(map(str, seen))}, but "
            f"it has the head {previous.architecture.head} and "
            f"{', '.join(map(str, previous.classes_per_step))} classes in its steps. "
            f"{REMAKE}"
        )


def _on_device(network: SegmentationNetwork, device: str) -> SegmentationNetwork:
    moved: SegmentationNetwork = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return moved


def _bank_teacher(
    settings: StepSettings, files: Files, teacher: SegmentationNetwork, device: str
) -> BankTeacher | None:
    if settings.decision is None:
        return None
    if files.bank is None or files.previous is None:
        raise ValueError(
            "Expected the bank and the model of the previous step for a step with the "
            "teacher `fused`, but got none. Name them with --bank and "
            "--previous."
        )
    combination = Combination.load(
        files.bank,
        settings.decision,
        network=files.previous,
        feature_network=files.feature_network,
        device=device,
        fold=False,  # not before it is compared with the teacher
    )
    if combination.feature_network is not None:
        combination.feature_network.to(memory_format=torch.channels_last)
    return BankTeacher(teacher, combination)


def build_first_network(
    settings: StepSettings, weights: str | Path | None
) -> SegmentationNetwork:
    """The untrained network of step 0.

    Args:
        settings: Settings of step 0.
        weights: File with the weights of the backbone, if they come from one.

    Raises:
        ValueError: The settings are not of step 0.
    """
    if settings.architecture is None or settings.weights is None:
        raise ValueError(
            "Expected `architecture` and `weights` in the settings of "
            "step 0, but they are missing."
        )
    return SegmentationNetwork(
        settings.architecture,
        [len(settings.groups[0])],
        weights=str(weights or settings.weights),
        seed=settings.seed,
    )


def networks_of_loop(
    networks: Networks, settings: StepSettings, compute: Compute, process: Process
) -> tuple[nn.Module, Networks]:
    """Faster versions of the networks for the loop, with the same results.

    Frozen batch norms are part of the convolutions (`kproba.network.folding`), and
    first stages that the networks share are computed once. At step 0, where batch norms
    train, the networks are not changed.

    Args:
        networks: From `build_networks`, with the initial weights of the training. The
            returned modules share the weights of the student.
        settings: Settings of the step.
        compute: Compute options.
        process: This process of several.

    Returns:
        The student, over several processes if there are, and all networks.
    """
    if settings.step > 0:
        precision = autocast_type(settings.optimisation.precision, process.device)
        networks = _fold_networks(networks, precision)
    if compute.compile:
        features = None
        if networks.bank_teacher is not None:
            features = networks.bank_teacher.combination.feature_network
        for network in (networks.student, networks.teacher, features):
            if network is not None:
                network.backbone.compile()
    if compute.cuda_graphs:
        _record(networks, settings, compute, process)
    return parallelise(networks.student, settings, process), networks


def _record(
    networks: Networks, settings: StepSettings, compute: Compute, process: Process
) -> None:
    """Record the backbones that every iteration runs as CUDA graphs."""
    reason = unsuitable(settings, compute, process)
    if reason:
        log.info("compute.cuda_graphs is not used here: %s", reason)
        return
    others = []
    if networks.teacher is not None and settings.method.trains == "all":
        others.append((networks.teacher, networks.shared_stages))
    if networks.bank_teacher is not None:
        combination = networks.bank_teacher.combination
        if combination.feature_network is not None:
            others.append((combination.feature_network, combination.shared_stages))
    precision = autocast_type(settings.optimisation.precision, process.device)
    record_backbones(networks.student, others, settings, precision)


def _fold_networks(networks: Networks, precision: torch.dtype) -> Networks:
    """The networks of an increment, folded and with shared first stages."""
    student, teacher = networks.student, networks.teacher
    # Before folding, because it renames trained weights and constants.
    shared = 0
    if teacher is not None:
        shared = min(frozen_stages(student), equal_stages(student, teacher))
    bank_teacher, combination = networks.bank_teacher, None
    if bank_teacher is not None and teacher is not None:
        combination = bank_teacher.combination.beside(teacher)
        if combination.feature_network is not None:
            features = fold_all(combination.feature_network, precision)
            combination = replace(combination, feature_network=features)
    student = fold(student)
    if teacher is not None:
        teacher = fold_all(teacher, precision)
        student.shared_stages = shared
    if combination is not None and teacher is not None:
        bank_teacher = BankTeacher(teacher, combination)
    return replace(
        networks,
        student=student,
        teacher=teacher,
        bank_teacher=bank_teacher,
        shared_stages=shared,
    )


def parallelise(
    student: SegmentationNetwork, settings: StepSettings, process: Process
) -> nn.Module:
    """The student as DistributedDataParallel if there are several processes."""
    if process.world_size == 1:
        return student
    network: nn.Module = student
    if settings.step == 0:
        if process.device == "cpu":
            synchronise(student)
        else:
            # timm's conversion knows its batch norms with activation, torch's does not.
            from timm.layers import convert_sync_batchnorm

            network = convert_sync_batchnorm(student)
    # Older versions of PyTorch do not know the new name.
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
    return DistributedDataParallel(
        network,
        device_ids=None if process.device == "cpu" else [process.device],
        find_unused_parameters=settings.step > 0 and _leaves_old_alone(settings.method),
        broadcast_buffers=False,
    )


def _leaves_old_alone(method: Method) -> bool:
    """Whether parameters of old classes get no gradient from any term."""
    return not any(TERMS[name].reaches_old for name in method.terms)


def unwrap(network: nn.Module) -> SegmentationNetwork:
    """The network inside DistributedDataParallel."""
    inner = network.module if isinstance(network, DistributedDataParallel) else network
    assert isinstance(inner, SegmentationNetwork)
    return inner
