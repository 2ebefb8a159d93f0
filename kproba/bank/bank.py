"""The kernel-prototype bank: class statistics in random Fourier feature space.

For a feature vector z of one cell of the feature map, standardised to x = (z - m) / s,

    φ(x) = sqrt(2/D) cos(x ω + β),  ω ~ N(0, 2γ),  β ~ U[0, 2π),

so that ⟨φ(u), φ(v)⟩ ≈ exp(-γ‖u-v‖²) (Rahimi & Recht, NeurIPS 2007). Features come in
pairs that share ω, a quarter turn of β apart: half the product x ω, and a better kernel
(Sutherland & Schneider, "On the Error of Random Fourier Features", UAI 2015).

The bank holds, for each of E maps with its own (ω, β), the count and mean of φ of every
class and one within-class scatter shared by all classes (KLDA: Momeni, Mazumder & Liu,
AAAI 2025, arXiv 2412.15571). With the identity in place of φ it is plain LDA.

With random ReLU features in place of φ, on features that are not standardised, the
scatter is that of all cells of all steps, and the bank is a ridge regression to one-hot
labels (`kproba.bank.ridge`).

Each map is compared in its own space; an ensemble averages the members' softmax.
Standardisation and maps are drawn once, at step 0, and stay with the bank.
"""

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from kproba.bank.feature_maps import FeatureMap, make_maps
from kproba.bank.record import BankRecord, read_bank_record
from kproba.bank.ridge import ridge_weights
from kproba.bank.settings import BankSettings
from kproba.network.network import Outputs
from kproba.runtime.files import write_json
from kproba.runtime.provenance import fingerprint
from kproba.runtime.records import REMAKE, ArtifactError
from kproba.runtime.tensors import (
    Shapes,
    check_digest,
    compare_shapes,
    load_tensors,
    read_shapes,
    save_tensors,
)


@dataclass
class PrototypeBank:
    """Class statistics of all classes seen, in the space of each map.

    Attributes:
        settings: Settings of the bank.
        seed: Seed of the maps; map e uses seed + e.
        gamma: γ in use (None for all maps but random Fourier features).
        centre: (d,) m, mean of the features at step 0; 0 for ReLU features.
        spread: (d,) s, standard deviation of the features at step 0; 1 for ReLU
            features.
        count: (C,) labelled cells per class, in the step that introduced it; for ReLU
            features, in all steps.
        share: (C,) count divided by all labelled cells of that step, or of all steps.
        means: Per map (C, D) prototypes μ_c.
        scatter: Per map (D, D) within-class scatter, summed over the steps; without the
            cells of the background if `BankSettings.background` is False.
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
        """The class posterior log q, (n, C) float32, of features (n, d), as in KLDA.

        s_c = φᵀ A⁻¹ μ_c - μ_cᵀ A⁻¹ μ_c / 2 + log π_c, with A the within-class
        covariance W/n plus the ridge and π the class shares; q = softmax(s/T), averaged
        over the maps. Up to a term equal for all classes this is
        -(φ-μ_c)ᵀ A⁻¹ (φ-μ_c) / 2 + log π_c. For ReLU features s = φᵀ W, the ridge
        regression of `ridge_weights`. A class without cells has -inf.

        Raises:
            ValueError: The bank was built without scatter.
        """
        x = self.standardise(features)
        members = [
            (self._map_scores(number, x) / self.temperature).log_softmax(1)
            for number in range(len(self.maps))
        ]
        return torch.stack(members).logsumexp(0) - math.log(len(members))

    def _map_scores(self, number: int, x: torch.Tensor) -> torch.Tensor:
        if self._solved is None:
            self._solved = self._solve()
        phi, (weights, bias) = self.maps[number], self._solved[number]
        if self.settings.map != "relu" or torch.jit.is_tracing():
            return phi(x) @ weights + bias
        # In strips, because there may be thousands of ReLU features.
        scores = bias.repeat(len(x), 1)
        for columns, part in phi.strips(x):
            scores.addmm_(part, weights[columns])
        return scores

    def _covariance(self, number: int) -> torch.Tensor:
        """A = W/n plus the ridge on the diagonal, (D, D) float64."""
        covariance = self._scatter(number) / max(self.scatter_count, 1)
        if self.settings.ridge is None:
            raise ValueError(
                "Expected a bank with a ridge for a Mahalanobis score, but this bank "
                "has None. Set BankSettings.ridge."
            )
        spread = covariance.diagonal().mean()
        # Without cells of classes there is no scatter: distances are compared.
        ridge = self.settings.ridge * torch.where(spread > 0, spread, 1.0)
        return covariance + ridge * torch.eye(
            len(covariance), dtype=torch.float64, device=covariance.device
        )

    def _scatter(self, number: int) -> torch.Tensor:
        if self.scatter is None:
            raise ValueError(
                "Expected a bank with scatter, but this bank has none. Build the bank "
                "for a rule that uses the scatter (klda, lda, ridge or agree)."
            )
        return self.scatter[number]

    def _solve(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Per map a linear rule, (D, C) and (C,) float32, by Cholesky.

        A class without pixels so far has the bias -inf and is never predicted.
        """
        empty = self.count == 0
        if self.settings.regularisation is not None:
            weights = ridge_weights(
                self.count,
                self.means[0],
                self._scatter(0),
                self.settings.regularisation,
            ).float()
            bias = weights.new_zeros(self.classes).masked_fill(empty, -math.inf)
            return [(weights, bias)]
        log_prior = (self.share / self.share.sum()).clamp(min=1e-12).log()
        solved = []
        for number, mean in enumerate(self.means):
            factor = torch.linalg.cholesky(self._covariance(number))
            weights = torch.cholesky_solve(mean.T, factor)
            bias = log_prior - (mean.T * weights).sum(0) / 2
            bias = bias.masked_fill(empty, -math.inf)
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
        """Write the statistics to `path` (.safetensors), the rest beside it (.json).

        Raises:
            ValueError: A number is NaN or infinite; nothing is written.
            OSError: A file cannot be written.
        """
        path = Path(path)
        numbers = (self.temperature, self.scatter_count, self.gamma or 1.0)
        if not all(map(math.isfinite, numbers)) or self.temperature <= 0:
            raise ValueError(
                f"Expected a finite temperature above 0, a finite count and a finite γ "
                f"for the bank {path}, but got {self.temperature}, "
                f"{self.scatter_count} and {self.gamma}. The features of its network "
                f"are not finite. Train that network again."
            )
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
        digest = save_tensors(tensors, path)
        write_json(
            path.with_suffix(".json"),
            {
                "settings": asdict(self.settings),
                "seed": self.seed,
                "gamma": self.gamma,
                "temperature": self.temperature,
                "scatter_count": self.scatter_count,
                "cells_per_class": [int(count) for count in self.count],
                "sha256": digest,
                **about,
            },
        )

    @classmethod
    def load(cls, path: str | Path) -> "PrototypeBank":
        """Read a bank that `save` wrote, of any version.

        Raises:
            FileNotFoundError: One of its two files is missing.
            ArtifactError: A file is damaged, the two files do not belong together, or a
                number is impossible. It is a ValueError.
        """
        path = Path(path)
        record = read_bank_record(path)
        check_digest(path, record.sha256, record.path)
        settings = record.settings
        compare_shapes(*_shapes(record, path), path)
        tensors = load_tensors(path)
        _check_values(tensors, path)
        return cls(
            settings=settings,
            seed=record.seed,
            gamma=record.gamma,
            centre=tensors["centre"],
            spread=tensors["spread"],
            count=tensors["count"],
            share=tensors["share"],
            means=[tensors[f"means.{number}"] for number in range(settings.maps)],
            scatter=[tensors[f"scatter.{number}"] for number in range(settings.maps)]
            if settings.scatter
            else None,
            scatter_count=record.scatter_count,
            temperature=record.temperature,
        )


