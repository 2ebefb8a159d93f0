"""The maps φ: random Fourier features, random ReLU features, or none."""

import math
from collections.abc import Iterable
from typing import Protocol

import torch

from kproba.bank.settings import BankSettings

# Numbers of φ that are computed at once: few enough for the cache of a processor, or
# enough to keep a GPU busy.
MAPPED = {"cpu": 2**20, "cuda": 2**25}


class FeatureMap(Protocol):
    """A map φ from vectors x (n, d) to (n, D)."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """All of φ(x), (n, D) in the type of x."""

    def strips(self, x: torch.Tensor) -> Iterable[tuple[slice, torch.Tensor]]:
        """Some columns of φ(x) after others: which, and (n, width) as x."""


class Identity:
    """φ(x) = x."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """All of x."""
        return x

    def strips(self, x: torch.Tensor) -> Iterable[tuple[slice, torch.Tensor]]:
        """All of x at once."""
        yield slice(0, x.shape[1]), x


IDENTITY = Identity()


class FourierFeatures:
    """φ(x) = sqrt(2/D) cos(x ω + β), drawn from a seed.

    Feature i and i + D/2 share their ω, and β differs by a quarter turn: the cosine and
    the sine of one angle.

    Args:
        dimension_in: Length of x.
        dimension: D, even.
        gamma: γ of the kernel exp(-γ‖u-v‖²).
        seed: Seed of ω and β.

    Raises:
        ValueError: D is odd.
    """

    def __init__(self, dimension_in: int, dimension: int, gamma: float, seed: int):
        if dimension % 2:
            raise ValueError(
                f"Expected an even dimension of random Fourier features, which come "
                f"in pairs, but got {dimension}."
            )
        generator = torch.Generator().manual_seed(seed)
        shape = (dimension_in, dimension // 2)
        self._omega = math.sqrt(2 * gamma) * torch.randn(shape, generator=generator)
        self._beta = 2 * math.pi * torch.rand(dimension // 2, generator=generator)
        self._scale = math.sqrt(2 / dimension)

    @property
    def omega(self) -> torch.Tensor:
        """ω, (dimension_in, D)."""
        return torch.cat([self._omega, self._omega], dim=1)

    @property
    def beta(self) -> torch.Tensor:
        """β, (D,)."""
        return torch.cat([self._beta, self._beta - math.pi / 2])

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """All of φ(x), (n, D) float32."""
        if torch.jit.is_tracing():  # for any n, so not in strips
            angle = x @ self._omega + self._beta
            return self._scale * torch.cat([angle.cos(), angle.sin()], dim=1)
        mapped = x.new_empty(len(x), 2 * len(self._beta))
        for columns, part in self.strips(x):
            mapped[:, columns] = part
        return mapped

    def strips(self, x: torch.Tensor) -> Iterable[tuple[slice, torch.Tensor]]:
        """Some columns of φ(x) after others: which, and (n, width) float32."""
        if self._omega.device != x.device:
            self._omega, self._beta = self._omega.to(x.device), self._beta.to(x.device)
        half = len(self._beta)
        width = max(64, MAPPED[x.device.type] // max(1, len(x)))
        for start in range(0, half, width):
            stop = min(start + width, half)
            angle = (x @ self._omega[:, start:stop]).add_(self._beta[start:stop])
            yield slice(start, stop), angle.cos().mul_(self._scale)
            yield slice(half + start, half + stop), angle.sin_().mul_(self._scale)


class ReluFeatures:
    """φ(x) = ReLU(x W), drawn from a seed: W is uniform in ±1/√d.

    This is a fixed linear layer without bias, as PyTorch initialises it, with a ReLU
    (`RandomBuffer` of SegACIL, arXiv 2412.10834).

    Args:
        dimension_in: d, length of x.
        dimension: D.
        seed: Seed of W.
    """

    def __init__(self, dimension_in: int, dimension: int, seed: int):
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.rand((dimension_in, dimension), generator=generator)
        self._weights = (2 * drawn - 1) / math.sqrt(dimension_in)

    def weights(self, x: torch.Tensor) -> torch.Tensor:
        """W, (d, D), on the device and in the type of x; in float64 it is the same."""
        weights = self._weights
        # Not `weights.to(x)`, which a traced model would contain.
        if weights.device != x.device or weights.dtype != x.dtype:
            weights = self._weights = weights.to(device=x.device, dtype=x.dtype)
        return weights

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """All of φ(x), (n, D) float32 or float64, as x."""
        return (x @ self.weights(x)).relu()

    def strips(self, x: torch.Tensor) -> Iterable[tuple[slice, torch.Tensor]]:
        """Some columns of φ(x) after others: which, and (n, width) as x."""
        weights = self.weights(x)
        width = max(64, MAPPED[x.device.type] // max(1, len(x)))
        for start in range(0, weights.shape[1], width):
            columns = slice(start, min(start + width, weights.shape[1]))
            yield columns, (x @ weights[:, columns]).relu_()


def make_maps(
    settings: BankSettings, dimension_in: int, gamma: float | None, seed: int
) -> list[FeatureMap]:
    """The maps φ_e of a bank, each from its own seed."""
    if settings.map != "rff" and settings.maps != 1:
        raise ValueError(
            f"Expected 1 map of the kind '{settings.map}', but got "
            f"maps={settings.maps}. Set it to 1."
        )
    if settings.map == "identity":
        return [IDENTITY]
    if settings.map == "relu":
        if settings.dimension is None:
            raise ValueError(
                "Expected a dimension for random ReLU features, but got None. Set "
                "BankSettings.dimension."
            )
        return [ReluFeatures(dimension_in, settings.dimension, seed)]
    if gamma is None or settings.dimension is None:
        raise ValueError(
            f"Expected γ and a dimension for random Fourier features, but got {gamma} "
            f"and {settings.dimension}."
        )
    return [
        FourierFeatures(dimension_in, settings.dimension, gamma, seed + number)
        for number in range(settings.maps)
    ]
