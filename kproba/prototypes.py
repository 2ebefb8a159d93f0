"""The kernel-prototype bank: class statistics in random Fourier feature space.

For a feature vector z of one cell of the feature map, standardised to x = (z - m) / s,

    φ(x) = sqrt(2/D) cos(x ω + β),  ω ~ N(0, 2γ),  β ~ U[0, 2π),

so that ⟨φ(u), φ(v)⟩ ≈ exp(-γ‖u-v‖²) (Rahimi & Recht, NeurIPS 2007). Features come in
pairs that share ω, a quarter turn of β apart: half the product x ω, and a better kernel
(Sutherland & Schneider, "On the Error of Random Fourier Features", UAI 2015).

The bank holds, for each of E maps with its own (ω, β), the count and mean of φ of every
class and one within-class scatter shared by all classes (KLDA: Momeni, Mazumder & Liu,
AAAI 2025, arXiv 2412.15571). With the identity in place of φ it is plain LDA.

Each map is compared in its own space; an ensemble averages the members' softmax.
Standardisation and maps are drawn once, at step 0, and stay with the bank.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F

from kproba.artifacts import atomic_path, fingerprint, read_json, write_json
from kproba.distributed import ALONE, Process
from kproba.model import Outputs
from kproba.splits import IGNORE

STRIP = 512  # rows of Σ φ φᵀ that are computed at once
# Numbers of φ that are computed at once: as many as stay in a processor's cache, or as
# keep a GPU busy.
MAPPED = {"cpu": 2**20, "cuda": 2**25}
CELLS_PER_IMAGE = 64  # at least, of the sample


class FeatureBatch(NamedTuple):
    """What a bank is built from.

    Attributes:
        features: (B, d, h, w), of the trained network in evaluation mode.
        targets: (B, H, W) uint8, output indices, 255 ignored.
        keys: B numbers of the images.
    """

    features: torch.Tensor
    targets: torch.Tensor
    keys: Sequence[int]


class Sample(NamedTuple):
    """Labelled cells in no order: vectors (n, d) float32 and labels (n,) int64."""

    cells: torch.Tensor
    labels: torch.Tensor


@dataclass(frozen=True)
class BankSettings:
    """What a bank is built from.

    Attributes:
        feature: "backbone": b; "block": g_0, the output of branch 0's 3×3 block;
            "both": b and g_0, one after the other.
        map: "rff" for random Fourier features, "identity" for none (LDA).
        dimension: D, random features per map, an even number.
        maps: E, number of maps (1 for "identity").
        gamma: γ on standardised features; "median": 1 / median ‖x - x'‖² of the
            calibration cells.
        scatter: Whether the shared within-class scatter is accumulated.
        momentum: Of an old class's mean when a later step shows the class again.
        ridge: Added to the scatter's diagonal, as a share of the mean of its diagonal.
        calibration_cells: Cells drawn from the training images for standardisation,
            γ and temperature.
    """

    feature: Literal["backbone", "block", "both"]
    map: Literal["rff", "identity"]
    dimension: int
    maps: int
    gamma: float | Literal["median"]
    scatter: bool
    momentum: float
    ridge: float
    calibration_cells: int


class FeatureMap(Protocol):
    """A map φ from vectors x (n, d) to (n, D)."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """All of φ(x), (n, D) float32."""

    def strips(self, x: torch.Tensor) -> Iterable[tuple[slice, torch.Tensor]]:
        """Some columns of φ(x) after others: which, and (n, width) float32."""


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
        seed: Of ω and β.

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


@dataclass
class Moments:
    """Raw moments of labelled vectors, accumulated in float64.

    Sums add up, so batches may come in any order and parts counted by several
    processes merge to the moments of the whole.

    Attributes:
        count: (C,) vectors per class.
        total: (C, D) Σ φ per class.
        second: (D, D) Σ φ φᵀ over all classes, its upper triangle; None if not wanted.
    """

    count: torch.Tensor
    total: torch.Tensor
    second: torch.Tensor | None

    @classmethod
    def empty(
        cls, classes: int, dimension: int, *, scatter: bool, device: str = "cpu"
    ) -> "Moments":
        """Moments of nothing."""
        zeros = partial(torch.zeros, dtype=torch.float64, device=device)
        return cls(
            zeros(classes),
            zeros(classes, dimension),
            zeros(dimension, dimension) if scatter else None,
        )

    def update(
        self, x: torch.Tensor, labels: torch.Tensor, phi: FeatureMap = IDENTITY
    ) -> None:
        """Add φ(x) of x (n, d) with labels (n,) in 0..C-1, in products for all C."""
        classes = len(self.count)
        self.count += torch.bincount(labels, minlength=classes)
        member = F.one_hot(labels, classes).to(x.dtype).T.contiguous()  # (C, n)
        if self.second is None:
            for columns, part in phi.strips(x):
                self.total[:, columns] += member @ part
            return
        vectors = phi(x)
        self.total += member @ vectors
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
        mean = self.mean
        second = self.second.triu() + self.second.triu(1).T
        return second - (mean * self.count[:, None]).T @ mean


@dataclass
class PrototypeBank:
    """Class statistics of all classes seen, in the space of each map.

    Attributes:
        settings: What the bank was built from.
        seed: Of the maps; map e uses seed + e.
        gamma: γ in use (None for the identity map).
        centre: (d,) m, mean of the features at step 0.
        spread: (d,) s, standard deviation of the features at step 0.
        count: (C,) labelled cells per class, in the step that introduced it.
        share: (C,) count divided by all labelled cells of that step.
        means: Per map (C, D) prototypes μ_c.
        scatter: Per map (D, D) within-class scatter, summed over the steps.
        scatter_count: Cells that the scatter holds.
        temperature: T of the posterior, calibrated on training images.
    """

    settings: BankSettings
    seed: int
    gamma: float | None
    centre: torch.Tensor
    spread: torch.Tensor
    count: torch.Tensor
    share: torch.Tensor
    means: list[torch.Tensor]
    scatter: list[torch.Tensor] | None
    scatter_count: float
    temperature: float

    def __post_init__(self) -> None:
        self._solved: list[tuple[torch.Tensor, torch.Tensor]] | None = None
        self._factors: list[torch.Tensor] | None = None
        self._maps: list[FeatureMap] | None = None

    @property
    def classes(self) -> int:
        """Number of classes, background included."""
        return len(self.count)

    @property
    def maps(self) -> list[FeatureMap]:
        """The feature maps φ_e."""
        if self._maps is None:
            self._maps = make_maps(
                self.settings, len(self.centre), self.gamma, self.seed
            )
        return self._maps

    def to(self, device: str) -> "PrototypeBank":
        """The bank with its tensors on `device`."""
        return replace(
            self,
            centre=self.centre.to(device),
            spread=self.spread.to(device),
            count=self.count.to(device),
            share=self.share.to(device),
            means=[mean.to(device) for mean in self.means],
            scatter=None
            if self.scatter is None
            else [matrix.to(device) for matrix in self.scatter],
        )

    def standardise(self, features: torch.Tensor) -> torch.Tensor:
        """(n, d) features to x = (z - m) / s."""
        return (features - self.centre) / self.spread

    def log_posterior(self, features: torch.Tensor) -> torch.Tensor:
        """KLDA's class posterior log q, (n, C) float32, of features (n, d).

        s_c = φᵀ A⁻¹ μ_c - μ_cᵀ A⁻¹ μ_c / 2 + log π_c, with A the within-class
        covariance W/n plus the ridge and π the class shares; q = softmax(s/T), averaged
        over the maps. Up to a term equal for all classes this is
        -(φ-μ_c)ᵀ A⁻¹ (φ-μ_c) / 2 + log π_c.

        Raises:
            ValueError: The bank was built without scatter.
        """
        x = self.standardise(features)
        members = [
            (self._map_scores(number, phi(x)) / self.temperature).log_softmax(1)
            for number, phi in enumerate(self.maps)
        ]
        return torch.stack(members).logsumexp(0) - math.log(len(members))

    def _map_scores(self, number: int, vectors: torch.Tensor) -> torch.Tensor:
        if self._solved is None:
            self._solved = self._solve()
        weights, bias = self._solved[number]
        return vectors @ weights + bias

    def _covariance(self, number: int) -> torch.Tensor:
        """A = W/n plus the ridge on the diagonal, (D, D) float64."""
        if self.scatter is None:
            raise ValueError(
                "Expected a bank with scatter for a Mahalanobis score, but this one "
                "has none. Build it for the rule that reads it (klda, lda, agree)."
            )
        covariance = self.scatter[number] / max(self.scatter_count, 1)
        ridge = self.settings.ridge * covariance.diagonal().mean()
        return covariance + ridge * torch.eye(
            len(covariance), dtype=torch.float64, device=covariance.device
        )

    def _solve(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Per map the linear rule A⁻¹ μ_c (D, C) and its bias (C,), by Cholesky."""
        log_prior = (self.share / self.share.sum()).clamp(min=1e-12).log()
        solved = []
        for number, mean in enumerate(self.means):
            factor = torch.linalg.cholesky(self._covariance(number))
            weights = torch.cholesky_solve(mean.T, factor)
            bias = log_prior - (mean.T * weights).sum(0) / 2
            # A class that was never seen has no prototype and cannot win.
            bias = bias.masked_fill(self.count == 0, -math.inf)
            solved.append((weights.float(), bias.float()))
        return solved

    def log_kappa(
        self, features: torch.Tensor, *, temperature: float, metric: str
    ) -> torch.Tensor:
        """Log κ, κ_c = exp(-d_c/τ) / Σ exp(-d_c'/τ), averaged over the maps.

        Args:
            features: (n, d).
            temperature: τ.
            metric: "euclidean": d_c = ‖φ - μ_c‖; "mahalanobis": d_c with A⁻¹.

        Returns:
            (n, C) float32.
        """
        x = self.standardise(features)
        members = []
        for number, phi in enumerate(self.maps):
            distances = self._distances(number, phi(x), metric)
            distances = distances.masked_fill(self.count == 0, math.inf)
            members.append((-distances / temperature).log_softmax(1))
        return torch.stack(members).logsumexp(0) - math.log(len(members))

    def _distances(
        self, number: int, vectors: torch.Tensor, metric: str
    ) -> torch.Tensor:
        """(n, C) distances by ‖φ‖² - 2φᵀμ + ‖μ‖², one product for all classes."""
        mean = self.means[number].float()
        if metric == "mahalanobis":
            if self._factors is None:
                self._factors = [
                    self._inverse_factor(each) for each in range(len(self.means))
                ]
            factor = self._factors[number]
            vectors, mean = vectors @ factor, mean @ factor
        squared = (
            vectors.square().sum(1, keepdim=True)
            - 2 * vectors @ mean.T
            + mean.square().sum(1)
        )
        return squared.clamp(min=0).sqrt()

    def _inverse_factor(self, number: int) -> torch.Tensor:
        """L⁻ᵀ with A = L Lᵀ, so that ‖φ L⁻ᵀ‖² = φᵀ A⁻¹ φ."""
        factor = torch.linalg.cholesky(self._covariance(number))
        identity = torch.eye(len(factor), dtype=torch.float64, device=factor.device)
        return torch.linalg.solve_triangular(factor, identity, upper=False).T.float()

    def save(self, path: str | Path, *, about: dict[str, Any]) -> None:
        """Write the statistics to `path` (.safetensors), the rest beside it (.json)."""
        path = Path(path)
        tensors = {
            "centre": self.centre,
            "spread": self.spread,
            "count": self.count,
            "share": self.share,
        }
        for number, mean in enumerate(self.means):
            tensors[f"means.{number}"] = mean
        for number, scatter in enumerate(self.scatter or ()):
            tensors[f"scatter.{number}"] = scatter
        with atomic_path(path) as temporary:
            safetensors.torch.save_file(
                {key: value.cpu().contiguous() for key, value in tensors.items()},
                temporary,
            )
        write_json(
            path.with_suffix(".json"),
            {
                "settings": asdict(self.settings),
                "seed": self.seed,
                "gamma": self.gamma,
                "temperature": self.temperature,
                "scatter_count": self.scatter_count,
                "cells_per_class": [int(count) for count in self.count],
                **about,
            },
        )

    @classmethod
    def load(cls, path: str | Path) -> "PrototypeBank":
        """Read a bank that `save` wrote."""
        path = Path(path)
        about = read_json(path.with_suffix(".json"))
        settings = BankSettings(**about["settings"])
        tensors = safetensors.torch.load_file(path)
        return cls(
            settings=settings,
            seed=about["seed"],
            gamma=about["gamma"],
            centre=tensors["centre"],
            spread=tensors["spread"],
            count=tensors["count"],
            share=tensors["share"],
            means=[tensors[f"means.{number}"] for number in range(settings.maps)],
            scatter=[tensors[f"scatter.{number}"] for number in range(settings.maps)]
            if settings.scatter
            else None,
            scatter_count=about["scatter_count"],
            temperature=about["temperature"],
        )


