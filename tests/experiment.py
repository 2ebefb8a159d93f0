"""A tiny experiment with the result files of its steps, numbers known by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from kproba.data.label_images import write_label_image
from kproba.methods.quality import quality_table
from kproba.results.tables import collect_quality, summarise
from kproba.runtime.files import write_json

NAMES = ("background", "cat", "dog", "cow")
GROUPS = ((1,), (2,), (3,))  # task 1-1

# IoU of background, cat, dog, cow after each step; None: nowhere to be seen.
IOUS = {
    ("base", 0): [80.0, 40.0],
    ("kproba", 1): [70.0, 30.0, 20.0],
    ("kproba", 2): [75.0, 10.0, 30.0, None],
    ("finetune", 1): [60.0, 0.0, 40.0],
    ("finetune", 2): [50.0, 0.0, 0.0, 50.0],
    ("joint", 2): [90.0, 50.0, 60.0, 70.0],
}
MEANS = {
    ("base", 0): (60.0, None, 60.0),
    ("kproba", 1): (50.0, 20.0, 40.0),
    ("kproba", 2): (42.5, 15.0, 28.75),
    ("finetune", 1): (30.0, 40.0, 33.333),
    ("finetune", 2): (25.0, 25.0, 25.0),
    ("joint", 2): (70.0, 65.0, 67.5),
}
HOME = {("kproba", 0): ("base", 0), ("finetune", 0): ("base", 0)}
STEPS = [
    *(("kproba", step) for step in range(3)),
    *(("finetune", step) for step in range(3)),
    ("joint", 2),
]


def write_step(folder: Path, method: str, step: int) -> None:
    """What the test of a step and the benchmark of its training leave behind."""
    old, new, every = MEANS[method, step]
    classes = [
        {"index": k, "name": NAMES[k], "step": max(0, k - 1), "iou": iou, "pixels": 9}
        for k, iou in enumerate(IOUS[method, step])
    ]
    write_json(
        folder / "evaluation.json",
        # The shared step 0 says of itself that it is "base", in a task of its own.
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
    table = pd.DataFrame(confusion, NAMES[:count], NAMES[:count])
    table.to_csv(folder / "confusion.csv", index_label="true \\ predicted")
    benchmark = "s\th:m:s\tmax_rss\n10.04\t0:00:10\t512\n"
    (folder / "train.benchmark.tsv").write_text(benchmark)
    metrics = {"iteration": [1, 2, 3], "loss": [4.0, 2.0, step + 1.0]}
    pd.DataFrame(metrics).to_csv(folder / "metrics.csv", index=False)
    (folder / "model.safetensors").write_bytes(bytes(2**19))
    versions = {"kproba": "1.2.3", "commit": "abcdef0", "torch": "2.0"}
    model = {"architecture": {"backbone": "resnet50"}, "provenance": versions}
    write_json(folder / "model.json", model)
    if step:  # of an older run it is not known
        usage = {"device": "CPU", "images_per_second": 7.5, "peak_memory_bytes": 2**30}
        write_json(folder / "usage.json", usage)
    (folder / "examples").mkdir()
    for number, name in enumerate(("v1", "v2")):
        prediction = np.full((6, 8), (number + step) % 3, np.uint8)
        write_label_image(folder / "examples" / f"{name}.png", prediction)


def files_of(folder: Path) -> dict[str, Any]:
    """The paths in a row."""
    return {
        "evaluation": str(folder / "evaluation.json"),
        "confusion": str(folder / "confusion.csv"),
        "examples": str(folder / "examples"),
        "model": str(folder / "model.safetensors"),
        "metrics": str(folder / "metrics.csv"),
        "usage": str(folder / "usage.json"),
        "times": [str(folder / "train.benchmark.tsv")],
        **dict.fromkeys(("quality", "labels", "split", "bank"), ""),
    }


def write_quality(folder: Path, step: int) -> Path:
    """How good the pseudo labels of a step are: 50, 40 .. percent of a class found."""
    confusion = torch.zeros(step + 2, step + 2, dtype=torch.int64)
    for index in range(step + 1):
        confusion[index, index] = 6 - index - (step == 2)
        confusion[index, 0] += 4 + index + (step == 2)
    confusion[step + 1, 1] = 5  # future pixels taken for cats
    path = folder / "pseudo_label_quality.csv"
    quality_table(confusion, NAMES[: step + 1]).to_csv(path, index=False)
    return path


def write_rows(tmp_path: Path) -> list[dict[str, Any]]:
    """Rows of a tiny experiment with its result files."""
    for method, step in IOUS:
        write_step(tmp_path / method / str(step), method, step)
    rows = []
    for method, step in STEPS:
        folder = Path(*map(str, HOME.get((method, step), (method, step))))
        row = {"dataset": "pets", "task": "1-1", "setting": "overlap"}
        row |= {"method": method, "seed": 0, "step": step}
        row |= files_of(tmp_path / folder)
        if method == "kproba" and step > 0:
            row["quality"] = str(write_quality(tmp_path / folder, step))
        rows.append(row)
    return rows


def write_tables(rows: list[dict[str, Any]], folder: Path) -> tuple[Path, Path, Path]:
    names = ("summary", "classes", "pseudo_labels")
    summary, classes, quality = (folder / f"{name}.csv" for name in names)
    summarise(rows, summary, classes)
    collect_quality(rows, quality)
    return summary, classes, quality
