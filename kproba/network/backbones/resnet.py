"""Dilated ResNets of torchvision, as DeepLabv3 uses them.

He et al., CVPR 2016 (arXiv 1512.03385); Chen et al., arXiv 1706.05587.
"""

import torch
import torchvision
from torch import nn

# The children of torchvision's ResNet before its pooling: body.0 is conv1, and so on.
CHILDREN = (
    "conv1",
    "bn1",
    "relu",
    "maxpool",
    "layer1",
    "layer2",
    "layer3",
    "layer4",
)


def build_resnet50(output_stride: int) -> nn.Module:
    """ResNet-50 up to layer4."""
    return _build("resnet50", output_stride)


def build_resnet101(output_stride: int) -> nn.Module:
    """ResNet-101 up to layer4."""
    return _build("resnet101", output_stride)


def stages(body: nn.Module) -> list[nn.Module]:
    """The stem with layer1, then layer2, layer3 and layer4."""
    modules = list(body.children())
    first = CHILDREN.index("layer1") + 1
    return [nn.Sequential(*modules[:first]), *modules[first:]]


def read_resnet50() -> dict[str, torch.Tensor]:
    """Weights of ResNet-50, downloaded once to torch's cache.

    Raises:
        FileNotFoundError: There is no connection; the message has the URL and a remedy.
    """
    return _read_pretrained("resnet50")


def read_resnet101() -> dict[str, torch.Tensor]:
    """Weights of ResNet-101, downloaded once to torch's cache.

    Raises:
        FileNotFoundError: There is no connection; the message has the URL and a remedy.
    """
    return _read_pretrained("resnet101")


def adapt_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename torchvision's tensors (layer1.0. ...) to the body's (4.0. ...)."""
    adapted = {}
    for key, tensor in state.items():
        child, _, rest = key.partition(".")
        if child in CHILDREN:
            adapted[f"{CHILDREN.index(child)}.{rest}"] = tensor
    return adapted


def _build(name: str, output_stride: int) -> nn.Module:
    model = torchvision.models.get_model(
        name,
        weights=None,
        replace_stride_with_dilation=[False, output_stride == 8, True],
    )
    return nn.Sequential(*(model.get_submodule(child) for child in CHILDREN))


def _read_pretrained(name: str) -> dict[str, torch.Tensor]:
    weights = torchvision.models.get_model_weights(name).IMAGENET1K_V1
    try:
        state: dict[str, torch.Tensor] = weights.get_state_dict(
            progress=False, check_hash=True
        )
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"Expected to download ImageNet weights of {name} from {weights.url}, but: "
            f"{error}. Download this file on another machine and set model.weights to "
            f"its path."
        ) from error
    return state
