"""The statistics of the features of a step's classes, from files to a file."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from kproba.data.augmentation import Augmentation
from kproba.data.crops import crop_batches
from kproba.data.folders import Folders
from kproba.data.labels import IGNORE, LabelMap
from kproba.data.loaders import Batch
from kproba.data.splits import read_index
from kproba.jobs.batches import to_groups
from kproba.methods.replay import (
    ClassStatistics,
    FeatureSums,
    cells_of,
    count_recognised,
    next_statistics,
)
from kproba.network.folding import load_folded
from kproba.network.network import SegmentationNetwork
from kproba.runtime.compute import Compute
from kproba.runtime.distributed import Process
from kproba.runtime.provenance import fingerprint, provenance
from kproba.runtime.records import REMAKE, ArtifactError

log = logging.getLogger("kproba")


@dataclass(frozen=True)
class StatisticsFiles:
    """Inputs and output.

    Attributes:
        model: model.safetensors of step t.
        split: Images of the step.
        statistics: Output; a .json goes beside it.
        teacher: model.safetensors of step t-1; None at step 0.
        previous: Statistics of step t-1; None at step 0.
        folders: Folders of the pictures, by dataset or addition.
    """

    model: Path
    split: Path
    statistics: Path
    teacher: Path | None = None
    previous: Path | None = None
    folders: Mapping[str, Folders] = field(default_factory=dict)


def measure_step(
    files: StatisticsFiles, job: dict[str, Any], compute: Compute, process: Process
) -> None:
    """Measure the features of the classes of step t with the network of step t.

    One pass over the crops of the step's images. The statistics of the old classes are
    kept, and so is the number of background cells (`next_statistics`).

    Args:
        files: Inputs and output.
        job: `augmentation` and `seed` of the crops; `groups`, the raw labels of the
            classes of the steps 0..t; `sequential`; and from step 1 on `replay`, the
            rule "overlap" or "disjoint".
        compute: Compute options.
        process: This process of several.

    Raises:
        ArtifactError: The previous statistics do not fit. It is a ValueError.
    """
    setting = "sequential" if job["sequential"] else "overlap"
    label_map = LabelMap(to_groups(job["groups"]), setting)
    network = load_folded(files.model, device=process.device)
    teacher = None
    if files.teacher is not None:
        teacher = load_folded(files.teacher, device=process.device)
    batches = crop_batches(
        read_index(files.split, files.folders),
        label_map,
        Augmentation.from_dict(job["augmentation"]),
        job["seed"],
        compute,
        process,
        "measuring features",
    )
    statistics, recognised = _measure(batches, network, teacher, label_map, process)
    first_new = label_map.first_new
    if files.previous is not None and files.teacher is not None:
        previous = _previous(files.previous, files.teacher, network, first_new)
        statistics = next_statistics(
            previous.to(process.device),
            statistics,
            recognised,
            overlap=job["replay"] == "overlap",
        )
    if process.first:
        about = {
            "labels": [0, *label_map.seen],
            "model": fingerprint(files.model),
            "provenance": provenance(),
        }
        statistics.save(files.statistics, about=about)
        log.info(
            "measured the features of %d new classes and wrote %s",
            label_map.channels - first_new,
            files.statistics,
        )


@torch.inference_mode()
def _measure(
    batches: Iterable[Batch],
    network: SegmentationNetwork,
    teacher: SegmentationNetwork | None,
    label_map: LabelMap,
    process: Process,
) -> tuple[ClassStatistics, torch.Tensor]:
    """Statistics of the new classes, and the cells of old ones that the teacher sees.

    Both are over the images of all processes.
    """
    first_new = label_map.first_new
    new_classes = label_map.channels - first_new
    channels = network.architecture.aspp_channels
    sums = FeatureSums(new_classes, channels, process.device)
    recognised = torch.zeros(first_new, dtype=torch.float64, device=process.device)
    for batch in batches:
        images = batch.images.to(process.device, non_blocking=True)
        targets = batch.targets.to(process.device, non_blocking=True)
        features, labels = cells_of(network(images), targets)
        known = (labels == 0) | ((labels >= first_new) & (labels != IGNORE))
        labels = (labels[known] - first_new + 1).clamp(min=0)
        sums.add(features[known], labels)
        if teacher is not None:
            recognised += count_recognised(teacher(images), targets, first_new)
    process.add_up(recognised)
    return sums.statistics(process), recognised


def _previous(
    path: Path, teacher: Path, network: SegmentationNetwork, first_new: int
) -> ClassStatistics:
    """The statistics of step t-1.

    Raises:
        ArtifactError: They have other classes or features.
    """
    previous = ClassStatistics.load(path, model=teacher)
    expected = (first_new - 1, network.architecture.aspp_channels)
    if previous.mean.shape != expected:
        raise ArtifactError(
            f"Expected {path} to hold {expected[0]} classes with {expected[1]} "
            f"features, as the previous step has, but it holds "
            f"{' x '.join(map(str, previous.mean.shape))}. {REMAKE}"
        )
    return previous
