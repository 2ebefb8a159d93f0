"""The loss of a micro-batch: the terms of a method, each times its weight."""

from collections.abc import Iterable, Mapping

import torch

from kproba.methods.losses.case import Case
from kproba.methods.terms import TERMS
from kproba.runtime.references import resolve


def step_losses(case: Case, weights: Mapping[str, float]) -> dict[str, torch.Tensor]:
    """The weighted terms of one micro-batch; their sum is the loss.

    Args:
        case: The micro-batch.
        weights: Weights of the terms by their names in `kproba.methods.terms.TERMS`,
            such as `Method.terms`.

    Returns:
        Scalars by their column in metrics.csv, in the order of `weights`.
    """
    losses: dict[str, torch.Tensor] = {}
    for name, weight in weights.items():
        term, factor = TERMS[name], weight
        if term.scale is not None:
            factor = weight * resolve(term.scale)(case)
        value = factor * resolve(term.function)(case)
        column = term.column or name
        losses[column] = losses[column] + value if column in losses else value
    return losses


def own_totals(case: Case, names: Iterable[str]) -> dict[str, torch.Tensor]:
    """The sums of one micro-batch that terms ask for (`Term.totals`), by term.

    Args:
        case: The micro-batch.
        names: Names of the terms of a method.

    Returns:
        Vectors (n,).
    """
    wanted = {name: TERMS[name].totals for name in names}
    return {
        name: resolve(totals)(case)
        for name, totals in wanted.items()
        if totals is not None
    }
