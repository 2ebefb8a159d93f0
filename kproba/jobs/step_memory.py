"""The memory of old images after a step, from files to files."""

import logging
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from kproba.data.folders import Folders
from kproba.data.label_images import read_label_image, write_label_image
from kproba.data.labels import IGNORE, LabelMap
from kproba.data.memory import (
    KNOWN,
    SEEN,
    add_known,
    check_memory,
    choose_images,
    describe_labels,
    read_memory,
)
from kproba.data.memory_rules import MEMORY_RULES, TRUE_LABELS
from kproba.data.splits import parse_classes, read_index, write_rows
from kproba.jobs.batches import image_batches, to_groups
from kproba.methods.labels import Labeller, LabelSettings
from kproba.network.folding import load_folded
from kproba.network.record import read_model_record
from kproba.runtime.compute import Compute
from kproba.runtime.distributed import Process
from kproba.runtime.files import atomic_directory, write_json
from kproba.runtime.provenance import provenance
from kproba.runtime.records import REMAKE, ArtifactError

log = logging.getLogger("kproba")

Found = dict[str, frozenset[int]]  # values of label images, by id


@dataclass(frozen=True)
class MemoryFiles:
    """Inputs and outputs.

    Attributes:
        split: Images of step t.
        table, record: Outputs, memory.csv and memory.json.
        labels: Output, a folder with one label image per image in memory.
        model: model.safetensors of step t, if older classes must be recognised.
        previous: memory.csv after step t-1; None at step 0.
        previous_labels: Its label images.
        folders: Folders of the pictures, by dataset or addition.
    """

    split: Path
    table: Path
    record: Path
    labels: Path
    model: Path | None = None
    previous: Path | None = None
    previous_labels: Path | None = None
    folders: Mapping[str, Folders] = field(default_factory=dict)


@dataclass(frozen=True)
class MemoryJob:
    """Everything that determines a memory, besides its files.

    Attributes:
        images: Number of images for all classes together.
        rule: One of `kproba.data.memory_rules.MEMORY_RULES`.
        label_map: Raw labels to the targets of step t.
        shown: Raw labels that targets may show, in output order: S_t, and for
            "true_labels" the classes of step t+1 too.
        seed: Seed of the choice.
        threshold: Smallest probability of a recognised class; None without a model.
    """

    images: int
    rule: str
    label_map: LabelMap
    shown: tuple[int, ...]
    seed: int
    threshold: float | None = None

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "MemoryJob":
        """From the settings of a job (`kproba.plan.chain.Chain.memory`)."""
        setting = "sequential" if content["sequential"] else "overlap"
        label_map = LabelMap(to_groups(content["groups"]), setting)
        shown = LabelMap(to_groups(content.get("shown", content["groups"]))).seen
        names = ("images", "rule", "seed", "threshold")
        more = {name: content[name] for name in names if name in content}
        return cls(**more, label_map=label_map, shown=shown)

    @property
    def step(self) -> int:
        """T."""
        return len(self.label_map.groups) - 1

    def table(self) -> np.ndarray:
        """Look-up table (256,) uint8 from raw label to target."""
        if self.rule == TRUE_LABELS:
            return LabelMap((self.shown,)).evaluation_table(unseen=0)
        return self.label_map.training_table()


