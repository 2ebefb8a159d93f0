"""The methods of a configuration: built-in ones, and custom ones based on them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from kproba.methods.builtin import METHODS, base_methods
from kproba.methods.method import PRETRAINED, Method
from kproba.methods.rules import (
    DEFAULT_COMBINATION,
    RULES,
    needs_scatter,
)
from kproba.methods.terms import (
    NEEDS,
    TEACHER_LOGITS,
    TERMS,
    cross_entropies,
    in_order,
)
from kproba.network.heads import HEADS
from kproba.plan.errors import ConfigError, suggestion
from kproba.plan.method_checks import (
    FIXED,
    check_bank_alone,
    check_bank_network,
    check_first_network,
)
from kproba.plan.schema import merged

Config = dict[str, Any]

# Keys of a custom method that replace a field of `Method`.
SWITCHES = (
    "cross_entropy",
    "head",
    "use_pseudo_labels",
    "teacher",
    "teacher_from",
    "trains",
    "prediction",
    "start_from_background",
    "dropout",
)


@dataclass(frozen=True)
class PlannedMethod:
    """A method with the settings of the configuration that apply to it.

    Attributes:
        name: In the configuration and in paths.
        method: Its declaration.
        increment: Settings of `Optimisation` for every later step.
        bank_network: The network whose features the prototypes use: "base", the network
            after step 0 at every step; "pretrained", the network before step 0 at
            every step; "after", the step's network; "before", the step's network before
            its training.
        bank: Settings of `BankSettings`, except for those of later steps.
        bank_sizes: The sizes of the images that the bank reads, one after the other:
            a factor, or the length of the shorter side in pixels.
        bank_momentum: `BankSettings.momentum` of later steps; None for a bank that
            joins the statistics of all steps exactly.
        labels: Settings of `LabelSettings` that the rule uses.
        decision: Settings of `Decision` that its rule uses.
        memory: The section `memory`.
    """

    name: str
    method: Method
    increment: Config
    bank_network: str
    bank: Config
    bank_sizes: list[Config]
    bank_momentum: float | None
    labels: Config
    decision: Config
    memory: Config

    @property
    def has_fixed_features(self) -> bool:
        """Whether one network gives the features of the bank at all steps."""
        return self.bank_network in FIXED

    @property
    def has_memory(self) -> bool:
        """Whether later steps train on images of earlier steps, too."""
        learns = not self.method.joint and not self.method.trains_nothing
        return learns and self.memory["images"] > 0

    @property
    def replays(self) -> bool:
        """Whether the training draws features of old classes from statistics."""
        return self.method.replays

    @property
    def labels_read_bank(self) -> bool:
        """Whether the rule of the pseudo labels reads the bank."""
        return RULES[self.labels["rule"]].bank is not None

    @property
    def test_reads_bank(self) -> bool:
        """Whether network and bank are combined in the evaluation."""
        return self.method.prediction != "network"

    def training_reads_bank(self, step: int) -> bool:
        """Whether the bank of the previous step corrects the targets of a step."""
        method = self.method
        return method.bank_teaches and step >= method.teacher_from

    def uses_labels(self, setting: str) -> bool:
        """Whether increments train on pseudo labels; "sequential" has true labels."""
        method = self.method
        return method.use_pseudo_labels and not method.joint and setting != "sequential"

    @property
    def reads_bank(self) -> bool:
        """Whether training, labels or evaluation of a later step read a bank."""
        labels = self.method.use_pseudo_labels and self.labels_read_bank
        return self.test_reads_bank or self.method.bank_teaches or labels

    def last_bank_matters(self, setting: str) -> bool:
        """Whether the next step would use the bank of the last step."""
        labels = self.uses_labels(setting) and self.labels_read_bank
        return self.test_reads_bank or self.method.bank_teaches or labels


def plan_methods(config: Config) -> dict[str, PlannedMethod]:
    """All methods by name: those of step 0, built-in ones, then custom ones.

    Args:
        config: A checked configuration.

    Raises:
        ConfigError: A method does not exist, or its parts do not fit together.
    """
    declarations = {**base_methods(), **METHODS}
    for name, changes in config["methods"].items():
        declarations[name] = _changed_method(name, changes)
    used = {
        name for experiment in config["experiments"] for name in experiment["methods"]
    }
    return {
        name: _planned(config, name, method, used=name in used)
        for name, method in declarations.items()
    }


def _changed_method(name: str, changes: Mapping[str, Any]) -> Method:
    """The declaration of a custom method."""
    where, based_on = f"methods.{name}", changes["based_on"]
    if name in METHODS:
        raise ConfigError(
            f"{where}: the name of a built-in method. Choose another name."
        )
    if based_on not in METHODS:
        raise ConfigError(
            f"{where}.based_on: expected one of {', '.join(METHODS)}, but got "
            f"'{based_on}'{suggestion(based_on, METHODS)}."
        )
    switches = {key: changes[key] for key in SWITCHES if key in changes}
    method = METHODS[based_on]
    own = changes.get("losses", {})
    losses = in_order({**method.losses, **own})
    named = {*own, *changes.get("options", {})}
    recipes = tuple(recipe.without(named) for recipe in method.recipes)
    options = {**method.options, **changes.get("options", {})}
    method = replace(method, losses=losses, options=options, recipes=recipes)
    method = replace(method, **switches)
    if "cross_entropy" in switches and "head" not in switches:
        method = replace(method, head=_head_for(method))
    _check_terms(where, method)
    for recipe in recipes:
        _check_terms(where, replace(method, losses={**losses, **recipe.losses}))
    if switches.get("teacher") == "fused" and not method.bank_teaches:
        terms = [name for name, term in TERMS.items() if TEACHER_LOGITS in term.needs]
        raise ConfigError(
            f"{where}.teacher: expected 'network', because the bank corrects only the "
            f"targets of {' or '.join(terms)} and the method has no weight for it, but "
            f"got 'fused'. Set losses.{terms[0]}, or leave the teacher out."
        )
    return method


def _head_for(method: Method) -> str:
    """The method's head if its cross-entropy fits it, else the first that fits."""
    wanted = TERMS[method.cross_entropy].needs - set(NEEDS)
    fitting = [name for name, head in HEADS.items() if wanted <= head.provides]
    return method.head if method.head in fitting or not fitting else fitting[0]


