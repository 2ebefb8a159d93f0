"""Features of old classes, drawn from statistics (Chen et al., NeurIPS 2023, STAR).

At the end of its step every class leaves the statistics of its features x: the number
of cells n, the mean direction μ of u = x/‖x‖ with the deviation σ of each entry, and
mean m and deviation s of the length ‖x‖. They are never changed again. A later step
draws features

    x̃ = (μ + ε⊙σ) (m + s ε'),   ε, ε' ~ N(0, I),

as many per iteration as the class has fewer cells in the images of the step than it had
in its own.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from kproba.data.augmentation import keyed_generator
from kproba.data.labels import IGNORE
from kproba.network.layers import upsample
from kproba.network.logits import compose_logits
from kproba.network.network import Outputs
from kproba.network.record import MOST_CLASSES, PROVENANCE
from kproba.runtime import records
from kproba.runtime.distributed import ALONE, Process
from kproba.runtime.files import write_json
from kproba.runtime.provenance import fingerprint
from kproba.runtime.tensors import (
    Shapes,
    check_digest,
    compare_shapes,
    load_tensors,
    read_shapes,
    save_tensors,
)

SEEN = 0.5  # logit above which the previous network sees a class
# Share by which every new class lowers the number of background cells to expect, and
# the share of the background that the images of a step show anyway (authors' code).
LOST_PER_CLASS, SHOWN = 0.01, 0.5
# Content of statistics.json
STATISTICS = records.record(
    {
        "labels": records.list_of(
            records.integer(0, MOST_CLASSES), least=1, distinct=True
        ),
        "model": records.text(),
        "sha256": records.digest,
    },
    {"provenance": PROVENANCE},
)


def recognise(logits: torch.Tensor) -> torch.Tensor:
    """The class with the largest logit if that is above 0.5, else 0.

    Args:
        logits: Over S_{t-1} with the background first, which is not used,
            (B, |S_{t-1}|, H, W).

    Returns:
        (B, H, W) int64 output indices.
    """
    best, channel = logits[:, 1:].max(dim=1)
    return (channel + 1) * (best > SEEN)


@dataclass
class ClassStatistics:
    """Statistics of the features of all classes so far, float64.

    Attributes:
        count: n, cells per class, (C,).
        mean: μ, unit vectors, (C, A).
        spread: σ, (C, A).
        length: m, (C,).
        length_spread: s, (C,).
        background: n_0, cells of background, ().
    """

    count: torch.Tensor
    mean: torch.Tensor
    spread: torch.Tensor
    length: torch.Tensor
    length_spread: torch.Tensor
    background: torch.Tensor

    def to(self, device: str) -> "ClassStatistics":
        """The statistics on a device."""
        tensors = {name: value.to(device) for name, value in vars(self).items()}
        return ClassStatistics(**tensors)

    def append(self, new: "ClassStatistics") -> "ClassStatistics":
        """These classes, then those of `new`; the background stays."""
        names = [field.name for field in fields(self) if field.name != "background"]
        joined = {
            name: torch.cat([getattr(self, name), getattr(new, name)]) for name in names
        }
        return ClassStatistics(**joined, background=self.background)

    def save(self, path: str | Path, *, about: dict[str, Any]) -> None:
        """Write the statistics to `path` (.safetensors), and `about` beside it (.json).

        Raises:
            ValueError: A number is NaN or infinite; nothing is written.
            OSError: A file cannot be written.
        """
        path = Path(path)
        digest = save_tensors(vars(self), path)
        write_json(path.with_suffix(".json"), {**about, "sha256": digest})

    @classmethod
    def load(cls, path: str | Path, *, model: str | Path) -> "ClassStatistics":
        """Read the statistics after a step.

        Args:
            path: The file that `save` wrote.
            model: model.safetensors of that step.

        Raises:
            FileNotFoundError: A file is missing.
            ArtifactError: A file is damaged, or belongs to another model. It is a
                ValueError.
        """
        path = Path(path)
        description = path.with_suffix(".json")
        content = records.read_record(description, STATISTICS)
        check_digest(path, content["sha256"], description)
        if content["model"] != fingerprint(Path(model)):
            raise records.ArtifactError(
                f"Expected {path} to be measured with {model}, but it was measured "
                f"with another model. {records.REMAKE}"
            )
        found = read_shapes(path)
        width = (found.get("mean") or (0, 0))[-1]
        classes = len(content["labels"]) - 1
        expected: Shapes = {
            **dict.fromkeys(("count", "length", "length_spread"), (classes,)),
            **dict.fromkeys(("mean", "spread"), (classes, width)),
            "background": (),
        }
        compare_shapes(found, expected, path)
        return cls(**load_tensors(path))


class FeatureSums:
    """Sums of features that give the statistics; parts add up over processes.

    Args:
        classes: Number of classes.
        channels: A, of the features.
        device: Of the features.
    """

    def __init__(self, classes: int, channels: int, device: str = "cpu"):
        double = {"dtype": torch.float64, "device": device}
        self.count = torch.zeros(classes + 1, **double)  # type: ignore[call-overload]
        self.sums = torch.zeros(classes, 2 * channels + 2, **double)  # type: ignore[call-overload]

    def add(self, features: torch.Tensor, labels: torch.Tensor) -> None:
        """Add cells.

        Args:
            features: x, (n, A).
            labels: Number of the class from 1 on, 0 for background, (n,) int64; other
                cells must be left out.
        """
        classes = len(self.sums)
        self.count += torch.bincount(labels, minlength=classes + 1)
        chosen = labels > 0
        x, labels = features[chosen].double(), labels[chosen]
        length = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        u = x / length.clamp(min=1e-12)
        columns = torch.cat([u, u.square(), length, length.square()], dim=1)
        member = F.one_hot(labels - 1, classes).to(columns)
        self.sums += member.T @ columns

    def statistics(self, process: Process = ALONE) -> ClassStatistics:
        """The statistics of the cells of all processes, in every process."""
        for tensor in (self.count, self.sums):
            process.add_up(tensor)
        channels = (self.sums.shape[1] - 2) // 2
        n = self.count[1:].clamp(min=1)[:, None]
        u, u_squared, length, length_squared = (self.sums / n).split(
            [channels, channels, 1, 1], dim=1
        )
        mean = F.normalize(u, dim=1)
        # E (u - μ)² = E u² - 2 μ E u + μ²: μ is not E u, but its direction.
        spread = (u_squared - 2 * mean * u + mean.square()).clamp(min=0).sqrt()
        deviation = (length_squared - length.square()).clamp(min=0).sqrt()
        return ClassStatistics(
            self.count[1:], mean, spread, length[:, 0], deviation[:, 0], self.count[0]
        )


def cells_of(
    outputs: Outputs, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features x of all cells, (n, A), and the labels at their centres, (n,) int64."""
    features = outputs.blocks[0]
    labels = F.interpolate(
        targets[:, None].float(), features.shape[-2:], mode="nearest-exact"
    )
    return features.permute(0, 2, 3, 1).flatten(0, 2), labels.flatten().long()


