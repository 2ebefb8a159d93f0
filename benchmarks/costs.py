"""The tables of docs/costs.md: what VOC and ADE20K cost, from measured rates.

`python -m benchmarks.costs`, in the folder of the project, writes them between the two
marks of the page. Nothing is measured here.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kproba.methods.builtin import METHODS
from kproba.plan.schema import check
from kproba.runtime.files import atomic_path

PAGE = Path("docs/costs.md")
SCHEMA = Path("workflow/schemas/config.schema.yaml")
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"

# One NVIDIA H200, ResNet-101, bfloat16: the tables of benchmarks/gpu.md.
BATCH = 8  # crops of 513 x 513 pixels
SECONDS = {  # per iteration of an increment of ADE20K 100-5
    "finetune": 0.081,
    "lwf": 0.109,
    "mib": 0.115,
    "plop": 0.107,
    "ssul_light": 0.017,
    "barm": 0.051,
    "kproba": 0.061,  # from step 2 on, where the bank is a teacher
}
IMAGES = 64  # of 513 x 513 pixels
NETWORK, TWO_NETWORKS, BANK = 0.138, 0.404, 0.131  # seconds for these images

MODEL_MIB = 224.1  # weights of a network with one branch
BRANCH_MIB = 2.26  # a further branch
BANK_MIB = 32.0  # the scatter of 2,048 channels in float64
LABELS_KIB = 2.6  # a mask of VOC as a palette PNG, mean of 12,031

# Training images per step of the setting `overlap` (tests/test_published_splits.py).
TASKS = {
    "voc": {
        "19-1": (10410, 548),
        "15-5": (9568, 2145),
        "15-1": (9568, 487, 299, 491, 500, 548),
        "10-1": (6139, 528, 1177, 444, 482, 3898, 487, 299, 491, 500, 548),
    },
    "ade20k": {
        "100-50": (20192, 9390),
        "100-10": (20192, 1710, 2294, 2747, 4279, 2844),
        "100-5": (*(20192, 1142, 600, 1234, 1204, 1151, 1874, 1807, 2943, 1238, 1898),),
    },
}
NAMES = {"voc": "VOC", "ade20k": "ADE20K"}
EVALUATED = {"voc": 1449, "ade20k": 2000}
ORDER = ("kproba", "barm", "ssul_light", "plop", "mib", "lwf", "finetune")


@dataclass(frozen=True)
class Cost:
    """What the steps of a method cost, in GPU hours and GiB.

    Attributes:
        base: Training of step 0.
        increments: Trainings of all later steps.
        rest: Banks, pseudo labels and evaluations of all steps.
        disk: Models, banks and pseudo labels, without step 0.
    """

    base: float
    increments: float
    rest: float
    disk: float


def training_hours(images: int, epochs: float, seconds: float) -> float:
    """Hours of a training.

    Args:
        images: Images of the step.
        epochs: Passes over them.
        seconds: Of an iteration of `BATCH` images.
    """
    return images * epochs * seconds / BATCH / 3600


def passes_hours(images: int, seconds: float) -> float:
    """Hours of passes over images, at `seconds` for `IMAGES` of them."""
    return images * seconds / IMAGES / 3600


def method_cost(dataset: str, counts: tuple[int, ...], name: str, config: Any) -> Cost:
    """What a method costs that learns step by step.

    Args:
        dataset: "voc" or "ade20k".
        counts: Training images of each step.
        name: A method of `ORDER`.
        config: The configuration, checked.
    """
    method = METHODS[name]
    later = counts[1:]
    epochs = config["increment"]["epochs"]
    seconds = [SECONDS["barm" if name == "kproba" else name]]  # step 1
    seconds += [SECONDS[name]] * (len(later) - 1)
    increments = sum(
        training_hours(images, epochs, each)
        for images, each in zip(later, seconds, strict=True)
    )
    with_bank = method.prediction != "network"
    tested = EVALUATED[dataset] * len(counts)
    rest = passes_hours(tested, TWO_NETWORKS if with_bank else NETWORK)
    if with_bank:
        rest += passes_hours(sum(counts), BANK)
    if method.use_pseudo_labels:  # the rule of plop reads the images twice
        rest += passes_hours(sum(later) * (2 if name == "plop" else 1), NETWORK)
    branches = BRANCH_MIB if method.head == "branches" else 0.0
    mib = sum(MODEL_MIB + branches * (step + 1) for step in range(len(later)))
    mib += BANK_MIB * len(counts) if with_bank else 0
    mib += sum(later) * LABELS_KIB / 1024 if method.use_pseudo_labels else 0
    base = training_hours(counts[0], config["base"]["epochs"], SECONDS["finetune"])
    return Cost(base, increments, rest, mib / 1024)


def joint_cost(dataset: str, counts: tuple[int, ...], config: Any) -> Cost:
    """What `joint` costs: the iterations of all steps, and one evaluation.

    Its batches are those of step 0.
    """
    base, increment = config["base"], config["increment"]
    larger = base["batch_size"] / increment["batch_size"]
    drawn = counts[0] * base["epochs"] + sum(counts[1:]) * increment["epochs"] * larger
    hours = training_hours(1, drawn, SECONDS["finetune"])
    rest = passes_hours(EVALUATED[dataset], NETWORK)
    return Cost(hours, 0.0, rest, MODEL_MIB / 1024)


def tables() -> Iterator[str]:
    """The lines of all tables: rows are methods, columns tasks."""
    for dataset, tasks in TASKS.items():
        config = check(_read(f"config/{dataset}.yaml"), SCHEMA)
        costs = {
            name: [method_cost(dataset, tasks[task], name, config) for task in tasks]
            for name in ORDER
        }
        joint = [joint_cost(dataset, tasks[task], config) for task in tasks]
        yield f"### {NAMES[dataset]}"
        yield ""
        yield "GPU hours of one run, with step 0:"
        yield ""
        yield from _head(tasks)
        for name, row in costs.items():
            totals = [c.base + c.increments + c.rest for c in row]
            yield _row(name, [f"{total:.1f}" for total in totals])
        yield _row("joint", [f"{cost.base + cost.rest:.1f}" for cost in joint])
        yield ""
        yield "GPU hours of step 0, and of everything else:"
        yield ""
        yield from _head(tasks)
        bases = [cost.base for cost in costs[ORDER[0]]]
        yield _row("step 0", [f"{base:.2f}" for base in bases])
        for name, row in costs.items():
            yield _row(name, [f"{c.increments + c.rest:.2f}" for c in row])
        yield ""
        yield "Disk of everything except step 0, in GiB:"
        yield ""
        yield from _head(tasks)
        for name, row in costs.items():
            yield _row(name, [f"{cost.disk:.1f}" for cost in row])
        yield ""


def _head(tasks: Iterable[str]) -> list[str]:
    """Heading of a table with a column per task."""
    names = list(tasks)
    return [f"| method | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]


def _row(name: str, cells: Iterable[str]) -> str:
    shown = f"`{name}`" if name in METHODS else name
    return f"| {shown} | {' | '.join(cells)} |"


def page(text: str) -> str:
    """The page with its tables computed again.

    Raises:
        ValueError: The page lacks the two marks.
    """
    begin, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    return f"{text[:begin]}\n\n" + "\n".join(tables()) + text[end:]


def _read(path: str) -> Any:
    return yaml.safe_load(Path(path).read_text(encoding="utf-8"))


def main() -> None:
    """Write the page below the working directory."""
    text = page(PAGE.read_text(encoding="utf-8"))
    with atomic_path(PAGE) as temporary:
        temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
