"""The loop of one step, the same for every method.

    kproba-launch --processes 2 kproba.jobs.train settings.json --split ..

`settings.json` holds everything that determines the result and is itself a tracked
artifact; the other arguments are files and the machine's means (threads, workers).
"""

import json
import logging
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pandas as pd
import torch

from kproba.data.loaders import Batch, TrainingImages, TrainingStream, training_loader
from kproba.data.splits import read_index
from kproba.network.files import save_model
from kproba.network.network import SegmentationNetwork
from kproba.runtime.distributed import Process
from kproba.runtime.files import atomic_path, write_json
from kproba.runtime.provenance import fingerprint, provenance
from kproba.training.checkpoint import Checkpoint, Progress, StopFlag
from kproba.training.curves import Curves
from kproba.training.iteration import Descent, Tally, check_weights
from kproba.training.log import log_header, log_progress, used
from kproba.training.monitor import Monitor
from kproba.training.networks import build_networks, guide_of, wrap
from kproba.training.optimizer import autocast_type, build_optimizer, set_learning_rates
from kproba.training.settings import Files, Means, StepSettings
from kproba.training.targets import global_counts, prepare

log = logging.getLogger("kproba")

ROWS = 50  # of metrics.csv and TensorBoard per step


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
