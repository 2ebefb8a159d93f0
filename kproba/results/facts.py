"""What was run, from the files of the steps; what old results lack is left out."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kproba.data.memory_rules import MEMORY_RULES
from kproba.plan.results import StepResult
from kproba.results.costs import read_usage
from kproba.results.experiment import Experiment
from kproba.results.record import read_evaluation_record
from kproba.results.tables import keep_first_seed
from kproba.runtime import records
from kproba.runtime.files import read_json

# What the page reads of model.json and evaluation.json.
_MODEL = records.record(
    {
        "architecture": records.record({"backbone": records.text()}, others=True),
        "provenance": records.record(
            dict.fromkeys(("kproba", "commit", "torch"), records.maybe(records.text())),
            others=True,
        ),
    },
    others=True,
)
_TEST = records.record(
    {
        "prediction": records.text(),
        "protocol": records.record(
            {"crop": records.maybe(records.integer(1)), "checkpoint": records.text()},
            others=True,
        ),
    },
    others=True,
)
THIN = "\u202f"  # a narrow space at which no line ends
MOST_LISTED = 4  # numbers of a fact that are listed one by one


@dataclass(frozen=True)
class Fact:
    """A labelled value.

    Attributes:
        name: The label.
        value: The value.
        more: The value at greater length, or "".
    """

    name: str
    value: str
    more: str = ""


@dataclass(frozen=True)
class SettingsFile:
    """A settings.json that can be read and downloaded.

    Attributes:
        title: Method and step.
        name: Name of the downloaded file.
        text: Its content.
    """

    title: str
    name: str
    text: str


def read_models(results: Iterable[StepResult]) -> list[dict[str, Any]]:
    """Content of every model.json that was not removed."""
    paths = dict.fromkeys(Path(r.model).with_suffix(".json") for r in results)
    return [records.read_record(path, _MODEL) for path in paths if path.is_file()]


def read_test(result: StepResult) -> dict[str, Any]:
    """Content of a step's evaluation.json."""
    content = read_evaluation_record(result.evaluation)
    records.check_content(content, _TEST, result.evaluation)
    return content


def join_words(values: Iterable[object]) -> str:
    """Distinct values in words, without None."""
    texts = (str(value) for value in values if value is not None)
    return ", ".join(dict.fromkeys(texts))


def newest_evaluation(results: Iterable[StepResult]) -> str:
    """Date of the newest evaluation, ISO 8601 in UTC."""
    newest = max(Path(result.evaluation).stat().st_mtime for result in results)
    return datetime.fromtimestamp(newest, UTC).date().isoformat()


def key_facts(experiment: Experiment, results: Sequence[StepResult]) -> list[Fact]:
    """The facts that are always visible, the most important first."""
    last = max(results, key=lambda result: result.step)
    test = read_test(last)
    models, seeds = read_models(results), sorted({result.seed for result in results})
    provenance = [model["provenance"] for model in models]
    settings = _settings_by_step(results)
    kind = "" if experiment.kind == experiment.dataset else f"kind {experiment.kind}"
    sizes = [len(group) for group in experiment.groups]
    commits = dict.fromkeys(entry["commit"] for entry in provenance)
    facts = [
        Fact("dataset", experiment.dataset, kind),
        Fact("task", experiment.task, experiment.setting),
        Fact("classes per step", _class_counts(sizes)),
        Fact("images per step", _per_step(_count_images(results), ", "), "training"),
        Fact("evaluated on", f"{test['images']} images", experiment.evaluated_images),
        Fact("seeds", ", ".join(map(str, seeds))),
        Fact("policy", test["protocol"]["policy"], _size(test["protocol"])),
        Fact("backbone", join_words(m["architecture"]["backbone"] for m in models)),
        Fact("epochs", _optimisation(settings, "epochs"), "per step"),
        Fact("batch size", _optimisation(settings, "batch_size")),
        _old_images(results),
        Fact("trained on", _devices(results)),
        Fact("evaluated", newest_evaluation(results)),
        Fact("commit", join_words(c and c[:7] for c in commits)),
    ]
    return [fact for fact in facts if fact.value]


