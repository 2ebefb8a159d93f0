"""What several tests share: real class lists, small datasets and trained steps."""

import copy
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from small_experiment import CLASS_NAMES, write_experiment, write_tables
from snakemake_calls import snakemake
from whole_runs import write_config

from kproba import extensions
from kproba.data.index import index_dataset
from kproba.data.kinds import KINDS
from kproba.data.label_images import write_label_image
from kproba.methods.builtin import METHODS
from kproba.methods.rules import RULES
from kproba.methods.terms import TERMS
from kproba.network.backbones import BACKBONES
from kproba.network.heads import HEADS
from kproba.plan.results import StepResult
from kproba.results.measures import MEASURES

# Tensors are small here: threads of torch would spend their time waiting. And what runs
# in this process is compared byte by byte with what runs in others.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

DATA_VARIABLE = "KPROBA_TEST_DATA"
# Per dataset the raw labels that its masks hold beside the classes.
OTHER_LABELS = {"voc": (0, 255), "ade": (0,)}


def extension_state() -> list[dict[Any, Any]]:
    """Everything that a file of extensions changes when it is loaded."""
    state: list[dict[Any, Any]] = [BACKBONES, HEADS, KINDS, MEASURES]
    state += [METHODS, RULES, TERMS]
    return [*state, extensions._origins, extensions._tables, extensions._loaded]


def remember_tables() -> Callable[[], None]:
    """A function that removes what is added from now on."""
    before = [dict(table) for table in extension_state()]

    def restore() -> None:
        for table, content in zip(extension_state(), before, strict=True):
            table.clear()
            table.update(content)

    return restore


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with files of long tests where several processes share the files.

    Otherwise one process would be busy with the last long file while the others wait.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:
        long = {item.path for item in items if item.get_closest_marker("workflow")}
        items.sort(key=lambda item: item.path not in long)


@pytest.fixture(autouse=True, scope="module")
def _entries_of_a_module_are_removed() -> Iterator[None]:
    """Its fixtures may load files of extensions."""
    restore = remember_tables()
    yield
    restore()


