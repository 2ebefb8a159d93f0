"""The model card of an evaluated step, in the form that Hugging Face uses.

It holds only what the files of the step say; what they do not say is left out. Nothing
here imports torch or pandas, so that a card takes a fraction of a second.
"""

import csv
import os
import shlex
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import yaml

from kproba.artifacts import RESULTS, SPLIT, fill
from kproba.bank.decision import Decision
from kproba.bank.description import (
    FILES,
    StepDescription,
    find_description,
    read_description,
)
from kproba.data.tasks import canonical_task
from kproba.network.record import ModelRecord, read_model_record
from kproba.predict.steps import opened_step
from kproba.results.record import read_evaluation_record, read_usage_record
from kproba.runtime import records
from kproba.runtime.run_file import TrainedStep, read_run

EVALUATION = "evaluation.json"  # beside predictor.json
USAGE = "usage.json"  # beside a network
EVENTS = "tensorboard"  # beside a network; it names the step before
DEPTH = 5  # folders from a step up to results/
MOST_STEPS = 1000  # that are followed back to step 0

# Means in evaluation.json and their names; a step 0 has no new classes.
MEANS = {
    "old": "old classes",
    "new": "new classes",
    "all": "all classes",
    "hiou": "harmonic mean of old and new",
}
SHOWN_SETTINGS = ("augmentation", "optimisation", "method", "decision")


def describe_card(path: str | Path, shown: str | None = None) -> str:
    """The model card of a step, in Markdown.

    Args:
        path: Folder of an evaluated step, its predictor.json, or an archive that
            `kproba pack` wrote.
        shown: The path of the step in the examples of use; None: `path`, or the folder
            of a predictor.json.

    Raises:
        FileNotFoundError: There is no such step, or a file of it is missing.
        ValueError: A file is damaged.
    """
    place = Path(path)
    if shown is None:
        shown = str(place.parent if place.suffix == ".json" else place)
    with opened_step(path) as step:
        facts = _collect(step, shown)
    template = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    folder = files("kproba.results") / "templates"
    source = (folder / "card.md.jinja").read_text(encoding="utf-8")
    return template.from_string(source).render(facts)


def _collect(step: str | Path, shown: str) -> dict[str, Any]:
    """All that the template shows."""
    description = read_description(step)
    folder = find_description(step).parent
    model = read_model_record(description.network)
    result = _read_result(folder)
    about = {**description.about, "dataset": _cell(description.about["dataset"])}
    events = description.network.parent / EVENTS
    trainings = _trainings(events)
    last = trainings[0] if trainings else None
    joint = last is not None and (last.joint or last.step < about["step"])
    content = model.content.get("settings", {})
    kept = {key: content[key] for key in SHOWN_SETTINGS if content.get(key)}
    means = _means(result)
    return {
        "title": f"{about['method']} on {about['dataset']}, {about['task']} "
        f"{about['setting']}, step {about['step']}",
        "metadata": _metadata(description.about, model, means),
        "about": about,
        "joint": joint,
        "classes": description.classes,
        "groups": _groups(description),
        "network": f"{model.architecture.backbone}, output stride "
        f"{model.architecture.output_stride}, head `{model.architecture.head}`",
        "prediction": _prediction(description),
        "long_side": description.long_side,
        "quoted": shlex.quote(shown),
        "literal": repr(shown),
        "relative": shown.startswith(f"{RESULTS}/"),
        "result": result,
        "has_pixels": bool(result) and all("pixels" in c for c in result["classes"]),
        "means": [(MEANS[name], f"{value:.1f}") for name, value in means.items()],
        "images": _image_counts(trainings, description.network, model),
        "settings": yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)
        if kept
        else "",
        "files": _files(description, folder),
        "limits": _limits(result),
        "provenance": _provenance(model, description.network.parent / USAGE),
        "version": model.provenance.get("kproba"),
    }


def _cell(text: str) -> str:
    """A text that cannot end a cell of a table."""
    return text.replace("|", "\\|")


def _read_result(folder: Path) -> dict[str, Any]:
    """The content of evaluation.json with texts of the IoU; empty without the file."""
    path = folder / EVALUATION
    if not path.exists():
        return {}
    result = read_evaluation_record(path, MEANS)
    for entry in result["classes"]:
        entry["name"] = _cell(entry["name"])
        iou = entry["iou"]
        entry["text"] = "not measured" if iou is None else f"{iou:.1f}"
        if entry["name"] in result.get("without_pixels", ()):
            entry["text"] = "not measured"
    return result


def _means(result: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: result[name]
        for name in MEANS
        if isinstance(result.get(name), int | float)
    }