def count_recognised(
    outputs: Outputs, targets: torch.Tensor, first_new: int
) -> torch.Tensor:
    """Cells with label 0 by the class that the previous network sees, (|S_{t-1}|,).

    Args:
        outputs: Outputs of the network of step t-1.
        targets: (B, H, W) uint8 in output indices. Old classes count as label 0.
        first_new: |S_{t-1}|.
    """
    logits = upsample(compose_logits(outputs.logits).float(), targets.shape[-2:])
    size = outputs.blocks[0].shape[-2:]
    seen, labels = (
        F.interpolate(map_[:, None].float(), size, mode="nearest-exact").long()
        for map_ in (recognise(logits), targets)
    )
    counted = seen[(labels < first_new) & (labels != IGNORE)]
    return torch.bincount(counted, minlength=first_new).double()


@dataclass(frozen=True)
class Drawn:
    """Inputs of the loss terms for one micro-batch.

    Attributes:
        means: μ of the old classes, (C, A) float32.
        fakes: This part's drawn features, (n, A) float32.
        drawn: f, number of drawn features over the global batch.
        background_factor: ρ.
    """

    means: torch.Tensor
    fakes: torch.Tensor
    drawn: int
    background_factor: float


@dataclass(frozen=True)
class Replay:
    """What a step draws: how many features of each old class per iteration.

    Attributes:
        statistics: Of the old classes, float32 on the device of the training.
        counts: r, drawn features of each class per iteration.
        background_factor: ρ.
        seed: Part of the key of all draws, with the step.
        step: T.
    """

    statistics: ClassStatistics
    counts: tuple[int, ...]
    background_factor: float
    seed: int
    step: int

    @classmethod
    def plan(
        cls,
        statistics: ClassStatistics,
        recognised: torch.Tensor,
        *,
        new_classes: int,
        iterations: float,
        overlap: bool,
        seed: int,
        step: int,
    ) -> "Replay":
        """The number of features to draw.

        In the setting "overlap" the images of a step show old classes again:
        r = max(0, ⌊(n - n̂)/I⌋) and ρ = max(0, n_0 (1 - 0.01 |C_t|)/n̂_0 - 0.5).
        Otherwise they hardly do: r = ⌊n/I⌋ and ρ = n_0/n̂_0.

        Args:
            statistics: Of all old classes.
            recognised: n̂_0, then n̂ of the old classes, (|S_{t-1}|,): result of
                `count_recognised` for all images of the step.
            new_classes: |C_t|.
            iterations: I, iterations per pass over the images of the step.
            overlap: Which rule.
            seed: Seed of the draws.
            step: T.
        """
        shown = recognised[1:] if overlap else torch.zeros_like(recognised[1:])
        missing = ((statistics.count - shown) / iterations).floor().clamp(min=0)
        background = float(recognised[0].clamp(min=1))
        expected = float(statistics.background)
        if overlap:
            expected *= 1 - LOST_PER_CLASS * new_classes
        factor = expected / background - (SHOWN if overlap else 0.0)
        single = {name: value.float() for name, value in vars(statistics).items()}
        return cls(
            replace(statistics, **single),
            tuple(int(count) for count in missing),
            max(0.0, factor),
            seed,
            step,
        )

    def draw(self, iteration: int, part: int, parts: int) -> Drawn:
        """Draw the features of an iteration; the same for any number of parts.

        Args:
            iteration: Part of the key of the draws.
            part: Number of this micro-batch among all of the global batch.
            parts: Their number.
        """
        of, total = self.statistics, sum(self.counts)
        device = of.mean.device
        key = keyed_generator("features", self.seed, self.step, iteration)
        generator = torch.Generator(device).manual_seed(int(key.integers(2**62)))
        counts = torch.tensor(self.counts, device=device)
        classes = torch.arange(len(counts), device=device).repeat_interleave(counts)
        shape = (2, total, of.mean.shape[1])
        noise = torch.randn(shape, generator=generator, device=device)
        chosen = slice(total * part // parts, total * (part + 1) // parts)
        classes, (direction, length) = classes[chosen], noise[:, chosen]
        fakes = (of.mean[classes] + direction * of.spread[classes]) * (
            of.length[classes, None] + length * of.length_spread[classes, None]
        )
        return Drawn(of.mean, fakes, total, self.background_factor)


def next_statistics(
    previous: ClassStatistics,
    new: ClassStatistics,
    recognised: torch.Tensor,
    *,
    overlap: bool,
) -> ClassStatistics:
    """The statistics after a step: those of the old classes, then of the new ones.

    "overlap": n_0 ← n̂_0/2 + n_0 (1 - 0.01 |C_t|). Otherwise n_0 ← n_0 + n̂_0, and
    n ← n + n̂ for the old classes.

    Args:
        previous: After step t-1.
        new: Of the classes of step t.
        recognised: As for `Replay.plan`.
        overlap: Which rule.
    """
    if overlap:
        kept = previous.background * (1 - LOST_PER_CLASS * len(new.count))
        known = replace(previous, background=SHOWN * recognised[0] + kept)
    else:
        known = replace(
            previous,
            background=previous.background + recognised[0],
            count=previous.count + recognised[1:],
        )
    return known.append(new)


def total_recognised(
    parts: Iterable[torch.Tensor], classes: int, device: str, process: Process = ALONE
) -> torch.Tensor:
    """Sum of the results of `count_recognised` over batches and processes."""
    total = torch.zeros(classes, dtype=torch.float64, device=device)
    for part in parts:
        total += part
    process.add_up(total)
    return total
