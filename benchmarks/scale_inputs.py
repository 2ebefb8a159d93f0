"""Made-up inputs of `benchmarks.scale`: indices, configurations, results of runs.

They have the form that the workflow writes; no network is trained for them.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from PIL import Image

from benchmarks.measuring import ROOT

SCHEMA = ROOT / "workflow" / "schemas" / "config.schema.yaml"
CONFIG = "config.yaml"
DATASET = "made_up"
SIDE = 48  # pixels of the few pictures that results show
HIGHEST = 254  # of the labels that a mask can hold; the classes end at 253
SHOWN = 3  # classes of a picture in an index


def labels_of(numbers: Iterable[int], classes: int) -> Iterator[list[int]]:
    """Raw labels of pictures by their number: background, a few classes, 255."""
    for number in numbers:
        shown = {1 + (number + 7 * k * k) % classes for k in range(SHOWN)}
        yield [0, *sorted(shown), 255]


def write_index(folder: Path, images: int, classes: int = 20) -> None:
    """Write index.csv with a row per picture; a tenth is for validation.

    Args:
        folder: Gets the file.
        images: Number of rows.
        classes: Number of classes; the raw labels are 1 to `classes`.
    """
    numbers = range(images)
    val = [number % 10 == 0 for number in numbers]
    subsets = ["val" if held_out else "train" for held_out in val]
    ids = [f"picture_{number:08d}" for number in numbers]
    digests = [hashlib.sha256(name.encode()).hexdigest() for name in ids]
    table = {
        "id": ids,
        "dataset": DATASET,
        "image": [f"images/{s}/{i}.jpg" for s, i in zip(subsets, ids, strict=True)],
        "mask": [f"masks/{s}/{i}.png" for s, i in zip(subsets, ids, strict=True)],
        "width": 500,
        "height": 375,
        "subset": subsets,
        "classes": [" ".join(map(str, one)) for one in labels_of(numbers, classes)],
        "image_sha256": [digest[:16] for digest in digests],
        "mask_sha256": [digest[16:32] for digest in digests],
    }
    pd.DataFrame(table).to_csv(folder / "index.csv", index=False)


def write_files_record(folder: Path, images: int) -> None:
    """Write files.json, with two files per picture, as `prepare_dataset` does."""
    from kproba.runtime.files import write_json

    entries = {
        f"{what}/train/picture_{number:08d}.{ending}": [
            60_000 + number,
            1_700_000_000_000_000_000 + number,
            hashlib.sha256(f"{what}{number}".encode()).hexdigest()[:16],
        ]
        for what, ending in (("images", "jpg"), ("masks", "png"))
        for number in range(images)
    }
    write_json(folder / "files.json", {"state": "f" * 64, "files": entries})


def write_empty_pictures(folder: Path, images: int, suffix: str = "") -> None:
    """Write empty files with the names of pictures and masks.

    Args:
        folder: Gets images/ and masks/, each with `train`.
        images: Number of pictures.
        suffix: What masks have after the name of their picture. One mask has another
            name, so that there are no pairs.
    """
    for what, ending in (("images", ".jpg"), ("masks", f"{suffix}.png")):
        place = folder / what / "train"
        place.mkdir(parents=True)
        for number in range(1, images + 1):
            (place / f"{number}{ending}").touch()
    if suffix:
        (folder / "masks" / "train" / f"1{suffix}.png").rename(
            folder / "masks" / "train" / "other.png"
        )


def write_pictures(
    folder: Path, train: int, val: int, classes: int, side: int = SIDE
) -> None:
    """Write real pictures with masks, and classes.txt: a dataset of the kind folder.

    Every mask holds all classes, as far as its pixels are enough.

    Args:
        folder: Gets the dataset.
        train: Number of training pictures.
        val: Number of validation pictures.
        classes: Number of classes.
        side: Width and height of the pictures in pixels.
    """
    from kproba.data.label_images import write_label_image

    generator = np.random.default_rng(0)
    for subset, count in (("train", train), ("val", val)):
        for what in ("images", "masks"):
            (folder / what / subset).mkdir(parents=True)
        for number in range(count):
            name = f"{subset}{number:06d}"
            coarse = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            picture = Image.fromarray(coarse).resize((side, side))
            picture.save(folder / "images" / subset / f"{name}.jpg", quality=90)
            labels = np.arange(side * side).reshape(side, side) % (classes + 1)
            write_label_image(folder / "masks" / subset / f"{name}.png", labels)
    names = [f"class {number}" for number in range(1, classes + 1)]
    text = "\n".join(["background", *names]) + "\n"
    (folder / "classes.txt").write_text(text, encoding="utf-8")


def write_config(
    folder: Path,
    *,
    classes: int,
    groups: Sequence[Sequence[int]],
    methods: Sequence[str],
    seeds: int,
    pictures: tuple[int, int] = (4, 2),
) -> None:
    """Write a configuration of one experiment, and its dataset.

    Args:
        folder: Gets config.yaml and pictures/.
        classes: Number of classes of the dataset.
        groups: Raw labels of every step.
        methods: Names of methods.
        seeds: Number of seeds.
        pictures: Number of training and validation pictures.
    """
    write_pictures(folder / "pictures", *pictures, classes)
    optimisation = {
        "epochs": 1,
        "batch_size": 4,
        "optimizer": "adamw",
        "learning_rate": {"backbone": 0.001, "aspp": 0.003, "branch": 0.003},
    }
    rates = {**optimisation["learning_rate"], "old_branches": 0.001}  # type: ignore
    config = {
        "datasets": {DATASET: {"kind": "folder", "path": "pictures"}},
        "tasks": {"grow": [list(group) for group in groups]},
        "experiments": [
            {
                "dataset": DATASET,
                "task": "grow",
                "methods": list(methods),
                "seeds": list(range(seeds)),
            }
        ],
        "base": optimisation,
        "increment": {**optimisation, "learning_rate": rates},
    }
    (folder / CONFIG).write_text(yaml.safe_dump(config), encoding="utf-8")


def even_groups(classes: int, steps: int) -> list[list[int]]:
    """The labels 1..`classes` in `steps` groups of about the same size."""
    parts = np.array_split(np.arange(1, classes + 1), steps)
    return [part.tolist() for part in parts]


def make_plan(folder: Path) -> Any:
    """The plan of the configuration in a folder, which is the working directory."""
    from kproba.plan.plan import Plan
    from kproba.plan.schema import check

    text = (folder / CONFIG).read_text(encoding="utf-8")
    return Plan(check(yaml.safe_load(text), SCHEMA))


def write_results(plan: Any) -> None:
    """Write what summary, figures and page read of the runs of a plan.

    Paths are relative to the working directory.
    """
    from kproba import artifacts
    from kproba.data.index import index_dataset
    from kproba.data.splits import write_split

    context = plan.index_context(DATASET)
    context.pop("tasks")
    Path(artifacts.fill(artifacts.INDEX, context)).parent.mkdir(parents=True)
    index_dataset(
        artifacts.fill(artifacts.INDEX, context),
        artifacts.fill(artifacts.INTEGRITY, context),
        class_count=plan.datasets.class_count(DATASET),
        workers=1,
        **plan.datasets.index_settings(DATASET),
        **{key: context[key] for key in ("folder", "names", "crop_size", "classes")},
    )
    results = plan.results(plan.runs)
    for result in {one.folder: one for one in results}.values():
        _write_test(plan, result)
    for result in {one.model: one for one in results}.values():
        _write_training(result)
    for result in {one.split: one for one in results if one.split}.values():
        Path(result.split).parent.mkdir(parents=True, exist_ok=True)
        groups = plan.datasets.groups(result.dataset, result.task, result.step)
        indices = plan.datasets.indices(result.dataset, groups)
        write_split(indices, result.split, groups=groups, setting=result.setting)
    for result in {one.labels: one for one in results if one.labels}.values():
        _write_labels(plan, result)


def _write_test(plan: Any, result: Any) -> None:
    """evaluation.json, confusion.csv and the folder of examples of a step."""
    from kproba.data.label_images import write_label_image
    from kproba.results.evaluation import (
        EvaluationSettings,
        step_of_class,
        write_results,
    )

    Path(result.examples).mkdir(parents=True)
    groups = plan.datasets.groups(result.dataset, result.task, result.step)
    names = plan.datasets.names(result.dataset, groups)
    generator = np.random.default_rng([result.seed, result.step])
    confusion = generator.integers(0, 1000, (len(names), len(names)))
    confusion += np.diag(generator.integers(0, 100_000, len(names)))
    write_results(
        confusion,
        result.evaluation,
        result.confusion,
        names=names,
        step_of_class=step_of_class(groups),
        settings=EvaluationSettings("ssul", ignore_background=False, crop=None),
        images=2,
        about={**result.run, "prediction": "network"},
    )
    for number in range(2):
        labels = generator.integers(0, len(names), (SIDE, SIDE))
        path = Path(result.examples) / f"val{number:06d}.png"
        write_label_image(path, labels)


def _write_training(result: Any) -> None:
    """What the training of a step leaves, and the times of its jobs."""
    folder = Path(result.model).parent
    folder.mkdir(parents=True, exist_ok=True)
    Path(result.model).write_bytes(bytes(1024))
    versions = {"kproba": "1.0.0", "commit": "0" * 40, "torch": "2.6.0"}
    model = {"architecture": {"backbone": "resnet101"}, "provenance": versions}
    (folder / "model.json").write_text(json.dumps(model))
    usage = {"device": "CPU", "seconds": 60.0, "images_per_second": 10.0}
    Path(result.usage).write_text(json.dumps({**usage, "peak_memory_bytes": 2**30}))
    iterations = np.arange(1, 201)
    curve = {"iteration": iterations, "loss": 1 + 10 / iterations}
    pd.DataFrame(curve).to_csv(result.metrics, index=False)
    for path in result.times.values():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text("s\th:m:s\tmax_rss\n60.0\t0:01:00\t512\n")


def _write_labels(plan: Any, result: Any) -> None:
    """Pseudo labels of a step for its pictures, and their quality."""
    import torch

    from kproba.data.label_images import write_label_image
    from kproba.data.splits import read_index
    from kproba.methods.quality import quality_table

    folder = Path(result.labels)
    folder.mkdir(parents=True)
    groups = plan.datasets.groups(result.dataset, result.task, result.step - 1)
    names = plan.datasets.names(result.dataset, groups)
    generator = np.random.default_rng([result.seed, result.step])
    for name in read_index(result.split)["id"]:
        labels = generator.integers(0, len(names), (SIDE, SIDE))
        write_label_image(folder / f"{name}.png", labels)
    side = len(names) + 1
    counts = torch.from_numpy(generator.integers(0, 1000, (side, side)))
    known = [0, *(label for group in groups for label in group)]
    quality_table(counts, known, names).to_csv(result.quality, index=False)
