"""The loop of one step, the same for every method.

    kproba-launch --processes 2 kproba.training settings.json --split ..

`settings.json` holds everything that determines the result and is itself a tracked
artifact; the other arguments are files and the machine's means (threads, workers).
"""

import argparse
import contextlib
import json
import logging
import math
import platform
import resource
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from timm.layers import convert_sync_batchnorm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from kproba.artifacts import (
    atomic_path,
    fingerprint,
    provenance,
    read_json,
    write_json,
)
from kproba.batch_norm import synchronise
from kproba.curves import Curves, Monitor
from kproba.data import (
    Augmentation,
    Batch,
    TrainingImages,
    TrainingStream,
    training_loader,
)
from kproba.distributed import Process
from kproba.guidance import Guide
from kproba.job import add_machine_arguments, job_process
from kproba.logs import PROGRESS
from kproba.losses import Counts, Masks, cell_masks, step_losses
from kproba.methods import Method
from kproba.model import (
    Architecture,
    Branch,
    Outputs,
    SegmentationNetwork,
    add_branch,
    load_model,
    save_model,
)
from kproba.splits import IGNORE, UNSURE, LabelMap, read_index
from kproba.state import Checkpoint, Progress, StopFlag

log = logging.getLogger("kproba")

ROWS = 50  # of metrics.csv and TensorBoard per step
STOPPED = 143  # exit status after SIGTERM: state saved, ask again to go on


@dataclass(frozen=True)
class Optimisation:
    """How a step is optimised; method.md, "Optimisation".

    Attributes:
        epochs: Passes over the step's images.
        batch_size: Images per iteration over all processes.
        optimizer: "sgd" (Nesterov) or "adamw".
        backbone, aspp, branch, old_branches: Learning rates; `branch` is the newest.
        momentum: Of SGD.
        weight_decay: For all parameters.
        power, floor: lr = max(floor, lr_0 (1 - i/n)^power) at iteration i of n.
        gradient_clip: Largest norm of the gradient, None for no clipping.
        precision: "auto": bfloat16 on a GPU that supports it, else float16 with loss
            scaling; float32 on the CPU. Or one of "float32", "bfloat16", "float16".
    """

    epochs: float
    batch_size: int
    optimizer: Literal["sgd", "adamw"]
    backbone: float
    aspp: float
    branch: float
    old_branches: float
    momentum: float
    weight_decay: float
    power: float
    floor: float
    gradient_clip: float | None
    precision: Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class StepSettings:
    """Everything that determines the result of a step, besides its input files.

    Attributes:
        dataset, task, setting, method, seed, step: Which step of which run.
        groups: Raw labels of the classes of the steps 0..t.
        class_names: Names of S_t in output order, "background" first.
        architecture, weights: Of the network; None from step 1 on, where both come
            with the previous model.
        augmentation, optimisation, recipe: How it trains.
        guide: `PseudoLabelSettings` as a dictionary: how network and bank teach
            together; None: the network alone.
    """

    dataset: str
    task: str
    setting: str
    method: str
    seed: int
    step: int
    groups: tuple[tuple[int, ...], ...]
    class_names: list[str]
    architecture: Architecture | None
    weights: str | None
    augmentation: Augmentation
    optimisation: Optimisation
    recipe: Method
    guide: dict[str, Any] | None = None

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "StepSettings":
        """From the content of settings.json."""
        augmentation = dict(content["augmentation"])
        augmentation["scale"] = tuple(augmentation["scale"])
        architecture = content["architecture"]
        return cls(
            **{
                **content,
                "groups": tuple(tuple(group) for group in content["groups"]),
                "architecture": architecture and Architecture(**architecture),
                "augmentation": Augmentation(**augmentation),
                "optimisation": Optimisation(**content["optimisation"]),
                "recipe": Method.from_dict(content["recipe"]),
            }
        )

    @property
    def label_map(self) -> LabelMap:
        """Raw labels to output indices at this step."""
        return LabelMap(self.groups, self.setting)


