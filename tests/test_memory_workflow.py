"""A chain with a memory on the tiny configuration: what is built, and built again."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from snakemake_calls import jobs, snakemake
from whole_runs import write_config

from kproba.data.label_images import read_label_image
from kproba.data.labels import IGNORE
from kproba.data.memory import read_memory
from kproba.data.splits import parse_classes
from kproba.runtime.files import read_json

pytestmark = pytest.mark.workflow
METHODS = {
    "barm_m": {"based_on": "barm", "memory": {"images": 10, "threshold": 0.3}},
    "leaky": {
        "based_on": "mib",
        "memory": {"images": 6, "rule": "true_labels", "share": 0.5},
    },
}
CHAIN = "results/tiny/6-2-overlap"
STEPS = {
    "barm_m": ["results/tiny/6-overlap/barm_m/seed0/step0"],
    "leaky": [f"{CHAIN}/leaky/seed0/step0"],
}
for name, folders in STEPS.items():
    folders += [f"{CHAIN}/{name}/seed0/step{step}" for step in (1, 2)]


def configure(folder: Path, **changes: dict) -> None:
    """The methods of this module, with changed sections `memory`."""
    methods = json.loads(json.dumps(METHODS))
    for name, memory in changes.items():
        methods[name]["memory"].update(memory)
    experiment = {"dataset": "tiny", "task": "6-2", "methods": ["barm_m", "leaky"]}
    write_config(folder, {"methods": methods, "experiments": [experiment]})


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("memory")
    configure(folder)
    snakemake(folder)
    return folder


@pytest.fixture
def copy(chain: Path, tmp_path: Path) -> Path:
    return shutil.copytree(chain, tmp_path / "run", copy_function=shutil.copy2)


def introduced(labels: set[int]) -> set[int]:
    """The steps of raw labels in 6-2."""
    return {max(0, (label - 5) // 2) for label in labels - {0, IGNORE}}


def test_every_step_has_a_memory_and_its_labels(chain: Path) -> None:
    assert jobs(chain) == {}
    leaked = {"barm_m": 0, "leaky": 0}
    for name, folders in STEPS.items():
        for step, folder in enumerate(folders):
            rows = read_memory(chain / folder / "memory.csv")
            assert len(rows) == METHODS[name]["memory"]["images"]  # type: ignore[index]
            paths = sorted((chain / folder / "memory").glob("*.png"))
            assert [path.stem for path in paths] == list(rows["id"])
            for row, path in zip(rows.itertuples(), paths, strict=True):
                values = set(np.unique(read_label_image(path)).tolist())
                assert values == parse_classes(row.classes)  # in 6-2 labels are indices
                assert row.seen_in_step <= step
                steps = introduced(parse_classes(row.classes))
                leaked[name] += any(label > row.seen_in_step for label in steps)
            settings = read_json(chain / CHAIN / f"{name}/seed0/step1/settings.json")
            assert settings["memory"]["images"] == len(rows)
    assert leaked["barm_m"] == 0 < leaked["leaky"]


def test_a_leaking_memory_is_visible(chain: Path) -> None:
    page = (chain / "results/report.html").read_text().replace("<wbr>", "")
    assert "barm_m 10, leaky 6 (leaks)" in page
    assert "leaky: with labels that nobody gave these images" in page
    log = (chain / STEPS["leaky"][1] / "train.log").read_text()
    assert "the memory of this training leaks" in log
    assert "2 of 4 places of a batch" in log
    assert read_json(chain / STEPS["leaky"][0] / "memory.json")["leaks"] is True


def test_another_number_of_images_reruns_one_method_without_step_0(copy: Path) -> None:
    configure(copy, leaky={"images": 7})
    again = jobs(copy)
    assert again["update_memory"] == 3
    assert again["train_step"] == 2
    assert "train_base" not in again and "make_split" not in again


def test_a_deleted_memory_is_written_again_with_the_same_bytes(copy: Path) -> None:
    folder = copy / STEPS["barm_m"][1]
    before = {p.name: p.read_bytes() for p in (folder / "memory").glob("*.png")}
    table = (folder / "memory.csv").read_bytes()
    shutil.rmtree(folder / "memory")
    target = str((folder / "memory.csv").relative_to(copy))
    snakemake(copy, "--forcerun", "update_memory", "--", target)
    assert (folder / "memory.csv").read_bytes() == table
    assert {p.name: p.read_bytes() for p in (folder / "memory").glob("*.png")} == before
