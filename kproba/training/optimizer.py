"""The optimizer of a step and its learning rates."""

import torch

from kproba.network.network import SegmentationNetwork
from kproba.training.settings import Optimisation


def build_optimizer(
    student: SegmentationNetwork, settings: Optimisation
) -> torch.optim.Optimizer:
    """Optimizer with one parameter group per part of the network that trains.

    The head says which parameters belong to which part.
    """
    groups = []
    for name, modules in student.head.parameter_groups(student).items():
        parameters = [
            parameter
            for module in modules
            for parameter in module.parameters()
            if parameter.requires_grad
        ]
        if parameters:
            rate = getattr(settings.learning_rate, name)
            groups.append({"name": name, "params": parameters, "lr": rate})
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
        initial = getattr(settings.learning_rate, group["name"])
        group["lr"] = max(settings.floor, initial * factor)
        rates[f"lr_{group['name']}"] = group["lr"]
    return rates


def autocast_type(precision: str, device: str) -> torch.dtype:
    """The type of mixed precision on a device; float32 means none."""
    if precision != "auto":
        return getattr(torch, precision)
    if device == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
