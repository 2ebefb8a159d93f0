"""Invented results of realistic size: files as the jobs of an experiment leave them.

Numbers are made by a rule and by noise of a fixed seed; nothing was trained. Pictures
are noise of the size of VOC, masks are blobs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from kproba.data.index import index_dataset
from kproba.data.label_images import write_label_image
from kproba.methods.quality import quality_table
from kproba.plan.results import StepResult
from kproba.results.experiment import Experiment
from kproba.results.measures import ClassScores, step_measures
from kproba.runtime.files import write_json

VOC = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car"),
    *("cat", "chair", "cow", "diningtable", "dog", "horse", "motorbike", "person"),
    *("pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
SIX = ("kproba", "barm", "mib", "plop", "finetune", "joint")
# Share of a class that is kept in each later step, and quality of new classes.
KEEPS = {"kproba": 0.985, "barm": 0.96, "plop": 0.93, "mib": 0.88, "finetune": 0.1}
TERMS = {
    **{"kproba": ("bce", "bga_ce", "bga_t", "gkd", "bfd")},
    **{"barm": ("bce", "bga_ce", "bga_t", "gkd", "bfd")},
    **{"mib": ("unbiased_ce", "unbiased_kd"), "plop": ("certain_ce", "pod")},
}
IMAGES = 4  # validation images with predictions


@dataclass(frozen=True)
class Invented:
    """An invented experiment.

    Attributes:
        results: All steps of all runs.
        experiment: What the page is told of it.
    """

    results: list[StepResult]
    experiment: Experiment


def invent(
    folder: Path,
    methods: Sequence[str] = SIX,
    seeds: Sequence[int] = (0, 1, 2),
    *,
    sizes: Sequence[int] = (15, 1, 1, 1, 1, 1),
    names: Sequence[str] = VOC,
    size: tuple[int, int] = (375, 500),
    kind: str = "voc",
) -> Invented:
    """Write the files of an experiment.

    Args:
        folder: Where.
        methods: Names; "joint" has the last step alone.
        seeds: Of every method.
        sizes: Classes of each step.
        names: Class names, background first.
        size: Height and width of the pictures.
        kind: Kind of the dataset.
    """
    rng = np.random.default_rng(0)
    ends = np.cumsum(sizes)
    groups = tuple(
        tuple(range(int(end - count) + 1, int(end) + 1))
        for end, count in zip(ends, sizes, strict=True)
    )
    index = _write_dataset(folder, names, size, rng)
    task = f"{sizes[0]}-{sizes[1]}" if len(sizes) > 1 else str(sizes[0])
    results = []
    for method in methods:
        for seed in seeds:
            steps = [len(sizes) - 1] if method == "joint" else range(len(sizes))
            for step in steps:
                place = folder / method / str(seed) / str(step)
                result = _write_step(place, method, seed, step, groups, names, size)
                result = replace(result, task=task, dataset=kind, images=str(index))
                if method in ("kproba", "plop") and step:
                    result = _write_labels(result, place, groups, names, index, size)
                results.append(result)
    about = {"dataset": kind, "kind": kind, "task": task, "setting": "overlap"}
    shown = Experiment(**about, groups=groups, names=names, indices=[str(index)])
    return Invented(results, shown)


def _write_dataset(
    folder: Path, names: Sequence[str], size: tuple[int, int], rng: np.random.Generator
) -> Path:
    data = folder / "dataset"
    for subset, count in (("train", 3), ("val", IMAGES)):
        for kind in ("images", "masks"):
            (data / kind / subset).mkdir(parents=True)
        for number in range(count):
            name = f"{subset}_{number:06d}"
            noise = rng.integers(0, 256, (size[0] // 16, size[1] // 16, 3), np.uint8)
            image = Image.fromarray(noise).resize(size[::-1], Image.Resampling.BICUBIC)
            image.save(data / "images" / subset / f"{name}.jpg")
            blobs = draw_blobs(size, len(names), rng)
            write_label_image(data / "masks" / subset / f"{name}.png", blobs)
    (data / "classes.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    index = folder / "index.csv"
    index_dataset(
        index,
        folder / "index.json",
        kind="folder",
        folder=str(data),
        class_count=len(names) - 1,
    )
    return index


def draw_blobs(
    size: tuple[int, int], classes: int, rng: np.random.Generator
) -> np.ndarray:
    """Labels (H, W) uint8: blobs of three classes on background."""
    labels = np.zeros(size, np.uint8)
    for label in rng.integers(0, classes, 3):
        coarse = rng.integers(0, 256, (5, 6), np.uint8)
        smooth = Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC)
        labels[np.asarray(smooth) > 170] = label
    return labels


def _invent_confusion(
    method: str, seed: int, step: int, steps: Sequence[int]
) -> np.ndarray:
    """Counts of pixels (C, C), true classes in rows."""
    rng = np.random.default_rng([seed, step, *map(ord, method)])
    classes = len(steps)
    easy = np.random.default_rng(classes).uniform(0.7, 0.95, 512)[:classes]
    keeps = KEEPS.get(method, rng.uniform(0.5, 0.97))
    age = step - np.array(steps)
    hit = easy * (1.0 if method == "joint" else keeps**age)
    hit = np.clip(hit + rng.normal(0, 0.02, classes), 0, 0.98)
    hit[0] = 0.93
    wrong = rng.exponential(1, (classes, classes)) ** 2
    wrong[:, 0] *= 8
    np.fill_diagonal(wrong, 0)
    wrong *= (1 - hit)[:, None] / wrong.sum(1, keepdims=True)
    pixels = np.full(classes, 2e5)
    pixels[0] = 4e6
    counts: np.ndarray = ((wrong + np.diag(hit)) * pixels[:, None]).astype(np.int64)
    return counts


def _write_step(
    place: Path,
    method: str,
    seed: int,
    step: int,
    groups: Sequence[Sequence[int]],
    names: Sequence[str],
    size: tuple[int, int],
) -> StepResult:
    (place / "examples").mkdir(parents=True)
    steps = [0, *(s for s, group in enumerate(groups) for _ in group if s <= step)]
    seen = names[: len(steps)]
    counts = _invent_confusion(method, seed, step, steps)
    scores = ClassScores.from_confusion(counts, steps, "ssul")
    table = pd.DataFrame(counts, list(seen), list(seen))
    table.to_csv(place / "confusion.csv", index_label="true \\ predicted")
    means = {m.name: m.compute(scores) for m in step_measures()}
    write_json(
        place / "evaluation.json",
        {
            **{
                name: None if np.isnan(value) else value
                for name, value in means.items()
            },
            "protocol": {"policy": "ssul", "crop": 513, "checkpoint": "last"},
            "prediction": "fused (lda)" if method == "kproba" else "network",
            "images": 1449,
            "classes": [
                {"index": k, "name": name, "step": s, "iou": float(iou), "pixels": 9}
                for k, (name, s, iou) in enumerate(
                    zip(seen, steps, scores.iou, strict=True)
                )
            ],
        },
    )
    rng = np.random.default_rng([seed, step])
    for number in range(IMAGES if seed == 0 else 0):
        blobs = draw_blobs(size, len(seen), rng)
        write_label_image(place / "examples" / f"val_{number:06d}.png", blobs)
    _write_training(place, method, step)
    return StepResult(
        **{"dataset": "", "task": "", "setting": "overlap", "method": method},
        **{"seed": seed, "step": step, "folder": str(place)},
        evaluation=str(place / "evaluation.json"),
        confusion=str(place / "confusion.csv"),
        examples=str(place / "examples"),
        model=str(place / "model.safetensors"),
        metrics=str(place / "metrics.csv"),
        usage=str(place / "usage.json"),
        times={"training": str(place / "train.benchmark.tsv")},
        settings=str(place / "settings.json"),
        joint=method == "joint",
    )


def _write_training(place: Path, method: str, step: int) -> None:
    """What a training leaves behind."""
    rng = np.random.default_rng([step, *map(ord, method)])
    iterations = np.arange(10, 3000 if step == 0 else 700, 10)
    terms = {
        term: np.exp(-iterations / 600) + 0.1 + rng.normal(0, 0.02, len(iterations))
        for term in (TERMS.get(method, ("bce",)) if step else ("bce",))
    }
    table = pd.DataFrame({"iteration": iterations, **terms})
    table.insert(1, "loss", table[list(terms)].sum(axis=1))
    table.assign(lr_backbone=0.01).to_csv(place / "metrics.csv", index=False)
    seconds = 9000 if step == 0 else 700
    (place / "train.benchmark.tsv").write_text(f"s\tmax_rss\n{seconds}\t4096\n")
    (place / "model.safetensors").write_bytes(bytes(1000 + step))
    versions = {"kproba": "0.1.0", "commit": "0123456789abcdef", "torch": "2.6.0"}
    model = {"architecture": {"backbone": "resnet101"}, "provenance": versions}
    write_json(place / "model.json", model)
    usage = {"device": "NVIDIA H100", "processes": 2, "peak_memory_bytes": 11 * 10**9}
    usage |= {"images_per_second": 55.5, "seconds": float(seconds)}
    write_json(place / "usage.json", usage)
    optimisation = {"epochs": 50 if step == 0 else 20, "batch_size": 16}
    run = {"method": "base" if step == 0 else method, "step": step}
    write_json(place / "settings.json", {"run": run, "optimisation": optimisation})


def _write_labels(
    result: StepResult,
    place: Path,
    groups: Sequence[Sequence[int]],
    names: Sequence[str],
    index: Path,
    size: tuple[int, int],
) -> StepResult:
    """Pseudo labels of the training images, and how good they are."""
    table = pd.read_csv(index, dtype=str, keep_default_na=False)
    split, labels = index.with_name(f"split{result.step}.csv"), place / "labels"
    table[table["subset"] == "train"].to_csv(split, index=False)
    old = 1 + sum(len(group) for group in groups[: result.step])
    rng = np.random.default_rng(result.step)
    counts = torch.from_numpy(rng.integers(0, 50, (old + 1, old + 1)))
    counts += torch.diag(torch.full((old + 1,), 2000))
    quality = place / "quality.csv"
    quality_table(counts, range(old), names[:old]).to_csv(quality, index=False)
    labels.mkdir()
    if result.seed == 0:
        for name in table["id"][table["subset"] == "train"]:
            write_label_image(labels / f"{name}.png", draw_blobs(size, old, rng))
    return replace(result, labels=str(labels), quality=str(quality), split=str(split))
