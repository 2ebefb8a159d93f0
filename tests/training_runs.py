"""Steps of training without the launcher, by this process or by several."""

import json
from pathlib import Path
from typing import Any

from gloo_processes import in_processes
from safetensors.torch import save_file

from kproba.runtime.compute import Compute
from kproba.runtime.distributed import Process
from kproba.runtime.files import read_json
from kproba.training.files import Files
from kproba.training.loop import train
from kproba.training.settings import StepSettings

STATE = "training-state.pt"
SMALL_RATES = {"backbone": 1e-4, "aspp": 1e-3, "branch": 1e-3}


def train_with(
    process: Process,
    data: Path,
    out: Path,
    base: Path | None,
    compute: Compute,
    inputs: dict[str, Path] | None = None,
    **more: Any,
) -> None:
    """Train the step of `out`/settings.json; every process writes its weights.

    Args:
        process: This process of several.
        data: What `write_data` wrote.
        out: Folder of the outputs.
        base: Model of step t-1.
        compute: What the machine offers.
        inputs: Further inputs, as attributes of `Files`.
        more: Of `train`.
    """
    settings = StepSettings.from_dict(read_json(out / "settings.json"))
    files = Files(
        split=data / f"step{settings.step}.csv",
        previous=base,
        model=out / "model.safetensors",
        metrics=out / "metrics.csv",
        usage=out / "usage.json",
        validation=(data / "index.csv",),
        tensorboard=out / "tensorboard",
        **(inputs or {}),
    )
    assert files.state == out / STATE
    network = train(settings, files, compute, process, **more)
    weights = {key: value.contiguous() for key, value in network.state_dict().items()}
    save_file(weights, out / f"rank{process.rank}.safetensors")


def trained(
    data: Path,
    out: Path,
    settings: dict,
    *,
    base: Path | None = None,
    processes: int = 1,
    inputs: dict[str, Path] | None = None,
    **compute: Any,
) -> Path:
    out.mkdir()
    (out / "settings.json").write_text(json.dumps(settings))
    job = (train_with, data, out, base, Compute(**compute), inputs)
    in_processes(processes, *job)
    return out


SHARED = {"batch_size": 12, "epochs": 3}
