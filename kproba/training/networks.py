"""TODO training.networks."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from timm.layers import convert_sync_batchnorm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from kproba.bank.teacher import Guide
from kproba.network.batch_norm import synchronise
from kproba.network.files import load_model
from kproba.network.network import SegmentationNetwork, add_branch
from kproba.runtime.distributed import Process
from kproba.training.settings import Files, Means, StepSettings


def build_networks(
    settings: StepSettings, files: Files, process: Process
) -> tuple[SegmentationNetwork, SegmentationNetwork | None]:
    """The student, and the frozen teacher if the method distils."""
    teacher = None
    recipe = settings.recipe
    if files.previous is None:
        student = first_network(settings, files.weights)
    else:
        previous = load_model(files.previous, device="cpu")
        seed = settings.seed + settings.step
        student = add_branch(
            previous,
            len(settings.groups[-1]),
            seed=seed,
            start_from_background=recipe.start_from_background,
        )
        student.requires_grad_(True)
        pod = recipe.losses.pod > 0 or recipe.losses.pod_logits > 0
        student.keep_stages = previous.keep_stages = pod
        if recipe.distils:
            teacher = previous.to(process.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    student = student.to(process.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    student.set_training_mode(batch_norm=settings.step == 0)
    if settings.step > 0 and recipe.trains != "all":
        student.train_only(recipe.trains)
    return student, teacher


def guide_of(settings: StepSettings, files: Files, process: Process) -> Guide | None:
    """What teaches beside the network of step t-1, if anything does.

    Raises:
        ValueError: The settings want a bank and there is none, or it was built with
            another model.
    """
    if settings.guide is None:
        return None
    if files.bank is None or files.previous is None:
        raise ValueError(
            "Expected the bank and the model of the previous step for a step that both "
            "teach (teacher: fused), but got none. Name them with --bank and "
            "--previous."
        )
    return Guide.load(
        files.bank,
        settings.guide,
        network=files.previous,
        source=files.source,
        device=process.device,
    )


def first_network(
    settings: StepSettings, weights: str | Path | None
) -> SegmentationNetwork:
    """The untrained network of step 0; `weights` if those of the backbone are a file.

    Raises:
        ValueError: The settings are not of step 0.
    """
    if settings.architecture is None or settings.weights is None:
        raise ValueError("Step 0 needs `architecture` and `weights` in settings.")
    return SegmentationNetwork(
        settings.architecture,
        [len(settings.groups[0])],
        weights=str(weights or settings.weights),
        seed=settings.seed,
    )


def wrap(
    student: SegmentationNetwork,
    asked: Sequence[SegmentationNetwork | None],
    settings: StepSettings,
    means: Means,
    process: Process,
) -> nn.Module:
    """The student as the loop calls it: for several processes, or compiled.

    Its weights stay those of `student`. `asked` are the networks that teach it, as far
    as there are any; they are compiled with it.
    """
    if process.world_size > 1 and settings.step == 0:
        if process.device == "cpu":
            synchronise(student)
        else:
            # timm's conversion knows its batch norms with activation, torch's does not.
            student = convert_sync_batchnorm(student)
    if means.compile:
        for network in filter(None, (student, *asked)):
            network.backbone.compile()
    if process.world_size == 1:
        return student
    recipe = settings.recipe
    # Its new name is not known to older versions that work as well.
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
    return DistributedDataParallel(
        student,
        device_ids=None if process.device == "cpu" else [process.device],
        # Without distillation the old branches get no gradient under PB-BCE.
        find_unused_parameters=(
            settings.step > 0
            and recipe.cross_entropy == "protected_bce"
            and not recipe.losses.gkd
        ),
        broadcast_buffers=False,
    )


def unwrap(network: nn.Module) -> SegmentationNetwork:
    """The network inside DistributedDataParallel."""
    inner = network.module if isinstance(network, DistributedDataParallel) else network
    assert isinstance(inner, SegmentationNetwork)
    return inner
