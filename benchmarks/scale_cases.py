"""The list of what `benchmarks.scale` measures."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import scale_classes as of_classes
from benchmarks import scale_inputs as inputs
from benchmarks import scale_works as works
from benchmarks.measuring import ROOT


@dataclass(frozen=True)
class Case:
    """Something that is measured at several sizes.

    Attributes:
        group: Its group.
        what: The work, in words.
        unit: What the sizes count.
        sizes: The sizes; the exponent is that of the last two steps.
        prepare: Gets a size and writes the input into the working directory.
        work: Gets the size and returns the work on it. None: it is `command`.
        command: A command, whose whole process is measured.
        counted: What is shown for a size, if it is not the size.
    """

    group: str
    what: str
    unit: str
    sizes: Sequence[int]
    prepare: Callable[[int], None]
    work: Callable[[int], works.Work] | None = None
    command: Sequence[str] = ()
    counted: Callable[[int], int] = int


SEEDS = (1, 9, 91)  # 11, 99 and 1,001 works.trainings of VOC with two methods
IMAGES = (10_000, 100_000, 1_000_000)
CLASSES = (10, 50, 100, 253)
MANY_CLASSES = (20, 150, 253, 1000)  # of what does not write labels
IN_BYTES = MANY_CLASSES[:-1]  # of what does: masks and targets hold bytes
STEPS = (10, 30, 100)
JOB = "train_step:dataset=made_up,task=grow,setting=overlap,method=finetune"
DRY_RUN = (
    *(sys.executable, "-m", "snakemake", "--dry-run", "--cores", "2"),
    *("--snakefile", str(ROOT / "Snakefile"), "--configfile", inputs.CONFIG),
)

# What Snakemake does in each job of a cluster, before the job itself is run.
IN_A_JOB = (
    *(*DRY_RUN, "--target-jobs", f"{JOB},seed=0,step=5", "--allowed-rules"),
    *("train_step", "--force", "--nolock", "--ignore-incomplete"),
    *("--mode", "remote", "--no-hooks"),
)


def _data_cases() -> list[Case]:
    index = partial(Case, "index", unit="pictures")
    split = partial(Case, "splits")
    trees = (1_000, 10_000, 50_000)
    return [
        index(
            what="`prepare_dataset` without decoding",
            sizes=IMAGES,
            prepare=lambda images: None,
            work=works.write_index,
        ),
        index(
            what="`prepare_dataset` of real pictures, one process",
            sizes=(500, 1_000, 2_000, 4_000),
            prepare=works.prepare_pictures,
            work=works.index_pictures,
        ),
        index(
            what="pairing of pictures and masks",
            sizes=trees,
            prepare=lambda images: inputs.write_empty_pictures(Path(), images),
            work=works.find_pairs,
        ),
        index(
            what="pairing where no mask has the name of its picture",
            sizes=(1_000, 4_000, 16_000),
            prepare=lambda images: inputs.write_empty_pictures(Path(), images, "_m"),
            work=works.find_pairs,
        ),
        index(
            what="names, sizes and times of the files",
            sizes=trees,
            prepare=lambda images: inputs.write_empty_pictures(Path(), images),
            work=works.state_of_files,
        ),
        index(
            what="reading the state in files.json",
            sizes=IMAGES,
            prepare=lambda images: inputs.write_files_record(Path(), images),
            work=works.read_state,
        ),
        *(
            index(what=what, sizes=IMAGES, prepare=works.prepare_index, work=work)
            for what, work in (
                ("reading index.csv", works.read_index),
                ("reading it, with paths of pictures", works.locate_pictures),
                ("the check of the steps' pictures", works.check_steps),
            )
        ),
        split(
            what="`make_split` of a step",
            unit="pictures",
            sizes=IMAGES,
            prepare=works.prepare_index,
            work=works.split,
        ),
        split(
            what="`make_split` of 10,000 pictures",
            unit="classes",
            sizes=(10, 100, 253, 1000),
            prepare=lambda classes: works.prepare_index(10_000, classes),
            work=works.split_of_classes,
        ),
    ]


def _plan_cases() -> list[Case]:
    plan = partial(Case, "plan")
    runs: dict[str, Any] = {"unit": "trainings", "sizes": SEEDS}
    runs["counted"] = works.trainings
    ade: dict[str, Any] = {
        "prepare": lambda seeds: works.prepare_runs(seeds, works.ADE, works.MANY),
        "unit": "trainings",
        "sizes": (1, 4, 16),
        "counted": lambda seeds: works.trainings(
            seeds, len(works.ADE), 2, len(works.MANY)
        ),
    }
    return [
        plan(
            what="`Plan` and its results",
            prepare=works.prepare_runs,
            work=works.plan,
            **runs,
        ),
        plan(what="the same, 100-5, six methods", work=works.plan, **ade),
        plan(
            what="`Plan`, five steps, one seed",
            unit="classes",
            sizes=CLASSES,
            prepare=works.prepare_classes,
            work=works.plan,
        ),
        plan(
            what="`Plan`, a class per step, one seed",
            unit="steps",
            sizes=STEPS,
            prepare=works.prepare_steps,
            work=works.plan,
        ),
        plan(
            what="`snakemake -n`, 15-1, two methods",
            prepare=works.prepare_runs,
            command=DRY_RUN,
            **runs,
        ),
        plan(what="`snakemake -n`, 100-5, six methods", command=DRY_RUN, **ade),
        plan(
            what="Snakemake in a job of a cluster, 15-1, two methods",
            prepare=works.prepare_runs,
            command=IN_A_JOB,
            **runs,
        ),
    ]


def _result_cases() -> list[Case]:
    rules = {"summary": works.summary, "figures": works.figures, "page": works.page}
    names = {
        "summary": "`summarise`",
        "figures": "`draw_figures`",
        "page": "`write_report`",
    }
    ways: list[tuple[str, str, Sequence[int], Callable[[int], None], Any]] = [
        ("15-1, two methods", "trainings", SEEDS, works.prepare_runs, works.trainings),
        ("five steps, one seed", "classes", CLASSES, works.prepare_classes, int),
        ("a class per step, one seed", "steps", STEPS, works.prepare_steps, int),
    ]
    cases = [
        Case(
            name,
            f"{names[name]}, {what}",
            unit,
            sizes,
            partial(works.with_results, prepare),
            work,
            counted=counted,
        )
        for what, unit, sizes, prepare, counted in ways
        for name, work in rules.items()
    ]
    for name in ("figures", "page"):
        cases.append(
            Case(
                name,
                f"{names[name]}, one run",
                "pictures in the index",
                (10_000, 100_000, 500_000),
                works.prepare_indexed_results,
                rules[name],
            )
        )
    return cases


def _class_cases() -> list[Case]:
    """The stages with torch, by number of classes, on made-up features and labels."""
    side = of_classes.SIDE
    cells = of_classes.BANK_BATCHES * of_classes.BANK_IMAGES * of_classes.BANK_CELLS**2
    stages: list[tuple[str, Sequence[int], Callable[[int], works.Work]]] = [
        (f"bank by LDA of {cells:,} cells", MANY_CLASSES, of_classes.build_bank),
        (
            "`log_posterior` of 16,384 cells, LDA",
            MANY_CLASSES,
            of_classes.log_posterior,
        ),
        (
            f"scores of {side}² pixels, with `fit_to_image`",
            MANY_CLASSES,
            of_classes.scores,
        ),
        (
            f"`likeliest_classes` of {side}² pixels, with image prior",
            MANY_CLASSES,
            of_classes.likeliest,
        ),
        (
            f"pseudo labels of {of_classes.BATCH} pictures of {side}² pixels",
            IN_BYTES,
            of_classes.pseudo_labels,
        ),
        (
            f"ASPP and head, forward and backward, {of_classes.BATCH} × {side}²",
            MANY_CLASSES,
            of_classes.head,
        ),
        ("the same with the losses of `kproba`", IN_BYTES, of_classes.iteration),
        (
            f"counts and means of an evaluation, {of_classes.TESTED} × {side}² pixels",
            MANY_CLASSES,
            of_classes.confusion,
        ),
    ]
    return [
        Case("classes", what, "classes", sizes, lambda classes: None, work)
        for what, sizes, work in stages
    ]


def all_cases() -> list[Case]:
    """All cases, in the order of the table."""
    return [*_data_cases(), *_plan_cases(), *_result_cases(), *_class_cases()]
