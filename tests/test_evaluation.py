"""Confusion matrices, means and what a policy counts."""

import itertools
import json
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics import confusion_matrix as sklearn_confusion_matrix

from kproba.data.loaders import Batch
from kproba.data.tasks import parse_task
from kproba.results.evaluation import (
    EvaluationSettings,
    centre_crop,
    channel_order,
    class_iou,
    confusion_matrix,
    evaluate,
    ground_truth_table,
    means,
    select_rows,
    write_results,
)

POLICIES = ("ssul", "plop", "dkd-ade", "mib")

# Validation images with a seen class after each step, of docs/protocol.md, section 5.
SEEN_COUNTS = {
    ("voc", "19-1"): [1421, 1449],
    ("voc", "15-5"): [1240, 1449],
    ("voc", "15-1"): [1240, 1277, 1329, 1353, 1421, 1449],
    ("voc", "10-1"): [
        *(869, 893, 1005, 1081, 1140, 1240, 1277, 1329, 1353, 1421, 1449)
    ],
    ("voc", "5-3"): [433, 699, 893, 1140, 1329, 1449],
    ("ade", "100-50"): [2000, 2000],
    ("ade", "100-10"): [2000] * 6,
    ("ade", "50-50"): [1997, 2000, 2000],
}
CLASS_COUNT = {"voc": 20, "ade": 150}
VAL_COUNT = {"voc": 1449, "ade": 2000}


def _settings(policy: str = "ssul", **changes) -> EvaluationSettings:
    settings = {"policy": policy, "ignore_background": False, "crop": None}
    return EvaluationSettings(**{**settings, **changes})


# --- the confusion matrix ----------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 7, 5), (400,)])
def test_confusion_matrix_is_that_of_sklearn(shape):
    rng = np.random.default_rng(0)
    truth = rng.choice(np.array([0, 1, 2, 4, 255], np.uint8), shape)  # 3 never occurs
    predicted = rng.integers(0, 5, shape)
    counts = confusion_matrix(torch.from_numpy(truth), torch.from_numpy(predicted), 5)
    valid = truth != 255
    expected = sklearn_confusion_matrix(truth[valid], predicted[valid], labels=range(5))
    assert counts.dtype == torch.int64
    np.testing.assert_array_equal(counts, expected)


def test_confusion_matrix_of_many_classes_does_not_overflow():
    truth = torch.full((2,), 150, dtype=torch.uint8)
    counts = confusion_matrix(truth, torch.tensor([150, 149], dtype=torch.uint8), 151)
    assert counts.shape == (151, 151)
    assert counts[150, 150] == counts[150, 149] == 1
    assert counts.sum() == 2


def test_confusion_matrix_of_ignored_pixels_is_empty():
    truth = torch.full((2, 2), 255, dtype=torch.uint8)
    assert not confusion_matrix(truth, torch.zeros(2, 2), 3).any()


# Rows are true classes. Class 2 has no truth but two false predictions, class 3 is
# nowhere, class 4 is never predicted.
CONFUSION = np.array(
    [
        [6, 1, 1, 0, 0],
        [2, 4, 1, 0, 0],
        [0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0],
        [3, 0, 0, 0, 0],
    ]
)
IOU = [100 * 6 / 13, 100 * 4 / 8, 0, np.nan, 0]


def test_iou_by_hand():
    np.testing.assert_allclose(class_iou(CONFUSION), IOU)


# --- the means ---------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["ssul", "plop", "dkd-ade"])
def test_means_count_background_and_absent_classes(policy):
    old, new = (IOU[0] + IOU[1]) / 2, 0.0
    measured = means(CONFUSION, [0, 0, 1, 1, 2], policy)
    expected = {"old": old, "new": new, "all": (IOU[0] + IOU[1]) / 5, "hiou": 0.0}
    assert measured == pytest.approx(expected)


