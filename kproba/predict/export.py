"""Writes what a step has learned to one file that runs without this package.

    kproba export results/digits/6-2-overlap/kproba/seed0/step2 model.onnx

The file contains network, bank and image prior, and the names and mask values of the
classes. It turns any number of images of any size into probabilities. `.onnx` runs in
ONNX Runtime and similar programs, `.pt` is TorchScript.
"""

import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from kproba.predict.segmenter import Segmenter, load
from kproba.runtime.files import atomic_path

log = logging.getLogger("kproba")

OPSET = 18


TOLERANCE = 1e-3  # largest difference of two probabilities that rounding may cause


INPUT, OUTPUT = "images", "probabilities"


# Shapes (B, H, W): the file is traced with the first and checked with both.
SIZES = ((1, 96, 128), (2, 117, 75))


class Deployed(nn.Module):
    """A segmenter as one module, for images of any size that are not tiled.

    The classes are in the order of `Segmenter.classes`.
    """

    def __init__(self, segmenter: Segmenter):
        super().__init__()
        self.predictor = segmenter.predictor
        self.parts = nn.ModuleList(  # so that tracing finds their weights
            part
            for part in vars(segmenter.predictor).values()
            if isinstance(part, nn.Module)
        )
        self.channels = segmenter.channels

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, H, W) uint8 to probabilities (B, C, H, W) float32."""
        log_s = self.predictor.fit(self.predictor.log_scores(images))
        return log_s[:, self.channels].exp()


def export_step(step: str | Path, path: Path) -> None:
    """Write the model file of a step and log its size and its error.

    Args:
        step: Folder of a tested step, or its predictor.json.
        path: As for `export`.

    Raises:
        ValueError: As `export`.
        RuntimeError: As `export`.
        FileNotFoundError: The step has not been tested.
    """
    difference = export(load(step), path)
    log.info(
        "%s written, %.1f MiB; its probabilities differ from PyTorch's by %.1g at most",
        path,
        path.stat().st_size / 2**20,
        difference,
    )


def export(segmenter: Segmenter, path: str | Path) -> float:
    """Write a model file and check it on images of two sizes.

    Args:
        segmenter: A segmenter on the CPU.
        path: Name of the file, ending in .onnx or .pt.

    Returns:
        The largest difference between a probability of the file and of `segmenter`.

    Raises:
        ValueError: The name has another ending, or the file gives other probabilities.
        RuntimeError: The packages for .onnx are missing.
    """
    path = Path(path)
    if path.suffix not in (".onnx", ".pt"):
        raise ValueError(
            f"Expected a file name ending in .onnx or .pt, but got {path}. Change its "
            f"ending."
        )
    if path.suffix == ".onnx":
        _check_onnx_is_installed()
    model = Deployed(segmenter).eval()
    about = {
        "classes": json.dumps([entry.name for entry in segmenter.classes]),
        "labels": json.dumps([entry.label for entry in segmenter.classes]),
    }
    with atomic_path(path) as temporary, torch.no_grad(), warnings.catch_warnings():
        # Tracing warns of values that depend on shapes; those are checked below.
        warnings.simplefilter("ignore")
        # The first call solves equations whose result is kept: without it, tracing
        # would record the solution as part of the model.
        model(_noise(SIZES[0]))
        traced = torch.jit.trace(model, _noise(SIZES[0]), check_trace=False)
        if path.suffix == ".pt":
            _write_torchscript(traced, temporary, about)
        else:
            _write_onnx(traced, temporary, about)
        return _largest_difference(model, temporary, path)


def _check_onnx_is_installed() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ModuleNotFoundError as error:
        raise RuntimeError(
            f"Expected the packages onnx and onnxruntime, but {error.name} is "
            f"missing. Install them: pip install onnx onnxruntime."
        ) from error


def _noise(shape: tuple[int, int, int]) -> torch.Tensor:
    """Images (B, 3, H, W) uint8 of noise, always the same, for a shape (B, H, W)."""
    batch, height, width = shape
    generator = torch.Generator().manual_seed(0)
    size = (batch, 3, height, width)
    return torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)


def _write_torchscript(traced: Any, path: Path, about: dict[str, str]) -> None:
    torch.jit.save(traced, str(path), _extra_files=about)


def _write_onnx(traced: Any, path: Path, about: dict[str, str]) -> None:
    import onnx

    axes = {0: "batch", 2: "height", 3: "width"}
    # With dynamo=True, torch.export takes minutes for models of any image size.
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


def _largest_difference(model: Deployed, written: Path, path: Path) -> float:
    """Largest difference of probabilities; `path` is the final name of `written`."""
    run = _load_exported(written, path.suffix)
    largest = 0.0
    for shape in SIZES:
        images = _noise(shape)
        differences = np.abs(run(images.numpy()) - model(images).numpy())
        # In a few pixels where classes are equally likely, rounding matters more.
        largest = max(largest, float(np.quantile(differences, 0.999)))
    if largest > TOLERANCE:
        raise ValueError(
            f"Expected {path} to give the probabilities of PyTorch, but they differ by "
            f"{largest:.2g}. Try another version of torch or of onnxruntime."
        )
    return largest


def _load_exported(path: Path, suffix: str) -> Callable[[np.ndarray], np.ndarray]:
    """A function that runs a model file: images in, probabilities out."""
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