def bank_of_model(bank: str | Path, model: str | Path, device: str) -> PrototypeBank:
    """Load a bank that was built with this model.

    Raises:
        ValueError: The bank was built with another model.
    """
    made_with = read_json(Path(bank).with_suffix(".json"))["model"]
    if made_with != fingerprint(Path(model)):
        raise ValueError(
            f"Expected {bank} to be built with {model}, but it was built with another "
            f"model: features would not be comparable. Delete the bank and run again."
        )
    return PrototypeBank.load(bank).to(device)


def make_maps(
    settings: BankSettings, dimension_in: int, gamma: float | None, seed: int
) -> list[FeatureMap]:
    """The maps φ_e of a bank, each from its own seed."""
    if settings.map == "identity":
        if settings.maps != 1:
            raise ValueError(f"Expected 1 identity map, but got maps={settings.maps}.")
        return [IDENTITY]
    if gamma is None:
        raise ValueError("Expected gamma for random Fourier features, but got None.")
    return [
        FourierFeatures(dimension_in, settings.dimension, gamma, seed + number)
        for number in range(settings.maps)
    ]


def bank_features(outputs: Outputs, settings: BankSettings) -> torch.Tensor:
    """The feature map that the bank reads, (B, d, h, w)."""
    if settings.feature == "both":
        return torch.cat([outputs.backbone, outputs.blocks[0]], dim=1)
    return outputs.blocks[0] if settings.feature == "block" else outputs.backbone


