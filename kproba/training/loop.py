"""The loop of one step, the same for every method.

    kproba-launch --processes 2 kproba.jobs.train settings.json --split ..

`settings.json` holds everything that determines the result and is itself a tracked
artifact; the other arguments are files and compute options.
"""

import json
import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pandas as pd
import torch

from kproba.data.loaders import Batch, TrainingImages, training_loader
from kproba.data.stream import OldImages, TrainingStream
from kproba.network.files import save_model
from kproba.network.network import SegmentationNetwork
from kproba.results.evaluation import step_of_class
from kproba.runtime.compute import Compute
from kproba.runtime.distributed import Process
from kproba.runtime.files import atomic_path, write_json
from kproba.runtime.provenance import fingerprint, provenance
from kproba.training.checkpoint import Checkpoint, Progress, StopFlag
from kproba.training.files import Files
from kproba.training.inputs import iterations_of_chain, read_old_images, read_split
from kproba.training.iteration import Learner, Tally, check_weights
from kproba.training.log import log_header, measure_cost
from kproba.training.networks import Networks, build_networks, networks_of_loop
from kproba.training.optimizer import autocast_type, build_optimizer, set_learning_rates
from kproba.training.recorder import Recorder, start_curves, start_monitor
from kproba.training.replay import plan_replay
from kproba.training.settings import StepSettings
from kproba.training.targets import global_counts, prepare

log = logging.getLogger("kproba")


class Stopped(Exception):
    """The training was stopped on request."""

    def __init__(self, iteration: int, iterations: int, *, saved: bool):
        state = "the state is saved" if saved else "the last state, if any, is kept"
        super().__init__(
            f"stopped at iteration {iteration} of {iterations}; {state}. Run the same "
            f"command again to continue"
        )


def train(
    settings: StepSettings,
    files: Files,
    compute: Compute,
    process: Process,
    stop: StopFlag | None = None,
) -> SegmentationNetwork:
    """Train one step and write its model, metrics and TensorBoard files.

    A step that trains nothing writes the same files (`keep_network`).
    After a kill, a second call continues from the last saved state. It writes the same
    files as a training without interruption on the same kind of machine. (Over 60
    lines, so that the whole loop can be read in one place.)

    Args:
        settings: Settings that determine the result.
        files: Inputs and outputs.
        compute: Compute options.
        process: This process of several.
        stop: Requests that the training saves its state and stops; None: never.

    Returns:
        The trained network, the same in every process.

    Raises:
        Stopped: `stop` was set; the message says if the state was saved.
        FloatingPointError: A loss is not finite; the message names the images.
    """
    if settings.method.trains_nothing:
        return keep_network(settings, files, process)
    stop = stop or StopFlag()
    split = read_split(settings, files)
    networks = build_networks(settings, files, process)
    replay = plan_replay(networks.teacher, settings, files, split, compute, process)
    networks = replace(networks, replay=replay)
    student = networks.student
    learner, checkpoint, progress = _start(settings, files, compute, process, networks)
    stream, loader = training_batches(
        split, settings, files, compute, process, progress
    )
    tally = Tally(progress)
    recorder = Recorder(settings, compute, process, progress, tally, stream.iterations)
    if process.first:
        log_header(settings, compute, process, stream, learner.precision)
        recorder.curves = start_curves(files, settings, progress)
        recorder.monitor = start_monitor(files, settings, compute)

    for iteration in range(progress.iteration, stream.iterations):
        # The loader's workers decode and augment; masks are derived here, on the CPU,
        # while the device still computes the iteration before.
        micro_batches = [next(loader) for _ in range(compute.accumulation)]
        prepared = [prepare(batch, student, settings) for batch in micro_batches]

        # Before an iteration, all processes agree on denominators, stopping and saving.
        # Otherwise one process could stop alone, and the others would wait forever.
        due = recorder.state_is_due()
        counts, stopping, saving = global_counts(prepared, stop, due, process)
        if stopping or saving:
            # A state with NaN must not be saved, because a training cannot recover from
            # it.
            tally.settle()
            check_weights(student, tally.ids)
            saved = checkpoint.save(progress, process)
            recorder.state_was_saved()
        if stopping:
            raise Stopped(iteration, stream.iterations, saved=saved)

        # The rate depends only on the iteration, so a resumed training has the same
        # rate.
        rates = set_learning_rates(
            learner.optimizer, settings.optimisation, iteration, stream.iterations
        )
        learner.iterate(iteration, prepared, counts, tally)
        recorder.record(rates, student)

    check_weights(student, tally.ids)
    cost = measure_cost(progress, settings.optimisation, process)
    if recorder.curves is not None:
        recorder.curves.close()
        write_json(files.usage, cost)
        write_outputs(student, settings, files, progress, len(split))
        checkpoint.remove()  # last: until the outputs exist, the state is needed
    return student


