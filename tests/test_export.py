"""Model files that run without the package give the same probabilities."""

import errno
import json
import os
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from small_predictions import noise
from test_inference import step  # noqa: F401  # a fixture
from test_segmenter import run, trained  # noqa: F401

from kproba import cli
from kproba.predict import export as exporting
from kproba.predict.export import Deployed, export
from kproba.predict.segmentation import read_picture
from kproba.predict.segmenter import ModelError, load
from kproba.runtime.files import read_json, write_json


def session_of(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def stacked(images: list[Image.Image]) -> np.ndarray:
    """(B, 3, H, W) uint8."""
    return np.stack([np.asarray(image).transpose(2, 0, 1) for image in images])


@pytest.fixture(params=["network and bank", "network", "reordered"])
def variant(request, trained) -> Path:  # noqa: F811
    """A step that predicts by both, by its network alone, or in another order."""
    about = read_json(trained / "predictor.json")
    if request.param == "network":
        about |= {"bank": None, "decision": None}
    if request.param == "reordered":
        about |= {"channels": [0, 2, 1]}
    write_json(trained / "predictor.json", about)
    return trained


@pytest.mark.parametrize("ending", ["onnx", "pt"])
def test_any_number_of_images_of_any_size(variant, capsys, caplog, ending):
    path = variant / f"model.{ending}"
    caplog.set_level("INFO")
    code, _ = run(capsys, "export", variant, path)
    assert code == 0
    assert "differ from those of PyTorch by" in caplog.text
    segmenter = load(variant)
    for images in ([noise(150, 70)], [noise(64, 64, n) for n in range(3)]):
        pixels = stacked(images)
        if ending == "onnx":
            [result] = session_of(path).run(None, {"images": pixels})
        else:
            result = torch.jit.load(path)(torch.from_numpy(pixels)).numpy()
        expected = [segmenter.predict(image).probabilities for image in images]
        difference = np.abs(result - np.stack(expected))
        assert np.quantile(difference, 0.99) < 1e-3
        assert np.allclose(result.sum(axis=1), 1, atol=1e-4)


def test_names_and_labels_are_inside(trained):  # noqa: F811
    segmenter = load(trained)
    export(segmenter, trained / "model.onnx")
    inside = session_of(trained / "model.onnx").get_modelmeta().custom_metadata_map
    assert json.loads(inside["classes"]) == ["background", "cat", "dog"]
    assert json.loads(inside["labels"]) == [0, 1, 2]
    export(segmenter, trained / "model.pt")
    inside = {"classes": "", "labels": ""}
    torch.jit.load(trained / "model.pt", _extra_files=inside)
    assert json.loads(inside["classes"]) == ["background", "cat", "dog"]


def test_real_pictures_give_the_same(trained, test_data):  # noqa: F811
    segmenter = load(trained)
    export(segmenter, trained / "model.onnx")
    session = session_of(trained / "model.onnx")
    pictures = sorted((test_data / "voc_mini" / "JPEGImages").glob("*.jpg"))[:3]
    assert pictures
    for path in pictures:
        [result] = session.run(None, {"images": stacked([read_picture(path)])})
        expected = segmenter.predict(path)
        assert np.quantile(np.abs(result[0] - expected.probabilities), 0.999) < 1e-3
        assert (result[0].argmax(axis=0) == expected.indices).mean() > 0.999


def test_a_file_that_differs_is_refused_and_not_left(trained, monkeypatch):  # noqa: F811
    class Wrong(Deployed):
        calls = 0

        def forward(self, images):
            Wrong.calls += 1
            return super().forward(images) + 0.01 * Wrong.calls

    monkeypatch.setattr(exporting, "Deployed", Wrong)
    with pytest.raises(ValueError, match=r"model\.pt to give .* differ by 0\.0"):
        export(load(trained), trained / "model.pt")
    assert not (trained / "model.pt").exists()


def test_another_ending_and_missing_packages_are_named(trained, monkeypatch):  # noqa: F811
    with pytest.raises(ValueError, match=r"\.onnx or \.pt, but got .*model\.h5"):
        export(load(trained), trained / "model.h5")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(RuntimeError, match=r"onnx is missing.*pip install"):
        export(load(trained), trained / "model.onnx")


class NotANumber(Deployed):
    """Gives NaN from the second call on, so that only the comparison can see it."""

    calls = 0

    def forward(self, images):
        """The right probabilities once."""
        NotANumber.calls += 1
        scores = super().forward(images)
        return scores if NotANumber.calls == 1 else scores + float("nan")


@pytest.mark.parametrize("ending", ["onnx", "pt"])
def test_a_comparison_with_nan_fails(trained, monkeypatch, ending):  # noqa: F811
    monkeypatch.setattr(exporting, "Deployed", NotANumber)
    NotANumber.calls = 0
    path = trained / f"model.{ending}"
    with pytest.raises(ValueError, match="they differ by nan"):
        export(load(trained), path)
    assert not path.exists()


def test_a_model_that_gives_no_numbers_is_refused(trained, monkeypatch):  # noqa: F811
    segmenter = load(trained)
    with torch.no_grad():
        next(segmenter.predictor.network.parameters()).fill_(float("nan"))
    with pytest.raises(ModelError, match=r"model\.safetensors.*NaN or infinite"):
        export(segmenter, trained / "model.pt")
    assert not (trained / "model.pt").exists()
    with pytest.raises(ModelError, match=r"model\.safetensors.*NaN or infinite"):
        segmenter.predict(noise(40, 40))


def a_state(path: Path) -> None:
    torch.save({"iteration": 3}, path)


UNUSABLE = {
    "a folder": ("out.pt", Path.mkdir, "a folder or a device"),
    "a device": ("out.pt", lambda path: path.symlink_to("/dev/null"), "a device"),
    "below a file": ("file/out.pt", lambda path: path.parent.touch(), "Not a dir"),
    "a state of a training": ("out.pt", a_state, "another kind of file"),
    "something else": ("out.pt", lambda path: path.write_text("x"), "another kind"),
    "not to be made": ("/proc/x/out.pt", lambda path: None, ""),
    "too long": ("x" * 300 + ".pt", lambda path: None, "too long"),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_places_that_cannot_be_written_are_refused(trained, capsys, kind):  # noqa: F811
    name, make, reason = UNUSABLE[kind]
    path = trained / name
    make(path)
    before = sorted(trained.rglob("*"))
    with pytest.raises(SystemExit) as ended:
        cli.main(["export", str(trained), str(path)])
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("Error: Expected") and reason in said
    assert "Traceback" not in said
    assert sorted(trained.rglob("*")) == before


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EROFS])
def test_a_disk_that_fails_leaves_the_file_that_was_there(
    trained,  # noqa: F811
    monkeypatch,
    capsys,
    number,
):
    path = trained / "model.pt"
    export(load(trained), path)
    before = path.read_bytes()

    def fail(path, content):
        path.open("wb").close()
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(SystemExit) as ended:
        cli.main(["export", str(trained), str(path)])
    assert ended.value.code == 1
    assert str(path) in capsys.readouterr().err
    assert path.read_bytes() == before
    assert [entry.name for entry in trained.glob(".*")] == []
    monkeypatch.undo()
    assert export(load(trained), path) < 1e-3  # a model file may be replaced