def test_mib_leaves_out_background_and_classes_without_truth():
    measured = means(CONFUSION, [0, 0, 1, 1, 2], "mib")
    expected = {"old": IOU[1], "new": 0.0, "all": IOU[1] / 2, "hiou": 0.0}
    assert measured == pytest.approx(expected)


@pytest.mark.parametrize(
    ("policy", "old", "new", "every"),
    [
        ("ssul", (80 + 75) / 2, (75 + 250 / 3) / 2, (80 + 75 + 75 + 250 / 3) / 4),
        ("mib", 75, (75 + 250 / 3) / 2, (75 + 75 + 250 / 3) / 3),
    ],
)
def test_means_of_old_new_and_all_by_hand(policy, old, new, every):
    confusion = np.array([[8, 2, 0, 0], [0, 6, 0, 0], [0, 0, 3, 1], [0, 0, 0, 5]])
    measured = means(confusion, [0, 0, 1, 2], policy)
    harmonic = 2 / (1 / old + 1 / new)
    expected = {"old": old, "new": new, "all": every, "hiou": harmonic}
    assert measured == pytest.approx(expected)


def test_first_step_has_no_new_classes():
    measured = means(np.array([[3, 1], [1, 3]]), [0, 0], "ssul")
    expected = {"old": 60, "new": float("nan"), "all": 60, "hiou": float("nan")}
    assert measured == pytest.approx(expected, nan_ok=True)


def test_harmonic_mean_without_any_hit_is_zero():
    measured = means(np.array([[0, 2], [3, 0]]), [0, 1], "ssul")
    assert measured == {"old": 0, "new": 0, "all": 0, "hiou": 0}


def test_mib_without_any_class_has_no_mean():
    measured = means(np.array([[5, 1], [0, 0]]), [0, 0], "mib")
    assert all(np.isnan(value) for value in measured.values())


# --- what a policy counts ----------------------------------------------------------

SMALL_INDEX = pd.DataFrame(
    [
        {"id": "d", "subset": "val", "classes": "0 2"},
        {"id": "c", "subset": "val", "classes": "0 1 2"},
        {"id": "b", "subset": "val", "classes": "0 255"},
        {"id": "a", "subset": "val", "classes": "3"},
        {"id": "e", "subset": "train", "classes": "0 1"},
    ]
)


@pytest.mark.parametrize("policy", POLICIES)
def test_policy_chooses_validation_images(policy):
    with_seen_class = ["a", "c"]
    expected = ["a", "b", "c", "d"] if policy == "ssul" else with_seen_class
    chosen = select_rows(SMALL_INDEX, ((1,), (3,)), policy)
    assert list(chosen["id"]) == expected


@pytest.mark.parametrize(("dataset", "task"), SEEN_COUNTS)
def test_published_counts_of_images_with_a_seen_class(presence_index, dataset, task):
    index = presence_index(dataset)
    groups = parse_task(task, CLASS_COUNT[dataset])
    steps = [groups[: step + 1] for step in range(len(groups))]
    counts = [len(select_rows(index, step, "plop")) for step in steps]
    assert counts == SEEN_COUNTS[dataset, task]
    assert len(select_rows(index, steps[0], "ssul")) == VAL_COUNT[dataset]


@pytest.mark.parametrize(
    ("policy", "ignore_background", "background", "unseen"),
    [
        ("ssul", False, 0, 255),
        ("ssul", True, 0, 255),  # the switch is one of `mib`
        ("plop", False, 0, 0),
        ("dkd-ade", False, 0, 255),
        ("mib", False, 0, 255),
        ("mib", True, 255, 255),
    ],
)
def test_ground_truth_of_a_policy(policy, ignore_background, background, unseen):
    settings = _settings(policy, ignore_background=ignore_background)
    table = ground_truth_table(((3, 1), (5,)), settings)
    expected = np.full(256, unseen)
    expected[[0, 3, 1, 5, 255]] = background, 1, 2, 3, 255
    np.testing.assert_array_equal(table, expected)


