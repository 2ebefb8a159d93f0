"""Groups "bank" and "kappa": building a prototype bank, and κ of many classes."""

from collections.abc import Iterable, Iterator

import torch

from benchmarks.inputs import CROP, images_of, network_of, targets_of
from benchmarks.measuring import Result, compare, growth
from kproba.bank.bank import PrototypeBank
from kproba.bank.build import FeatureBatch, build_bank, draw_sample
from kproba.bank.feature_maps import FourierFeatures
from kproba.bank.settings import BankSettings


def banks() -> list[Result]:
    """Both backbones, with and without the scatter."""
    return [
        bank("efficientnet_lite0", scatter=False, images=8),
        bank("efficientnet_lite0", scatter=True, images=8),
        bank("resnet101", scatter=False, images=6),
        bank("resnet101", scatter=True, images=6),
    ]


def bank(backbone: str, *, scatter: bool, images: int) -> Result:
    """Building a bank with its forward passes, compared with these passes alone."""
    network = network_of(backbone)
    pictures, targets = images_of(images, CROP), targets_of(images, CROP, 21)
    settings = BankSettings(
        feature="backbone",
        map="rff",
        dimension=5000,
        maps=3,
        gamma="median",
        scatter=scatter,
        ridge=1e-3,
        calibration_cells=500,
    )

    def features(numbers: Iterable[int]) -> Iterator[FeatureBatch]:
        for number in numbers:
            found = network(pictures[number : number + 1]).backbone
            yield FeatureBatch(found, targets[number : number + 1], [number])

    # A whole dataset is sampled from about one in a hundred of its images: left out.
    with torch.inference_mode():
        sample = draw_sample(features([0]), settings, images=1, seed=0)

    @torch.inference_mode()
    def forward() -> list[torch.Tensor]:
        return [network(picture[None]).backbone for picture in pictures]

    @torch.inference_mode()
    def build() -> PrototypeBank:
        return build_bank(features(range(images)), sample, settings, classes=21, seed=0)

    ratio, own, other = compare(build, forward)
    channels = network.backbone.channels
    kind = "with the scatter of klda" if scatter else "means only, as κ reads"
    return Result(
        f"bank / forward alone, {channels} channels, D = 5000, 3 maps, {kind}",
        ratio,
        "" if scatter else "≤ 1.3",
        f"{own:.2f} s / {other:.2f} s, {images} images of {CROP}²",
    )


def kappa() -> list[Result]:
    """κ of 100 classes in one product, compared with a loop over classes."""
    cells, classes, dimension = 4 * 33 * 33, 100, 5000
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(cells, 320, generator=generator)
    means = torch.randn(classes, dimension, generator=generator).double() / 70
    prototypes = _bank_with(means)
    mapped = FourierFeatures(320, dimension, 1e-3, 0)(features)

    def product() -> torch.Tensor:
        return prototypes._distances(0, mapped, "euclidean")

    def loop() -> torch.Tensor:
        single = means.float()
        columns = [(mapped - mean).norm(dim=1) for mean in single]
        return torch.stack(columns, dim=1)

    torch.testing.assert_close(product(), loop(), rtol=1e-3, atol=1e-3)
    ratio, own, other = compare(loop, product)
    size = f"{cells} cells, {classes} classes, D = {dimension}"
    extra = growth(product) / (mapped.numel() * 4)
    return [
        Result(
            f"κ: loop over classes / one product, {size}",
            ratio,
            "≥ 10",
            f"{own:.3f} s / {other:.3f} s",
        ),
        Result(
            "κ: memory above the feature matrix / the feature matrix",
            extra,
            "≤ 2",
            f"matrix {mapped.numel() * 4 / 2**20:.0f} MiB",
        ),
    ]


def _bank_with(means: torch.Tensor) -> PrototypeBank:
    """A bank of one map of 320 channels with these means, (classes, dimension)."""
    classes, dimension = means.shape
    settings = BankSettings(
        feature="backbone",
        map="rff",
        dimension=dimension,
        gamma=1e-3,
        scatter=False,
        ridge=1e-3,
        calibration_cells=1000,
    )
    return PrototypeBank(
        settings=settings,
        seed=0,
        gamma=1e-3,
        centre=torch.zeros(320),
        spread=torch.ones(320),
        count=torch.ones(classes, dtype=torch.float64),
        share=torch.full((classes,), 1 / classes, dtype=torch.float64),
        means=[means],
        scatter=None,
        scatter_count=0.0,
        temperature=1.0,
    )
