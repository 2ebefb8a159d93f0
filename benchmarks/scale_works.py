"""What `benchmarks.scale` measures: how each input is made, and the work on it.

Each function that prepares writes its input into a folder, which is the working
directory. The other one of a pair reads what it needs before it is measured, and
returns the work itself. They run in processes of their own.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks import scale_inputs as inputs

Work = Callable[[], object]
FEW = ("kproba", "finetune")
MANY = ("kproba", "ssul_light", "plop", "mib", "lwf", "finetune")
VOC = [list(range(1, 16)), *([label] for label in range(16, 21))]  # task 15-1
ADE = [list(range(1, 101)), *(list(range(n, n + 5)) for n in range(101, 151, 5))]


# Index and splits


def prepare_index(images: int, classes: int = 20) -> None:
    """An index of pictures."""
    inputs.write_index(Path(), images, classes)


def read_index(images: int) -> Work:
    """Reading index.csv."""
    from kproba.data import splits

    return lambda: splits.read_index("index.csv")


def locate_pictures(images: int) -> Work:
    """Reading index.csv, with the paths of pictures and masks."""
    from kproba.data.folders import Folders
    from kproba.data.splits import read_index

    folders = {inputs.DATASET: Folders("pictures", "results/masks")}
    return lambda: read_index("index.csv", folders)


def check_steps(images: int) -> Work:
    """The check that every step has pictures."""
    from kproba.data.task_check import TaskSteps, check_steps

    tasks = [TaskSteps("15-1", "overlap", VOC, range(len(VOC)))]
    names = [f"class {number}" for number in range(1, 21)]
    return lambda: check_steps("index.csv", tasks, names)


def write_index(images: int) -> Work:
    """The rule `prepare_dataset` without decoding: the facts are made up."""
    from kproba.data import index
    from kproba.data.inspection import ImageRecord
    from kproba.data.kinds import KINDS, DatasetKind
    from kproba.data.kinds.pairs import Pair

    def find_pairs(folder: Path, share: float) -> tuple[list[Pair], list[Any]]:
        subsets = ["val" if number % 10 == 0 else "train" for number in range(images)]
        pairs = [
            Pair(
                f"picture_{number:08d}",
                subset,
                folder / "images" / subset / f"picture_{number:08d}.jpg",
                folder / "masks" / subset / f"picture_{number:08d}.png",
            )
            for number, subset in enumerate(subsets)
        ]
        return pairs, []

    def facts(pairs: Sequence[Pair], *_: object) -> Iterator[ImageRecord]:
        labels = inputs.labels_of(range(len(pairs)), 20)
        for number, (pair, present) in enumerate(zip(pairs, labels, strict=True)):
            image, source, mask, values = (f"{one}{number:063x}" for one in "abcd")
            counts = dict.fromkeys(present, 1000)
            sizes = ((500, 375), (500, 375))
            yield ImageRecord(pair, *sizes, counts, 0, image, source, mask, values)

    KINDS["made_up"] = DatasetKind(
        name="made_up",
        title="made up",
        layout="",
        find_pairs=find_pairs,
        find_folders=lambda folder: [],
        class_names=lambda folder, listed: [f"class {n}" for n in range(1, 21)],
    )
    settings: dict[str, Any] = {"kind": "made_up", "folder": "pictures"}
    settings |= {"class_count": 20, "dataset": inputs.DATASET}

    def work() -> None:
        with mock.patch.object(index, "read_all", facts):
            index.index_dataset("index.csv", "integrity.json", **settings)

    return work


def prepare_pictures(images: int) -> None:
    """Real pictures of 96 pixels, a tenth for validation."""
    inputs.write_pictures(Path("pictures"), images - images // 10, images // 10, 20, 96)


def index_pictures(images: int) -> Work:
    """The rule `prepare_dataset` on real pictures."""
    from kproba.data.index import index_dataset

    settings: dict[str, Any] = {"kind": "folder", "folder": "pictures"}
    settings |= {"class_count": 20, "dataset": inputs.DATASET, "workers": 1}
    return lambda: index_dataset("index.csv", "integrity.json", **settings)


def find_pairs(images: int) -> Work:
    """Pairing of pictures and masks."""
    from kproba.data.kinds.folder import find_pairs

    return lambda: find_pairs(Path(), 0.2)


def state_of_files(images: int) -> Work:
    """What a dry run does to see whether pictures changed."""
    from kproba.data.kinds import KINDS
    from kproba.plan.dataset_state import state_of_files

    return lambda: state_of_files(KINDS["folder"], Path(), "files.json")


def read_state(images: int) -> Work:
    """Reading what the index recorded of the files."""
    from kproba.plan.dataset_state import recorded_state

    return lambda: recorded_state("files.json")


def split(size: int, groups: Sequence[Sequence[int]] = VOC) -> Work:
    """The rule `make_split` of the last step."""
    from kproba.data.splits import write_split

    def work() -> None:
        classes = tuple(map(tuple, groups))
        write_split(["index.csv"], "split.csv", groups=classes, setting="disjoint")

    return work


def split_of_classes(classes: int) -> Work:
    """The same for classes in five steps."""
    return split(classes, inputs.even_groups(classes, 5))


# Plan


def prepare_runs(
    seeds: int, groups: Sequence[Sequence[int]] = VOC, methods: Sequence[str] = FEW
) -> None:
    """A configuration with some seeds."""
    classes = sum(map(len, groups))
    inputs.write_config(
        Path(), classes=classes, groups=groups, methods=methods, seeds=seeds
    )


def prepare_classes(classes: int) -> None:
    """A configuration with five steps."""
    prepare_runs(1, inputs.even_groups(classes, 5))


def prepare_steps(steps: int) -> None:
    """A configuration with a class per step."""
    prepare_runs(1, [[label] for label in range(1, steps + 1)])


def plan(size: int) -> Work:
    """Check of the configuration, plan, and the files of all results."""
    import kproba.plan.plan  # noqa: F401  # the import is not measured

    def work() -> None:
        plan = inputs.make_plan(Path())
        plan.results(plan.runs)

    return work


def trainings(
    seeds: int, steps: int = len(VOC), heads: int = 1, methods: int = 2
) -> int:
    """Trainings of runs: step 0 once per head and seed, later steps per method."""
    return seeds * (heads + methods * (steps - 1))


# Results


def with_results(prepare: Callable[[int], None], size: int) -> None:
    """Configuration and results, and the tables and figures that the page reads."""
    prepare(size)
    inputs.write_results(inputs.make_plan(Path()))
    summary(size)()
    for name in ("miou", "training"):  # the page takes them as they are
        Path(f"{name}.png").write_bytes(bytes(100_000))


def summary(size: int) -> Work:
    """The rule `summarise`."""
    from kproba.results.tables import collect_quality, summarise

    plan = inputs.make_plan(Path())
    results = plan.results(plan.runs)

    def work() -> None:
        summarise(results, "summary.csv", "classes.csv")
        collect_quality(results, "pseudo_labels.csv")

    return work


def figures(size: int) -> Work:
    """The rule `draw_figures`."""
    from kproba.artifacts import FIGURE_NAMES
    from kproba.results.figures import draw_figures

    plan = inputs.make_plan(Path())
    results = plan.results(plan.runs)
    [run] = plan.experiments()
    groups = plan.datasets.groups(run.dataset, run.task)
    outputs = {name: f"{name}.png" for name in FIGURE_NAMES}
    indices = plan.datasets.indices(run.dataset, groups)
    folders = _folders(plan)
    return lambda: draw_figures(
        results, indices, outputs, groups=groups, folders=folders
    )


def page(size: int) -> Work:
    """The rule `write_report`."""
    from kproba.results.experiment import Experiment
    from kproba.results.page import write_report

    plan = inputs.make_plan(Path())
    results = plan.results(plan.runs)
    experiments = [
        Experiment(**plan.describe_experiment(run), folders=_folders(plan))
        for run in plan.experiments()
    ]
    tables = {"summary": "summary.csv", "classes": "classes.csv"}
    return lambda: write_report(
        results, experiments, "report.html", pseudo_labels="pseudo_labels.csv", **tables
    )


def _folders(plan: Any) -> Any:
    from kproba.data.folders import parse_folders

    return parse_folders(json.dumps(plan.datasets.folders(inputs.DATASET)))


def prepare_indexed_results(images: int) -> None:
    """Few results over an index of many pictures."""
    with_results(lambda _: prepare_runs(1, VOC, ["finetune"]), images)
    index = next(Path("results/data").glob("*/index.csv"))
    inputs.write_index(Path(), images)
    made_up = Path("index.csv").read_text().splitlines(keepends=True)
    index.write_text(index.read_text() + "".join(made_up[1:]))