def cells_of(
    features: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Labelled cells of a feature map.

    Args:
        features: (B, d, h, w).
        targets: (B, H, W) uint8; brought to (h, w) by nearest neighbour, 255 dropped.

    Returns:
        Vectors (n, d) float32 and labels (n,) int64.
    """
    size = features.shape[-2:]
    labels = F.interpolate(targets[:, None].float(), size, mode="nearest-exact")
    labels = labels.flatten().long()
    vectors = features.permute(0, 2, 3, 1).flatten(0, 2).float()
    keep = labels != IGNORE
    return vectors[keep], labels[keep]


def build_bank(
    batches: Iterable[FeatureBatch],
    sample: Sample,
    settings: BankSettings,
    *,
    classes: int,
    seed: int,
    previous: PrototypeBank | None = None,
    keep_temperature: bool = False,
    process: Process = ALONE,
) -> PrototypeBank:
    """Build the bank of a step in one streaming pass over its training images.

    The sample gives standardisation and γ before the pass (step 0 only) and the
    temperature after it. Memory is bounded by the bank and the sample.

    Args:
        batches: The pass: this process's part of the step's images.
        sample: Some of the step's cells (`draw_sample`).
        settings: Of the bank.
        classes: |S_t|.
        seed: Of the maps.
        previous: Bank of step t-1, whose maps and standardisation are kept. Its
            classes that the step shows again move by `settings.momentum`.
        keep_temperature: Take the temperature of `previous`, if there is one. A later
            step shows few classes, and so calibrates too boldly; it must where the
            features are of another network than before.
        process: This one of several, which get the same bank; the first alone
            calibrates it.
    """
    cells = sample.cells
    if previous is None:
        centre, spread, gamma = _standardisation(cells, settings)
        maps = make_maps(settings, len(centre), gamma, seed)
    else:
        centre, spread, gamma = previous.centre, previous.spread, previous.gamma
        seed, maps = previous.seed, previous.maps
    dimension = len(centre) if settings.map == "identity" else settings.dimension
    moments = [
        Moments.empty(
            classes, dimension, scatter=settings.scatter, device=str(cells.device)
        )
        for _ in maps
    ]
    for features, targets, _ in batches:
        vectors, labels = cells_of(features, targets)
        x = (vectors - centre) / spread
        for part, phi in zip(moments, maps, strict=True):
            part.update(x, labels, phi)
    for part in moments:
        part.add_up(process)
    bank = _bank_of_step(settings, seed, gamma, centre, spread, moments)
    if previous is not None:
        bank = follow(previous, bank)
    if previous is not None and keep_temperature:
        bank.temperature = previous.temperature
    elif settings.scatter and process.first:
        bank.temperature = _calibrate(bank, *sample)
    return bank


def sampled_images(images: int, settings: BankSettings) -> list[int]:
    """Numbers of the images, spread over all, that a sample is drawn from."""
    wanted = min(images, -(-settings.calibration_cells // CELLS_PER_IMAGE))
    spread = [round(i * (images - 1) / max(1, wanted - 1)) for i in range(wanted)]
    return list(dict.fromkeys(spread))


def draw_sample(
    batches: Iterable[FeatureBatch],
    settings: BankSettings,
    *,
    images: int,
    seed: int,
    process: Process = ALONE,
) -> Sample:
    """Up to `calibration_cells` labelled cells, equally many of every image.

    Which cells an image gives depends on the seed and its key alone, so the sample is
    the same whatever the batches and the number of processes.

    Args:
        batches: This process's part of the images.
        settings: Of the bank.
        images: Number of images over all processes.
        seed: Of the choice.
        process: This one of several, which all get the whole sample.

    Raises:
        ValueError: No labelled cell.
    """
    per_image = max(CELLS_PER_IMAGE, -(-settings.calibration_cells // max(images, 1)))
    chosen: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    device = torch.device(process.device)
    for features, targets, keys in batches:
        for feature, target, key in zip(features, targets, keys, strict=True):
            cells, labels = cells_of(feature[None], target[None])
            generator = torch.Generator().manual_seed((seed << 32) + int(key))
            order = torch.randperm(len(cells), generator=generator)[:per_image]
            chosen[int(key)] = (cells[order].cpu(), labels[order].cpu())
            device = feature.device
    for part in process.gather(chosen):
        chosen.update(part)
    parts = [chosen[key] for key in sorted(chosen)]
    if not sum(len(labels) for _, labels in parts):
        raise ValueError("Expected labelled cells to build a bank from, but got none.")
    vectors, classes = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    # In no order, so that any part of the sample is a sample.
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(classes), generator=generator)
    order = order[: settings.calibration_cells]
    return Sample(vectors[order].to(device), classes[order].to(device))


def _standardisation(
    sample: torch.Tensor, settings: BankSettings
) -> tuple[torch.Tensor, torch.Tensor, float | None]:
    """Centre, spread and γ from a sample of cells (n, d)."""
    centre = sample.mean(0)
    # A channel that never fires keeps its value instead of being divided by zero.
    spread = sample.std(0)
    spread = torch.where(spread > 1e-6, spread, torch.ones_like(spread))
    if settings.map == "identity":
        return centre, spread, None
    if settings.gamma != "median":
        return centre, spread, float(settings.gamma)
    x = ((sample - centre) / spread)[:2000]
    squared = torch.cdist(x.double(), x.double()).square()
    pairs = torch.triu_indices(len(x), len(x), offset=1, device=x.device)
    median = squared[pairs[0], pairs[1]].median()
    return centre, spread, 1 / max(float(median), 1e-12)


def _bank_of_step(
    settings: BankSettings,
    seed: int,
    gamma: float | None,
    centre: torch.Tensor,
    spread: torch.Tensor,
    moments: Sequence[Moments],
) -> PrototypeBank:
    count = moments[0].count
    scatter = [part.scatter for part in moments if part.scatter is not None]
    return PrototypeBank(
        settings=settings,
        seed=seed,
        gamma=gamma,
        centre=centre,
        spread=spread,
        count=count,
        share=count / count.sum().clamp(min=1),
        means=[part.mean for part in moments],
        scatter=scatter if settings.scatter else None,
        scatter_count=float(count.sum()),
        temperature=1.0,
    )


def follow(previous: PrototypeBank, current: PrototypeBank) -> PrototypeBank:
    """The bank after a step: old classes follow, new classes are taken as measured.

    A class of S_{t-1} (background included) that the step shows moves by the momentum
    m: μ ← m μ + (1-m) μ^(t); count and share stay those of the step that labelled it.
    A class that no step has shown so far is taken as measured. The scatter adds up.

    Args:
        previous: Bank over S_{t-1}.
        current: Statistics of step t alone, over S_t, in the same maps.
    """
    old = previous.classes
    momentum = current.settings.momentum
    shown = (current.count[:old] > 0)[:, None]
    first = previous.count == 0
    means = []
    for before, now in zip(previous.means, current.means, strict=True):
        moved = torch.where(
            shown, momentum * before + (1 - momentum) * now[:old], before
        )
        moved = torch.where(first[:, None], now[:old], moved)
        means.append(torch.cat([moved, now[old:]]))
    scatter = None
    if previous.scatter is not None and current.scatter is not None:
        pairs = zip(previous.scatter, current.scatter, strict=True)
        scatter = [before + now for before, now in pairs]
    return replace(
        current,
        count=_known_first(previous.count, current.count, first),
        share=_known_first(previous.share, current.share, first),
        means=means,
        scatter=scatter,
        scatter_count=previous.scatter_count + current.scatter_count,
    )


def _known_first(
    before: torch.Tensor, now: torch.Tensor, first: torch.Tensor
) -> torch.Tensor:
    """Values (C,) of the old classes, but for those seen first; then the new ones."""
    old = len(before)
    return torch.cat([torch.where(first, now[:old], before), now[old:]])


def _calibrate(
    bank: PrototypeBank, sample: torch.Tensor, labels: torch.Tensor
) -> float:
    """Temperature with the lowest negative log-likelihood of the sample's labels.

    Golden-section search over log T in [-3, 5]; the mean over the sample's cells.
    """

    def cost(log_temperature: float) -> float:
        bank.temperature = math.exp(log_temperature)
        return float(F.nll_loss(bank.log_posterior(sample).double(), labels))

    low, high = -3.0, 5.0
    ratio = (math.sqrt(5) - 1) / 2
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    cost_left, cost_right = cost(left), cost(right)
    while high - low > 1e-3:
        if cost_left < cost_right:
            high, right, cost_right = right, left, cost_left
            left = high - ratio * (high - low)
            cost_left = cost(left)
        else:
            low, left, cost_left = left, right, cost_right
            right = low + ratio * (high - low)
            cost_right = cost(right)
    return math.exp((low + high) / 2)
