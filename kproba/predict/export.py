"""Writes a step to one model file that runs without this package.

    kproba export results/digits/6-2-overlap/kproba/seed0/step2 model.onnx

The file contains network, bank and image prior, and the names and mask values of the
classes. It turns any number of images of any size into probabilities. `.onnx` runs in
ONNX Runtime and similar programs, `.pt` is TorchScript.
"""

import io
import json
import logging
import os
import stat
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from kproba.predict.segmenter import ModelError, Segmenter, load
from kproba.runtime.files import FullDiskError, atomic_path

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
        self.parts = nn.ModuleList(  # so that tracing finds its weights
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
    """Write the model file of a step, and log its size and its largest error.

    Args:
        step: Folder of an evaluated step, its predictor.json, or a packed archive.
        path: As for `export`.

    Raises:
        ValueError: As `export`.
        OSError: As `export`.
        RuntimeError: As `export`.
        FileNotFoundError: The step has not been evaluated.
    """
    check_target(path)  # before the model is loaded
    difference = export(load(step), path)
    log.info(
        "wrote %s, %.1f MiB; its probabilities differ from those of PyTorch by at most "
        "%.1g",
        path,
        path.stat().st_size / 2**20,
        difference,
    )


def export(segmenter: Segmenter, path: str | Path) -> float:
    """Write a model file and check it on images of two sizes.

    Args:
        segmenter: A segmenter on the CPU.
        path: Name of the file, ending in .onnx or .pt. An existing model file is
            replaced after the new one was checked.

    Returns:
        The largest difference between a probability of the file and of `segmenter`.

    Raises:
        ValueError: The name has another ending, another kind of file exists there, or
            the new file returns other probabilities.
        ModelError: The model returns NaN or infinite probabilities.
        OSError: The file cannot be written.
        RuntimeError: The packages for .onnx are missing.
    """
    path = Path(path)
    check_target(path)
    model = Deployed(segmenter).eval()
    about = {
        "classes": json.dumps([entry.name for entry in segmenter.classes]),
        "labels": json.dumps([entry.label for entry in segmenter.classes]),
    }
    with torch.no_grad(), warnings.catch_warnings():
        # Tracing warns of values that depend on shapes; those are checked below.
        warnings.simplefilter("ignore")
        # The first call solves equations whose result is kept: without it, tracing
        # would record the solution as part of the model.
        if not torch.isfinite(model(_noise(SIZES[0]))).all():
            raise ModelError(
                f"Expected probabilities from {segmenter.name}, but its output is NaN "
                f"or infinite. The model is damaged, or its training diverged. Copy it "
                f"again, or train the step again."
            )
        traced = torch.jit.trace(model, _noise(SIZES[0]), check_trace=False)
        # In memory, so that only the last line below writes to the disk.
        if path.suffix == ".pt":
            content = _torchscript(traced, about)
        else:
            content = _onnx(traced, about)
        difference = _largest_difference(model, content, path)
    _write(path, content)
    return difference


def check_target(path: Path) -> None:
    """Check that a model file can be written, before the computation starts.

    Raises:
        ValueError: The name has another ending, or another kind of file exists there.
        OSError: The folder cannot be written to.
        RuntimeError: The packages for .onnx are missing.
    """
    if path.suffix not in (".onnx", ".pt"):
        raise ValueError(
            f"Expected a file name ending in .onnx or .pt, but got {path}. Change its "
            f"ending."
        )
    if path.suffix == ".onnx":
        _check_onnx_is_installed()
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(
                f"Expected the name of a model file, but {path} is a folder or a "
                f"device. Name a file."
            )
        if path.suffix == ".pt" and not _is_torchscript(path):
            raise ValueError(
                f"Expected a new file name or an existing model file, but {path} is "
                f"another kind of file. Name another file."
            )
    except FileNotFoundError:
        pass  # the usual case; a link to a missing file is replaced
    except OSError as error:
        raise _unwritable(path, error) from error
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        reason = "is not a folder" if not above.is_dir() else "is not writable"
        raise OSError(
            f"Expected to write {path}, but {above} {reason}. Name another file."
        )


def _is_torchscript(path: Path) -> bool:
    """Whether a file is a model in TorchScript, and not a state of a training."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except zipfile.BadZipFile:
        return False


def _write(path: Path, content: bytes) -> None:
    """Write the file, whole or not at all."""
    try:
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)
    except FullDiskError:
        raise
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> OSError:
    reason = error.strerror or str(error)
    return OSError(f"Expected to write {path}, but: {reason}. Name another file.")


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
    """Noise images (B, 3, H, W) uint8 for a shape (B, H, W), always the same."""
    batch, height, width = shape
    generator = torch.Generator().manual_seed(0)
    size = (batch, 3, height, width)
    return torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)


def _torchscript(traced: Any, about: dict[str, str]) -> bytes:
    file = io.BytesIO()
    torch.jit.save(traced, file, _extra_files=about)
    return file.getvalue()


def _onnx(traced: Any, about: dict[str, str]) -> bytes:
    import onnx

    file = io.BytesIO()
    axes = {0: "batch", 2: "height", 3: "width"}
    # With dynamo=True, torch.export takes minutes for models of any image size.
    torch.onnx.export(
        traced,
        (_noise(SIZES[0]),),
        file,  # type: ignore[arg-type]  # a file is right for this exporter
        dynamo=False,
        opset_version=OPSET,
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_axes={INPUT: axes, OUTPUT: axes},
    )
    written = onnx.load_from_string(file.getvalue())
    for key, value in about.items():
        entry = written.metadata_props.add()
        entry.key, entry.value = key, value
    onnx.checker.check_model(written)
    content: bytes = written.SerializeToString()
    return content


def _largest_difference(model: Deployed, content: bytes, path: Path) -> float:
    """Largest difference of probabilities; `path` is the name that `content` gets."""
    run = _load_exported(content, path.suffix)
    differences = []
    for shape in SIZES:
        images = _noise(shape)
        difference = np.abs(run(images.numpy()) - model(images).numpy())
        # Rounding has a larger effect on a few pixels with equally likely classes.
        differences.append(np.quantile(difference, 0.999))
    largest = float(np.max(differences))  # NaN if one of them is
    if not largest <= TOLERANCE:
        raise ValueError(
            f"Expected {path} to give the probabilities of PyTorch, but they differ by "
            f"{largest:.2g}. Try another version of torch or of onnxruntime."
        )
    return largest


def _load_exported(content: bytes, suffix: str) -> Callable[[np.ndarray], np.ndarray]:
    """A function that runs a model file: images in, probabilities out."""
    if suffix == ".pt":
        loaded = torch.jit.load(io.BytesIO(content))
        return lambda images: loaded(torch.from_numpy(images)).numpy()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        content, options, providers=["CPUExecutionProvider"]
    )
    return lambda images: session.run(None, {INPUT: images})[0]
