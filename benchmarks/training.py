"""Groups of one step of ADE20K 100-5.

"losses", "iteration", "increments", "memory" and "loading".
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from benchmarks.case import Case
from benchmarks.inputs import CROP, images_of, network_of, photographs, targets_of
from benchmarks.measuring import ROOT, THREADS, Result, compare, growth
from benchmarks.profiles import operators
from benchmarks.steps import Step
from kproba.data.augmentation import Augmentation
from kproba.data.loaders import TrainingImages, TrainingStream, training_loader
from kproba.methods.builtin import METHODS
from kproba.methods.losses.barm import pb_bce
from kproba.methods.losses.case import Case as LossCase
from kproba.methods.losses.case import Counts, cell_masks
from kproba.methods.losses.step import step_losses
from kproba.network.network import add_branch

OLD, NEW = 100, 5  # classes of a step
BATCH = 4


# --- losses --------------------------------------------------------------------------


def losses() -> list[Result]:
    """PB-BCE compared with BCE over all classes with a one-hot target."""
    targets = targets_of(BATCH, CROP, 1 + OLD + NEW)
    ratio, own, other = compare(
        lambda: _one_hot(_logits(), targets), lambda: _protected(_logits(), targets)
    )
    hot, protected = _memory("one_hot"), _memory("pb_bce")
    size = f"{1 + OLD + NEW} classes, {1 + NEW} with gradient, {BATCH} × {CROP}²"
    return [
        Result(
            f"one-hot BCE / PB-BCE, forward and backward, {size}",
            ratio,
            "≥ 5",
            f"{own:.2f} s / {other:.2f} s",
        ),
        Result(
            f"the same, peak memory, {size}",
            hot / max(protected, 1),
            "≥ 5",
            f"{hot / 2**20:.0f} MiB / {protected / 2**20:.0f} MiB",
        ),
    ]


def _logits() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (BATCH, 33, 33)
    return [
        torch.randn(shape[0], 1 + n, *shape[1:], generator=generator).requires_grad_()
        for n in (OLD, NEW)
    ]


def _protected(logits: list[torch.Tensor], targets: torch.Tensor) -> None:
    pb_bce(logits, targets, float(targets.numel())).backward()


def _one_hot(logits: list[torch.Tensor], targets: torch.Tensor) -> None:
    """BCE over all classes with a one-hot target, as it is usually written."""
    background = logits[0][:, :1].detach() + logits[1][:, :1]
    every = torch.cat([background, logits[0][:, 1:].detach(), logits[1][:, 1:]], dim=1)
    size = targets.shape[-2:]
    full = F.interpolate(every, size, mode="bilinear", align_corners=False)
    hot = F.one_hot(targets.long(), 1 + OLD + NEW).permute(0, 3, 1, 2).float()
    loss = F.binary_cross_entropy_with_logits(full, hot, reduction="none").sum(1)
    loss.mean().backward()


LOSSES = {"pb_bce": _protected, "one_hot": _one_hot}


# --- iteration -----------------------------------------------------------------------


def iteration() -> list[Result]:
    """One incremental iteration, compared with its necessary passes."""
    crop = 257
    ratio, own, other = compare(*_step("efficientnet_lite0", crop))
    return [
        Result(
            "incremental iteration / student forward and backward + teacher forward",
            ratio,
            "≤ 1.15",
            f"{own:.2f} s / {other:.2f} s, EfficientNet-Lite0, {BATCH} × {crop}²",
        )
    ]


def _step(backbone: str, crop: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """An iteration of an ADE20K step, and its necessary passes."""
    teacher = network_of(backbone, OLD)
    student = add_branch(teacher, NEW, seed=0).requires_grad_(True)
    student.set_training_mode(batch_norm=False)
    student.dropout.keys = torch.arange(BATCH)
    optimizer = torch.optim.SGD(student.parameters(), 1e-3, momentum=0.9, nesterov=True)
    images, targets = images_of(BATCH, crop), targets_of(BATCH, crop, 1 + OLD + NEW)
    cells = -(-crop // 16)

    def passes() -> None:
        student.zero_grad(set_to_none=True)
        outputs = student(images)
        with torch.no_grad():
            teacher(images)
        torch.stack([z.sum() for z in outputs.logits]).sum().backward()

    def step() -> None:
        masks = cell_masks(targets, 1 + OLD, (cells, cells), sequential=False)
        counts = Counts(
            float((targets != 255).sum()),
            float(masks.new.sum()),
            float(masks.background.sum()),
            float(masks.new.numel()),
        )
        optimizer.zero_grad(set_to_none=True)
        outputs = student(images)
        with torch.no_grad():
            teacher_outputs = teacher(images)
        case = LossCase(outputs, targets, counts, masks, teacher_outputs)
        terms = step_losses(case, METHODS["barm"].terms)
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()

    return step, passes


# --- increments ----------------------------------------------------------------------

# Of the size of the embedded example, and of a network for GPUs.
INCREMENTS = {
    "EfficientNet-Lite0": (
        1,  # thread, as a job of the example has
        Case(
            "cpu",
            "efficientnet_lite0",
            crop=144,
            batch=4,
            channels=128,
            frozen_stages=3,
        ),
    ),
    "ResNet-50": (THREADS, Case("cpu", "resnet50", crop=129, batch=4)),
}


def increments() -> list[Result]:
    """Gain of folded batch norms and shared first stages, in time and operators."""
    lines = []
    for name, (threads, case) in INCREMENTS.items():
        torch.set_num_threads(threads)
        plain = Step(case, "barm", "float32", folded=False)
        folded = Step(case, "barm", "float32")
        ratio, own, other = compare(plain, folded)
        most, least = operators(plain), operators(folded)
        size = f"{name}, {case.batch} × {case.crop}², {case.frozen_stages} frozen"
        size += f" stages, {threads} thread" + "s" * (threads > 1)
        lines += [
            Result(
                "increment of `barm`, plain networks / folded and shared",
                ratio,
                "≥ 1.2",
                f"{own:.3f} s / {other:.3f} s, {size}",
            ),
            Result(
                "the same, ATen operators of an iteration",
                most / least,
                "",
                f"{most} / {least}",
            ),
        ]
    torch.set_num_threads(THREADS)
    return lines


# --- memory --------------------------------------------------------------------------


def memory() -> list[Result]:
    """Peak memory of one iteration, networks and optimizer included."""
    size = f"{1 + OLD + NEW} classes, {BATCH} × {CROP}², float32 on the CPU"
    return [
        Result(f"MiB of an iteration, {backbone}, {size}", _memory(backbone) / 2**20)
        for backbone in ("efficientnet_lite0", "resnet101")
    ]


def print_memory_of(name: str) -> None:
    """Print the bytes that a loss, or a step of a backbone, adds to this process."""
    if name in LOSSES:
        logits, targets = _logits(), targets_of(BATCH, CROP, 1 + OLD + NEW)
        print(growth(lambda: LOSSES[name](logits, targets)))
    else:

        def build_and_step() -> None:
            step, _ = _step(name, CROP)
            step()

        print(growth(build_and_step))


def _memory(name: str) -> int:
    """The bytes that `print_memory_of` prints in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--memory-of", name],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    return int(done.stdout)


