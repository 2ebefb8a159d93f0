"""Facts about an evaluated step: run, classes, files, bank, results and provenance.

A folder above steps, such as a run, gets one line per step. Nothing here imports torch
or pandas, so `kproba info` is fast.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kproba.bank.decision import Decision
from kproba.bank.description import (
    FILES,
    PREDICTOR,
    StepDescription,
    find_description,
    read_description,
)
from kproba.bank.record import read_bank_record
from kproba.network.architecture import Architecture
from kproba.network.heads import HEADS
from kproba.network.record import read_model_record
from kproba.predict.steps import opened_step
from kproba.runtime import records

EVALUATION = "evaluation.json"  # beside predictor.json

# Means of `kproba.results.measures`, which is slow to import: column and title.
MEANS = {"old": "old", "new": "new", "all": "all"}

# The keys of evaluation.json that are used here.
RESULT = records.record(
    {
        "images": records.integer(),
        "protocol": records.record({"policy": records.text()}, others=True),
    },
    {name: records.maybe(records.number()) for name in MEANS},
    others=True,
)

MOST_DEPTH = 6  # folders from results/ down to a step


def describe(path: str | Path) -> list[str]:
    """Lines of text about a step, or about all steps below a folder.

    Args:
        path: Folder of an evaluated step, its predictor.json, an archive that `kproba
            pack` wrote, or a folder above steps, such as that of a run.

    Raises:
        FileNotFoundError: There is no evaluated step, or one of its files is missing.
        ValueError: A file is damaged.
    """
    folder = Path(path)
    if os.path.isdir(folder) and not os.path.isfile(folder / PREDICTOR):  # noqa: PTH112, PTH113
        steps = sorted(_tested_steps(folder), key=_in_order)
        if steps:
            return list_steps(folder, steps)
    with opened_step(path) as step:
        return describe_step(step, archive=None if step == folder else folder)


def _tested_steps(folder: Path) -> Iterator[Path]:
    """Folders of evaluated steps below a folder."""
    for here, folders, files in os.walk(folder):
        depth = len(Path(here).relative_to(folder).parts)
        if PREDICTOR in files:
            yield Path(here)
        if depth >= MOST_DEPTH:
            folders.clear()


def _in_order(step: Path) -> tuple[str, int, str]:
    """Sort key that puts step10 after step9."""
    digits = "".join(letter for letter in step.name if letter.isdecimal())
    return str(step.parent), int(digits[:9] or 0), step.name


def list_steps(folder: Path, steps: list[Path]) -> list[str]:
    """A line per step: folder, classes, predictor and mean IoU.

    Args:
        folder: The folder above them.
        steps: Their folders.
    """
    lines = []
    for step in steps:
        name = step.relative_to(folder).as_posix()
        try:
            description = read_description(step)
            result = _read_result(step)
            parts = [
                f"{len(description.classes) - 1} classes and background",
                _describe_predictor(description),
                _describe_means(result) if result else "not evaluated",
            ]
        except (OSError, ValueError) as error:
            parts = [f"cannot be read: {error}"]
        lines.append(f"{name}: {'; '.join(parts)}")
    return lines


def describe_step(step: str | Path, archive: Path | None = None) -> list[str]:
    """Lines of text about a step.

    Args:
        step: Folder of an evaluated step, or its predictor.json.
        archive: The archive that contains the step, if it is packed.

    Raises:
        FileNotFoundError: predictor.json or a file that it names is missing.
        ValueError: A file is damaged.
    """
    description = read_description(step)
    model = read_model_record(description.network)
    lines = [
        _describe_run(description.about),
        "",
        *_describe_classes(description),
        "",
        *_describe_files(description, archive),
        _describe_network(model.architecture),
    ]
    if description.long_side is not None:
        lines.append(
            f"images: scaled down to at most {description.long_side} pixels "
            f"on the longer side"
        )
    if description.bank is not None:
        lines += _describe_bank(description)
    result = _read_result(find_description(step).parent)
    if result:
        lines += ["", *_describe_result(result)]
    lines += ["", "made by:"]
    lines += [
        f"  {name:<12} {version}"
        for name, version in model.provenance.items()
        if version is not None
    ]
    return lines


def _read_result(folder: Path) -> Mapping[str, Any] | None:
    """The content of the evaluation.json of a step; None if there is none."""
    path = folder / EVALUATION
    if not path.exists():
        return None
    result: Mapping[str, Any] = records.read_record(path, RESULT)
    return result


def _describe_run(about: Mapping[str, Any]) -> str:
    return (
        f"{about['dataset']} {about['task']} {about['setting']}, {about['method']}, "
        f"seed {about['seed']}, after step {about['step']}"
    )


def _describe_classes(description: StepDescription) -> list[str]:
    lines = []
    for step in sorted({entry.step for entry in description.classes}):
        names = [
            f"{entry.name} ({entry.label})"
            for entry in description.classes
            if entry.step == step
        ]
        lines.append(f"  step {step}: {', '.join(names)}")
    return [*lines, "  (in brackets: the values in masks)"]


def _describe_predictor(description: StepDescription) -> str:
    if description.bank is not None and description.decision is not None:
        decision = Decision.from_dict(description.decision)
        who = "bank" if decision.bank_alone else "network and bank"
        if decision.by_networks:
            who = "network and network of step 0"
        return f"{who} ({decision.rule})"
    return "network"


def _describe_files(description: StepDescription, archive: Path | None) -> list[str]:
    lines = [f"prediction: {_describe_predictor(description)}"]
    for key in FILES:
        path = getattr(description, key)
        if path is not None:
            size = records.regular_file(path) / 2**20
            name = key.replace("_", " ")
            shown = f"{archive}: {path.name}" if archive else path.resolve()
            lines.append(f"  {name:<15} {shown}  ({size:.1f} MiB)")
    return lines


def _describe_network(architecture: Architecture) -> str:
    name = architecture.head  # an extension's entry may not be loaded
    head = HEADS[name].description if name in HEADS else f"the head {name}"
    return (
        f"network: {architecture.backbone}, output stride "
        f"{architecture.output_stride}; {head}"
    )


def _describe_bank(description: StepDescription) -> list[str]:
    assert description.bank is not None
    bank = read_bank_record(description.bank)
    settings = bank.settings
    kind = {
        "identity": "linear (LDA)",
        "rff": f"{settings.maps} maps of {settings.dimension} Fourier features",
        "relu": f"ridge regression of {settings.dimension} ReLU features",
    }[settings.map]
    added = f"ridge {settings.ridge}"
    if settings.regularisation is not None:
        added = f"regularisation {settings.regularisation:g}"
    lines = [
        f"bank: {kind} on {settings.feature}, {added}, "
        f"temperature {bank.temperature:.2f}"
    ]
    counts = bank.content.get("cells_per_class", [])
    names = [entry.name for entry in description.classes]
    if len(counts) == len(names):
        cells = (f"{name} {count}" for name, count in zip(names, counts, strict=True))
        lines.append(f"  cells: {', '.join(cells)}")
    return lines


def _describe_means(result: Mapping[str, Any]) -> str:
    means = [
        f"{title} {result[name]:.1f}"
        for name, title in MEANS.items()
        if result.get(name) is not None
    ]
    return f"mIoU: {', '.join(means)} percent" if means else "mIoU: unknown"


def _describe_result(result: Mapping[str, Any]) -> list[str]:
    lines = [
        f"{_describe_means(result)} on {result['images']} images "
        f"(policy {result['protocol']['policy']})"
    ]
    if absent := result.get("without_pixels"):
        left_out = result["protocol"].get("leave_out_absent", False)
        how = "left out of the means" if left_out else "counted as 0"
        lines.append(
            f"  not evaluated, because no validation image has them: "
            f"{', '.join(absent)} ({how})"
        )
    if untrained := result.get("without_training_images"):
        lines.append(f"  in no training image: {', '.join(untrained)}")
    return lines