# --- the centre crop ---------------------------------------------------------------


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize(
    "size", [(37, 50), (50, 37), (33, 33), (31, 99), (64, 64), (20, 30), (67, 101)]
)
def test_crop_is_a_square_of_that_side(size, labels):
    image = torch.zeros(2, 3, *size, dtype=torch.uint8)
    cropped = centre_crop(image, 33, labels=labels)
    assert (cropped.shape, cropped.dtype) == ((2, 3, 33, 33), torch.uint8)


@pytest.mark.parametrize("labels", [False, True])
def test_crop_of_an_image_of_that_side_is_its_middle(labels):
    image = torch.arange(4 * 9, dtype=torch.uint8).view(1, 1, 4, 9)
    cropped = centre_crop(image, 4, labels=labels)
    assert torch.equal(cropped, image[..., 2:6])
    turned = centre_crop(image.transpose(2, 3), 4, labels=labels)
    assert torch.equal(turned, image.transpose(2, 3)[..., 2:6, :])


def test_crop_invents_no_label():
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(rng.choice(np.array([0, 9, 255], np.uint8), (40, 60)))
    cropped = centre_crop(labels[None, None], 23, labels=True)
    assert set(cropped.unique().tolist()) == {0, 9, 255}


def test_crop_averages_the_image_and_keeps_its_range():
    image = torch.zeros(1, 1, 24, 24, dtype=torch.uint8)
    image[..., ::4] = 200  # one column in four; four become one
    cropped = centre_crop(image, 6, labels=False)
    assert (cropped[..., 1:-1].float() - 50).abs().max() <= 10
    white = torch.full((1, 3, 10, 14), 255, dtype=torch.uint8)
    assert (centre_crop(white, 7, labels=False) == 255).all()


@pytest.mark.parametrize(("height", "width", "side"), [(9, 9, 3), (30, 50, 20)])
def test_cropped_labels_are_those_of_the_pixels_in_the_middle(height, width, side):
    """As with images, and as in Pillow, a new pixel stands for its own centre."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 21, (height, width), dtype=np.uint8)
    cropped = centre_crop(torch.from_numpy(labels)[None, None], side, labels=True)
    scaled_width = round(width * side / height)
    scaled = Image.fromarray(labels).resize(
        (scaled_width, side), Image.Resampling.NEAREST
    )
    left = (scaled_width - side) // 2
    np.testing.assert_array_equal(
        cropped[0, 0], np.asarray(scaled)[:, left : left + side]
    )


# --- the test of a network ---------------------------------------------------------


class _Painted:
    """A network that reads its answer, a channel, off the image's red."""

    def __init__(self, channels: int):
        self.channels = channels
        self.sizes: list[tuple[int, int]] = []

    def predict_labels(self, images: torch.Tensor, sizes: object = None) -> Iterator:
        assert images.dtype == torch.uint8 and sizes is None
        self.sizes.append(tuple(images.shape[-2:]))
        assert images.max() < self.channels
        yield (slice(None),), images[:, 0].long()


def _batch(predicted: np.ndarray, truth: np.ndarray) -> Batch:
    """Images (B, H, W) painted with the predicted channel, with their truth."""
    images = torch.from_numpy(predicted.astype(np.uint8))[:, None].repeat(1, 3, 1, 1)
    targets = torch.from_numpy(truth.astype(np.uint8))
    return Batch(images, targets, ["x"] * len(images), torch.zeros(len(images)))


@pytest.mark.parametrize("order", itertools.permutations(range(4)))
def test_counts_are_in_the_order_of_the_task(order):
    """Whatever channel of the model holds a class, its row is that of the task."""
    rng = np.random.default_rng(0)
    shapes = [(2, 3, 5), (1, 6, 4)]
    truths = [rng.choice(np.array([0, 1, 2, 3, 255]), shape) for shape in shapes]
    answers = [rng.integers(0, 4, shape) for shape in shapes]
    painted = [np.asarray(order)[answer] for answer in answers]
    batches = [_batch(*pair) for pair in zip(painted, truths, strict=True)]
    counts = evaluate(_Painted(4), batches, _settings(), channel_order=order)
    truth, answer = (
        np.concatenate([x.ravel() for x in xs]) for xs in (truths, answers)
    )
    valid = truth != 255
    np.testing.assert_array_equal(
        counts,
        sklearn_confusion_matrix(truth[valid], answer[valid], labels=range(4)),
    )


