"""Steps on a tiny dataset, trained by the launcher as Snakemake does."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from kproba.data.index import index_dataset
from kproba.data.kinds import KINDS
from kproba.data.kinds.digits import DigitScenes, write_digits
from kproba.data.saliency import SaliencyFolders
from kproba.data.saliency_table import list_saliency
from kproba.data.splits import read_index, select_images
from kproba.data.tasks import parse_task
from kproba.plan.plan import Plan
from kproba.plan.run import Run
from kproba.plan.schema import check
from kproba.runtime.compute import Compute

ROOT = Path(__file__).parents[1]
SCHEMA = ROOT / "workflow" / "schemas" / "config.schema.yaml"
RATES = {"backbone": 1e-3, "aspp": 3e-3, "branch": 3e-3, "old_branches": 1e-3}


def step_settings(
    step: int,
    method: str = "kproba",
    *,
    weights: str = "none",
    dropout: float = 0.1,
    **optimisation: Any,
) -> dict:
    """settings.json of a step of 6-2 that trains a small network."""
    model = {"aspp_channels": 16, "atrous_rates": [1, 2], "aspp_dropout": dropout}
    shared = {
        "batch_size": 4,
        "epochs": 1,
        "optimizer": "sgd",
        "learning_rate": RATES,
        **optimisation,
    }
    config = {
        "datasets": {"tiny": {"kind": "digits"}},
        "experiments": [{"dataset": "tiny", "task": "6-2"}],
        "model": {**model, "weights": weights},
        "base": shared,
        "increment": shared,
        "augmentation": {"crop_size": 48, "horizontal_flip": 0},
    }
    plan = Plan(check(config, SCHEMA))
    if step == 0:
        base = plan.methods[method].method.base
        return plan.settings(Run("tiny", "6", "overlap", base, 0), 0)
    return plan.settings(Run("tiny", "6-2", "overlap", method, 0), step)


def write_data(folder: Path, *, saliency: bool = False) -> Path:
    """Scenes of 48 pixels, their index, and the splits of steps 0 and 1 of 6-2.

    With `saliency`, also saliency maps and saliency.csv.
    """
    scenes = DigitScenes(
        train=20,
        val=10,
        size=48,
        digits=(2, 3),
        height=(0.4, 0.6),
        rotation=10,
        seed=0,
        saliency=saliency,
    )
    write_digits(folder / "scenes", scenes)
    index_dataset(
        folder / "index.csv",
        folder / "i.json",
        kind="digits",
        folder=folder / "scenes",
        class_count=10,
    )
    for step in (0, 1):
        groups = parse_task("6-2", 10)[: step + 1]
        chosen = select_images(read_index(folder / "index.csv"), groups, "overlap")
        chosen.to_csv(folder / f"step{step}.csv", index=False)
    if saliency:
        scenes_folder = folder / "scenes"
        list_saliency(
            folder / "index.csv",
            folder / "saliency.csv",
            folder / "saliency_files.json",
            dataset="",
            folder=scenes_folder,
            folders=SaliencyFolders(
                tuple(KINDS["digits"].find_saliency(scenes_folder))
            ),
        )
    return folder


def command(
    data: Path,
    out: Path,
    settings: dict,
    *options: str,
    previous: Path | None = None,
    **compute: Any,
) -> list[str]:
    """Training of the step of `settings`, by the launcher.

    Args:
        data: What `write_data` wrote.
        out: Folder of the outputs.
        settings: Content of settings.json.
        options: Further arguments of the training.
        previous: Model of step t-1.
        compute: Fields of `Compute`.
    """
    out.mkdir(exist_ok=True)
    (out / "settings.json").write_text(json.dumps(settings))
    split = data / f"step{settings['run']['step']}.csv"
    words = [
        *(sys.executable, "-m", "kproba.runtime.launch"),
        f"--compute={Compute(**compute).to_json()}",
        *("kproba.jobs.train", str(out / "settings.json"), "--split", str(split)),
        *("--model", str(out / "model.safetensors")),
        *("--metrics", str(out / "metrics.csv")),
        *("--usage", str(out / "usage.json")),
        *("--tensorboard", str(out / "tensorboard")),
        *options,
    ]
    return words if previous is None else [*words, "--previous", str(previous)]


def launch(data: Path, out: Path, settings: dict, *options: str, **more: Any) -> Path:
    """Run `command` to its end."""
    done = subprocess.run(
        command(data, out, settings, *options, **more),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    (out / "train.log").write_text(done.stderr)
    return out


def largest_relative_difference(one: Path, other: Path) -> float:
    """Largest ‖w - w'‖ / ‖w‖ of any tensor of two models."""
    first, second = (load_file(path / "model.safetensors") for path in (one, other))
    assert first.keys() == second.keys()
    return max(
        float((first[key] - second[key]).norm() / first[key].norm().clamp(1e-6))
        for key in first
        if first[key].is_floating_point()
    )


def interrupt(
    words: list[str], number: int, when: Callable[[], bool]
) -> tuple[int, str]:
    """Send a signal at a moment; exit status and output."""
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    for _ in range(1200):
        if when() or process.poll() is not None:
            break
        time.sleep(0.05)
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    return process.returncode, output
