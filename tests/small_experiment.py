"""A small experiment with the result files of its steps, numbers known by hand.

Three methods on task 1-1 of the dataset "pets": kproba and finetune share step 0, which
"base" owns; joint has the last step alone.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from kproba.data.label_images import write_label_image
from kproba.methods.quality import quality_table
from kproba.plan.results import StepResult
from kproba.results.tables import collect_quality, summarise
from kproba.runtime.files import write_json

CLASS_NAMES = ("background", "cat", "dog", "cow")
GROUPS = ((1,), (2,), (3,))  # task 1-1

# IoU of background, cat, dog, cow after each step; None: no pixel, true or predicted.
CLASS_IOUS = {
    ("base", 0): [80.0, 40.0],
    ("kproba", 1): [70.0, 30.0, 20.0],
    ("kproba", 2): [75.0, 10.0, 30.0, None],
    ("finetune", 1): [60.0, 0.0, 40.0],
    ("finetune", 2): [50.0, 0.0, 0.0, 50.0],
    ("joint", 2): [90.0, 50.0, 60.0, 70.0],
}
# mIoU of old, new and all classes.
MEAN_IOUS = {
    ("base", 0): (60.0, None, 60.0),
    ("kproba", 1): (50.0, 20.0, 40.0),
    ("kproba", 2): (42.5, 15.0, 28.75),
    ("finetune", 1): (30.0, 40.0, 33.333),
    ("finetune", 2): (25.0, 25.0, 25.0),
    ("joint", 2): (70.0, 65.0, 67.5),
}
# Method and step of every result, in the order of the configuration.
STEPS = [
    *(("kproba", step) for step in range(3)),
    *(("finetune", step) for step in range(3)),
    ("joint", 2),
]


def step_owner(method: str, step: int) -> tuple[str, int]:
    """The method that owns a step's files, and the step."""
    return ("base", 0) if step == 0 else (method, step)


def write_step(folder: Path, method: str, step: int) -> None:
    """Write what the training and the test of a step leave behind."""
    folder.mkdir(parents=True)
    _write_test(folder, method, step)
    benchmark = "s\th:m:s\tmax_rss\n10.04\t0:00:10\t512\n"
    (folder / "train.benchmark.tsv").write_text(benchmark)
    metrics = {"iteration": [1, 2, 3], "loss": [4.0, 2.0, step + 1.0]}
    pd.DataFrame(metrics).to_csv(folder / "metrics.csv", index=False)
    (folder / "model.safetensors").write_bytes(bytes(2**19))
    versions = {"kproba": "1.2.3", "commit": "abcdef0", "torch": "2.0"}
    model = {"architecture": {"backbone": "resnet50"}, "provenance": versions}
    write_json(folder / "model.json", model)
    if step:  # step 0 is of an older run, whose usage is unknown
        usage = {"device": "CPU", "images_per_second": 7.5, "peak_memory_bytes": 2**30}
        write_json(folder / "usage.json", usage)


def _write_test(folder: Path, method: str, step: int) -> None:
    old, new, every = MEAN_IOUS[method, step]
    classes = [
        {"index": k, "name": name, "step": max(0, k - 1), "iou": iou, "pixels": 9}
        for k, (name, iou) in enumerate(
            zip(CLASS_NAMES, CLASS_IOUS[method, step], strict=False)
        )
    ]
    write_json(
        folder / "evaluation.json",
        # The shared step 0 carries the names of its owner: "base", in task 1.
        {
            **{"dataset": "pets", "task": "1", "setting": "overlap"},
            **{"method": method, "seed": "0", "step": str(step)},
            **{"old": old, "new": new, "all": every, "hiou": None},
            "protocol": {"policy": "ssul", "crop": None, "checkpoint": "last"},
            "prediction": "network",
            "images": 2,
            "classes": classes,
        },
    )
    # A third of every class is taken for the background, a tenth for the next class.
    count = len(classes)
    confusion = np.diag(np.full(count, 57)) + 10 * np.eye(count, k=1, dtype=int)
    confusion[:, 0] += 33
    table = pd.DataFrame(confusion, CLASS_NAMES[:count], CLASS_NAMES[:count])
    table.to_csv(folder / "confusion.csv", index_label="true \\ predicted")
    (folder / "examples").mkdir()
    for number, name in enumerate(("v1", "v2")):
        prediction = np.full((6, 8), (number + step) % 3, np.uint8)
        write_label_image(folder / "examples" / f"{name}.png", prediction)


def step_result(folder: Path, method: str, step: int) -> StepResult:
    """The result of a step whose files are in a folder; seed 0, network alone."""
    return StepResult(
        dataset="pets",
        task="1-1",
        setting="overlap",
        method=method,
        seed=0,
        step=step,
        folder=str(folder),
        evaluation=str(folder / "evaluation.json"),
        confusion=str(folder / "confusion.csv"),
        examples=str(folder / "examples"),
        model=str(folder / "model.safetensors"),
        metrics=str(folder / "metrics.csv"),
        usage=str(folder / "usage.json"),
        times={"training": str(folder / "train.benchmark.tsv")},
        joint=method == "joint",
    )


def repeat_step(
    result: StepResult, folder: Path, method: str, *, seed: int
) -> StepResult:
    """The same step with another seed, for which `method` lends its numbers."""
    write_step(folder, method, result.step)
    return replace(step_result(folder, result.method, result.step), seed=seed)


def write_quality(folder: Path, step: int) -> Path:
    """How good the pseudo labels of a step are: 50, 40 .. percent of a class right."""
    confusion = torch.zeros(step + 2, step + 2, dtype=torch.int64)
    for index in range(step + 1):
        confusion[index, index] = 6 - index - (step == 2)
        confusion[index, 0] += 4 + index + (step == 2)
    confusion[step + 1, 1] = 5  # future pixels taken for cats
    path = folder / "pseudo_label_quality.csv"
    quality_table(confusion, range(step + 1), CLASS_NAMES[: step + 1]).to_csv(
        path, index=False
    )
    return path


def write_experiment(tmp_path: Path) -> list[StepResult]:
    """Write the files of all steps; returns the results in the order of `STEPS`."""
    for method, step in CLASS_IOUS:
        write_step(tmp_path / method / str(step), method, step)
    results = []
    for method, step in STEPS:
        folder = tmp_path.joinpath(*map(str, step_owner(method, step)))
        result = step_result(folder, method, step)
        if method == "kproba" and step > 0:
            result = replace(result, quality=str(write_quality(folder, step)))
        results.append(result)
    return results


def write_tables(results: list[StepResult], folder: Path) -> tuple[Path, Path, Path]:
    """Write summary.csv, classes.csv and pseudo_labels.csv; returns their paths."""
    names = ("summary", "classes", "pseudo_labels")
    summary, classes, quality = (folder / f"{name}.csv" for name in names)
    summarise(results, summary, classes)
    collect_quality(results, quality)
    return summary, classes, quality
