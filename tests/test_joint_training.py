"""A training with as many iterations as a whole chain, from files to files."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from training_runs import train_with
from training_steps import step_settings, write_data

from kproba.data.stream import TrainingStream, count_iterations
from kproba.network.files import load_model
from kproba.network.record import read_model_record
from kproba.runtime.compute import Compute
from kproba.runtime.distributed import Process
from kproba.runtime.files import read_json
from kproba.runtime.run_file import read_run
from kproba.training.files import Files
from kproba.training.inputs import iterations_of_chain
from kproba.training.loop import Stopped
from kproba.training.settings import StepSettings

CHAIN = [
    {"batch_size": 4, "epochs": 1.5},
    {"batch_size": 3, "epochs": 2},
    {"batch_size": 5, "iterations": 2},
]


def joint_settings(chain=CHAIN, **changes) -> dict:
    """settings.json of `joint`, in the place of step 2 of 6-2."""
    settings = step_settings(0)
    settings["run"] |= {"task": "6-2", "method": "joint", "step": 2}
    settings["groups"] = [list(range(1, 11))]
    settings["optimisation"] |= {"chain": chain, **changes}
    return settings


def write_list(path: Path, rows: int) -> Path:
    names = [f"{number}.png" for number in range(rows)]
    table = pd.DataFrame({"id": names, "image": names, "mask": names})
    table = table.assign(width=4, height=4, subset="train", classes="1")
    table.to_csv(path, index=False)
    return path


def needed(folder: Path, chain: tuple[Path, ...]) -> Files:
    names = ("split", "model", "metrics", "usage", "tensorboard")
    return Files(**{name: folder / name for name in names}, chain=chain)


@pytest.mark.parametrize("rows", [(10, 7, 5), (1, 1, 1), (11, 30, 3)])
def test_iterations_are_those_that_the_steps_would_have(
    tmp_path: Path, rows: tuple[int, ...]
) -> None:
    settings = StepSettings.from_dict(joint_settings())
    lists = tuple(write_list(tmp_path / f"{k}.csv", n) for k, n in enumerate(rows))
    alone = [
        TrainingStream(
            images,
            epochs=step.get("epochs", 1),
            iterations=step.get("iterations"),
            batch_size=step["batch_size"],
            seed=0,
        ).iterations
        for images, step in zip(rows, CHAIN, strict=True)
    ]
    assert iterations_of_chain(settings, needed(tmp_path, lists)) == sum(alone)


def test_without_a_chain_epochs_or_iterations_count(tmp_path: Path) -> None:
    files = needed(tmp_path, ())
    for iterations in (None, 7):
        settings = step_settings(1)
        settings["optimisation"]["iterations"] = iterations
        parsed = StepSettings.from_dict(settings)
        assert iterations_of_chain(parsed, files) == iterations


@pytest.mark.parametrize("count", [0, 2, 4])
def test_every_step_needs_its_list(tmp_path: Path, count: int) -> None:
    lists = tuple(write_list(tmp_path / f"{k}.csv", 3) for k in range(count))
    settings = StepSettings.from_dict(joint_settings())
    with pytest.raises(ValueError, match=rf"each of the 3 steps .* got {count}\..*--c"):
        iterations_of_chain(settings, needed(tmp_path, lists))


def test_another_list_is_another_training(tmp_path: Path) -> None:
    """A saved state is resumed only if the length of the training is the same."""
    lists = tuple(write_list(tmp_path / f"{k}.csv", 3) for k in range(3))
    assert set(lists) < set(needed(tmp_path, lists).inputs())
    assert not set(lists) & set(needed(tmp_path, ()).inputs())


@pytest.mark.parametrize(
    ("images", "epochs", "batch", "expected"),
    [(10, 1, 4, 3), (8, 1, 4, 2), (3, 0.1, 4, 1), (5, 2.5, 4, 3)],
)
def test_the_last_batch_is_filled_up(
    images: int, epochs: float, batch: int, expected: int
) -> None:
    assert count_iterations(images, epochs, batch) == expected


def test_settings_with_a_chain_are_read_as_they_are_written() -> None:
    content = joint_settings()
    settings = StepSettings.from_dict(content)
    assert json.loads(json.dumps(settings.to_dict())) == content
    assert settings.step == 0  # of one network for all classes
    assert settings.run.step == 2  # in its path
    assert not settings.optimisation.by_epochs
    plain = StepSettings.from_dict(step_settings(0))
    assert plain.optimisation.chain == ()
    assert plain.optimisation.by_epochs


@pytest.mark.parametrize(
    "step",
    [
        {"batch_size": 4},
        {"epochs": 2},
        {"batch_size": 4, "epochs": 2, "iterations": 3},
        {"batch_size": 4, "iterations": 0},
    ],
)
def test_a_damaged_chain_is_refused(step: dict) -> None:
    with pytest.raises(ValueError, match=r"chain\[1\]"):
        StepSettings.from_dict(joint_settings([CHAIN[0], step]))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


class StopAt:
    """Requests a stop before some iteration."""

    def __init__(self, iteration: int):
        self.left = iteration

    @property
    def requested(self) -> bool:
        """Whether that iteration is reached; it is asked once per iteration."""
        self.left -= 1
        return self.left < 0


def test_it_trains_like_a_step_0_for_the_iterations_of_the_chain(
    data: Path, tmp_path: Path
) -> None:
    chain = [{"batch_size": 4, "epochs": 1}, {"batch_size": 8, "iterations": 2}]
    lists = (write_list(tmp_path / "0.csv", 12), write_list(tmp_path / "1.csv", 9))
    last = {}
    for name, stop in (("whole", None), ("resumed", StopAt(3))):
        out = tmp_path / name
        out.mkdir()
        settings = joint_settings(chain)
        (out / "settings.json").write_text(json.dumps(settings))
        arguments = (Process(), data, out, None, Compute(val_times=1, val_images=2))
        if stop is not None:
            with pytest.raises(Stopped, match="iteration 3 of 5"):
                train_with(*arguments, {"chain": lists}, stop=stop)
        train_with(*arguments, {"chain": lists})
        rows = pd.read_csv(out / "metrics.csv")
        assert rows["iteration"].iloc[-1] == 5  # 12 / 4 + 2
        last[name] = (out / "model.safetensors").read_bytes()
    assert last["whole"] == last["resumed"]
    network = load_model(out / "model.safetensors", device="cpu")
    assert network.classes_per_step == [10]
    record = read_model_record(out / "model.safetensors")
    assert record.content["settings"]["optimisation"]["chain"] == chain
    # Batch norm was trained, as at step 0.
    counts = [
        value
        for key, value in network.state_dict().items()
        if key.endswith("num_batches_tracked")
    ]
    assert all(torch.equal(count, torch.tensor(5)) for count in counts)
    run = read_run(out / "tensorboard")
    assert run is not None
    assert (run.step, run.joint, run.previous) == (2, True, None)
    assert read_json(out / "usage.json")["images_per_second"] > 0
