"""TODO training.optimizer."""

from collections.abc import Sequence

import torch
from torch import nn

from kproba.network.heads import Branch
from kproba.network.network import SegmentationNetwork
from kproba.training.settings import Optimisation


def build_optimizer(
    student: SegmentationNetwork, settings: Optimisation
) -> torch.optim.Optimizer:
    """Optimizer with one parameter group per part of the network.

    With a softmax there is one head: its 3×3 block learns as the ASPP does, and all
    classifiers at the rate of the newest.
    """
    *old, newest = student.branches
    parts: dict[str, Sequence[nn.Module]] = {
        "backbone": [student.backbone],
        "aspp": [student.aspp],
        "branch": [newest],
        "old_branches": old,
    }
    if student.architecture.softmax and old:
        head = student.branches[0]
        assert isinstance(head, Branch)
        classifiers = [b.get_submodule("classifier") for b in student.branches]
        parts |= {"aspp": [student.aspp, head.block], "old_branches": []}
        parts["branch"] = classifiers
    groups = [
        {
            "name": name,
            "params": [
                parameter
                for module in modules
                for parameter in module.parameters()
                if parameter.requires_grad
            ],
            "lr": getattr(settings, name),
        }
        for name, modules in parts.items()
        if any(p.requires_grad for module in modules for p in module.parameters())
    ]
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
    """Set and return the poly learning rate of every part."""
    factor = (1 - iteration / iterations) ** settings.power
    rates = {}
    for group in optimizer.param_groups:
        group["lr"] = max(settings.floor, getattr(settings, group["name"]) * factor)
        rates[f"lr_{group['name']}"] = group["lr"]
    return rates


def autocast_type(precision: str, device: str) -> torch.dtype:
    """The type of mixed precision on a device; float32 means none."""
    if precision != "auto":
        return getattr(torch, precision)
    if device == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
