"""Ridge regression on the class statistics of a bank, over all steps.

With φ of every labelled cell of all steps and y its one-hot label,

    W = (Σ φφᵀ + λ I)⁻¹ Σ φyᵀ,

which SegACIL (arXiv 2412.10834) computes batch by batch with a recursive update of the
inverse. Here the two sums are kept: the bank's counts n_c, means μ_c and within-class
scatter S hold both,

    Σ φφᵀ = S + Σ_c n_c μ_c μ_cᵀ,    Σ φyᵀ = [n_0 μ_0, n_1 μ_1, ..].

Sums have no order, so W is the same for any order and split of the batches and steps.
All of it is float64, because λ is small beside the sums over millions of cells.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from kproba.bank.bank import PrototypeBank


def ridge_weights(
    count: torch.Tensor,
    mean: torch.Tensor,
    scatter: torch.Tensor,
    regularisation: float,
) -> torch.Tensor:
    """W, (D, C) float64, by Cholesky.

    Args:
        count: n, (C,) float64.
        mean: μ, (C, D) float64.
        scatter: S, (D, D) float64.
        regularisation: λ, above 0.
    """
    weighted = mean * count[:, None]
    gram = torch.addmm(scatter, weighted.T, mean)
    gram.diagonal().add_(regularisation)
    return torch.cholesky_solve(weighted.T, torch.linalg.cholesky(gram))


def pooled_mean(
    counts: tuple[torch.Tensor, torch.Tensor], means: tuple[torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    """Mean per class of two sets of cells together.

    Args:
        counts: n and n', (C,) each.
        means: μ and μ', (C, D) each.

    Returns:
        (n μ + n' μ') / (n + n'), (C, D); 0 for a class that neither has.
    """
    total = (counts[0] + counts[1]).clamp(min=1)
    first, second = (
        mean * (count / total)[:, None]
        for count, mean in zip(counts, means, strict=True)
    )
    return first + second


def between_scatter(
    counts: tuple[torch.Tensor, torch.Tensor], means: tuple[torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    """What the within-class scatter of two sets together has beyond their own.

    Args:
        counts: n and n', (C,) each.
        means: μ and μ', (C, D) each.

    Returns:
        Σ_c n n' / (n + n') (μ - μ')(μ - μ')ᵀ, (D, D); a class that only one of them has
        adds nothing.
    """
    weight = counts[0] * counts[1] / (counts[0] + counts[1]).clamp(min=1)
    apart = means[0] - means[1]
    return (apart * weight[:, None]).T @ apart


def pooled_bank(previous: "PrototypeBank", current: "PrototypeBank") -> "PrototypeBank":
    """The bank of the cells of two banks together: their exact statistics.

    Args:
        previous: Bank over S_{t-1}.
        current: Statistics of step t alone, over S_t, in the same maps.

    Raises:
        ValueError: One of them has no scatter.
    """
    if previous.scatter is None or current.scatter is None:
        raise ValueError(
            "Expected two banks with scatter to join them exactly, but one has none. "
            "Set BankSettings.scatter."
        )
    # Classes of this step alone have no cells and a mean of 0 before.
    added = current.classes - previous.classes
    counts = F.pad(previous.count, (0, added)), current.count
    count = counts[0] + counts[1]
    means, scatter = [], []
    for number, now in enumerate(current.means):
        both = F.pad(previous.means[number], (0, 0, 0, added)), now
        means.append(pooled_mean(counts, both))
        within = previous.scatter[number] + current.scatter[number]
        scatter.append(within.add_(between_scatter(counts, both)))
    return replace(
        current,
        count=count,
        share=count / count.sum().clamp(min=1),
        means=means,
        scatter=scatter,
        scatter_count=float(count.sum()),
    )
