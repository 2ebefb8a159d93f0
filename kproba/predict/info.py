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
from kproba.runtime.files import read_json

HEADS = {
    "branches": "a branch with sigmoids per step",
    "softmax": "one softmax over all classes",
}


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


def _describe_network(architecture: Mapping[str, Any]) -> str:
    head = head_name(architecture)
    return (
        f"network: {architecture['backbone']}, output stride "
        f"{architecture['output_stride']}, {HEADS.get(head, f'the head {head}')}"
    )


def head_name(architecture: Mapping[str, Any]) -> str:
    """The head of a network, "branches" or "softmax".

    Args:
        architecture: "architecture" of model.json. Version 0.1.0 wrote "softmax", true
            or false, instead of "head".
    """
    if "head" in architecture:
        return str(architecture["head"])
    return "softmax" if architecture["softmax"] else "branches"


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
    means = [
        f"{name} {result[name]:.1f}"
        for name in ("old", "new", "all")
        if result[name] is not None
    ]
    return (
        f"mIoU: {', '.join(means)} percent on {result['images']} images "
        f"(policy {result['protocol']['policy']})"
    )