@dataclass(frozen=True)
class Files:
    """Inputs and outputs of a step.

    Attributes:
        split: CSV of the step's images.
        previous: Model of step t-1; None at step 0.
        pseudo_labels: Folder of targets; None to train on the raw labels.
        weights: Of the backbone at step 0, if they come from a file.
        bank: Of step t-1, where it teaches too.
        source: Model of that bank's features, if not `previous`.
        model, metrics, usage, tensorboard: Outputs.
        validation: Index of the dataset and of its additions, to look at some of their
            validation images now and then; empty not to.
        state: Where an unfinished run keeps its state; removed at the end.
    """

    split: Path
    previous: Path | None
    pseudo_labels: Path | None
    weights: Path | None
    model: Path
    metrics: Path
    usage: Path
    tensorboard: Path
    state: Path
    validation: tuple[Path, ...] = ()
    bank: Path | None = None
    source: Path | None = None

    def inputs(self) -> list[Path]:
        """The files whose content determines the result."""
        maybe = (self.split, self.previous, self.weights, self.bank, self.source)
        files = [path for path in maybe if path is not None]
        if self.pseudo_labels is not None:
            files += sorted(self.pseudo_labels.glob("*.png"))
        return files


@dataclass(frozen=True)
class Means:
    """What the machine offers; changes speed, never the experiment.

    Attributes:
        workers: Loader processes per process.
        accumulation: Micro-batches per iteration and process.
        compile: Let `torch.compile` make kernels of its own for the backbone.
        cache_gib: Memory per process for decoded images, in GiB.
        state_minutes: Minutes between two saved states.
        log_seconds: Seconds between two log lines.
        looks: How often the validation images are looked at.
        look_images: How many of them.
    """

    workers: int = 0
    accumulation: int = 1
    compile: bool = False
    cache_gib: float = 0.0
    state_minutes: float = 5.0
    log_seconds: float = 15.0
    looks: int = 0
    look_images: int = 0


class Stopped(Exception):
    """The run was asked to stop."""

    def __init__(self, iteration: int, iterations: int, *, saved: bool):
        state = "the state is saved" if saved else "an older state is kept, if any"
        super().__init__(
            f"stopped at iteration {iteration} of {iterations}; {state}, ask again "
            f"to go on"
        )


