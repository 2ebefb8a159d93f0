"""The network: added steps, what is frozen, predictions, and files."""

import copy
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from small_networks import (
    ARCHITECTURE,
    assert_equal_states,
    network_after_training,
    random_images,
    state_of,
)
from torch import nn

import kproba.network
from kproba.network import (
    Architecture,
    Backbone,
    SegmentationNetwork,
    add_branch,
    compose_logits,
    load_model,
    save_model,
)
from kproba.runtime.files import read_json, write_json


@pytest.fixture(scope="module")
def images():
    return random_images()


@pytest.fixture(scope="module")
def previous():
    return network_after_training()


@pytest.fixture(scope="module")
def grown(previous):
    return add_branch(previous, 2, seed=3).eval()


@pytest.fixture
def frozen(grown):
    network = copy.deepcopy(grown).train()
    network.freeze_batch_norm()
    return network


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


@pytest.mark.parametrize(
    ("part", "parts"),
    [
        ("newest", {"branches.2"}),
        ("heads", {"aspp", "branches.0", "branches.1", "branches.2"}),
    ],
)
def test_train_only_freezes_the_other_parts(previous, images, part, parts):
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


def test_stages_are_kept_when_asked_for(previous, images):
    network = copy.deepcopy(previous)
    assert len(network(images).stages) == 0
    network.keep_stages = True
    outputs = network(images)
    assert outputs.stages[-1] is outputs.backbone


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
    with pytest.raises(FileNotFoundError, match=f"in the same folder, but .*{missing}"):
        load_model(path)


def test_the_network_starts_from_the_weights_it_is_given():
    body = SegmentationNetwork(ARCHITECTURE, [1], weights="imagenet").backbone.body
    backbone = Backbone("efficientnet_lite0", output_stride=8, weights="imagenet")
    assert_equal_states(body.state_dict(), backbone.body.state_dict())


@pytest.mark.parametrize("head", ["branches", "softmax"])
def test_models_of_version_0_1_are_read(head, images, tmp_path):
    network = SegmentationNetwork(replace(ARCHITECTURE, head=head), [2, 1]).eval()
    save_model(network, tmp_path / "model.safetensors", about={})
    about = read_json(tmp_path / "model.json")
    assert about["architecture"].pop("head") == head
    about["architecture"]["softmax"] = head == "softmax"
    write_json(tmp_path / "model.json", about)
    loaded = load_model(tmp_path / "model.safetensors")
    assert loaded.architecture == network.architecture
    assert_equal_states(loaded.state_dict(), network.state_dict())
    torch.testing.assert_close(
        loaded.predict_logits(images), network.predict_logits(images)
    )


def test_an_architecture_is_read_from_what_it_was_written_as():
    assert Architecture.from_dict(vars(ARCHITECTURE)) == ARCHITECTURE
    with pytest.raises(TypeError, match="unknown_setting"):
        Architecture.from_dict({**vars(ARCHITECTURE), "unknown_setting": 1})


@pytest.mark.parametrize("stride", [8, 16])
@pytest.mark.parametrize("size", [(50, 71), (65, 33)])
@torch.inference_mode()
def test_outputs_have_the_size_that_the_network_names(stride, size):
    network = SegmentationNetwork(replace(ARCHITECTURE, output_stride=stride), [2, 1])
    outputs = network.eval()(torch.zeros(1, 3, *size, dtype=torch.uint8))
    for features in (outputs.backbone, *outputs.blocks, *outputs.logits):
        assert features.shape[-2:] == network.feature_size(*size)


# The package


def test_package_and_tables_need_no_torch():
    code = (
        "import sys, kproba.network\n"
        "from kproba.network import Architecture\n"
        "from kproba.network.backbones import BACKBONES\n"
        "from kproba.network.heads import HEADS\n"
        "assert BACKBONES and HEADS and Architecture\n"
        "heavy = {'torch', 'timm', 'torchvision', 'safetensors'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", kproba.network.__all__)
def test_every_public_name_can_be_imported(name):
    assert getattr(kproba.network, name).__name__ == name


def test_other_names_of_the_package_are_an_attribute_error():
    with pytest.raises(AttributeError, match=r"'kproba\.network' has no .* 'nothing'"):
        kproba.network.nothing  # noqa: B018
