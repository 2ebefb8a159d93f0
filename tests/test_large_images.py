"""Images that are processed in parts, because their scores do not fit into memory."""

import numpy as np
import pytest
import torch
from small_predictions import columns, noise
from test_inference import step  # noqa: F401  # a fixture
from test_segmenter import trained  # noqa: F401

from kproba.bank import large
from kproba.bank.large import PartlyScored
from kproba.data.pictures import scaled_size
from kproba.data.sources import Source
from kproba.predict import segmenter
from kproba.predict.segmenter import load


@pytest.mark.parametrize(
    "size", [(200, 150), (150, 200), (300, 65), (1, 900), (900, 1), (64, 64), (65, 64)]
)
@pytest.mark.parametrize("most_values", [2 * 64 * 64, 2 * 70 * 64, 2 * 500 * 64])
def test_parts_are_the_whole(size, most_values, monkeypatch):
    """What is kept for a part at a time gives what is kept for the whole image."""
    expected = columns().predict(noise(*size), tile=64)
    monkeypatch.setattr(segmenter, "MOST_VALUES", 0)
    stand_in = columns()
    image = torch.from_numpy(np.array(noise(*size))).permute(2, 0, 1)
    scores = PartlyScored(
        stand_in.predictor, image, 2, tile=64, most_values=most_values, device="cpu"
    )
    found, times = torch.zeros(2, *size[::-1]), torch.zeros(size[::-1])
    for rows, columns_, log_s in scores.parts():
        assert log_s.numel() <= max(most_values / 8, 2 * log_s.shape[2])
        found[:, rows, columns_] = log_s
        times[rows, columns_] += 1
    assert (times == 1).all()
    np.testing.assert_allclose(found.exp(), expected.probabilities, atol=1e-6)
    assert max(max(shape[2:]) for shape in stand_in.predictor.shapes) <= 64
    how = expected.how.replace("whole", "1 tiles")
    assert f"{scores.tiles} tiles" == how


def test_an_image_in_parts_keeps_its_size(monkeypatch):
    image = noise(200, 150)
    whole = columns().predict(image)
    monkeypatch.setattr(segmenter, "MOST_VALUES", 2 * 80 * 80)
    result = columns().predict(image, tile=64)
    assert result.how == "12 tiles, in parts"
    assert np.array_equal(result.indices, whole.indices)
    assert np.allclose(result.confidence, whole.confidence, atol=1e-5)
    assert result.areas() == whole.areas()
    with pytest.raises(ValueError, match="200x150 pixels and 2 classes"):
        _ = result.probabilities


def test_a_tile_that_would_not_fit_is_made_smaller(monkeypatch):
    monkeypatch.setattr(segmenter, "MOST_VALUES", 2 * 80 * 80)
    stand_in = columns()
    assert stand_in.predict(noise(100, 90)).how == "4 tiles, in parts"
    assert max(max(shape[2:]) for shape in stand_in.predictor.shapes) <= 80


def test_two_images_that_fit_alone_are_not_stacked(monkeypatch):
    monkeypatch.setattr(segmenter, "MOST_VALUES", 2 * 60 * 60)
    stand_in = columns()
    results = stand_in.predict_batch([noise(60, 60), noise(60, 60)])
    assert stand_in.predictor.shapes == [(1, 3, 60, 60)] * 2
    assert [result.how for result in results] == ["whole", "whole"]


def test_a_scaled_image_in_parts_gets_its_size_back(monkeypatch):
    monkeypatch.setattr(segmenter, "MOST_VALUES", 2 * 80 * 80)
    result = columns().predict(noise(300, 200), long_side=150, tile=64)
    assert result.how == "scaled to 150x100, 6 tiles, in parts"
    assert result.indices.shape == result.confidence.shape == (200, 300)


@pytest.mark.parametrize("most_sampled", [2**16, 400])
def test_the_image_prior_is_that_of_the_whole_image(
    trained,  # noqa: F811
    monkeypatch,
    most_sampled,
):
    loaded = load(trained)
    assert loaded.predictor.has_image_prior
    image = noise(150, 130)
    expected = loaded.predict(image, tile=64)
    monkeypatch.setattr(segmenter, "MOST_VALUES", 3 * 70 * 70)
    monkeypatch.setattr(large, "SAMPLE", most_sampled)
    result = loaded.predict(image, tile=64)
    assert result.how == f"{expected.how}, in parts"
    all_pixels = most_sampled > 150 * 130
    assert (result.indices == expected.indices).mean() > (0.999 if all_pixels else 0.97)
    difference = np.abs(result.confidence - expected.confidence).mean()
    assert difference < (1e-4 if all_pixels else 0.02)
    # A prior for each part alone would be another.
    alone = loaded.predictor.combination
    monkeypatch.setattr(
        type(alone), "fit", lambda self, log_s, counted=None, sample=None: log_s
    )
    unfitted = loaded.predict(image, tile=64)
    assert np.abs(unfitted.confidence - expected.confidence).mean() > 2 * difference


@pytest.mark.parametrize(
    ("size", "most"), [((30, 20), 2**16), ((400, 300), 100), ((1, 5000), 64)]
)
def test_a_sample_is_spread_over_the_image(size, most, monkeypatch):
    monkeypatch.setattr(large, "SAMPLE", most)
    width, height = size
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    image[0] = torch.linspace(0, 255, height * width).view(height, width).byte()
    scores = PartlyScored(
        columns().predictor, image, 2, tile=64, most_values=10_000, device="cpu"
    )
    sample = scores.sample()
    assert most / 4 < sample[0].numel() <= most or sample[0].numel() == width * height
    red = 300 * (sample[0].exp() - 0.05)
    assert abs(float(red.mean()) - 127.5) < 3
    assert float(red.min()) < 20 and float(red.max()) > 235


def test_models_that_were_trained_on_scaled_images_scale_larger_ones():
    stand_in = columns()
    stand_in.long_side = 64
    assert stand_in.predict(noise(128, 100)).how == "scaled to 64x50"
    assert stand_in.predict(noise(60, 40)).how == "whole"  # never larger
    assert stand_in.predict(noise(128, 100), long_side=0).how == "whole"
    assert stand_in.predict(noise(128, 100), long_side=32).how == "scaled to 32x25"


def test_scaling_as_in_training_gives_the_pixels_of_the_training(tmp_path):
    noise(128, 100).save(tmp_path / "a.png")
    stand_in = columns()
    stand_in.long_side = 50
    scaled = stand_in._scale(noise(128, 100), None)
    source = Source("a", str(tmp_path / "a.png"), "", *scaled_size((128, 100), 50))
    assert torch.equal(scaled, source.read_image())


def test_a_long_side_of_too_many_pixels_is_refused(monkeypatch):
    monkeypatch.setattr(segmenter, "MOST_PIXELS", 10_000)
    with pytest.raises(ValueError, match=r"1000 scales an image to 1000x1000\. Use"):
        columns().predict(noise(50, 50), long_side=1000)


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=["nan", "inf"])
@pytest.mark.parametrize("in_parts", [False, True])
def test_scores_that_are_no_numbers_are_refused(monkeypatch, value, in_parts):
    stand_in = columns()
    monkeypatch.setattr(
        stand_in.predictor, "log_scores", lambda images: images[:, :2].float() + value
    )
    stand_in.name = "a/model.safetensors"
    if in_parts:
        monkeypatch.setattr(segmenter, "MOST_VALUES", 100)
    with pytest.raises(segmenter.ModelError, match=r"a/model\.safetensors.*NaN or"):
        stand_in.predict(noise(20, 20))
