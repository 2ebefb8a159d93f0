"""What network and bank teach together, against the formula in float64."""

from pathlib import Path

import pytest
import torch
from small_banks import (
    CLASSES,
    bank_of,
    decision_by,
    images_of,
    network_of,
    scores_of_lda,
)

from kproba.bank.bank import PrototypeBank
from kproba.bank.fusion import LEAST_EVIDENCE, Combination
from kproba.bank.teacher import BankTeacher
from kproba.network.files import save_model
from kproba.network.folding import fold_all
from kproba.network.logits import compose_logits
from kproba.network.network import Outputs, SegmentationNetwork
from kproba.runtime.provenance import fingerprint


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return images_of(64, 96)


@pytest.fixture(scope="module")
def teacher() -> SegmentationNetwork:
    return network_of(3)


@pytest.fixture(scope="module")
def background() -> torch.Tensor:
    """M⁻, cells of the images."""
    generator = torch.Generator().manual_seed(2)
    return torch.rand(2, 4, 6, generator=generator) < 0.6


def teacher_by_lda(
    network: SegmentationNetwork, bank: PrototypeBank, **changes: float
) -> BankTeacher:
    """Network and bank of its features."""
    return BankTeacher(network, Combination(bank, decision_by("lda", **changes)))


@pytest.mark.parametrize("own", [True, False], ids=["own features", "of another"])
@pytest.mark.parametrize(("w", "a", "prior"), [(1, 0.5, 0), (0.5, 2, 0), (1, 0.5, 1)])
def test_old_classes_are_shared_out_as_network_and_bank_say(
    teacher: SegmentationNetwork,
    images: torch.Tensor,
    background: torch.Tensor,
    own: bool,
    w: float,
    a: float,
    prior: int,
) -> None:
    other = teacher if own else network_of(5)
    bank = bank_of(other, images, "identity")
    numbers = {"probability_weight": w, "posterior_weight": a, "image_prior": prior}
    decision = decision_by("lda", **numbers)
    combination = Combination(bank, decision, None if own else other)
    bank_teacher = BankTeacher(teacher, combination)
    outputs = teacher(images)
    features = bank_teacher.features(outputs, images)
    found = compose_logits(bank_teacher.correct(outputs, features, background).logits)

    z = compose_logits([branch.double() for branch in outputs.logits])
    p = z.sigmoid()
    log_q = torch.stack([scores_of_lda(bank, x) for x in other(images).backbone])
    q = log_q.clamp(min=LEAST_EVIDENCE).exp()
    both = p[:, 1:] ** w * q[:, 1:] ** a
    shared = both / both.sum(1, keepdim=True)
    if prior:
        foreground = 1 - p[:, :1] / p.sum(1, keepdim=True)
        weight = foreground * background[:, None]
        total = weight.sum((2, 3), keepdim=True)
        in_image = (shared * weight).sum((2, 3), keepdim=True) / total
        share = bank.share[1:] / bank.share[1:].sum()
        shared = shared * in_image / share[None, :, None, None]
        shared = shared / shared.sum(1, keepdim=True)
    expected = p[:, 1:].sum(1, keepdim=True) * shared
    expected = torch.where(background[:, None], expected, p[:, 1:])
    assert expected.max() < 1, "the test needs probabilities"
    torch.testing.assert_close(
        found[:, 1:].sigmoid().double(), expected, rtol=1e-3, atol=1e-5
    )
    assert not torch.allclose(expected, p[:, 1:], atol=1e-2)


def test_background_and_other_cells_stay_the_networks(
    teacher: SegmentationNetwork, images: torch.Tensor, background: torch.Tensor
) -> None:
    bank_teacher = teacher_by_lda(teacher, bank_of(teacher, images, "identity"))
    outputs = teacher(images)
    found = bank_teacher.correct(outputs, outputs, background)
    assert len(found.logits) == len(outputs.logits) == 2
    for own, other in zip(found.logits, outputs.logits, strict=True):
        assert torch.equal(own[:, 0], other[:, 0])  # background, adaptation
        kept = ~background[:, None].expand(-1, own.shape[1] - 1, -1, -1)
        assert torch.equal(own[:, 1:][kept], other[:, 1:][kept])
        assert not torch.equal(own[:, 1:], other[:, 1:])
    assert found.blocks is outputs.blocks  # bfd reads the network alone


def test_a_network_that_is_sure_of_several_classes_teaches_finite_logits(
    teacher: SegmentationNetwork, images: torch.Tensor, background: torch.Tensor
) -> None:
    bank = bank_of(teacher, images, "identity")
    bank_teacher = teacher_by_lda(teacher, bank, image_prior=1)
    outputs = teacher(images)
    sure = [torch.full_like(z, 30.0) for z in outputs.logits]
    for mask in (background, torch.zeros_like(background)):
        found = bank_teacher.correct(outputs._replace(logits=sure), outputs, mask)
        assert all(z.isfinite().all() for z in found.logits)


def test_bank_and_feature_network_come_from_files_that_belong_together(
    tmp_path: Path, images: torch.Tensor
) -> None:
    paths = {}
    for name, seed in (("network", 3), ("feature_network", 5)):
        paths[name] = tmp_path / name / "model.safetensors"
        paths[name].parent.mkdir()
        about = {"classes": [{"label": label} for label in range(CLASSES)]}
        save_model(network_of(seed), paths[name], about=about)
    bank = bank_of(network_of(5), images, "identity")
    path = tmp_path / "prototypes.safetensors"
    bank.save(path, about={"model": fingerprint(paths["feature_network"])})
    decision = decision_by("lda")
    combination = Combination.load(path, decision, **paths, device="cpu")
    features: Outputs = combination.features(network_of(3)(images), images)
    expected = fold_all(network_of(5))(images).backbone
    torch.testing.assert_close(features.backbone, expected)
    with pytest.raises(ValueError, match="built with another model"):
        Combination.load(
            *(path, decision),
            network=paths["network"],
            feature_network=None,
            device="cpu",
        )