def update_memory(
    files: MemoryFiles, job: dict[str, Any], compute: Compute, process: Process
) -> None:
    """Write the memory after step t, from the images of step t and the memory before.

    With the rule "known", an image has the labels of the steps in which it was seen.
    Where they are background, it has the classes of S_{t-1} that the model of step t
    recognises with a probability of at least `threshold`. So no label is later than
    the step in which the image was seen last. With "true_labels" every image is
    labelled again from its mask at every step.

    Args:
        files: Inputs and outputs.
        job: Settings of the job; see `MemoryJob`.
        compute: Compute options.
        process: This process of several.

    Raises:
        ArtifactError: The model or the memory before is of another step or task.
    """
    settings = MemoryJob.from_dict(job)
    labeller = _labeller(files, settings, process)
    rows = read_index(files.split, files.folders)
    rows[SEEN], rows[KNOWN] = settings.step, ""
    earlier = _read_previous(files, settings, files.folders)
    relative = _with_earlier(
        read_index(files.split), _read_previous(files, settings, None)
    )
    every = _with_earlier(rows, earlier)
    work = _Targets(files, settings, compute, process, earlier)
    with atomic_directory(files.labels, process) as temporary:
        found: Found = {}
        if labeller is not None:  # which classes an image holds is not known before
            found = work.write(rows, temporary, labeller)
        held = _held_classes(every, earlier, found, settings)
        chosen = choose_images(
            held, settings.images, seed=settings.seed, step=settings.step
        )
        left = every[every["id"].isin(set(chosen) - found.keys())]
        if settings.rule != TRUE_LABELS:  # their labels stay as they are
            kept = left[left[SEEN] < settings.step]
            found |= work.copy(kept, temporary)
            left = left[left[SEEN] == settings.step]
        found |= work.write(left, temporary)
        process.wait()
        if process.first:
            for name in found.keys() - set(chosen):
                (temporary / f"{name}.png").unlink()
    if process.first:
        relative[SEEN] = every[SEEN]  # both have the same order
        _write_tables(relative[relative["id"].isin(chosen)], files, settings, found)


def _read_previous(
    files: MemoryFiles, settings: MemoryJob, folders: Mapping[str, Folders] | None
) -> pd.DataFrame | None:
    """The table of the memory before; None at step 0."""
    if files.previous is None:
        return None
    check_memory(files.previous, step=settings.step - 1, seen=settings.label_map.seen)
    return read_memory(files.previous, folders)


def _with_earlier(rows: pd.DataFrame, earlier: pd.DataFrame | None) -> pd.DataFrame:
    """The images of the step, and those that only the memory before has."""
    if earlier is None:
        return rows
    others = earlier[~earlier["id"].isin(rows["id"])]
    return pd.concat([rows, others], ignore_index=True)


def _labeller(
    files: MemoryFiles, settings: MemoryJob, process: Process
) -> Labeller | None:
    """The network of step t, if the rule must recognise older classes."""
    if files.model is None or settings.threshold is None:
        return None
    if not read_model_record(files.model).has_labels([0, *settings.label_map.seen]):
        raise ArtifactError(
            f"Expected {files.model} to be the model of step {settings.step} with the "
            f"labels {describe_labels([0, *settings.label_map.seen])}, but it has "
            f"others. It belongs to another step or task. {REMAKE}"
        )
    network = load_folded(files.model, device=process.device)
    return Labeller(network, LabelSettings("confidence", settings.threshold))


def _held_classes(
    every: pd.DataFrame,
    earlier: pd.DataFrame | None,
    found: Found,
    settings: MemoryJob,
) -> Found:
    """The raw labels of the classes that each candidate is known to hold.

    Args:
        every: The candidates.
        earlier: The memory before.
        found: Values of the label images that the model gave.
        settings: Of the job.
    """
    before: Found = {}
    if earlier is not None:
        pairs = zip(earlier["id"], earlier[KNOWN], strict=True)
        before = {name: parse_classes(cell) for name, cell in pairs}
    seen = frozenset(settings.label_map.seen)
    held = {}
    columns = (every["id"], every["classes"], every[SEEN])
    for name, cell, step in zip(*columns, strict=True):
        if name in found:
            held[name] = _to_raw(found[name], settings) - {0, IGNORE}
            continue
        held[name] = before.get(name, frozenset())
        if step == settings.step:  # without a model, all of S_t is labelled here
            held[name] |= parse_classes(cell) & seen
    return held


def _to_raw(values: frozenset[int], settings: MemoryJob) -> frozenset[int]:
    """Raw labels of targets."""
    raw = (0, *settings.shown)
    return frozenset(IGNORE if value == IGNORE else raw[value] for value in values)