def _shapes(record: BankRecord, path: Path) -> tuple[Shapes, Shapes]:
    """Shapes of the tensors of a bank: the actual ones and the expected ones.

    Only the file itself gives the number of classes and features.

    Raises:
        ArtifactError: It has no features or classes, or others than described.
    """
    found, settings = read_shapes(path), record.settings
    features, classes = ((found.get(key) or (0,))[0] for key in ("centre", "count"))
    cells = record.content.get("cells_per_class")
    counted = classes if cells is None else len(cells)
    if not features or not classes or counted != classes:
        raise ArtifactError(
            f"Expected statistics of {counted} classes in {path}, as recorded in "
            f"{record.path}, but it holds {classes} classes with {features} features. "
            f"The two files belong to different steps, or one was changed. {REMAKE}"
        )
    wide = settings.dimension if settings.map != "identity" else None
    dimension = wide or features
    expected: Shapes = dict.fromkeys(("centre", "spread"), (features,))
    expected |= dict.fromkeys(("count", "share"), (classes,))
    for number in range(settings.maps):
        expected[f"means.{number}"] = (classes, dimension)
        if settings.scatter:
            expected[f"scatter.{number}"] = (dimension, dimension)
    return found, expected


def _check_values(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Refuse impossible counts, shares and spreads; all numbers are finite already."""
    good = {
        **{name: tensor.is_floating_point() for name, tensor in tensors.items()},
        "count": bool((tensors["count"] >= 0).all()),
        "share": bool(((tensors["share"] >= 0) & (tensors["share"] <= 1)).all()),
        "spread": bool((tensors["spread"] > 0).all()),
    }
    for name, is_good in good.items():
        if not is_good:
            raise ArtifactError(
                f"Expected floating-point numbers, counts of at least 0, shares from 0 "
                f"to 1 and spreads above 0 in {path}, but the tensor {name} holds "
                f"other values. The file was changed. {REMAKE}"
            )


def load_bank_of_model(
    bank: str | Path, model: str | Path, device: str
) -> PrototypeBank:
    """Load a bank that was built with this model.

    Raises:
        FileNotFoundError: A file is missing.
        ArtifactError: The bank was built with another model, or cannot be read. It is
            a ValueError.
    """
    if read_bank_record(bank).model != fingerprint(Path(model)):
        raise ArtifactError(
            f"Expected {bank} to be built with {model}, but it was built with another "
            f"model, so the features cannot be compared. Delete the bank and run "
            f"again."
        )
    return PrototypeBank.load(bank).to(device)


def bank_features(outputs: Outputs, settings: BankSettings) -> torch.Tensor:
    """The feature map that the bank reads, (B, d, h, w).

    With `BankSettings.context`, the second half are means over 3×3 cells, fewer at the
    border of the map.
    """
    features = outputs.backbone
    if settings.feature == "both":
        features = torch.cat([features, outputs.blocks[0]], dim=1)
    elif settings.feature == "block":
        features = outputs.blocks[0]
    if settings.context == 1:
        return features
    side = settings.context
    around = F.avg_pool2d(
        features, side, stride=1, padding=side // 2, count_include_pad=False
    )
    return torch.cat([features, around], dim=1)
