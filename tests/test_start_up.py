"""What jobs load: nothing slow for their arguments, then only what their work needs."""

import subprocess
import sys

import pytest

JOBS = ("train", "evaluate", "build_bank", "export_labels")
WORKS = (
    "kproba.training.loop",
    *(f"kproba.jobs.step_{name}" for name in ("test", "bank", "labels")),
)

PARSES = """
import sys
from importlib import import_module
try:
    import_module(sys.argv[1]).main(sys.argv[2:])
finally:
    slow = {"torch", "torchvision", "timm", "pandas", "numpy", "tensorboard", "PIL"}
    print("loaded", sorted(slow & set(sys.modules)))
"""

WORKS_ON_A_RESNET = """
import sys
from importlib import import_module
import_module(sys.argv[1])
from kproba.network.architecture import Architecture
from kproba.network.network import SegmentationNetwork
SegmentationNetwork(Architecture("resnet50", 16, (1,), 8, 0.0, 0.1), [1])
others = {
    "timm", "tensorboard", "sklearn", "scipy", "joblib", "requests", "matplotlib",
    "jsonschema", "yaml", "snakemake", "onnx", "huggingface_hub",
}
print("loaded", sorted(others & set(sys.modules)))
"""


def loaded_by(code: str, *words: str, status: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize("name", JOBS)
@pytest.mark.parametrize(("words", "status"), [(["--help"], 0), (["--nonsense"], 2)])
def test_arguments_are_parsed_before_anything_slow_is_loaded(name, words, status):
    said = loaded_by(PARSES, f"kproba.jobs.{name}", *words, status=status)
    assert said == "loaded []"


def test_the_launcher_loads_nothing_slow():
    assert loaded_by(PARSES, "kproba.runtime.launch", "--help") == "loaded []"


COLLECTS = """
import gc
from kproba.runtime.job import without_garbage_collection
with without_garbage_collection():
    import json
    assert not gc.isenabled()
print(gc.isenabled(), gc.get_freeze_count() > 0)
"""


def test_garbage_is_collected_after_the_imports():
    assert loaded_by(COLLECTS) == "True True"


@pytest.mark.parametrize("module", WORKS)
def test_the_work_loads_no_library_that_it_does_not_need(module):
    assert loaded_by(WORKS_ON_A_RESNET, module) == "loaded []"


@pytest.mark.parametrize("name", JOBS)
def test_arguments_are_parsed_by_the_job_that_is_launched(name):
    """The launcher appends `--compute`, which every job must take."""
    words = ["kproba.runtime.launch", f"kproba.jobs.{name}", "--help"]
    done = subprocess.run(
        [sys.executable, "-m", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"usage: kproba.jobs.{name} " in done.stdout