@dataclass(frozen=True)
class _Targets:
    """Writes label images of the memory; several processes share the work.

    Attributes:
        files, settings, compute, process: As in `update_memory`.
        earlier: The memory before.
    """

    files: MemoryFiles
    settings: MemoryJob
    compute: Compute
    process: Process
    earlier: pd.DataFrame | None

    def copy(self, rows: pd.DataFrame, folder: Path) -> Found:
        """Copy label images of the memory before; returns their values."""
        found: Found = {}
        for name in rows["id"]:
            source = self._previous_image(name)
            if self.process.first:
                shutil.copyfile(source, folder / source.name)
            found[name] = _values(read_label_image(source))
        return found

    def write(
        self, rows: pd.DataFrame, folder: Path, labeller: Labeller | None = None
    ) -> Found:
        """Write the label image of every row; returns the values of all of them.

        Args:
            rows: With the files of pictures and masks.
            folder: Gets the label images.
            labeller: Recognises older classes in the background; None: nothing does.
        """
        if rows.empty:
            return {}
        to_target = torch.from_numpy(self.settings.table())
        raw, process = np.arange(256, dtype=np.uint8), self.process
        anchor = None if labeller is None else labeller.network.backbone.anchor
        again = set() if self.earlier is None else set(self.earlier["id"])
        if self.settings.rule == TRUE_LABELS:
            again = set()  # the masks say everything
        found: Found = {}
        for batch in image_batches(
            rows, raw, self.compute, process, "labelling the memory", anchor
        ):
            targets = to_target[batch.targets.int()]
            recognised = torch.zeros_like(targets)
            if labeller is not None:
                where = (targets == 0).to(process.device, non_blocking=True)
                images = batch.images.to(process.device, non_blocking=True)
                recognised = labeller.label(images, where, batch.sizes).cpu()
                # A pixel without a label shows no new class, whatever the model says.
                new = recognised >= self.settings.label_map.first_new
                recognised = recognised.masked_fill(new, 0)
            for name, place in zip(batch.ids, batch.places, strict=True):
                target = targets[place][0].numpy()
                if name in again:
                    known = read_label_image(self._previous_image(name))
                    target = add_known(target, known)
                target = np.where(target == 0, recognised[place][0].numpy(), target)
                write_label_image(folder / f"{name}.png", target)
                found[name] = _values(target)
        for part in process.gather(found):
            found.update(part)
        return found

    def _previous_image(self, name: str) -> Path:
        if self.files.previous_labels is None:
            raise ValueError(
                "Expected the label images of the memory before, but got none. Name "
                "their folder with --previous-labels."
            )
        return self.files.previous_labels / f"{name}.png"


def _values(target: np.ndarray) -> frozenset[int]:
    return frozenset(np.unique(target).tolist())


def _write_tables(
    rows: pd.DataFrame, files: MemoryFiles, settings: MemoryJob, found: Found
) -> None:
    """Write memory.json, then memory.csv, and log a summary."""
    raw = [_to_raw(found[name], settings) for name in rows["id"]]
    known = [labels - {0, IGNORE} for labels in raw]
    rows = rows.assign(
        # Not what the mask holds: only what the memory knows.
        classes=[describe_labels(labels) for labels in raw],
        **{KNOWN: [describe_labels(labels) for labels in known]},
    ).sort_values("id", ignore_index=True)
    counts = Counter(label for labels in known for label in labels)
    leaks = MEMORY_RULES[settings.rule].leaks
    content = {
        "step": settings.step,
        "rule": settings.rule,
        "leaks": leaks,
        "images": len(rows),
        "labels": [0, *settings.shown],
        "images_of_label": {label: counts[label] for label in settings.shown},
        "provenance": provenance(),
    }
    if settings.threshold is not None:
        content["threshold"] = settings.threshold
    write_json(files.record, content)
    write_rows(rows, files.table)
    log.info(
        "wrote %d images, %d of them of earlier steps, to %s",
        len(rows),
        (rows[SEEN] < settings.step).sum(),
        files.table,
    )
    if leaks:
        log.warning(
            "the memory in %s leaks: its rule '%s' gives old images labels of classes "
            "that came later, which nobody gave them. Compare its results only with "
            "methods of the same rule",
            files.table,
            settings.rule,
        )
