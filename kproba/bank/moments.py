"""Counts, sums and second moments of labelled vectors."""

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from kproba.bank.feature_maps import IDENTITY, FeatureMap
from kproba.runtime.distributed import Process

STRIP = 512  # rows of Σ φ φᵀ that are computed at once


@dataclass
class Moments:
    """Raw moments of labelled vectors, accumulated in float64.

    Sums add up, so batches may come in any order and parts counted by several
    processes merge to the moments of the whole.

    Attributes:
        count: (C,) vectors per class.
        total: (C, D) Σ φ per class.
        second: (D, D) Σ φ φᵀ over all classes, its upper triangle; None if not needed.
        background: Whether `second` and the scatter hold the vectors of class 0.
    """

    count: torch.Tensor
    total: torch.Tensor
    second: torch.Tensor | None
    background: bool = True

    @classmethod
    def empty(
        cls,
        classes: int,
        dimension: int,
        *,
        scatter: bool,
        background: bool = True,
        device: str = "cpu",
    ) -> "Moments":
        """Moments of no vectors."""
        zeros = partial(torch.zeros, dtype=torch.float64, device=device)
        return cls(
            zeros(classes),
            zeros(classes, dimension),
            zeros(dimension, dimension) if scatter else None,
            background,
        )

    def update(
        self, x: torch.Tensor, labels: torch.Tensor, phi: FeatureMap = IDENTITY
    ) -> None:
        """Add φ(x) of x (n, d) with labels (n,) in 0..C-1, in products for all C.

        The products are computed in the type of x, and the sums are float64.
        """
        classes = len(self.count)
        self.count += torch.bincount(labels, minlength=classes)
        member = F.one_hot(labels, classes).to(x.dtype).T.contiguous()  # (C, n)
        if self.second is None:
            for columns, part in phi.strips(x):
                self.total[:, columns] += member @ part
            return
        vectors = phi(x)
        self.total += member @ vectors
        if not self.background:
            vectors = vectors[labels > 0]
        # Σ φ φᵀ is symmetric: strips from the diagonal to the right are enough.
        for start in range(0, vectors.shape[1], STRIP):
            strip = vectors[:, start : start + STRIP].T @ vectors[:, start:]
            self.second[start : start + STRIP, start:] += strip

    def add_up(self, process: Process) -> None:
        """Add the moments of all processes, in every process."""
        for tensor in (self.count, self.total, self.second):
            if tensor is not None:
                process.add_up(tensor)

    @property
    def mean(self) -> torch.Tensor:
        """(C, D) mean per class, 0 for a class without vectors."""
        return self.total / self.count.clamp(min=1)[:, None]

    @property
    def scatter(self) -> torch.Tensor | None:
        """(D, D) within-class scatter Σ_c Σ_{i in c} (φ_i - μ_c)(φ_i - μ_c)ᵀ."""
        if self.second is None:
            return None
        mean, first = self.mean, 0 if self.background else 1
        second = self.second.triu() + self.second.triu(1).T
        weighted = (mean * self.count[:, None])[first:]
        return second - weighted.T @ mean[first:]

    @property
    def scatter_count(self) -> float:
        """Number of vectors that the scatter holds."""
        return float(self.count[0 if self.background else 1 :].sum())
