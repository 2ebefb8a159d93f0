"""Model files that run without the package give the same probabilities."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from test_inference import step  # noqa: F401  # a fixture
from test_segmenter import noise, run, trained  # noqa: F401

from kproba.predict import export as exporting
from kproba.predict.export import Deployed, export
from kproba.predict.segmenter import load, read_picture
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
    assert "differ from PyTorch's by" in caplog.text
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
