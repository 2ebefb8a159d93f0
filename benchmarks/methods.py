"""python -m benchmarks.methods: what an increment costs, method by method.

Step 1 of the embedded example on one thread, from untrained networks (time does not
depend on what they know) and with the true labels as pseudo labels; of `kproba` with
a bank that teaches too, as from step 2 on. All methods take turns for `ROUNDS` rounds;
the figures are medians. Prints a Markdown table.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch
import yaml

from kproba.data.index import index_dataset
from kproba.data.kinds.digits import DigitScenes, write_digits
from kproba.data.label_images import read_label_image, write_label_image
from kproba.data.labels import LabelMap
from kproba.data.splits import read_index, write_split
from kproba.jobs.build_bank import bank_of_step
from kproba.jobs.evaluate import evaluate_step
from kproba.jobs.export_labels import pseudo_labels_of_step
from kproba.network.files import save_model
from kproba.plan.plan import Plan, Run
from kproba.plan.schema import check
from kproba.runtime.distributed import Process
from kproba.runtime.files import read_json
from kproba.training.loop import describe, train
from kproba.training.networks import first_network
from kproba.training.settings import Files, Means, StepSettings

ROOT = Path(__file__).parents[1]
METHODS = ("finetune", "lwf", "mib", "plop", "ssul", "barm", "kproba")
ROUNDS = 5
ITERATIONS = 12
SCENES, TESTED = 60, 20
BANK = "bank.safetensors"


def prepare(folder: Path) -> tuple[Plan, dict[str, Path]]:
    """Scenes, splits, targets and an untrained step 0 of either kind."""
    scenes = DigitScenes(
        train=SCENES,
        val=TESTED,
        size=144,
        digits=(2, 3),
        height=(0.55, 0.82),
        rotation=10,
        seed=0,
    )
    write_digits(folder / "scenes", scenes)
    index = folder / "index.csv"
    index_dataset(
        index,
        folder / "index.json",
        kind="digits",
        folder=folder / "scenes",
        class_count=10,
    )
    path = ROOT / "config" / "benchmarks" / "digits.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    plan = Plan(check(config, ROOT / "workflow/schemas/config.schema.yaml"))
    groups = plan.groups("digits", "6-2", 1)
    write_split([index], folder / "step1.csv", groups=groups, setting="overlap")
    write_split([index], folder / "step0.csv", groups=groups[:1], setting="overlap")
    table = LabelMap(groups).evaluation_table(unseen=0)
    (folder / "labels").mkdir()
    for row in read_index(folder / "step1.csv").itertuples():
        labels = table[read_label_image(str(row.mask))]
        write_label_image(folder / "labels" / f"{row.id}.png", labels)
    bases = {}
    for name in ("base", "base_softmax"):
        run = Run("digits", "6", "overlap", name, 0)
        settings = StepSettings.from_dict(plan.step_settings(run, 0))
        bases[name] = folder / name / "model.safetensors"
        network = first_network(settings, None)
        save_model(network, bases[name], about=describe(settings))
    return plan, bases


def train_one(plan: Plan, folder: Path, base: Path, method: str, out: Path) -> float:
    """Seconds of an iteration of step 1, taught as later steps are."""
    content = plan.step_settings(Run("digits", "6-2", "overlap", method, 0), 1)
    images = len(read_index(folder / "step1.csv"))
    batch = content["optimisation"]["batch_size"]
    content["optimisation"]["epochs"] = ITERATIONS * batch / images
    if guided := plan.recipe(method).guided:
        content["recipe"]["teacher"] = "fused"
        content["guide"] = plan.prediction_rule(method)
    settings = StepSettings.from_dict(content)
    labels = folder / "labels" if settings.recipe.use_pseudo_labels else None
    files = Files(
        split=folder / "step1.csv",
        previous=base,
        pseudo_labels=labels,
        weights=None,
        model=out / "model.safetensors",
        metrics=out / "metrics.csv",
        usage=out / "usage.json",
        tensorboard=out / "tensorboard",
        state=out / "state.pt",
        bank=folder / BANK if guided else None,
        source=base if guided else None,
    )
    train(settings, files, Means(), Process())
    seconds: float = read_json(out / "usage.json")["seconds"]
    return seconds / ITERATIONS


def seconds_of(work: Callable[[], object]) -> float:
    """Seconds of a call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def passes(plan: Plan, folder: Path, base: Path) -> dict[str, Callable[[], object]]:
    """What `kproba` does beside the training: a call per name, and a test."""
    groups = plan.groups("digits", "6-2", 1)
    names = plan.names("digits", groups)
    bank = folder / BANK
    old: dict[str, Any] = {"groups": groups[:1], "names": names[:7]}
    both: dict[str, Any] = {"groups": groups, "names": names}
    build = partial(
        bank_of_step,
        base,
        folder / "step0.csv",
        bank,
        settings=plan.bank("kproba"),
        setting="overlap",
        seed=0,
        **old,
    )
    label = partial(
        pseudo_labels_of_step,
        base,
        None,
        folder / "step1.csv",
        folder / "found",
        folder / "found.csv",
        folder / "quality.csv",
        settings=plan.pseudo_label_rule("kproba"),
        setting="overlap",
        **both,
    )
    outputs = ("evaluation.json", "confusion.csv", "examples", "predictor.json")
    test = partial(
        evaluate_step,
        base,
        [folder / "index.csv"],
        *(folder / name for name in outputs),
        settings={**plan.config["evaluation"], "examples": 0},
        about={},
        **old,
    )
    rule = plan.prediction_rule("kproba")
    with_bank = partial(test, rule=rule, bank=bank)
    return {"bank": build, "labels": label, "test": test, "test, fused": with_bank}


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        plan, bases = prepare(folder)
        beside = passes(plan, folder, bases["base"])
        beside["bank"]()
        iterations: dict[str, list[float]] = {method: [] for method in METHODS}
        for number in range(ROUNDS + 1):
            for method in METHODS:
                out = folder / f"{method}{number}"
                out.mkdir()
                base = bases[plan.base_name(method)]
                seconds = train_one(plan, folder, base, method, out)
                if number:  # the first round warms up
                    iterations[method].append(seconds)
        others = {
            name: [seconds_of(work) for _ in range(ROUNDS)]
            for name, work in beside.items()
        }
        images = {
            "bank": len(read_index(folder / "step0.csv")),
            "labels": len(read_index(folder / "step1.csv")),
        }
    print("| method | seconds of an iteration | to `finetune` |\n|---|---|---|")
    first = np.array(iterations["finetune"])
    for method, measured in iterations.items():
        ratio = statistics.median(np.array(measured) / first)
        print(f"| `{method}` | {statistics.median(measured):.3f} | {ratio:.2f} |")
    print("\n| beside the training | seconds of an image |\n|---|---|")
    for name, taken in others.items():
        each = statistics.median(taken) / images.get(name, TESTED)
        print(f"| {name} | {each:.3f} |")


if __name__ == "__main__":
    main()
