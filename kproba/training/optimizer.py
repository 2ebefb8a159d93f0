"""The optimizer of a step and its learning rates."""

from collections import Counter

import torch

from kproba.network.network import SegmentationNetwork
from kproba.training.settings import Optimisation


def build_optimizer(
    student: SegmentationNetwork, settings: Optimisation
) -> torch.optim.Optimizer:
    """Optimizer with one parameter group per part of the network that trains.

    The head defines which parameters belong to which part.

    Raises:
        ValueError: A parameter is in no group or in two; the message names it.
    """
    groups, counts = [], Counter[int]()
    for name, group in student.head.parameter_groups(student).items():
        parameters = [
            parameter
            for module in group.modules
            for parameter in module.parameters()
            if parameter.requires_grad
        ]
        counts.update(map(id, parameters))
        if parameters:
            rate = group.factor * getattr(settings.learning_rate, group.rate)
            decay = settings.weight_decay if group.decay else 0.0
            named = {"name": name, "initial_lr": rate, "weight_decay": decay}
            if group.factor != 1:  # states of earlier versions lack it
                named["factor"] = group.factor
            groups.append({"params": parameters, "lr": rate, **named})
    for name, parameter in student.named_parameters():
        if parameter.requires_grad and counts[id(parameter)] != 1:
            raise ValueError(
                f"Expected the head to name every parameter once, but it names {name} "
                f"{counts[id(parameter)]} times. Correct `parameter_groups` of "
                f"{type(student.head).__name__}."
            )
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, weight_decay=settings.weight_decay)
    return torch.optim.SGD(
        groups,
        momentum=settings.momentum,
        nesterov=settings.momentum > 0,
        weight_decay=settings.weight_decay,
    )


def set_learning_rates(
    optimizer: torch.optim.Optimizer,
    settings: Optimisation,
    iteration: int,
    iterations: int,
) -> dict[str, float]:
    """Set and return the poly learning rate of every part, as "lr_<part>"."""
    factor = (1 - iteration / iterations) ** settings.power
    rates = {}
    for group in optimizer.param_groups:
        floor = settings.floor * group.get("factor", 1.0)
        group["lr"] = max(floor, group["initial_lr"] * factor)
        rates[f"lr_{group['name']}"] = group["lr"]
    return rates


def autocast_type(precision: str, device: str) -> torch.dtype:
    """The type of mixed precision on a device; float32 means none."""
    if precision != "auto":
        return getattr(torch, precision)
    if device == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