def _check_terms(where: str, method: Method) -> None:
    """Refuse terms that do not fit the head."""
    head = HEADS[method.head]
    lacking = {
        name: TERMS[name].needs - head.provides - set(NEEDS) for name in method.terms
    }
    wrong = [name for name, needs in lacking.items() if needs]
    if method.cross_entropy in wrong:
        fitting = [
            name
            for name in cross_entropies()
            if TERMS[name].needs - set(NEEDS) <= head.provides
        ]
        raise ConfigError(
            f"{where}.cross_entropy: expected a term that fits the head "
            f"'{method.head}', but {method.cross_entropy} needs "
            f"{', '.join(sorted(lacking[method.cross_entropy]))}. Set it to one of "
            f"{', '.join(fitting)}, or change head."
        )
    if wrong:
        needs = sorted(frozenset().union(*(lacking[name] for name in wrong)))
        raise ConfigError(
            f"{where}.losses: expected {', '.join(wrong)} to be 0 with the head "
            f"'{method.head}' of the cross-entropy '{method.cross_entropy}', because "
            f"they need {', '.join(needs)}. Set them to 0, or change cross_entropy or "
            f"head."
        )


def _planned(config: Config, name: str, method: Method, *, used: bool) -> PlannedMethod:
    changes = config["methods"].get(name, {})

    def section(key: str) -> Config:
        keys = method.sections.get(key, {})
        if "epochs" in keys:  # over iterations of the section
            keys = {"iterations": None, **keys}
        below = merged(config[key], keys)
        return merged(below, changes.get(key, {}))

    labels, decision, bank = map(section, ("pseudo_labels", "decision", "bank"))
    label_rule = RULES[labels["rule"]]
    combination = _combination(method, label_rule.combines)
    kind = _bank_kind(combination, decision)
    reads_both = method.prediction != "network" or method.bank_teaches
    if label_rule.bank and method.use_pseudo_labels and reads_both:
        wanted = _bank_kind(label_rule.combines or DEFAULT_COMBINATION, decision)
        if wanted != kind and used:
            raise ConfigError(
                f"methods.{name}.prediction: expected a rule that uses the same bank "
                f"as pseudo_labels.rule '{label_rule.name}', but got '{combination}'. "
                f"Set it to 'fused', or change pseudo_labels.rule."
            )
    planned = PlannedMethod(
        name=name,
        method=method,
        increment=section("increment"),
        bank_network=_bank_network(bank, combination, config["model"]["weights"]),
        bank=_bank_settings(kind, bank, decision["foreground"]),
        bank_sizes=_bank_sizes(bank, config["evaluation"]["crop"]),
        bank_momentum=None if kind["map"] == "relu" else bank["momentum"],
        labels=_label_settings(labels, decision),
        decision=_decision(combination, decision),
        memory=section("memory"),
    )
    if used:
        check_bank_network(planned, config["model"]["weights"])
        check_first_network(planned)
        if method.trains_nothing:
            check_bank_alone(planned)
    return planned