@pytest.fixture(autouse=True)
def clean() -> Iterator[Callable[[], None]]:
    """Removes the entries that a test adds; the test may do so earlier, by a call."""
    restore = remember_tables()
    yield restore
    restore()


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Folder of real data; once promised, its absence is a failure and no skip."""
    named = os.environ.get(DATA_VARIABLE)
    if not named:
        pytest.skip(f"needs real data: set {DATA_VARIABLE} to the folder that holds it")
    folder = Path(named)
    if not folder.is_dir():
        pytest.fail(f"Expected {DATA_VARIABLE} to name a folder, but got '{named}'.")
    return folder


@pytest.fixture(scope="session")
def presence_index(test_data: Path) -> Callable[[str], pd.DataFrame]:
    """Index of "voc" or "ade" as published: ids and classes, no pictures."""

    @cache
    def read(dataset: str) -> pd.DataFrame:
        rows = []
        for subset in ("train", "val"):
            path = test_data / "presence" / f"{dataset}_{subset}.txt"
            if not path.is_file():
                pytest.fail(f"Expected {DATA_VARIABLE} to hold {path}.")
            for line in path.read_text().splitlines():
                name, *classes = line.split()
                labels = {int(number) + 1 for number in classes}
                labels |= set(OTHER_LABELS[dataset])
                cell = " ".join(str(label) for label in sorted(labels))
                rows.append({"id": name, "subset": subset, "classes": cell})
        return pd.DataFrame(rows)

    return read


@pytest.fixture
def folder_dataset(tmp_path: Path) -> Callable[..., Path]:
    """Writer of a folder dataset: per subset, masks by id; images are noise."""

    def write(
        masks: Mapping[str, Mapping[str, np.ndarray]],
        names: tuple[str, ...] = ("background", "cat", "dog", "cow"),
    ) -> Path:
        folder = tmp_path / "dataset"
        rng = np.random.default_rng(0)
        for subset, labels_of in masks.items():
            for kind in ("images", "masks"):
                (folder / kind / subset).mkdir(parents=True)
            for name, labels in labels_of.items():
                noise = rng.integers(0, 256, (*labels.shape, 3), dtype=np.uint8)
                image = Image.fromarray(noise)
                image.save(folder / "images" / subset / f"{name}.png")
                write_label_image(folder / "masks" / subset / f"{name}.png", labels)
        (folder / "classes.txt").write_text("\n".join(names) + "\n")
        return folder

    return write


@pytest.fixture
def small_folder(folder_dataset: Callable[..., Path]) -> Path:
    """Three training and two validation images without a fault; classes 1 to 3."""

    def labels(*values: int) -> np.ndarray:
        mask = np.zeros((4, 6), np.uint8)
        mask.ravel()[: len(values)] = values
        return mask

    return folder_dataset(
        {
            "train": {
                "b": labels(1, 255),
                "a": labels(3, 2),
                "007": np.full((5, 4), 2, np.uint8),  # no background
            },
            "val": {"d": labels(1, 1), "c": labels()},
        }
    )


@pytest.fixture
def index_of() -> Callable[..., tuple[Path, Path]]:
    """Writer of index and report of a dataset beside it; returns their paths."""

    def write(folder: Path, **settings) -> tuple[Path, Path]:
        paths = folder.parent / "out/index.csv", folder.parent / "out/report.json"
        settings = {"kind": "folder", "class_count": 3, **settings}
        index_dataset(*paths, folder=folder, **settings)
        return paths

    return write


@pytest.fixture
def results(tmp_path: Path) -> list[StepResult]:
    """Results of the small experiment, with their files."""
    return write_experiment(tmp_path)


@pytest.fixture
def tables(results: list[StepResult], tmp_path: Path) -> tuple[Path, Path, Path]:
    """summary.csv, classes.csv and pseudo_labels.csv of the small experiment."""
    return write_tables(results, tmp_path)


@pytest.fixture
def index(folder_dataset: Callable[..., Path], tmp_path: Path) -> Path:
    """Index of two validation images that hold all classes."""
    mask = np.repeat(np.array([0, 1, 2, 3], np.uint8), 12).reshape(6, 8)
    mask[-1, -1] = 255
    masks = {"train": {"t": mask}, "val": {"v1": mask, "v2": mask}}
    path = tmp_path / "index.csv"
    index_dataset(
        path,
        tmp_path / "index.json",
        kind="folder",
        folder=folder_dataset(masks, CLASS_NAMES),
        class_count=3,
    )
    return path


@pytest.fixture(scope="module")
def schema_is_parsed_once() -> Iterator[None]:
    """Parsing it takes most of the time of a check."""
    parse = cache(yaml.safe_load)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yaml, "safe_load", lambda text: copy.deepcopy(parse(text)))
        yield


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes and splits for steps of training, see `write_data`."""
    from training_steps import write_data  # here: few tests need what it imports

    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def base(data: Path) -> Path:
    """A trained step 0."""
    from training_steps import launch, step_settings

    return launch(data, data / "base", step_settings(0)) / "model.safetensors"


@pytest.fixture(scope="session")
def alone(data: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Step 1 by one process."""
    from training_runs import SHARED, trained
    from training_steps import step_settings

    folder = tmp_path_factory.mktemp("alone")
    return trained(data, folder / "1", step_settings(1, **SHARED), base=base)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run of the tiny configuration; tests work on copies of it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    folder.mkdir()
    write_config(folder)
    snakemake(folder)
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, times of files included."""
    copy = tmp_path / "run"
    shutil.copytree(finished, copy, copy_function=shutil.copy2)
    return copy


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium without a window."""
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip("needs Chromium: apt install chromium")
    from playwright.sync_api import sync_playwright  # few tests need it

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox"]
        )
        yield opened
        opened.close()
