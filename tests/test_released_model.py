"""What version 0.1.0 released is read by this version and predicts the same.

tests/data/make_released.py made the archive with the code of that version.
"""

import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import kproba
from kproba.cli import main as command
from kproba.network.heads import HEADS

ARCHIVE = Path(__file__).parent / "data" / "released_0.1.0.tar.xz"
STEPS = {
    "network and bank": "results/tiny/6-2-overlap/heads/seed0/step1",
    "softmax": "results/tiny/6-2-overlap/mib_heads/seed0/step1",
}
EVERY = 4  # of the expected probabilities, every fourth row and column is kept


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked archive."""
    folder = tmp_path_factory.mktemp("released")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_prediction_is_that_of_version_0_1_0(released: Path, step: str) -> None:
    prediction = kproba.load(released / step).predict(released / "scene.png")
    labels = np.array(Image.open(released / step / "expected.png"))
    np.testing.assert_array_equal(prediction.labels, labels)
    expected = np.load(released / step / "expected.npz")["probabilities"]
    kept = prediction.probabilities[:, ::EVERY, ::EVERY]
    # Rounding: this version computes batch norms within the convolutions.
    np.testing.assert_allclose(kept, expected, rtol=0, atol=1e-4)
    assert expected.std() > 0.05  # the archive tells networks apart


def test_model_and_bank_of_version_0_1_0_load(released: Path) -> None:
    heads, softmax = (released / step for step in STEPS.values())
    assert kproba.load_model(heads / "model.safetensors").architecture.head == (
        "branches"
    )
    network = kproba.load_model(softmax / "model.safetensors")
    assert network.architecture.head == "softmax"
    assert network.classes_per_step == [6, 2]
    bank = kproba.PrototypeBank.load(heads / "prototypes.safetensors")
    assert bank.classes == network.channels == 9


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        ("network and bank", "network and bank (lda)"),
        ("softmax", HEADS["softmax"].description),
    ],
)
def test_info_describes_a_step_of_version_0_1_0(
    released: Path, capsys: pytest.CaptureFixture[str], step: str, expected: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        command(["info", str(released / STEPS[step])])
    assert ended.value.code == 0
    output = capsys.readouterr().out
    assert expected in output
    assert "0.1.0" in output