# Keys of the section `bank` that a bank with a map reads, beside those of every bank.
_KEYS_OF_MAP = {
    "rff": ("dimension", "maps", "gamma"),
    "relu": ("dimension", "regularisation"),
}


def _bank_network(bank: Config, rule: str, weights: str) -> str:
    """The network of the bank's features; "auto" becomes one of the others.

    Pretrained features need pretrained weights, which only the backbone has. The rules
    of two networks read the network of step 0 itself.
    """
    network: str = bank["network"]
    if network != "auto":
        return network
    able = bank["feature"] == "backbone" and weights != "none"
    return PRETRAINED if able and not RULES[rule].by_networks else "base"


def _bank_settings(kind: Config, bank: Config, foreground: str) -> Config:
    """The settings of a bank that its map uses.

    Settings of earlier versions have no `background` and `context`, so their usual
    values are left out: a bank that is there already stays valid.
    """
    analysis = kind["scatter"] and kind["map"] != "relu"
    # If the bank also decides on the foreground, it has to know the background.
    asked = foreground == "both" or bank["scatter"] == "all"
    return {
        "feature": bank["feature"],
        **kind,
        "ridge": None if kind["map"] == "relu" else bank["ridge"],
        "calibration_cells": bank["calibration_cells"],
        **{key: bank[key] for key in _KEYS_OF_MAP.get(kind["map"], ())},
        **({"background": False} if analysis and not asked else {}),
        **({"context": bank["context"]} if bank["context"] != 1 else {}),
    }


def _bank_sizes(bank: Config, crop: int | None) -> list[Config]:
    """The sizes of the images of a bank, each once."""
    sizes: list[Config] = []
    for size in bank["sizes"]:
        if size == "test" and crop is not None:
            resolved: Config = {"shorter_side": crop}
        else:
            resolved = {"factor": 1.0 if isinstance(size, str) else float(size)}
        if resolved not in sizes:
            sizes.append(resolved)
    return sizes


def _combination(method: Method, of_labels: str | None) -> str:
    """The rule that combines network and bank."""
    if method.prediction in ("network", "fused"):
        return of_labels or DEFAULT_COMBINATION
    return method.prediction


def _bank_kind(rule: str, decision: Config) -> Config:
    """The kind of bank that a rule needs: its map, and whether it has the scatter."""
    return {"map": RULES[rule].bank, "scatter": needs_scatter(rule, decision)}


def _decision(rule: str, decision: Config) -> Config:
    """The settings of a decision that its rule uses."""
    read = set(RULES[rule].decision)
    if decision["foreground"] == "network":
        read.discard("foreground_bias")
    if not decision["least_share"]:  # decisions of earlier versions have no such key
        read.discard("least_share")
    settings = {key: value for key, value in decision.items() if key in read}
    return {"rule": rule, **settings}


def _label_settings(labels: Config, decision: Config) -> Config:
    """The settings of the pseudo labels that their rule uses."""
    rule = RULES[labels["rule"]]
    settings = {"rule": rule.name, **{key: labels[key] for key in rule.reads}}
    if rule.bank is None:
        return settings
    if rule.scores:
        return {**settings, "decision": _decision(rule.name, decision)}
    return {**settings, "decision": {"rule": rule.combines or DEFAULT_COMBINATION}}
