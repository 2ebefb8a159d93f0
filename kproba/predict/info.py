"""Facts about a tested step: its run, classes, files, bank, results and provenance."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kproba.bank.description import (
    FILES,
    StepDescription,
    find_description,
    read_description,
)
from kproba.network.architecture import Architecture
from kproba.network.heads import HEADS
from kproba.runtime.files import read_json


def describe_step(step: str | Path) -> list[str]:
    """Lines of text about a step.

    Args:
        step: Folder of a tested step, or its predictor.json.

    Raises:
        FileNotFoundError: predictor.json or a file that it names is missing.
    """
    description = read_description(step)
    model = read_json(description.network.with_suffix(".json"))
    lines = [
        _describe_run(description.about),
        "",
        *_describe_classes(description),
        "",
        *_describe_files(description),
        _describe_network(model["architecture"]),
    ]
    if description.bank is not None:
        lines += _describe_bank(read_json(description.bank.with_suffix(".json")))
    result = find_description(step).parent / "evaluation.json"
    if result.is_file():
        lines += ["", _describe_result(read_json(result))]
    versions = model["provenance"]
    lines += ["", "made by:"]
    lines += [
        f"  {name:<12} {version}"
        for name, version in versions.items()
        if version is not None
    ]
    return lines


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


def _describe_files(description: StepDescription) -> list[str]:
    predictor = "network"
    if description.bank is not None and description.decision is not None:
        predictor = f"network and bank ({description.decision['rule']})"
    lines = [f"predicts by: {predictor}"]
    for key in FILES:
        path = getattr(description, key)
        if path is not None:
            size = path.stat().st_size / 2**20
            name = key.replace("_", " ")
            lines.append(f"  {name:<15} {path.resolve()}  ({size:.1f} MiB)")
    return lines


def _describe_network(content: Mapping[str, Any]) -> str:
    """A line about the architecture that model.json holds, in any version."""
    architecture = Architecture.from_dict(content)
    name = architecture.head  # an extension's entry may not be loaded
    head = HEADS[name].description if name in HEADS else f"the head {name}"
    return (
        f"network: {architecture.backbone}, output stride "
        f"{architecture.output_stride}; {head}"
    )


def _describe_bank(bank: Mapping[str, Any]) -> list[str]:
    settings = bank["settings"]
    kind = (
        "linear (LDA)"
        if settings["map"] == "identity"
        else f"{settings['maps']} maps of {settings['dimension']} Fourier features"
    )
    cells = zip(bank["classes"], bank["cells_per_class"], strict=True)
    return [
        f"bank: {kind} on {settings['feature']}, ridge {settings['ridge']}, "
        f"temperature {bank['temperature']:.2f}",
        f"  cells: {', '.join(f'{name} {count}' for name, count in cells)}",
    ]


def _describe_result(result: Mapping[str, Any]) -> str:
    from kproba.results import measures  # imports pandas, which mistakes need not

    means = [
        f"{measure.title} {result[measure.name]:.1f}"
        for measure in measures.step_means()
        if result.get(measure.name) is not None
    ]
    return (
        f"mIoU: {', '.join(means)} percent on {result['images']} images "
        f"(policy {result['protocol']['policy']})"
    )
