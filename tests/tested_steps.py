"""A tested step 1 that reads the bank of step 0's features, without any training."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from small_banks import bank_of, images_of

from kproba.bank.description import SeenClass, StepDescription, write_description
from kproba.network.architecture import Architecture
from kproba.network.files import save_model
from kproba.network.network import SegmentationNetwork
from kproba.runtime.files import write_json
from kproba.runtime.provenance import fingerprint

ABOUT = {
    **{"dataset": "pets", "task": "1-1", "setting": "overlap"},
    **{"method": "kproba", "seed": 0, "step": 1},
}
FIRST = "results/pets/1-overlap/base/seed0/step0"
STEP = "results/pets/1-1-overlap/kproba/seed0/step1"
NAMES = ("background", "cat", "dog")
DECISION = {"rule": "klda", "posterior_weight": 0.5, "image_prior": 1}


def small_network(classes: list[int], seed: int = 0) -> SegmentationNetwork:
    """An untrained network of the smallest kind, in evaluation mode."""
    architecture = Architecture("efficientnet_lite0", 16, (1, 2), 8, 0.1, 0.01)
    network = SegmentationNetwork(architecture, classes, seed=seed)
    return network.eval().requires_grad_(False)


def save_step(network: SegmentationNetwork, folder: Path) -> Path:
    """Write a model with its labels, and what a training wrote about its steps."""
    labels = range(network.channels)
    steps = [0, *(s for s, n in enumerate(network.classes_per_step) for _ in range(n))]
    classes = [
        {"index": label, "label": label, "step": step}
        for label, step in zip(labels, steps, strict=True)
    ]
    model = folder / "model.safetensors"
    about = {"classes": classes, "provenance": {"kproba": "0.2.0", "torch": "2"}}
    save_model(network, model, about=about)
    return model


def write_tested_step(root: Path, *, fused: bool = True) -> Path:
    """Write results/ with a step 0 and a tested step 1; returns the folder of step 1.

    Args:
        root: The folder that gets results/.
        fused: Whether network and bank predict together; else the bank only lies there.
    """
    step, first = root / STEP, root / FIRST
    base = small_network([1])
    features = save_step(base, first)
    network = save_step(small_network([1, 1], seed=1), step)
    bank = step / "prototypes.safetensors"
    about = {"labels": [0, 1, 2], "model": fingerprint(features), "provenance": {}}
    bank_of(base, images_of(32, 48), "rff").save(bank, about=about)
    run = {"previous": "../../../../../1-overlap/base/seed0/step0/tensorboard"}
    write_json(step / "tensorboard" / "run.json", {**ABOUT, **run})
    classes = zip(range(3), NAMES, (0, 0, 1), strict=True)
    description = StepDescription(
        network=network,
        bank=bank if fused else None,
        feature_network=features if fused else None,
        decision=DECISION if fused else None,
        classes=tuple(SeenClass(*entry) for entry in classes),
        channels=(0, 1, 2),
        about=ABOUT,
    )
    write_description(step / "predictor.json", description)
    write_evaluation(step / "evaluation.json")
    return step


def write_evaluation(path: Path) -> None:
    """Write an evaluation.json of three classes."""
    classes = [
        {"index": index, "name": name, "step": index // 2, "iou": 50.0, "pixels": 9}
        for index, name in enumerate(NAMES)
    ]
    write_json(
        path,
        {
            **ABOUT,
            **{"old": 50.0, "new": 50.0, "all": 50.0, "hiou": None},
            "protocol": {"policy": "ssul", "crop": None, "checkpoint": "last"},
            "prediction": "fused (klda)",
            "images": 2,
            "classes": classes,
        },
    )


def change_json(path: Path, change: Callable[[Any], Any]) -> None:
    """Change the content of a JSON file; NaN and infinity are written as Python does.

    Args:
        path: The file.
        change: Changes the content in place, or returns another.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    changed = change(content)
    content = content if changed is None else changed
    path.write_text(json.dumps(content), encoding="utf-8")


def forget_digests(step: Path) -> None:
    """Make a step that of an older version, which recorded no digests."""
    change_json(
        step / "predictor.json", lambda content: content.pop("digests") and None
    )
    for folder in (step, step.parents[4] / Path(FIRST).relative_to("results")):
        for path in [*folder.glob("model.json"), *folder.glob("prototypes.json")]:
            change_json(path, lambda content: content.pop("sha256") and None)
