"""Counts what the images of a step show of old classes, and plans their replay."""

from collections.abc import Iterator

import pandas as pd
import torch

from kproba.data.crops import crop_batches
from kproba.methods.replay import (
    ClassStatistics,
    Replay,
    count_recognised,
    total_recognised,
)
from kproba.network.network import SegmentationNetwork
from kproba.runtime.compute import Compute
from kproba.runtime.distributed import Process
from kproba.training.files import Files
from kproba.training.settings import StepSettings


def recognised_cells(
    teacher: SegmentationNetwork,
    settings: StepSettings,
    split: pd.DataFrame,
    compute: Compute,
    process: Process,
) -> torch.Tensor:
    """n̂: cells with label 0 by the class that the previous network sees.

    One pass over the step's images, with the crops of the training.

    Args:
        teacher: Network of step t-1, in evaluation mode.
        settings: Settings of step t.
        split: Images of step t.
        compute: Compute options.
        process: This process of several.

    Returns:
        (|S_{t-1}|,) float64, n̂_0 first, the same in every process.
    """
    batches = crop_batches(
        split,
        settings.label_map,
        settings.augmentation,
        settings.seed,
        compute,
        process,
        "counting old classes",
    )

    @torch.inference_mode()
    def counts() -> Iterator[torch.Tensor]:
        for batch in batches:
            images = batch.images.to(process.device, non_blocking=True)
            targets = batch.targets.to(process.device, non_blocking=True)
            yield count_recognised(teacher(images), targets, teacher.channels)

    return total_recognised(counts(), teacher.channels, process.device, process)


def plan_replay(
    teacher: SegmentationNetwork | None,
    settings: StepSettings,
    files: Files,
    split: pd.DataFrame,
    compute: Compute,
    process: Process,
) -> Replay | None:
    """The replay of a step; None if no term of its method needs one.

    A resumed training computes the same counts again.

    Raises:
        ValueError: There are no statistics of the old classes, or no teacher.
    """
    if settings.replay is None:
        return None
    if files.statistics is None or files.previous is None or teacher is None:
        raise ValueError(
            "Expected the statistics and the model of the previous step for a step "
            "that replays features, but got none. Name them with --statistics and "
            "--previous."
        )
    statistics = ClassStatistics.load(files.statistics, model=files.previous)
    recognised = recognised_cells(teacher, settings, split, compute, process)
    return Replay.plan(
        statistics.to(process.device),
        recognised,
        new_classes=len(settings.groups[-1]),
        iterations=len(split) / settings.optimisation.batch_size,
        overlap=settings.replay == "overlap",
        seed=settings.seed,
        step=settings.step,
    )
