"""What network and bank teach together, against the formula in float64."""

from dataclasses import asdict

import pytest
import torch
from banks import (
    CLASSES,
    bank_of,
    images_of,
    network_of,
    scores_of_lda,
    settings,
)

from kproba.bank.fusion import LEAST_EVIDENCE
from kproba.bank.teacher import Guide
from kproba.network.files import save_model
from kproba.network.heads import compose_logits
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


@pytest.mark.parametrize("own", [True, False], ids=["own features", "of a source"])
@pytest.mark.parametrize(("w", "a", "prior"), [(1, 0.5, 0), (0.5, 2, 0), (1, 0.5, 1)])
def test_classes_are_dealt_out_as_network_and_bank_say(
    teacher: SegmentationNetwork,
    images: torch.Tensor,
    background: torch.Tensor,
    own: bool,
    w: float,
    a: float,
    prior: int,
) -> None:
    source = teacher if own else network_of(5)
    bank = bank_of(source, images, "identity")
    numbers = {"probability_weight": w, "posterior_weight": a, "image_prior": prior}
    rule = settings("lda", **numbers)
    guide = Guide(bank, rule, None if own else source)
    taught = teacher(images)
    shown = guide.look(taught, images)
    found = compose_logits(guide.correct(taught, shown, background).logits)

    z = compose_logits([branch.double() for branch in taught.logits])
    p = z.sigmoid()
    log_q = torch.stack([scores_of_lda(bank, x) for x in source(images).backbone])
    q = log_q.clamp(min=LEAST_EVIDENCE).exp()
    both = p[:, 1:] ** w * q[:, 1:] ** a
    dealt = both / both.sum(1, keepdim=True)
    if prior:
        foreground = 1 - p[:, :1] / p.sum(1, keepdim=True)
        weight = foreground * background[:, None]
        total = weight.sum((2, 3), keepdim=True)
        in_image = (dealt * weight).sum((2, 3), keepdim=True) / total
        share = bank.share[1:] / bank.share[1:].sum()
        dealt = dealt * in_image / share[None, :, None, None]
        dealt = dealt / dealt.sum(1, keepdim=True)
    expected = p[:, 1:].sum(1, keepdim=True) * dealt
    expected = torch.where(background[:, None], expected, p[:, 1:])
    assert expected.max() < 1, "the test needs probabilities"
    torch.testing.assert_close(
        found[:, 1:].sigmoid().double(), expected, rtol=1e-3, atol=1e-5
    )
    assert not torch.allclose(expected, p[:, 1:], atol=1e-2)


def test_background_and_other_cells_stay_the_networks(
    teacher: SegmentationNetwork, images: torch.Tensor, background: torch.Tensor
) -> None:
    guide = Guide(bank_of(teacher, images, "identity"), settings("lda"))
    taught = teacher(images)
    found = guide.correct(taught, taught, background)
    assert len(found.logits) == len(taught.logits) == 2
    for own, other in zip(found.logits, taught.logits, strict=True):
        assert torch.equal(own[:, 0], other[:, 0])  # background, adaptation
        kept = ~background[:, None].expand(-1, own.shape[1] - 1, -1, -1)
        assert torch.equal(own[:, 1:][kept], other[:, 1:][kept])
        assert not torch.equal(own[:, 1:], other[:, 1:])
    assert found.blocks is taught.blocks  # bfd asks the network alone


def test_a_network_that_is_sure_of_several_classes_teaches_finite_logits(
    teacher: SegmentationNetwork, images: torch.Tensor, background: torch.Tensor
) -> None:
    guide = Guide(bank_of(teacher, images, "identity"), settings("lda", image_prior=1))
    taught = teacher(images)
    sure = [torch.full_like(z, 30.0) for z in taught.logits]
    for mask in (background, torch.zeros_like(background)):
        found = guide.correct(taught._replace(logits=sure), taught, mask)
        assert all(z.isfinite().all() for z in found.logits)


def test_bank_and_source_come_from_files_that_belong_together(tmp_path, images) -> None:
    paths = {}
    for name, seed in (("network", 3), ("source", 5)):
        paths[name] = tmp_path / name / "model.safetensors"
        paths[name].parent.mkdir()
        about = {"classes": [{"label": label} for label in range(CLASSES)]}
        save_model(network_of(seed), paths[name], about=about)
    bank = bank_of(network_of(5), images, "identity")
    path = tmp_path / "prototypes.safetensors"
    bank.save(path, about={"model": fingerprint(paths["source"])})
    rule = asdict(settings("lda"))
    guide = Guide.load(path, rule, **paths, device="cpu")
    shown: Outputs = guide.look(network_of(3)(images), images)
    torch.testing.assert_close(shown.backbone, network_of(5)(images).backbone)
    with pytest.raises(ValueError, match="built with another model"):
        Guide.load(path, rule, network=paths["network"], source=None, device="cpu")
