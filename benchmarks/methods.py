"""python -m benchmarks.methods: the time of an increment with each method.

Step 1 of the embedded example on one thread, from untrained networks (time does not
depend on what they know) and with the true labels as pseudo labels; of `kproba` with a
bank that corrects the teacher, as from step 2 on. All methods take turns for some
rounds; the figures are medians. Prints a Markdown table.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import yaml

from kproba.data.index import index_dataset
from kproba.data.kinds.digits import DigitScenes, write_digits
from kproba.data.label_images import read_label_image, write_label_image
from kproba.data.labels import LabelMap
from kproba.data.splits import read_index, write_split
from kproba.jobs.step_bank import BankFiles, build_step_bank
from kproba.jobs.step_labels import LabelInputs, label_step
from kproba.jobs.step_test import TestFiles, test_step
from kproba.methods.export import LabelFiles
from kproba.network.files import save_model
from kproba.plan.chain import Run
from kproba.plan.plan import Plan
from kproba.plan.schema import check
from kproba.runtime.compute import Compute
from kproba.runtime.distributed import ALONE
from kproba.runtime.files import read_json
from kproba.training.files import Files
from kproba.training.loop import describe_model, train
from kproba.training.networks import build_first_network
from kproba.training.settings import StepSettings

ROOT = Path(__file__).parents[1]
METHODS = ("finetune", "lwf", "mib", "plop", "ssul_light", "barm", "kproba")
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
    path = ROOT / "config" / "comparisons" / "digits.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    plan = Plan(check(config, ROOT / "workflow/schemas/config.schema.yaml"))
    groups = plan.datasets.groups("digits", "6-2", 1)
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
        settings = StepSettings.from_dict(plan.settings(run, 0))
        bases[name] = folder / name / "model.safetensors"
        network = build_first_network(settings, None)
        save_model(network, bases[name], about=describe_model(settings))
    return plan, bases


def train_one(plan: Plan, folder: Path, base: Path, method: str, out: Path) -> float:
    """Seconds of an iteration of step 1, with the teachers of later steps."""
    content = plan.settings(Run("digits", "6-2", "overlap", method, 0), 1)
    images = len(read_index(folder / "step1.csv"))
    batch = content["optimisation"]["batch_size"]
    content["optimisation"]["epochs"] = ITERATIONS * batch / images
    planned = plan.methods[method]
    corrected = planned.method.bank_teaches
    if corrected:
        content["decision"] = planned.decision
    settings = StepSettings.from_dict(content)
    labels = folder / "labels" if planned.uses_labels("overlap") else None
    files = Files(
        split=folder / "step1.csv",
        previous=base,
        pseudo_labels=labels,
        model=out / "model.safetensors",
        metrics=out / "metrics.csv",
        usage=out / "usage.json",
        tensorboard=out / "tensorboard",
        bank=folder / BANK if corrected else None,
        feature_network=base if corrected else None,
    )
    train(settings, files, Compute(), ALONE)
    seconds: float = read_json(out / "usage.json")["seconds"]
    return seconds / ITERATIONS


def seconds_of(work: Callable[[], object]) -> float:
    """Seconds of a call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def passes(plan: Plan, folder: Path, base: Path) -> dict[str, Callable[[], object]]:
    """The work of `kproba` besides the training: a call per name, and an evaluation."""
    run = Run("digits", "6-2", "overlap", "kproba", 0)
    bank, compute = folder / BANK, Compute()
    split = folder / "step1.csv"
    endings = ("", ".csv", "_quality.csv")
    found = LabelFiles(*(folder / f"found{end}" for end in endings))
    files = TestFiles(
        model=base,
        indices=(folder / "index.csv",),
        evaluation=folder / "evaluation.json",
        confusion=folder / "confusion.csv",
        examples=folder / "examples",
        predictor=folder / "predictor.json",
    )
    job = {**plan.chain.test(run, 0).settings, "run": {**vars(run), "step": 0}}
    job["settings"] = {**job["settings"], "examples": 0}
    alone = {**job, "decision": None}
    bank_job, label_job = (
        dict(each.settings)
        for each in (plan.chain.bank(run, 0), plan.chain.labels(run, 1))
    )
    bank_files = BankFiles(base, folder / "step0.csv", bank)
    inputs = LabelInputs(base, split)
    fused = replace(files, bank=bank)
    return {
        "bank": partial(build_step_bank, bank_files, bank_job, compute, ALONE),
        "labels": partial(label_step, inputs, found, label_job, compute, ALONE),
        "test": partial(test_step, files, alone, compute, ALONE),
        "test, fused": partial(test_step, fused, job, compute, ALONE),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="benchmarks.methods", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of all methods")
    rounds = parser.parse_args(argv).rounds
    torch.set_num_threads(1)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        plan, bases = prepare(folder)
        beside = passes(plan, folder, bases["base"])
        beside["bank"]()
        iterations: dict[str, list[float]] = {method: [] for method in METHODS}
        for number in range(rounds + 1):
            for method in METHODS:
                out = folder / f"{method}{number}"
                out.mkdir()
                base = bases[plan.methods[method].method.base]
                seconds = train_one(plan, folder, base, method, out)
                if number:  # the first round warms up
                    iterations[method].append(seconds)
        others = {
            name: [seconds_of(work) for _ in range(rounds)]
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
