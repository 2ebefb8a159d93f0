"""TODO training.log."""

import logging
import platform
import resource
from datetime import timedelta
from typing import Any

import torch

from kproba.runtime.distributed import Process
from kproba.runtime.logs import PROGRESS
from kproba.training.checkpoint import Progress
from kproba.training.settings import Means, Optimisation, StepSettings

log = logging.getLogger("kproba")


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