def train(
    settings: StepSettings,
    files: Files,
    means: Means,
    process: Process,
    stop: StopFlag | None = None,
) -> SegmentationNetwork:
    """Train one step and write its model, metrics and TensorBoard files.

    Asked again after a kill, it goes on from its last saved state and ends with the
    same bytes as an undisturbed run on the same kind of machine.

    Args:
        settings: What determines the result.
        files: Inputs and outputs.
        means: What the machine offers.
        process: This one of several.
        stop: Asks the run to save its state and to stop; None: nothing does.

    Returns:
        The trained network, the same in every process.

    Raises:
        Stopped: `stop` asked; says whether the state could be saved.
        FloatingPointError: A loss is not finite; the message names the images.
    """
    stop = stop or StopFlag()
    optimisation = settings.optimisation
    split = read_index(files.split)
    student, teacher = build_networks(settings, files, process)
    optimizer = build_optimizer(student, optimisation)
    precision = autocast_type(optimisation.precision, process.device)
    kind = process.device.split(":")[0]
    scaler = torch.amp.GradScaler(kind, enabled=precision == torch.float16)
    mark = fingerprint(asdict(settings), *files.inputs())
    checkpoint = Checkpoint(files.state, mark, student, optimizer, scaler)
    progress = checkpoint.load(process)
    start = progress.iteration
    guide = guide_of(settings, files, process)
    asked = [teacher, guide.source if guide else None]
    network = wrap(student, asked, settings, means, process)
    descent = Descent(
        *(network, teacher, guide, optimizer, scaler, precision, settings, process)
    )

    stream, loader = batches_of(split, settings, files, means, process, start)
    iterations = stream.iterations
    curves = monitor = None
    if process.first:
        log_header(settings, means, process, len(split), iterations, precision)
        curves = Curves(files.tensorboard, start, progress.rows, progress.looks)
        monitor = monitor_of(settings, files, means)
    clock = last_log = last_state = time.monotonic()
    seconds_before = progress.seconds
    tally = Tally(progress)

    for iteration in range(start, iterations):
        micro_batches = [next(loader) for _ in range(means.accumulation)]
        prepared = [prepare(batch, student, settings) for batch in micro_batches]
        waited = time.monotonic() - last_state
        due = process.first and iteration > start and waited > 60 * means.state_minutes
        counts, stop_asked, state_due = global_counts(prepared, stop, due, process)
        if stop_asked or state_due:
            tally.settle()
            check_weights(student, tally.ids)
            saved = checkpoint.save(progress, process)
            last_state = time.monotonic()
        if stop_asked:
            raise Stopped(iteration, iterations, saved=saved)

        rates = set_learning_rates(optimizer, optimisation, iteration, iterations)
        descent.iterate(prepared, counts, tally)

        now = time.monotonic()
        progress.iteration = done = iteration + 1
        progress.seconds = seconds_before + now - clock
        speed = (done - start) * optimisation.batch_size / (now - clock)
        # A row is due at fixed iterations, whatever the speed: same run, same file.
        if done % max(1, iterations // ROWS) == 0 or done == iterations:
            tally.settle()
            progress.add_row(rates, process)
            if curves is not None:
                curves.add(progress.rows[-1], speed)
        if process.first and (now - last_log > means.log_seconds or done == iterations):
            tally.settle()
            terms = progress.recent(process.world_size)
            log_progress(progress, terms, rates, optimisation, iterations, speed)
            last_log = now
        if monitor and curves and monitor.due(done, iterations):
            look = monitor.look(student, curves, done, process.device)
            if look is not None:
                progress.looks.append(look)
            student.set_training_mode(batch_norm=settings.step == 0)

    check_weights(student, tally.ids)
    usage = used(progress, optimisation, process)
    if curves is not None:
        curves.close()
        write_json(files.usage, usage)
        write_outputs(student, settings, files, progress, len(split))
        checkpoint.remove()
    return student


def monitor_of(settings: StepSettings, files: Files, means: Means) -> Monitor | None:
    """What looks at validation images during the training, if that is wanted."""
    if not files.validation or not means.looks or not means.look_images:
        return None
    return Monitor(
        files.validation,
        settings.groups,
        settings.class_names,
        images=means.look_images,
        times=means.looks,
    )


def used(
    progress: Progress, optimisation: Optimisation, process: Process
) -> dict[str, Any]:
    """What a step has cost; all processes call this.

    Returns:
        device; processes; seconds, over all restarts; images_per_second; and the
        largest peak_memory_bytes of a process since the last start: of the GPU what
        PyTorch reserved, on the CPU the resident set.
    """
    if process.device == "cpu":
        device = "CPU"
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    else:
        device = torch.cuda.get_device_name()
        peak = torch.cuda.max_memory_reserved()
    images = progress.iteration * optimisation.batch_size
    return {
        "device": device,
        "processes": process.world_size,
        "seconds": round(progress.seconds, 3),
        "images_per_second": round(images / max(progress.seconds, 1e-9), 2),
        "peak_memory_bytes": max(process.gather(peak)),
    }


def batches_of(
    split: pd.DataFrame,
    settings: StepSettings,
    files: Files,
    means: Means,
    process: Process,
    start: int,
) -> tuple[TrainingStream, Iterator[Batch]]:
    """This process's part of the training stream, from iteration `start` on."""
    images = TrainingImages(
        split,
        augmentation=settings.augmentation,
        seed=settings.seed,
        label_table=settings.label_map.training_table(),
        pseudo_labels=files.pseudo_labels,
    )
    if means.cache_gib:
        images.keep_decoded(means.cache_gib * 2**30, threads=max(1, means.workers))
        log.info("%d of %d decoded images kept", len(images.kept), len(images))
    stream = TrainingStream(
        len(split),
        epochs=settings.optimisation.epochs,
        batch_size=settings.optimisation.batch_size,
        seed=settings.seed,
        rank=process.rank,
        world_size=process.world_size,
        accumulation=means.accumulation,
        start=start,
    )
    return stream, iter(training_loader(images, stream, workers=means.workers))


def write_outputs(
    student: SegmentationNetwork,
    settings: StepSettings,
    files: Files,
    progress: Progress,
    images: int,
) -> None:
    """Write metrics.csv, then the model, and log the summary of the step as JSON."""
    with atomic_path(files.metrics) as temporary:
        pd.DataFrame(progress.rows).to_csv(temporary, index=False)
    save_model(student, files.model, about=describe(settings))
    summary = {
        "step": settings.step,
        "method": settings.method,
        "iterations": progress.iteration,
        "images": images,
        "seconds": round(progress.seconds, 1),
        "loss": progress.rows[-1]["loss"],
    }
    log.info("%s", json.dumps(summary))


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


def build_optimizer(
    student: SegmentationNetwork, settings: Optimisation
) -> torch.optim.Optimizer:
    """Optimizer with one parameter group per part of the network.

    With a softmax there is one head: its 3×3 block learns as the ASPP does, and all
    classifiers at the rate of the newest.
    """
    *old, newest = student.branches
    parts: dict[str, Sequence[nn.Module]] = {
        "backbone": [student.backbone],
        "aspp": [student.aspp],
        "branch": [newest],
        "old_branches": old,
    }
    if student.architecture.softmax and old:
        head = student.branches[0]
        assert isinstance(head, Branch)
        classifiers = [b.get_submodule("classifier") for b in student.branches]
        parts |= {"aspp": [student.aspp, head.block], "old_branches": []}
        parts["branch"] = classifiers
    groups = [
        {
            "name": name,
            "params": [
                parameter
                for module in modules
                for parameter in module.parameters()
                if parameter.requires_grad
            ],
            "lr": getattr(settings, name),
        }
        for name, modules in parts.items()
        if any(p.requires_grad for module in modules for p in module.parameters())
    ]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, weight_decay=settings.weight_decay)
    return torch.optim.SGD(
        groups,
        momentum=settings.momentum,
        nesterov=settings.momentum > 0,
        weight_decay=settings.weight_decay,
    )