def more_facts(experiment: Experiment, results: Sequence[StepResult]) -> list[Fact]:
    """The other facts, which are folded."""
    names = iter(experiment.names[1:])
    steps = [", ".join(next(names) for _ in group) for group in experiment.groups]
    tests = {result.method: read_test(result) for result in results}
    protocols = [test["protocol"] for test in tests.values()]
    versions = [model["provenance"] for model in read_models(results)]
    predictions = [f"{name}: {test['prediction']}" for name, test in tests.items()]
    facts = [
        *(Fact(f"classes of step {step}", listed) for step, listed in enumerate(steps)),
        Fact("image size in the evaluation", join_words(map(_size, protocols))),
        Fact("checkpoint", join_words(entry["checkpoint"] for entry in protocols)),
        Fact("predicts", "; ".join(predictions)),
        Fact("kproba", join_words(entry["kproba"] for entry in versions)),
        Fact("commit", join_words(entry["commit"] for entry in versions)),
        Fact("PyTorch", join_words(entry["torch"] for entry in versions)),
    ]
    return [fact for fact in facts if fact.value]


def _size(protocol: Mapping[str, Any]) -> str:
    crop = protocol["crop"]
    return "whole images" if crop is None else f"crop of {crop}"


def _class_counts(sizes: Sequence[int]) -> str:
    """Classes of all steps: "6 + 2 + 2", or "15 + 5 × 1"."""
    first, *later = sizes
    if len(later) > 2 and len(set(later)) == 1:
        return f"{first} + {len(later)} × {later[0]}"
    return _per_step(sizes, " + ")


def _per_step(numbers: Sequence[object], between: str) -> str:
    """Numbers of all steps: "15 + 1 + 1", of many "15 + 1 + ... + 1"."""
    texts = [str(number) for number in numbers]
    if len(texts) > MOST_LISTED:
        texts = [*texts[:2], "…", texts[-1]]
    return between.join(texts)


def _count_images(results: Sequence[StepResult]) -> list[str]:
    """Training images of every step but those of joint training, where known."""
    counts: dict[int, str] = {}
    chained = [r for r in results if not r.joint] or list(results)
    for result in sorted(chained, key=lambda result: result.step):
        path = Path(result.images or "")
        if result.step not in counts and path.is_file():
            with path.open("rb") as file:
                count = sum(1 for _ in file) - 1
            counts[result.step] = f"{count:,}".replace(",", THIN)
    return list(counts.values())


def _settings_by_step(results: Sequence[StepResult]) -> dict[int, dict[str, Any]]:
    """By step the settings of its trainings; the first method's count."""
    found: dict[int, dict[str, Any]] = {}
    chained = [r for r in results if not r.joint] or list(results)
    for result in sorted(chained, key=lambda result: result.step):
        if result.step not in found and Path(result.settings or "").is_file():
            found[result.step] = read_json(str(result.settings))
    return found


def _optimisation(settings: Mapping[int, Mapping[str, Any]], key: str) -> str:
    """A value of the optimisation: of step 0, then of the later steps if it differs."""
    values = [entry.get("optimisation", {}).get(key) for entry in settings.values()]
    known = [f"{value:g}" for value in values if isinstance(value, int | float)]
    different = list(dict.fromkeys(known))
    return ", then ".join(different) if len(different) < 3 else _per_step(known, ", ")


def _old_images(results: Sequence[StepResult]) -> Fact:
    """The old images in memory by method; empty if no method has a memory."""
    numbers: dict[str, str] = {}
    leaking: dict[str, None] = {}
    for result in results:
        path = Path(result.settings or "")
        memory = read_json(path).get("memory") if path.is_file() else None
        if memory:
            numbers[result.method] = f"{result.method} {memory['images']}"
            if MEMORY_RULES[memory["rule"]].leaks:
                numbers[result.method] += " (leaks)"
                leaking[result.method] = None
    more = ""
    if leaking:
        more = f"{', '.join(leaking)}: with labels that nobody gave these images"
    return Fact("old images in memory", ", ".join(numbers.values()), more)


def _devices(results: Sequence[StepResult]) -> str:
    """The devices of the trainings, with their number."""
    names = []
    for usage in map(read_usage, results):
        if "device" in usage:
            count = usage.get("processes", 1)
            names.append(
                f"{count} × {usage['device']}" if count > 1 else usage["device"]
            )
    return join_words(names)


def list_settings(results: Sequence[StepResult]) -> list[SettingsFile]:
    """settings.json of step 0 and of the last step of every method's first seed."""
    last = max(result.step for result in results)
    shown: dict[str, SettingsFile] = {}
    for result in keep_first_seed(results):
        path = Path(result.settings or "")
        if result.step not in (0, last) or str(path) in shown or not path.is_file():
            continue
        content, method, step = read_json(path), result.method, result.step
        if step == 0:  # which has the name of its owner, such as "base"
            method = content.get("run", {}).get("method", method)
        name = f"{method}-step{step}-settings.json".replace("/", "-")
        text = json.dumps(content, indent=2, ensure_ascii=False)
        shown[str(path)] = SettingsFile(f"{method}, step {step}", name, text)
    return list(shown.values())
