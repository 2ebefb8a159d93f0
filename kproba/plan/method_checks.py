"""Checks of a method of the configuration: whether its parts fit together."""

from typing import TYPE_CHECKING

from kproba.methods.method import PRETRAINED
from kproba.methods.rules import RULES, scoring_rules
from kproba.plan.errors import ConfigError

if TYPE_CHECKING:
    from kproba.plan.methods import PlannedMethod

# Values of `bank.network` that mean one network for all steps.
FIXED = ("base", PRETRAINED)


def check_bank_network(planned: "PlannedMethod", weights: str) -> None:
    """Refuse features that a bank cannot use.

    Args:
        planned: The method.
        weights: `model.weights`.

    Raises:
        ConfigError: A ridge regression over all steps would mix the features of several
            networks, or a pretrained network would give random features.
    """
    if not planned.reads_bank:
        return
    where = f"methods.{planned.name}.bank"
    if planned.bank["map"] == "relu" and not planned.has_fixed_features:
        raise ConfigError(
            f"{where}.network: expected {' or '.join(FIXED)}, because the rule 'ridge' "
            f"adds up the features of all steps, which must come from one network, but "
            f"got '{planned.bank_network}'. Remove it, or choose another prediction."
        )
    if planned.bank_network != PRETRAINED:
        return
    if planned.bank["feature"] != "backbone":
        raise ConfigError(
            f"{where}.feature: expected 'backbone' with network: {PRETRAINED}, because "
            f"only the backbone has weights before the training of step 0, but got "
            f"'{planned.bank['feature']}'. Change it, or set network to base."
        )
    if weights == "none":
        raise ConfigError(
            f"{where}.network: expected another network than '{PRETRAINED}', because "
            f"with model.weights: none its backbone has random weights. Set it to "
            f"base, or set model.weights."
        )


def check_first_network(planned: "PlannedMethod") -> None:
    """Refuse the network of step 0 in the place of the bank where it is not available.

    Raises:
        ConfigError: The bank uses the features of another network, or the method has no
            later step that a network learns.
    """
    where, method = f"methods.{planned.name}", planned.method
    decides = method.prediction != "network" or method.bank_teaches
    names = [planned.decision["rule"]] if decides else []
    if method.use_pseudo_labels:
        names.append(planned.labels["rule"])
    rules = [name for name in names if RULES[name].by_networks]
    if not rules:
        return
    if planned.bank_network != "base":
        raise ConfigError(
            f"{where}.bank.network: expected 'base', because the rule '{rules[0]}' "
            f"reads the network of step 0, but got '{planned.bank_network}'. Remove "
            f"it, or choose another rule."
        )
    if method.joint or method.trains_nothing:
        what = "is joint" if method.joint else "trains nothing"
        raise ConfigError(
            f"{where}.prediction: expected a rule of one network and its bank, because "
            f"'{rules[0]}' combines the networks of two steps and the method {what}, "
            f"but got '{rules[0]}'. Choose another prediction, or base the method on "
            f"one that learns step by step."
        )


def check_bank_alone(planned: "PlannedMethod") -> None:
    """Refuse a method that trains nothing if it needs a network that is trained.

    Raises:
        ConfigError: The message names the first key that does not fit.
    """
    where, method = f"methods.{planned.name}", planned.method
    terms = [term for term in method.terms if term != method.cross_entropy]
    decision, rule = planned.decision, RULES[planned.labels["rule"]]
    by_network = method.prediction == "network" or decision["foreground"] == "network"
    if terms:
        raise ConfigError(
            f"{where}.losses: expected no loss terms with trains: nothing, but got "
            f"{', '.join(terms)}. Set them to 0, or base the method on 'ridge'."
        )
    weight = decision.get("probability_weight")
    if by_network or weight:
        raise ConfigError(
            f"{where}.decision: expected foreground: both, probability_weight: 0 and a "
            f"prediction by the bank with trains: nothing, because no network learns "
            f"the new classes, but got foreground: {decision['foreground']}, "
            f"probability_weight: {weight} and prediction: "
            f"{method.prediction}. Change these keys, or `trains`."
        )
    if method.use_pseudo_labels and not rule.scores:
        raise ConfigError(
            f"{where}.pseudo_labels.rule: expected one of "
            f"{', '.join(scoring_rules())} with trains: nothing, because no network "
            f"learns the new classes, but got '{rule.name}'. Change it, or set "
            f"use_pseudo_labels to false."
        )
