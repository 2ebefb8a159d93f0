"""Settings of the jobs of a step, as plain values, from the configuration."""

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from kproba.data.memory_rules import KNOWN, TRUE_LABELS
from kproba.extensions import find_origins
from kproba.methods.method import PRETRAINED, Method
from kproba.plan.methods import PlannedMethod

Config = dict[str, Any]
Groups = list[list[int]]

# Dilations of DeepLabV3, by output stride, for feature maps of about 33 x 33 cells.
ATROUS_RATES = {16: [6, 12, 18], 8: [12, 24, 36]}


# Sizes of a bank that reads every image once, at its own size.
OWN_SIZE = [{"factor": 1.0}]

# Values of `model.weights` that are not file names.
PUBLISHED = ("imagenet", "none")


@cache
def _describe_weights(weights: str) -> str:
    """Describe weights by their content, because a file may be moved."""
    path = Path(weights).expanduser()
    if weights in PUBLISHED or not path.is_file():
        return weights
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def replay_rule(setting: str) -> str:
    """Whether the images of a step show old classes again (`Replay.plan`)."""
    return "overlap" if setting == "overlap" else "disjoint"


def length_of_step(section: Config) -> Config:
    """How long a step is trained, as `ChainStep` of the training reads it."""
    by_epochs = section["iterations"] is None
    key = "epochs" if by_epochs else "iterations"
    return {"batch_size": section["batch_size"], key: section[key]}


def training_settings(
    config: Config,
    groups: Groups,
    method: Method,
    optimisation: Config,
    *,
    setting: str,
    seed: int,
    more: Config | None = None,
) -> Config:
    """Content of settings.json, without the names of the run.

    Args:
        config: A checked configuration.
        groups: Raw labels of the classes of the steps 0..t.
        method: The method as the run uses it.
        optimisation: Section of the configuration for this step.
        setting: "overlap" or another one.
        seed: Seed of the run.
        more: `decision` and `memory`, if there are any.
    """
    step, more = len(groups) - 1, more or {}
    if optimisation["iterations"] is None:
        optimisation = {k: v for k, v in optimisation.items() if k != "iterations"}
    model = dict(config["model"])
    weights, rates = model.pop("weights"), model.pop("atrous_rates")
    architecture = {
        **model,
        "atrous_rates": rates or ATROUS_RATES[model["output_stride"]],
        "head": method.head,
    }
    terms = [("loss term", name) for name in method.terms]
    parts = [("head", method.head), ("backbone", model["backbone"])]
    optional = {
        "replay": replay_rule(setting) if step and method.replays else None,
        "extensions": find_origins([*terms, *parts]),
        "memory": _used_memory(more["memory"]) if more.get("memory") else None,
    }
    return {
        "seed": seed,
        "groups": groups,
        "sequential": setting == "sequential" and step > 0,
        "architecture": None if step else architecture,
        "weights": None if step else _describe_weights(weights),
        "augmentation": config["augmentation"],
        "optimisation": optimisation,
        "method": method.to_dict(),
        "decision": more.get("decision"),
        **{key: value for key, value in optional.items() if value},
    }


def bank_settings(
    groups: Groups, planned: PlannedMethod, *, setting: str, seed: int
) -> Config:
    """Settings of `build_prototypes`; arguments as for `training_settings`."""
    settings, later = dict(planned.bank), len(groups) > 1
    if later and planned.bank_momentum is not None:
        settings["momentum"] = planned.bank_momentum
    return {
        "settings": settings,
        "groups": groups,
        "sequential": setting == "sequential" and later,
        "seed": seed,
        # Features of a new network need a new temperature.
        "keep_temperature": planned.has_fixed_features and later,
        **({"network": PRETRAINED} if planned.bank_network == PRETRAINED else {}),
        **({} if planned.bank_sizes == OWN_SIZE else {"sizes": planned.bank_sizes}),
    }


def statistics_settings(
    config: Config, groups: Groups, *, setting: str, seed: int
) -> Config:
    """Settings of `measure_features`; arguments as for `training_settings`."""
    later = len(groups) > 1
    return {
        "augmentation": config["augmentation"],
        "groups": groups,
        "sequential": setting == "sequential" and later,
        "seed": seed,
        **({"replay": replay_rule(setting)} if later else {}),
    }


def memory_settings(
    groups: Groups, shown: Groups, planned: PlannedMethod, *, setting: str, seed: int
) -> Config:
    """Settings of `update_memory`; arguments as for `training_settings`.

    Args:
        groups: Raw labels of the classes of the steps 0..t.
        shown: Those of the steps 0..t+1, for a rule that shows true labels.
        planned: The method, which has a memory.
        setting: "overlap" or another one.
        seed: Seed of the run.
    """
    rule, later = planned.memory["rule"], len(groups) > 1
    sequential = setting == "sequential"
    settings = {
        "images": planned.memory["images"],
        "rule": rule,
        "groups": groups,
        "sequential": sequential and rule == KNOWN and later,
        "seed": seed,
    }
    if recognises_old(planned, groups, setting):
        settings["threshold"] = planned.memory["threshold"]
    if rule == TRUE_LABELS:  # its images are labelled like those of the next step
        settings["shown"] = shown
    return settings


def recognises_old(planned: PlannedMethod, groups: Groups, setting: str) -> bool:
    """Whether the network labels old classes in the images of a memory.

    Nothing is older than step 0, and in "sequential" old classes are labelled.
    """
    later = len(groups) > 1
    return planned.memory["rule"] == KNOWN and later and setting != "sequential"


def _used_memory(memory: Config) -> Config:
    """The keys of `memory` for a training; the threshold acts through the memory."""
    return {key: memory[key] for key in ("images", "rule", "share")}
