"""Frozen batch norms inside convolutions: the same results with fewer layers."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from small_networks import (
    ARCHITECTURE,
    CountedOperators,
    assert_equal_states,
    random_images,
    randomise_norms,
    state_of,
)
from torch import nn

from kproba.network import SegmentationNetwork, folding
from kproba.network.files import save_model
from kproba.network.folding import FoldedConvolution, fold, fold_all, load_folded

FORWARD_NORM = "native_batch_norm"
# Cells of a map, times which a weight per output channel is too large to be scaled.
ALWAYS, NEVER = 10**9, 0


def student_of(
    backbone: str = "efficientnet_lite0",
    head: str = "branches",
    *,
    stages: int = 0,
    dtype: torch.dtype = torch.float32,
) -> SegmentationNetwork:
    """A student of an increment: its batch norms are frozen, and some stages."""
    architecture = replace(
        ARCHITECTURE, backbone=backbone, head=head, frozen_stages=stages
    )
    network = SegmentationNetwork(architecture, [2, 1], seed=1).to(dtype)
    randomise_norms(network)
    network.set_training_mode(batch_norm=False)
    network.dropout.keys = torch.tensor([1, 2])
    return network


def results(
    network: SegmentationNetwork, images: torch.Tensor
) -> tuple[list[torch.Tensor], dict[int, torch.Tensor]]:
    """All outputs, and the gradient of every parameter that trains, by its id."""
    network.keep_stages = True
    outputs = network(images)
    maps = [outputs.backbone, *outputs.blocks, *outputs.logits, *outputs.stages]
    generator = torch.Generator().manual_seed(3)
    # Scaled: every map matters to the gradient, deep or not.
    total = torch.stack(
        [
            (m / m.detach().norm() * torch.randn(m.shape, generator=generator)).sum()
            for m in maps
        ]
    ).sum()
    training = [p for p in network.parameters() if p.requires_grad]
    found = torch.autograd.grad(total, training)
    named = {id(p): g for p, g in zip(training, found, strict=True)}
    return [m.detach() for m in maps], named


@pytest.mark.parametrize("most", [ALWAYS, NEVER, 4], ids=["weights", "maps", "either"])
@pytest.mark.parametrize("stages", [0, 3])
@pytest.mark.parametrize("head", ["branches", "softmax"])
@pytest.mark.parametrize("backbone", ["efficientnet_lite0", "resnet50"])
def test_outputs_and_gradients_stay_what_they_are(
    monkeypatch: pytest.MonkeyPatch, backbone: str, head: str, stages: int, most: int
) -> None:
    """Whether weights are scaled, or maps are normalised."""
    monkeypatch.setattr(folding, "IMAGES", most)
    student = student_of(backbone, head, stages=stages, dtype=torch.float64)
    before, types = state_of(student), [type(m) for m in student.modules()]
    images = random_images()[..., :40, :]
    expected, gradients = results(student, images)
    twin = fold(student)
    found, got = results(twin, images)
    for own, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other, own, rtol=1e-10, atol=1e-10)
    # The same parameters get the gradients: an optimizer sees no difference.
    assert got.keys() == gradients.keys() and len(got) > 15
    for key, gradient in gradients.items():
        away = (got[key] - gradient).norm() / gradient.norm().clamp(min=1e-300)
        assert away < 1e-10
    assert any(isinstance(m, FoldedConvolution) for m in twin.modules())
    assert_equal_states(student.state_dict(), before)
    assert [type(m) for m in student.modules()] == types


def norms_of(network: nn.Module) -> int:
    return sum(isinstance(m, nn.BatchNorm2d) for m in network.modules())


@pytest.mark.parametrize("backbone", ["efficientnet_lite0", "resnet50"])
@pytest.mark.parametrize(("most", "called"), [(ALWAYS, False), (NEVER, True)])
def test_no_batch_norm_is_left_where_maps_are_large(
    monkeypatch: pytest.MonkeyPatch, backbone: str, most: int, called: bool
) -> None:
    monkeypatch.setattr(folding, "IMAGES", most)
    student = student_of(backbone)
    twin = fold(student)
    with torch.no_grad(), CountedOperators() as plain:
        student(random_images())
    assert plain.times(FORWARD_NORM) == norms_of(student) > 50
    with torch.no_grad(), CountedOperators() as folded:
        twin(random_images())
    assert folded.times(FORWARD_NORM) == (norms_of(student) if called else 0)


@pytest.mark.parametrize("images", [1, 2, 9])
@pytest.mark.parametrize(("cells", "normalised"), [(3, True), (4, False), (9, False)])
def test_what_is_scaled_does_not_depend_on_the_batch(
    images: int, cells: int, normalised: bool
) -> None:
    """A weight of 144 values per channel, against 4 images of 9, 16 and 81 cells."""
    norm = nn.BatchNorm2d(3).eval().requires_grad_(False)
    assert norm.running_mean is not None
    norm.running_mean.add_(1)
    convolution = nn.Conv2d(7, 3, 3, padding=1, bias=False)
    layer = FoldedConvolution(convolution, norm, None)
    x = torch.rand(images, 7, cells, cells)
    with CountedOperators() as counted:
        found = layer(x)
    assert counted.times(FORWARD_NORM) == normalised
    torch.testing.assert_close(found, norm(convolution(x)))


def test_the_twin_has_the_parameters_that_train_and_no_others() -> None:
    student = student_of(stages=3)
    ours = {id(p) for p in student.parameters() if p.requires_grad}
    frozen = {id(p) for p in student.parameters()} - ours
    twin = fold(student)
    theirs = {id(p) for p in twin.parameters() if p.requires_grad}
    assert ours == theirs
    assert len(frozen) > 100
    # What the optimizer changes, both compute with; constants stay.
    with torch.no_grad():
        images = random_images()
        before = twin(images).logits[0]
        student.get_submodule("branches.0.classifier").weight.mul_(2)
        assert not torch.equal(twin(images).logits[0], before)
    twin.keep_stages, twin.shared_stages = True, 2
    assert not student.keep_stages and not student.shared_stages


def test_a_network_that_only_computes_is_folded_as_a_whole() -> None:
    network = student_of().eval()
    expected = network(random_images())
    folded = fold_all(network)
    assert not any(p.requires_grad for p in folded.parameters())
    assert norms_of(folded) == 0
    found = folded(random_images())
    for own, other in zip(expected.logits, found.logits, strict=True):
        scale = own.abs().max().item()
        torch.testing.assert_close(other, own, rtol=0, atol=1e-5 * scale)


def test_a_model_is_folded_as_it_is_read(tmp_path: Any) -> None:
    network = student_of().eval()
    path = tmp_path / "model.safetensors"
    save_model(network, path, about={})
    folded = load_folded(path)
    assert norms_of(folded) == 0 and not folded.training
    assert torch.equal(
        folded(random_images()).backbone, fold_all(network)(random_images()).backbone
    )


def test_constants_have_the_type_of_autocast() -> None:
    network = student_of().eval()
    with torch.autocast("cpu", torch.bfloat16):
        expected = network(random_images()).backbone
    folded = fold_all(copy.deepcopy(network), torch.bfloat16)
    kinds = {
        tensor.dtype
        for module in folded.modules()
        if isinstance(module, FoldedConvolution)
        for tensor in (module.constant, module.shift)
    }
    assert kinds == {torch.bfloat16}
    with torch.autocast("cpu", torch.bfloat16):
        found = folded(random_images()).backbone
    assert found.dtype == expected.dtype
    exact = network(random_images()).backbone
    errors = [(x.float() - exact).norm() / exact.norm() for x in (expected, found)]
    assert errors[1] < 2 * errors[0] < 0.2  # as close to float32 as without folding
    # Weights that train stay as they are.
    student = student_of(stages=2)
    trained = [
        module.weight.dtype
        for module in fold(student, torch.bfloat16).modules()
        if isinstance(module, FoldedConvolution) and module.trains
    ]
    assert set(trained) == {torch.float32}


@pytest.mark.parametrize("backbone", ["efficientnet_lite0", "resnet50"])
def test_a_teacher_needs_an_operator_less_for_each_batch_norm(backbone: str) -> None:
    network = student_of(backbone).eval()
    norms = norms_of(network)
    images = random_images()
    with torch.no_grad(), CountedOperators() as plain:
        network(images)
    twin = fold_all(copy.deepcopy(network))
    with torch.no_grad(), CountedOperators() as folded:
        twin(images)
    assert folded.total <= plain.total - norms


@pytest.mark.parametrize("stages", [3, 5])
def test_a_student_needs_an_operator_less_for_each_frozen_norm(
    monkeypatch: pytest.MonkeyPatch, stages: int
) -> None:
    """Forward and backward. What trains has a product in place of its norm."""
    monkeypatch.setattr(folding, "IMAGES", NEVER)
    student = student_of(stages=stages)
    frozen = sum(norms_of(s) for s in student.backbone.stages()[:stages])
    assert frozen >= 8

    def operators(network: SegmentationNetwork) -> int:
        with CountedOperators() as counted:
            logits = network(random_images()).logits
            torch.stack([z.sum() for z in logits]).sum().backward()
        return counted.total

    assert operators(fold(student)) <= operators(student) - frozen


# --- what is not folded ---------------------------------------------------------------


class _Block(nn.Module):
    """A convolution and a batch norm, in an order that a test gives."""

    def __init__(self, order: Callable[..., torch.Tensor], **options: Any):
        super().__init__()
        bias = options.pop("bias", False)
        self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=bias)
        self.other = nn.Conv2d(8, 8, 3, padding=1, bias=True)
        self.norm = nn.BatchNorm2d(8, **options)
        self.order = order

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.order(self, x)
        return y


def plain(m: Any, x: torch.Tensor) -> torch.Tensor:
    return m.norm(m.conv(x))


def twice(m: Any, x: torch.Tensor) -> torch.Tensor:
    return m.norm(m.conv(m.conv(x)))


def read_twice(m: Any, x: torch.Tensor) -> torch.Tensor:
    y = m.conv(x)
    return m.norm(y) + y


def norm_twice(m: Any, x: torch.Tensor) -> torch.Tensor:
    return m.norm(m.other(m.norm(m.conv(x))))


def between(m: Any, x: torch.Tensor) -> torch.Tensor:
    return m.norm(m.conv(x).relu())


def weight_read(m: Any, x: torch.Tensor) -> torch.Tensor:
    return m.norm(m.conv(x)) * m.conv.weight.norm()


def untraceable(m: Any, x: torch.Tensor) -> torch.Tensor:
    return m.norm(m.conv(x)) if x.sum() > -1e9 else x


def counted_norm(m: Any, x: torch.Tensor) -> torch.Tensor:
    return m.norm(m.conv(x))


def _trains(block: _Block) -> None:
    block.norm.weight.requires_grad_(True)


def _in_training(block: _Block) -> None:
    block.norm.train()


def _parametrised(block: _Block) -> None:
    nn.utils.parametrizations.weight_norm(block.conv)


def _nothing(block: _Block) -> None:
    pass


@pytest.mark.parametrize(
    ("order", "options", "change", "folded"),
    [
        (plain, {}, _nothing, 1),  # so that the others can fail
        (plain, {"affine": False}, _nothing, 1),
        (twice, {}, _nothing, 0),
        (read_twice, {}, _nothing, 0),
        (norm_twice, {}, _nothing, 0),
        (between, {}, _nothing, 0),
        (weight_read, {}, _nothing, 0),
        (untraceable, {}, _nothing, 0),
        (plain, {"bias": True}, _nothing, 0),
        (plain, {"track_running_stats": False}, _nothing, 0),
        (plain, {}, _trains, 0),
        (plain, {}, _in_training, 0),
        (plain, {}, _parametrised, 0),
    ],
)
@pytest.mark.parametrize("trains", [True, False])
def test_other_orders_of_layers_stay_as_they_are(
    order: Callable[..., torch.Tensor],
    options: dict[str, Any],
    change: Callable[[_Block], None],
    folded: int,
    trains: bool,
) -> None:
    student = student_of()
    block = _Block(order, **options)
    randomise_norms(block)
    block.norm.eval().requires_grad_(False)
    block.requires_grad_(trains)
    block.norm.requires_grad_(False)
    change(block)
    student.branches[0]["block"] = block  # type: ignore[index, operator]
    twin = fold(student)
    layers = twin.get_submodule("branches.0.block").modules()
    assert sum(isinstance(m, FoldedConvolution) for m in layers) == folded
    if not block.norm.training:
        x = torch.rand(2, 8, 9, 9)
        other = twin.get_submodule("branches.0.block")
        torch.testing.assert_close(other(x), block(x), rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            for parameter in block.parameters():
                if parameter.requires_grad:
                    parameter.mul_(1.5)
        torch.testing.assert_close(other(x), block(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stages", [0, 2])
def test_step_0_is_folded_in_its_frozen_stages_alone(stages: int) -> None:
    student = student_of(stages=stages)
    student.set_training_mode(batch_norm=True)
    twin = fold(student)
    within = sum(norms_of(s) for s in student.backbone.stages()[:stages])
    folded = sum(isinstance(m, FoldedConvolution) for m in twin.modules())
    assert folded == within
    assert norms_of(twin) == norms_of(student) - within