def keep_network(
    settings: StepSettings, files: Files, process: Process
) -> SegmentationNetwork:
    """Write the files of a step that trains nothing.

    The model is the previous network with an untrained branch for the new classes, so
    that it has the channels of the step's bank, which predicts alone.

    Args:
        settings: Settings of a step after step 0.
        files: Inputs and outputs.
        process: This process of several.

    Returns:
        The network, the same in every process.
    """
    start = time.monotonic()
    split = read_split(settings, files)
    student = build_networks(settings, files, process).student
    progress = Progress(seconds=time.monotonic() - start)
    cost = measure_cost(progress, settings.optimisation, process)
    if process.first:
        log.info("step %d trains nothing: its bank predicts alone", settings.step)
        start_curves(files, settings, progress).close()
        write_json(files.usage, cost)
        write_outputs(student, settings, files, progress, len(split))
    return student


def _start(
    settings: StepSettings,
    files: Files,
    compute: Compute,
    process: Process,
    networks: Networks,
) -> tuple[Learner, Checkpoint, Progress]:
    """Optimizer and saved state of a training, on one process or several."""
    student = networks.student
    optimizer = build_optimizer(student, settings.optimisation)
    precision = autocast_type(settings.optimisation.precision, process.device)
    kind = process.device.split(":")[0]
    scaler = torch.amp.GradScaler(kind, enabled=precision == torch.float16)
    # A state of other settings or inputs must not be resumed.
    mark = fingerprint(settings.to_dict(), *files.inputs())
    checkpoint = Checkpoint(files.state, mark, student, optimizer, scaler)
    progress = checkpoint.load(process)
    # After the state is loaded: constants are computed of the weights.
    network, networks = networks_of_loop(networks, settings, compute, process)
    learner = Learner(
        network=network,
        networks=networks,
        optimizer=optimizer,
        scaler=scaler,
        precision=precision,
        settings=settings,
        process=process,
        accumulation=compute.accumulation,
    )
    return learner, checkpoint, progress


def training_batches(
    split: pd.DataFrame,
    settings: StepSettings,
    files: Files,
    compute: Compute,
    process: Process,
    progress: Progress,
) -> tuple[TrainingStream, Iterator[Batch]]:
    """This process's part of the training stream, from the next iteration on."""
    images = TrainingImages(
        split,
        augmentation=settings.augmentation,
        seed=settings.seed,
        label_table=settings.label_map.training_table(),
        pseudo_labels=files.pseudo_labels,
        memory=read_old_images(settings, files),
    )
    old, new = None, len(images)
    if settings.memory and settings.memory.share is not None and images.old:
        old, new = OldImages(images.old, settings.memory.share), images.new
    if compute.cache_gib:
        images.keep_decoded(compute.cache_gib * 2**30, threads=max(1, compute.workers))
        log.info(
            "keeping %d of %d decoded images in memory", len(images.kept), len(images)
        )
    stream = TrainingStream(
        new,
        epochs=settings.optimisation.epochs,
        iterations=iterations_of_chain(settings, files),
        batch_size=settings.optimisation.batch_size,
        seed=settings.seed,
        rank=process.rank,
        world_size=process.world_size,
        accumulation=compute.accumulation,
        start=progress.iteration,
        old=old,
    )
    return stream, iter(training_loader(images, stream, workers=compute.workers))


def write_outputs(
    student: SegmentationNetwork,
    settings: StepSettings,
    files: Files,
    progress: Progress,
    images: int,
) -> None:
    """Write metrics.csv, then the model, and log a summary of the step as JSON."""
    rows = pd.DataFrame(progress.rows)
    if rows.empty:  # a table needs headings
        rows = pd.DataFrame(columns=["iteration", "loss"])
    with atomic_path(files.metrics) as temporary:
        rows.to_csv(temporary, index=False)
    save_model(student, files.model, about=describe_model(settings))
    summary = {
        "step": settings.run.step,
        "method": settings.run.method,
        "iterations": progress.iteration,
        "images": images,
        "seconds": round(progress.seconds, 1),
        "loss": progress.rows[-1]["loss"] if progress.rows else None,
    }
    log.info("%s", json.dumps(summary))


def describe_model(settings: StepSettings) -> dict[str, Any]:
    """Content of model.json besides the architecture."""
    labels = (0, *settings.label_map.seen)
    steps = step_of_class(settings.groups)
    classes = zip(labels, steps, strict=True)
    return {
        "classes": [
            {"index": index, "label": label, "step": step}
            for index, (label, step) in enumerate(classes)
        ],
        "settings": settings.to_dict(),
        "provenance": provenance(),
    }
