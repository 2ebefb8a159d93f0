"""Log lines and cost of a training."""

import logging
import platform
import resource
from datetime import timedelta
from typing import Any

import torch

from kproba.data.loaders import TrainingStream
from kproba.runtime.compute import Compute
from kproba.runtime.distributed import Process
from kproba.runtime.logs import PROGRESS
from kproba.training.checkpoint import Progress
from kproba.training.settings import Optimisation, StepSettings

log = logging.getLogger("kproba")


def measure_cost(
    progress: Progress, optimisation: Optimisation, process: Process
) -> dict[str, Any]:
    """Cost of a training so far; all processes call this.

    Returns:
        device; processes; seconds, over all restarts; images_per_second, if there was
        an iteration; and the largest peak_memory_bytes of a process since the last
        start: the memory that PyTorch reserved on the GPU, or the resident set on the
        CPU.
    """
    if process.device == "cpu":
        device = "CPU"
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    else:
        device = torch.cuda.get_device_name()
        peak = torch.cuda.max_memory_reserved()
    images = progress.iteration * optimisation.batch_size
    speed = round(images / max(progress.seconds, 1e-9), 2)
    return {
        "device": device,
        "processes": process.world_size,
        "seconds": round(progress.seconds, 3),
        **({"images_per_second": speed} if images else {}),
        "peak_memory_bytes": max(process.gather(peak)),
    }


def log_header(
    settings: StepSettings,
    compute: Compute,
    process: Process,
    stream: TrainingStream,
    precision: torch.dtype,
) -> None:
    """Log the run, the device and the settings of a training."""
    optimisation = settings.optimisation
    per_process = optimisation.batch_size // (process.world_size * compute.accumulation)
    log.info(
        "%s %s-%s, %s, seed %d, step %d: labels %s",
        settings.run.dataset,
        settings.run.task,
        settings.run.setting,
        settings.run.method,
        settings.run.seed,
        settings.run.step,
        ", ".join(map(str, settings.groups[-1])),
    )
    log.info(
        "on %s: %s, %s, torch %s, %d thread(s) and %d loader worker(s) per process",
        platform.node(),
        torch.cuda.get_device_name() if process.device != "cpu" else "CPU",
        str(precision).removeprefix("torch."),
        torch.__version__,
        torch.get_num_threads(),
        compute.workers,
    )
    new_places = optimisation.batch_size - stream.old_places
    if stream.old_places:
        log.info(
            "%d of %d places of a batch are of %d old images",
            stream.old_places,
            optimisation.batch_size,
            stream.old_images,
        )
    log.info(
        "%d images, %g epochs, %d iterations of %d = %d process(es) x %d "
        "micro-batch(es) x %d images",
        stream.images,
        optimisation.epochs
        if optimisation.by_epochs
        else stream.iterations * new_places / stream.images,
        stream.iterations,
        optimisation.batch_size,
        process.world_size,
        compute.accumulation,
        per_process,
    )
    log.info(
        "batch norm: %s", describe_batch_norm(settings, compute, process, per_process)
    )


def describe_batch_norm(
    settings: StepSettings, compute: Compute, process: Process, micro_batch: int
) -> str:
    """Describe which images the statistics of the batch norms come from."""
    if settings.step > 0:
        return "frozen"
    text = f"statistics of {micro_batch * process.world_size} images"
    if process.world_size > 1:
        kind = "gloo" if process.device == "cpu" else "SyncBatchNorm"
        text += f", synchronised over {process.world_size} processes ({kind})"
    if compute.accumulation > 1:
        text += f", separately for each of {compute.accumulation} micro-batches"
    return text


def log_progress(
    progress: Progress,
    terms: dict[str, float],
    rates: dict[str, float],
    optimisation: Optimisation,
    iterations: int,
    speed: float,
) -> None:
    """Log one line: position, every term, learning rate, images/s, time left."""
    place = f"iteration {progress.iteration}/{iterations}"
    if optimisation.by_epochs:
        done = optimisation.epochs * progress.iteration / iterations
        place = f"epoch {done:.1f}/{optimisation.epochs:g}, {place}"
    left = (iterations - progress.iteration) * optimisation.batch_size / speed
    log.info(
        "%s: %s, lr %.2e, %.1f images/s, %s left",
        place,
        " ".join(f"{name} {value:.4g}" for name, value in terms.items()),
        rates.get("lr_branch", max(rates.values())),
        speed,
        timedelta(seconds=round(left)),
        extra=PROGRESS,
    )