def test_crop_applies_to_image_and_truth():
    columns = np.arange(8).repeat(4).reshape(1, 8, 4).transpose(0, 2, 1)  # (1, 4, 8)
    network = _Painted(8)
    counts = evaluate(
        network,
        [_batch(columns, columns)],
        _settings(crop=4),
        channel_order=range(8),
    )
    assert network.sizes == [(4, 4)]
    np.testing.assert_array_equal(counts, np.diag([0, 0, 4, 4, 4, 4, 0, 0]))


@pytest.mark.parametrize(
    ("model_labels", "seen", "expected"),
    [
        ((0, 1, 2), (1, 2), [0, 1, 2]),
        ((0, 1, 2, 3), (3, 1, 2), [0, 3, 1, 2]),
        ((0, 7, 2, 5), (5, 7, 2), [0, 3, 1, 2]),
    ],
)
def test_channels_are_put_in_the_order_of_the_task(model_labels, seen, expected):
    assert channel_order(model_labels, seen) == expected


@pytest.mark.parametrize("model_labels", [(0, 1), (0, 1, 2, 3), (0, 1, 3), (1, 2)])
def test_model_of_other_classes_is_refused(model_labels):
    with pytest.raises(ValueError, match=r"raw labels 0, 1, 2,"):
        channel_order(model_labels, (1, 2))


# --- the result files --------------------------------------------------------------


@pytest.fixture
def results(tmp_path) -> tuple[dict, pd.DataFrame]:
    """Files of CONFUSION, read back."""
    names = ["background", "cat", "dog", "cow", "emu"]
    write_results(
        CONFUSION,
        tmp_path / "evaluation.json",
        tmp_path / "confusion.csv",
        names=names,
        step_of_class=[0, 0, 1, 1, 2],
        settings=_settings("mib", crop=64),
        images=7,
        about={"method": "kproba"},
    )
    table = pd.read_csv(tmp_path / "confusion.csv", index_col=0)
    return json.loads((tmp_path / "evaluation.json").read_text()), table


def test_result_holds_means_and_every_choice_behind_them(results):
    content, _ = results
    assert content["method"] == "kproba"
    assert content["images"] == 7
    assert content["protocol"] == {
        "policy": "mib",
        "ignore_background": False,
        "crop": 64,
        "checkpoint": "last",
    }
    measured = means(CONFUSION, [0, 0, 1, 1, 2], "mib")
    assert {key: content[key] for key in measured} == pytest.approx(measured)


def test_result_holds_every_class(results):
    content, _ = results
    assert [entry["name"] for entry in content["classes"]][1:3] == ["cat", "dog"]
    assert [entry["index"] for entry in content["classes"]] == [0, 1, 2, 3, 4]
    assert [entry["step"] for entry in content["classes"]] == [0, 0, 1, 1, 2]
    assert [entry["pixels"] for entry in content["classes"]] == [8, 7, 0, 0, 3]
    ious = [entry["iou"] for entry in content["classes"]]
    assert ious[3] is None
    assert [iou for iou in ious if iou is not None] == pytest.approx(
        [iou for iou in IOU if not np.isnan(iou)]
    )


def test_confusion_table_names_rows_and_columns(results):
    _, table = results
    assert list(table.index) == list(table.columns)
    assert table.loc["cat", "background"] == 2
    assert table.loc["background", "cat"] == 1
    np.testing.assert_array_equal(table.to_numpy(), CONFUSION)