def set_learning_rates(
    optimizer: torch.optim.Optimizer,
    settings: Optimisation,
    iteration: int,
    iterations: int,
) -> dict[str, float]:
    """Set and return the poly learning rate of every part."""
    factor = (1 - iteration / iterations) ** settings.power
    rates = {}
    for group in optimizer.param_groups:
        group["lr"] = max(settings.floor, getattr(settings, group["name"]) * factor)
        rates[f"lr_{group['name']}"] = group["lr"]
    return rates


def autocast_type(precision: str, device: str) -> torch.dtype:
    """The type of mixed precision on a device; float32 means none."""
    if precision != "auto":
        return getattr(torch, precision)
    if device == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


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


class Prepared(NamedTuple):
    """A micro-batch before it goes to the device.

    Attributes:
        batch: Images and targets; unsure pixels are 255 now.
        masks: M⁺ and M⁻; None at step 0.
        certainty: ν, (B,) float32, if the method scales by it.
    """

    batch: Batch
    masks: Masks | None = None
    certainty: torch.Tensor | None = None


def prepare(
    batch: Batch, student: SegmentationNetwork, settings: StepSettings
) -> Prepared:
    """The batch with what its targets tell, on the CPU."""
    if settings.step == 0:
        return Prepared(batch)
    first_new, targets = settings.label_map.first_new, batch.targets
    certainty = None
    if settings.recipe.scale_by_certainty:
        certainty = share_of_sure(targets, first_new)
    if pixels_with(UNSURE, targets):
        targets = targets.masked_fill(targets == UNSURE, IGNORE)
        batch = batch._replace(targets=targets)
    stride = student.architecture.output_stride
    size = [-(-extent // stride) for extent in targets.shape[-2:]]
    sequential = settings.setting == "sequential"
    masks = cell_masks(batch.targets, first_new, size, sequential=sequential)
    return Prepared(batch, masks, certainty)


def pixels_with(label: int, targets: torch.Tensor) -> int:
    """How many pixels have a label; NumPy counts ten times as fast as PyTorch."""
    return int(np.count_nonzero(targets.numpy() == label))


def share_of_sure(targets: torch.Tensor, first_new: int) -> torch.Tensor:
    """Share of each image's background or old pixels that have a label (PLOP's ν).

    Args:
        targets: ŷ with `UNSURE` pixels, (B, H, W) uint8.
        first_new: Output index of the first class of C_t.

    Returns:
        (B,) float32; 1 for an image without such pixels.
    """
    sure = (targets < first_new).sum(dim=(1, 2))
    unsure = (targets == UNSURE).sum(dim=(1, 2))
    return torch.where(sure + unsure > 0, sure / (sure + unsure).clamp(min=1), 1.0)


def global_counts(
    prepared: list[Prepared],
    stop: "StopFlag",
    state_due: bool,
    process: Process,
) -> tuple[Counts, bool, bool]:
    """Denominators over the global batch, and what all processes must do together.

    Returns:
        The counts, whether any process was told to stop, and whether any finds that a
        state is due.
    """
    pixels = new = background = cells = images = area = remaining = 0.0
    for batch, masks, _ in prepared:
        size = batch.targets.numel()
        pixels += size - pixels_with(IGNORE, batch.targets)
        images += len(batch.targets)
        area += size
        if masks is not None:
            new += float(masks.new.sum())
            background += float(masks.background.sum())
            remaining += float(masks.remaining.sum())
            cells += masks.new.numel()
    flags = [float(stop.asked), float(state_due)]
    counted = [pixels, new, background, cells, images, area, remaining]
    *counts, stopped, due = process.sum([*counted, *flags])
    return Counts(*counts), stopped > 0, due > 0


@dataclass(frozen=True)
class Descent:
    """An iteration of the optimiser.

    Attributes:
        network: The student as `wrap` returns it.
        teacher: Frozen; None if the method does not distil.
        guide: What teaches beside it; None: nothing does.
        optimizer, scaler: Of the student's parameters.
        precision: Of autocast; float32 for none.
        settings: Of the step.
        process: This one of several.
    """

    network: nn.Module
    teacher: SegmentationNetwork | None
    guide: Guide | None
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    precision: torch.dtype
    settings: StepSettings
    process: Process

    def iterate(self, prepared: list[Prepared], counts: Counts, tally: "Tally") -> None:
        """Change the weights by the gradient of a global batch.

        Args:
            prepared: This process's micro-batches of it.
            counts: Denominators over the global batch.
            tally: Notes the terms.
        """
        self.optimizer.zero_grad(set_to_none=True)
        for number, part in enumerate(prepared):
            last = number == len(prepared) - 1
            losses = self._backward(part, counts, synchronise=last)
            tally.add(losses, part.batch.ids)
        self.scaler.unscale_(self.optimizer)
        if self.settings.optimisation.gradient_clip is not None:
            nn.utils.clip_grad_norm_(
                self.network.parameters(), self.settings.optimisation.gradient_clip
            )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        tally.settle(all_but_newest=True)

    def _backward(
        self, prepared: Prepared, counts: Counts, *, synchronise: bool
    ) -> dict[str, torch.Tensor]:
        """Forward and backward of one micro-batch; returns the value of every term."""
        device = self.process.device
        batch, masks, certainty = prepared
        images = batch.images.to(device, non_blocking=True)
        targets = batch.targets.to(device, non_blocking=True)
        if masks is not None:
            masks = Masks(*(mask.to(device, non_blocking=True) for mask in masks))
        if certainty is not None:
            certainty = certainty.to(device, non_blocking=True)
        # Dropout of an image depends on the seed and its place in the stream alone.
        unwrap(self.network).dropout.keys = batch.keys + (self.settings.seed << 32)
        alone = contextlib.nullcontext()
        if not synchronise and isinstance(self.network, DistributedDataParallel):
            alone = self.network.no_sync()  # type: ignore[assignment]
        with alone:
            with torch.autocast(
                device.split(":")[0],
                self.precision,
                enabled=self.precision != torch.float32,
            ):
                outputs = self.network(images)
                taught = self._taught(images, outputs, masks)
            losses = step_losses(
                outputs, taught, targets, masks, counts, self.settings.recipe, certainty
            )
            total = torch.stack(list(losses.values())).sum()
            # DDP averages gradients over processes; ours are parts of a sum.
            self.scaler.scale(total * self.process.world_size).backward()
        return {name: value.detach() for name, value in losses.items()}

    @torch.no_grad()
    def _taught(
        self, images: torch.Tensor, outputs: Outputs, masks: Masks | None
    ) -> Outputs | None:
        """What the teachers say of a micro-batch; None if nobody teaches."""
        if self.teacher is None:
            return None
        taught = taught_by(self.teacher, images, outputs, self.settings.recipe)
        if self.guide is None or masks is None:
            return taught
        shown = self.guide.look(taught, images)
        with torch.autocast(self.process.device.split(":")[0], enabled=False):
            return self.guide.correct(taught, shown, masks.background)


def taught_by(
    teacher: SegmentationNetwork, images: torch.Tensor, outputs: Outputs, recipe: Method
) -> Outputs:
    """The teacher's outputs; a backbone that does not train is not run twice."""
    if recipe.trains == "all":
        taught: Outputs = teacher(images)
        return taught
    return teacher.heads(outputs.backbone.detach(), outputs.stages)


class Arrival:
    """Numbers on their way from the device, which works on."""

    def __init__(self, tensor: torch.Tensor):
        self.arrived: torch.cuda.Event | None = None
        self.host = tensor
        if tensor.is_cuda:
            self.host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self.host.copy_(tensor, non_blocking=True)
            self.arrived = torch.cuda.Event()
            self.arrived.record()

    def values(self) -> list[float]:
        """The numbers, once they are there."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.host.tolist()


class Tally:
    """Adds up the terms of the iterations, one iteration late.

    Reading a value from a GPU waits for it; when the next iteration has been handed
    over, the values are there and the GPU stays busy.
    """

    def __init__(self, progress: Progress):
        self.progress = progress
        self.ids: list[str] = []  # images of the last micro-batch
        self.pending: list[tuple[list[str], Arrival, list[str]]] = []
        self.newest = 0  # how many of the pending are of this iteration

    def add(self, losses: dict[str, torch.Tensor], ids: list[str]) -> None:
        """Note the terms of a micro-batch of the iteration at work."""
        self.ids = ids
        terms = Arrival(torch.stack(list(losses.values())))
        self.pending.append((list(losses), terms, ids))
        self.newest += 1

    def settle(self, *, all_but_newest: bool = False) -> None:
        """Add what is pending to the sums.

        Raises:
            FloatingPointError: A term is not finite; names the images.
        """
        keep = self.newest if all_but_newest else 0
        ready = len(self.pending) - keep
        for names, terms, ids in self.pending[:ready]:
            values = dict(zip(names, terms.values(), strict=True))
            if not all(math.isfinite(value) for value in values.values()):
                raise FloatingPointError(
                    f"The loss is not finite ({values}){_mend(ids)}"
                )
            sums = self.progress.sums
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + value
        self.pending, self.newest = self.pending[ready:], 0


def check_weights(student: nn.Module, ids: list[str]) -> None:
    """Refuse weights that are not finite, before they are saved.

    Raises:
        FloatingPointError: Names the images of the last iteration.
    """
    squares = [parameter.detach().square().sum() for parameter in student.parameters()]
    if not torch.stack(squares).sum().isfinite():
        raise FloatingPointError(f"The weights are not finite any more{_mend(ids)}")


def _mend(ids: list[str]) -> str:
    return (
        f" at images {ids}. Lower the learning rates or set gradient_clip. The last "
        f"saved state is kept."
    )


def unwrap(network: nn.Module) -> SegmentationNetwork:
    """The network inside DistributedDataParallel."""
    inner = network.module if isinstance(network, DistributedDataParallel) else network
    assert isinstance(inner, SegmentationNetwork)
    return inner


def describe(settings: StepSettings) -> dict[str, Any]:
    """What model.json records besides the architecture."""
    return {
        "classes": [
            {"index": index, "label": label, "name": name}
            for index, (label, name) in enumerate(
                zip((0, *settings.label_map.seen), settings.class_names, strict=True)
            )
        ],
        "settings": {**asdict(settings), "recipe": settings.recipe.to_dict()},
        "provenance": provenance(),
    }


# --- logging -------------------------------------------------------------------------


def log_header(
    settings: StepSettings,
    means: Means,
    process: Process,
    images: int,
    iterations: int,
    precision: torch.dtype,
) -> None:
    """What is trained, where and how."""
    optimisation = settings.optimisation
    per_process = optimisation.batch_size // (process.world_size * means.accumulation)
    log.info(
        "%s %s-%s, %s, seed %d, step %d: %s",
        settings.dataset,
        settings.task,
        settings.setting,
        settings.method,
        settings.seed,
        settings.step,
        ", ".join(settings.class_names[settings.label_map.first_new :]),
    )
    log.info(
        "on %s: %s, %s, torch %s, %d thread(s) and %d loader worker(s) per process",
        platform.node(),
        torch.cuda.get_device_name() if process.device != "cpu" else "CPU",
        str(precision).removeprefix("torch."),
        torch.__version__,
        torch.get_num_threads(),
        means.workers,
    )
    log.info(
        "%d images, %g epochs, %d iterations of %d = %d process(es) x %d "
        "micro-batch(es) x %d images",
        images,
        optimisation.epochs,
        iterations,
        optimisation.batch_size,
        process.world_size,
        means.accumulation,
        per_process,
    )
    log.info("batch norm: %s", batch_norm_of(settings, means, process, per_process))


def batch_norm_of(
    settings: StepSettings, means: Means, process: Process, micro_batch: int
) -> str:
    """In words, which images the statistics of the batch norms come from."""
    if settings.step > 0:
        return "frozen"
    text = f"statistics of {micro_batch * process.world_size} images"
    if process.world_size > 1:
        kind = "gloo" if process.device == "cpu" else "SyncBatchNorm"
        text += f", synchronised over {process.world_size} processes ({kind})"
    if means.accumulation > 1:
        text += f", of each of {means.accumulation} micro-batches by itself"
    return text


def log_progress(
    progress: Progress,
    terms: dict[str, float],
    rates: dict[str, float],
    optimisation: Optimisation,
    iterations: int,
    speed: float,
) -> None:
    """One line: position, every term, learning rate, images/s, time left."""
    left = (iterations - progress.iteration) * optimisation.batch_size / speed
    log.info(
        "epoch %.1f/%g, iteration %d/%d: %s, lr %.2e, %.1f images/s, %s left",
        optimisation.epochs * progress.iteration / iterations,
        optimisation.epochs,
        progress.iteration,
        iterations,
        " ".join(f"{name} {value:.4g}" for name, value in terms.items()),
        rates["lr_branch"],
        speed,
        timedelta(seconds=round(left)),
        extra=PROGRESS,
    )


# --- command line ------------------------------------------------------------------


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="kproba.training", description="Train one step; see config/README.md."
    )
    parser.add_argument("settings", type=Path, help="settings.json of the step")
    for name, needed in (
        ("split", True),
        ("previous", False),
        ("model", True),
        ("metrics", True),
        ("usage", True),
        ("tensorboard", True),
        ("state", True),
    ):
        parser.add_argument(f"--{name}", type=Path, required=needed)
    for name in ("pseudo-labels", "weights", "bank", "source"):
        parser.add_argument(f"--{name}", type=Path, nargs="?", help="or nothing")
    parser.add_argument(
        "--validation", type=Path, nargs="*", default=[], help="indices, or nothing"
    )
    parser.add_argument("--looks", type=int, default=0, help="at validation images")
    parser.add_argument("--look-images", type=int, default=0, help="at each look")
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--cache-gib", type=float, default=0.0)
    parser.add_argument("--state-minutes", type=float, default=5.0)
    add_machine_arguments(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Train one step; exit status 143 when stopped with the state saved."""
    options = arguments(argv)
    settings = StepSettings.from_dict(read_json(options.settings))
    files = Files(
        split=options.split,
        previous=options.previous,
        pseudo_labels=options.pseudo_labels,
        weights=options.weights,
        model=options.model,
        metrics=options.metrics,
        usage=options.usage,
        validation=tuple(options.validation),
        tensorboard=options.tensorboard,
        state=options.state,
        bank=options.bank,
        source=options.source,
    )
    means = Means(
        workers=options.workers,
        accumulation=options.accumulation,
        compile=options.compile,
        cache_gib=options.cache_gib,
        state_minutes=options.state_minutes,
        looks=options.looks,
        look_images=options.look_images,
    )
    with job_process(options) as process:
        # All crops are of one size: trying cuDNN's algorithms once pays.
        torch.backends.cudnn.benchmark = not options.deterministic
        try:
            train(settings, files, means, process, StopFlag.of_signals())
        except Stopped as stopped:
            log.warning("%s", stopped)
            return STOPPED
    return 0


if __name__ == "__main__":
    sys.exit(main())