def _metadata(
    about: Mapping[str, Any], model: ModelRecord, means: Mapping[str, float]
) -> str:
    """The YAML at the top, which Hugging Face reads.

    There is no license: it is for the owner of the weights to choose one.
    """
    name = f"{about['dataset']}-{about['task']}-{about['setting']}-{about['method']}"
    content: dict[str, Any] = {
        "library_name": "kproba",
        "pipeline_tag": "image-segmentation",
        "tags": [
            "semantic-segmentation",
            "class-incremental-learning",
            about["method"],
            model.architecture.backbone,
        ],
        "metrics": ["mean_iou"],
    }
    if means:
        metrics = [
            {
                "type": "mean_iou",
                "name": f"mIoU, {MEANS[key]}",
                "value": round(value, 2),
            }
            for key, value in means.items()
        ]
        dataset = {"name": about["dataset"], "type": about["dataset"]}
        content["model-index"] = [
            {
                "name": f"{name}-step{about['step']}",
                "results": [
                    {
                        "task": {"type": "image-segmentation"},
                        "dataset": {**dataset, "split": "validation"},
                        "metrics": metrics,
                    }
                ],
            }
        ]
    text: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    return text


def _groups(description: StepDescription) -> list[tuple[int, list[str]]]:
    """Names and mask values of the classes, by step."""
    found: dict[int, list[str]] = {}
    for entry in description.classes:
        text = f"{_cell(entry.name)} ({entry.label})"
        found.setdefault(entry.step, []).append(text)
    return sorted(found.items())


def _prediction(description: StepDescription) -> str:
    if description.bank is not None and description.decision is not None:
        decision = Decision.from_dict(description.decision)
        who = "prototype bank" if decision.bank_alone else "network and prototype bank"
        if decision.by_networks:
            who = "network and network of step 0"
        return f"{who}, rule `{decision.rule}`"
    return "network"


def _trainings(events: Path) -> list[TrainedStep]:
    """The training that wrote some event files and those before it, the latest first.

    A chain ends where a step is not there, as in an archive.
    """
    found: list[TrainedStep] = []
    seen: set[Path] = set()
    place: Path | None = events
    while place is not None and len(found) < MOST_STEPS:
        place = Path(os.path.normpath(place))
        run = None if place in seen else read_run(place)
        if run is None:
            break
        seen.add(place)
        found.append(run)
        place = run.previous
    return found


def _image_counts(
    trainings: list[TrainedStep], network: Path, model: ModelRecord
) -> list[tuple[int, int]]:
    """Number of training images by step, as far as the lists of images are there."""
    parents = network.resolve().parents
    if len(parents) <= DEPTH or parents[DEPTH].name != RESULTS:
        return []
    counts = []
    for run in reversed(trainings):
        names = vars(run)
        if run.joint:  # all images with all labels: those of the one-step task
            task = canonical_task(sorted(model.labels[1:]))
            names = {**names, "task": task, "setting": "overlap", "step": 0}
        path = parents[DEPTH].parent / fill(SPLIT, names)
        if path.is_file():
            with path.open(newline="", encoding="utf-8") as file:
                counts.append((run.step, sum(1 for _ in csv.DictReader(file))))
    return counts


def _files(description: StepDescription, folder: Path) -> list[tuple[str, str]]:
    """Path from the folder of the step, and size, of each file that predicts."""
    listed = []
    for key in FILES:
        path = getattr(description, key)
        if path is not None:
            size = records.regular_file(path) / 2**20
            name = os.path.relpath(path.resolve(), folder.resolve())
            listed.append((f"`{name}`", f"{size:.1f} MiB"))
    return [("`predictor.json`", "< 0.1 MiB"), *listed]


def _limits(result: Mapping[str, Any]) -> list[str]:
    texts = []
    if result:
        texts.append(
            f"The numbers are of {result['images']} images of one dataset. Other "
            f"images can give other results."
        )
    if absent := result.get("without_pixels"):
        names = ", ".join(map(_cell, absent))
        left_out = result["protocol"].get("leave_out_absent", False)
        how = "left out of the means" if left_out else "counted as 0 in the means"
        texts.append(f"No validation image shows {names}: not measured, {how}.")
    if untrained := result.get("without_training_images"):
        texts.append(f"No training image shows {', '.join(map(_cell, untrained))}.")
    return texts


def _provenance(model: ModelRecord, usage: Path) -> list[tuple[str, str]]:
    """Versions and commit, and the device and duration of the last training."""
    facts = [
        (name, _cell(value))
        for name, value in model.provenance.items()
        if value is not None
    ]
    used = read_usage_record(usage) if usage.is_file() else {}
    if "device" in used:
        facts.append(("device", _cell(used["device"])))
    if "seconds" in used:
        facts.append(("last training", f"{used['seconds'] / 60:.1f} minutes"))
    if model.sha256 is not None:
        facts.append(("SHA-256 of the network", f"`{model.sha256}`"))
    return facts
