"""Steps of a made dataset whose masks and pictures show what came later, too.

A picture says by its colours what it shows: red is the true output index of the last
step, green how sure a network is. The network of these tests reads the colours, but
knows only the classes up to its step.
"""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from label_inputs import Teacher
from PIL import Image

from kproba.data.label_images import read_label_image, write_label_image
from kproba.data.splits import select_images, write_rows
from kproba.jobs import step_memory
from kproba.jobs.step_memory import MemoryFiles, update_memory
from kproba.network.architecture import Architecture
from kproba.network.files import save_model
from kproba.network.network import Outputs, SegmentationNetwork
from kproba.runtime.compute import Compute
from kproba.runtime.distributed import Process

GROUPS = ((4, 2), (1,), (5, 3))  # output order 4, 2, 1, 5, 3
ORDER = (0, *(label for group in GROUPS for label in group))
STEP_OF = {label: step for step, group in enumerate(GROUPS) for label in group}
THRESHOLD, SIDE = 0.9, 12


def write_dataset(folder: Path, setting: str = "overlap", images: int = 40) -> Path:
    """Pictures, masks, and a split per step."""
    random = np.random.default_rng(0)
    index_of = np.zeros(256, np.uint8)
    index_of[list(ORDER)] = np.arange(len(ORDER))
    rows = []
    for number in range(images):
        shown = random.permutation([1, 2, 3, 4, 5])[: random.integers(1, 4)]
        values = random.choice([0, *shown], (SIDE // 3, SIDE // 3))
        mask = np.kron(values, np.ones((3, 3), int)).astype(np.uint8)
        mask[0, 0] = 255
        sure = np.kron(random.choice([0, 255], (2, 2)), np.ones((SIDE // 2,) * 2, int))
        picture = np.stack([index_of[mask], sure, sure], axis=-1).astype(np.uint8)
        name = f"p{number:02}"
        Image.fromarray(picture).save(folder / f"{name}.png")
        write_label_image(folder / f"{name}_mask.png", mask)
        cell = " ".join(map(str, np.unique(mask)))
        files = {"image": f"{folder}/{name}.png", "mask": f"{folder}/{name}_mask.png"}
        size = {"width": SIDE, "height": SIDE}
        rows.append({"id": name, **files, **size, "subset": "train", "classes": cell})
    index = pd.DataFrame(rows)
    for step in range(len(GROUPS)):
        classes = ORDER[1:] if setting == "partitioned" else None
        chosen = select_images(index, GROUPS[: step + 1], setting, classes=classes)
        write_rows(chosen, folder / f"step{step}.csv")
    return folder


def masks_of(folder: Path) -> dict[str, np.ndarray]:
    """The true masks by id."""
    paths = sorted(folder.glob("*_mask.png"))
    return {path.stem.removesuffix("_mask"): read_label_image(path) for path in paths}


def reading_network(step: int) -> Any:
    """A network of step t that knows what a picture shows, if it is a class of S_t.

    It takes the background for its newest class.
    """
    channels = 1 + sum(map(len, GROUPS[: step + 1]))

    def outputs(images: torch.Tensor) -> Outputs:
        answer = images[:, 0].long()
        answer = answer.where(answer != 0, channels - 1)
        answer = answer.where((answer < channels) & (answer != 255), 0)
        scale = torch.where(images[:, 1] > 128, 9.0, 0.5)[:, None]
        sign = 2 * torch.nn.functional.one_hot(answer, channels) - 1
        logits = scale * sign.permute(0, 3, 1, 2)
        return Outputs(logits, [logits], [logits])

    network = Teacher(outputs, channels=channels)
    network.backbone = SimpleNamespace(anchor="start")  # type: ignore[attr-defined]
    return network


def save_record(path: Path, step: int) -> Path:
    """A model file with the classes of S_t, for the check of its labels."""
    sizes = [len(group) for group in GROUPS[: step + 1]]
    architecture = Architecture("efficientnet_lite0", 16, (1, 2), 8, 0.1, 0.01)
    network = SegmentationNetwork(architecture, sizes, weights="none", seed=0)
    labels = [{"label": label} for label in ORDER[: 1 + sum(sizes)]]
    path.parent.mkdir(parents=True, exist_ok=True)
    save_model(network, path, about={"classes": labels})
    return path


def job_of(step: int, rule: str, setting: str, images: int) -> dict[str, Any]:
    """Settings as `Chain.memory` makes them."""
    known = rule == "known"
    groups = [list(group) for group in GROUPS[: step + 1]]
    sequential = setting == "sequential" and known and step > 0
    job: dict[str, Any] = {"images": images, "rule": rule, "groups": groups}
    job |= {"sequential": sequential, "seed": 3}
    if known and step > 0 and not sequential:
        job["threshold"] = THRESHOLD
    if not known:
        job["shown"] = [list(group) for group in GROUPS[: step + 2]]
    return job


def memory_files(data: Path, out: Path, step: int) -> MemoryFiles:
    """Files of the memory after a step; the network has to be named where needed."""
    earlier = out / f"memory{step - 1}"
    return MemoryFiles(
        split=data / f"step{step}.csv",
        table=out / f"memory{step}.csv",
        record=out / f"memory{step}.json",
        labels=out / f"memory{step}",
        previous=earlier.with_suffix(".csv") if step else None,
        previous_labels=earlier if step else None,
    )


def write_memories(
    data: Path,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    rule: str = "known",
    setting: str = "overlap",
    images: int = 8,
    steps: Sequence[int] = (0, 1, 2),
) -> Path:
    """The memories after some steps, in one folder."""
    for step in steps:
        job, files = job_of(step, rule, setting, images), memory_files(data, out, step)
        if "threshold" in job:
            model = save_record(out / f"model{step}.safetensors", step)
            files = MemoryFiles(**{**vars(files), "model": model})
        network = reading_network(step)
        monkeypatch.setattr(step_memory, "load_folded", lambda *_, n=network, **__: n)
        update_memory(files, job, Compute(batch_size=3), Process())
    return out


def labels_in(folder: Path) -> dict[str, np.ndarray]:
    """The label images of a memory by id."""
    return {path.stem: read_label_image(path) for path in sorted(folder.glob("*.png"))}
