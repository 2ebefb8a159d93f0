"""What a step has learned as one file that runs without this package.

    kproba export results/digits/6-2-overlap/kproba/seed0/step2 model.onnx

Network, bank and image prior together: images in, probabilities out, any number and
any size. `.onnx` runs in ONNX Runtime and its like, `.pt` is TorchScript. Names and
mask values of the classes are inside.
"""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from kproba.predict.segmenter import Segmenter
from kproba.runtime.files import atomic_path

OPSET = 18


AGREES = 1e-3  # largest difference of two probabilities that passes for rounding


INPUT, OUTPUT = "images", "probabilities"


SIZES = ((1, 96, 128), (2, 117, 75))  # traced with the first, checked with both


class Deployed(nn.Module):
    """Images (B, 3, H, W) uint8 to probabilities (B, C, H, W) float32.

    The classes are in the order of `Segmenter.classes`.
    """

    def __init__(self, segmenter: Segmenter):
        super().__init__()
        self.predictor = segmenter.predictor
        self.parts = nn.ModuleList(  # so that their weights are found
            part
            for part in vars(segmenter.predictor).values()
            if isinstance(part, nn.Module)
        )
        self.channels = segmenter.channels

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """See the class."""
        log_s = self.predictor.fit(self.predictor.log_scores(images))
        return log_s[:, self.channels].exp()


def export(segmenter: Segmenter, path: str | Path) -> float:
    """Write a model file and check it on images of two sizes.

    Args:
        segmenter: On the CPU.
        path: Ends in .onnx or .pt.

    Returns:
        The largest difference of a probability from this package's.

    Raises:
        ValueError: Another ending, or the file does not give the same probabilities.
        RuntimeError: .onnx without the packages for it.
    """
    path = Path(path)
    if path.suffix not in (".onnx", ".pt"):
        raise ValueError(f"Expected a file name in .onnx or .pt, but got {path}.")
    if path.suffix == ".onnx":
        _need_onnx()
    model = Deployed(segmenter).eval()
    about = {
        "classes": json.dumps([entry.name for entry in segmenter.classes]),
        "labels": json.dumps([entry.label for entry in segmenter.classes]),
    }
    with atomic_path(path) as temporary, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing: shapes are checked below
        model(_noise(SIZES[0]))  # what is solved once must not become part of the file
        traced = torch.jit.trace(model, _noise(SIZES[0]), check_trace=False)
        if path.suffix == ".pt":
            _write_torchscript(traced, temporary, about)
        else:
            _write_onnx(traced, temporary, about)
        return _difference(model, temporary, path)


def _need_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ModuleNotFoundError as error:
        raise RuntimeError(
            f"Expected the packages onnx and onnxruntime, but {error.name} is "
            f"missing. Install them: pip install onnx onnxruntime."
        ) from error


def _noise(shape: tuple[int, int, int]) -> torch.Tensor:
    batch, height, width = shape
    generator = torch.Generator().manual_seed(0)
    size = (batch, 3, height, width)
    return torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)


def _write_torchscript(traced: Any, path: Path, about: dict[str, str]) -> None:
    torch.jit.save(traced, str(path), _extra_files=about)


def _write_onnx(traced: Any, path: Path, about: dict[str, str]) -> None:
    import onnx

    axes = {0: "batch", 2: "height", 3: "width"}
    # The exporter that traces: the one by torch.export takes minutes over the sizes.
    torch.onnx.export(
        traced,
        (_noise(SIZES[0]),),
        str(path),
        dynamo=False,
        opset_version=OPSET,
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_axes={INPUT: axes, OUTPUT: axes},
    )
    written = onnx.load(path)
    for key, value in about.items():
        entry = written.metadata_props.add()
        entry.key, entry.value = key, value
    onnx.checker.check_model(written)
    onnx.save(written, path)


def _difference(model: Deployed, written: Path, path: Path) -> float:
    run = _runner(written, path.suffix)
    worst = 0.0
    for shape in SIZES:
        images = _noise(shape)
        apart = np.abs(run(images.numpy()) - model(images).numpy())
        # Where two classes are as likely, rounding decides; but for few pixels.
        worst = max(worst, float(np.quantile(apart, 0.999)))
    if worst > AGREES:
        raise ValueError(
            f"Expected {path} to give the probabilities of PyTorch, but they differ by "
            f"{worst:.2g}. Try another version of torch or of onnxruntime."
        )
    return worst


def _runner(path: Path, suffix: str) -> Any:
    """What runs a written file: an array of images to one of probabilities."""
    if suffix == ".pt":
        loaded = torch.jit.load(str(path))
        return lambda images: loaded(torch.from_numpy(images)).numpy()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        path.read_bytes(), options, providers=["CPUExecutionProvider"]
    )
    return lambda images: session.run(None, {INPUT: images})[0]