# --- loading -------------------------------------------------------------------------

IMAGES = 32


def loading() -> list[Result]:
    """The training loader alone against the iteration that consumes its batch."""
    step, _ = _step("efficientnet_lite0", CROP)
    batches = IMAGES // BATCH
    lines = []
    with tempfile.TemporaryDirectory() as name:
        split = photographs(Path(name), IMAGES)
        for kept in (False, True):
            ratio, own, other = compare(_loading_of(split, kept=kept), step)
            kind = "decoded images kept" if kept else "JPEGs of 375 × 500"
            lines.append(
                Result(
                    f"loading a batch / one iteration, {kind}",
                    ratio / batches,
                    "",
                    f"{own / batches:.3f} s in one process / {other:.2f} s on "
                    f"{THREADS} threads, {BATCH} × {CROP}²",
                )
            )
    return lines


def _loading_of(split: pd.DataFrame, *, kept: bool) -> Callable[[], None]:
    """One pass of the loader over a split; the decoded images are kept or not."""
    images = TrainingImages(
        split,
        augmentation=Augmentation(CROP, (0.5, 2.0), 0.5),
        seed=0,
        label_table=np.arange(256, dtype=np.uint8),
    )
    if kept:
        images.keep_decoded(2**30, threads=1)

    def work() -> None:
        stream = TrainingStream(len(split), epochs=1, batch_size=BATCH, seed=0)
        for _ in training_loader(images, stream, workers=0):
            pass

    return work
