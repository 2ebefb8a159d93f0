"""The exported targets, and the rule of PLOP, which reads all images first."""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from label_inputs import (
    Teacher,
    decide_by,
    labeller_of,
    pixels,
    rule,
)
from PIL import Image

from kproba.data.labels import UNSURE, LabelMap
from kproba.data.loaders import Batch
from kproba.methods.entropy import (
    ENTROPY_BINS,
    entropy,
    entropy_thresholds,
    published_entropy,
    published_search,
    published_thresholds,
)
from kproba.methods.export import LabelFiles, export_labels
from kproba.network.network import Outputs

# Export: the teacher reads its answer from the first channel of the image.

NEW = 3  # output index of the step's own class
LABEL_MAP = LabelMap(((1, 2), (NEW,)))


def answered(images):
    answer = torch.nn.functional.one_hot(images[:, 0].long(), 3)
    logits = 8 * answer.permute(0, 3, 1, 2).float() - 4
    return Outputs(logits, [logits], [logits])


reading_teacher = Teacher(answered)


def export_by(teacher, name, batches, folder, table):
    """Labels by a rule, their table, and quality.csv beside it."""
    export_labels(
        labeller_of(teacher, rule(name)),
        batches,
        LabelFiles(folder, table, table.with_name("quality.csv")),
        label_map=LABEL_MAP,
        names=["background", "cat", "dog", "cow"],
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("step")
    random = np.random.default_rng(0)
    answers = random.integers(0, 3, (3, 6, 7)).astype(np.uint8)
    answers[2] = 0  # an image in which nothing is found
    targets = random.choice([0, NEW, 255], (3, 6, 7), p=[0.6, 0.2, 0.2])
    targets = targets.astype(np.uint8)
    ids = ["2007_000032", "b", "c"]

    def batch(part):
        images = torch.tensor(answers[part])[:, None].expand(-1, 3, -1, -1)
        keys = torch.arange(3)[part]
        return Batch(images, torch.tensor(targets[part]), ids[part], keys)

    batches = [batch(slice(0, 2)), batch(slice(2, 3))]
    images = folder / "pseudo_labels"
    table = folder / "pseudo_labels.csv"
    export_by(reading_teacher, "argmax", batches, images, table)
    return SimpleNamespace(
        ids=ids, answers=answers, targets=targets, images=images, table=table
    )


def exported_labels(exported):
    return [
        np.array(Image.open(exported.images / f"{name}.png")) for name in exported.ids
    ]


def test_export_fills_background_and_nothing_else(exported):
    assert sorted(path.name for path in exported.images.iterdir()) == sorted(
        f"{name}.png" for name in exported.ids
    )
    found = exported_labels(exported)
    for labels, target, answer in zip(
        found, exported.targets, exported.answers, strict=True
    ):
        assert labels.shape == target.shape and labels.dtype == np.uint8
        np.testing.assert_array_equal(labels[target == NEW], NEW)
        np.testing.assert_array_equal(labels[target == 255], 255)
        np.testing.assert_array_equal(labels[target == 0], answer[target == 0])
    assert {1, 2} <= set(found[0].flatten())


def test_export_writes_palette_images(exported):
    for name in exported.ids:
        with Image.open(exported.images / f"{name}.png") as written:
            assert (written.format, written.mode) == ("PNG", "P")
            colours = np.array(written.getpalette()).reshape(-1, 3)
        # VOC's colours: black background, then dark red and dark green.
        assert colours[:3].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0]]


def test_the_table_counts_what_the_images_show(exported):
    table = pd.read_csv(exported.table, dtype={"id": str})
    assert list(table["id"]) == exported.ids
    pairs = zip(exported_labels(exported), exported.targets, strict=True)
    for row, (labels, target) in zip(table.itertuples(), pairs, strict=True):
        assert row.pixels == target.size
        assert row.background == (target == 0).sum()
        assert row.cat == (labels == 1).sum()
        assert row.dog == (labels == 2).sum()
        assert row.recovered == row.cat + row.dog
    assert table["recovered"].tolist()[2] == 0 and table["recovered"].sum() > 0


def test_exporting_twice_writes_the_same_bytes(exported, tmp_path):
    images = torch.tensor(exported.answers)[:, None].expand(-1, 3, -1, -1)
    batch = Batch(images, torch.tensor(exported.targets), exported.ids, torch.arange(3))
    again, table = tmp_path / "labels", tmp_path / "labels.csv"
    export_by(reading_teacher, "argmax", [batch], again, table)
    assert table.read_bytes() == exported.table.read_bytes()
    for path in exported.images.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes()


def test_a_second_export_replaces_the_first(tmp_path):
    folder, table = tmp_path / "labels", tmp_path / "labels.csv"
    for name in ("old", "new"):
        batch = Batch(
            pixels((2, 2)), torch.zeros(1, 2, 2).byte(), [name], torch.ones(1)
        )
        export_by(reading_teacher, "argmax", [batch], folder, table)
    assert [path.name for path in folder.iterdir()] == ["new.png"]
    assert list(pd.read_csv(table)["id"]) == ["new"]


def test_a_failed_export_leaves_nothing(tmp_path):
    folder, table = tmp_path / "labels", tmp_path / "labels.csv"

    def broken():
        yield Batch(pixels((2, 2)), torch.zeros(1, 2, 2).byte(), ["a"], torch.ones(1))
        raise OSError("an image that cannot be read")

    with pytest.raises(OSError, match="cannot be read"):
        export_by(reading_teacher, "argmax", broken(), folder, table)
    assert list(tmp_path.iterdir()) == []


# The rule of PLOP: a class is sure where its entropy is below its median.


def sharp(sharpness, label):
    """Logits (3, *sharpness.shape) that favour a class so much."""
    logits = torch.zeros(3, *sharpness.shape)
    logits[label] = sharpness
    return logits


def plain_entropy(logits):
    p = torch.softmax(logits.double(), dim=0)
    return -(p * p.log()).sum(dim=0) / np.log(3)


def teacher_of(logits):
    outputs = Outputs(logits, [logits], [logits])
    channels = logits.shape[1]
    return Teacher(lambda images: outputs, head="softmax", channels=channels)


def test_entropy_is_a_share_of_the_largest():
    logits = torch.tensor([[2.0, 0.0], [0.5, 0.0], [-1.0, 0.0]])
    found = entropy(logits.view(1, 3, 1, 2))
    torch.testing.assert_close(found[0, 0].double(), plain_entropy(logits))
    assert found[0, 0, 1].item() == pytest.approx(1)


def test_thresholds_are_the_medians_over_hidden_pixels_of_each_class():
    sharpness = torch.linspace(0.5, 5, 40).view(4, 10)
    logits = torch.stack([sharp(sharpness, 0), sharp(sharpness.flip(0), 1)])
    targets = torch.zeros(2, 4, 10, dtype=torch.uint8)
    targets[0, :, 7:] = NEW  # labelled: no business of the pseudo labels
    targets[1, 0] = 255
    batch = Batch(logits, targets, ["a", "b"], torch.arange(2))
    thresholds = entropy_thresholds(teacher_of(logits), [batch], LABEL_MAP)
    for label, shown in enumerate(targets == 0):
        expected = plain_entropy(logits[label])[shown].median()
        assert thresholds[label].item() == pytest.approx(expected.item(), abs=0.02)
        sure = plain_entropy(logits[label])[shown] < thresholds[label]
        assert sure.double().mean().item() == pytest.approx(0.5, abs=0.05)
    assert thresholds[2].item() == pytest.approx(0.001)  # never answered


def test_thresholds_do_not_depend_on_the_order_of_the_images():
    random = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(4, 3, 6, 5, generator=random)
    targets = torch.zeros(4, 6, 5, dtype=torch.uint8)

    def part(chosen):
        kept = logits[chosen]
        batch = Batch(kept, targets[chosen], [], torch.arange(4)[chosen])
        return entropy_thresholds(teacher_of(kept), [batch], LABEL_MAP)

    whole = part(slice(0, 4))
    assert ((whole > 1 / ENTROPY_BINS) & (whole < 1)).all()
    order = torch.tensor([2, 0, 3, 1])
    assert torch.equal(part(order), whole)


def plain_search(counts):
    """The threshold of the published code, in its own steps."""
    bins, total = len(counts), sum(counts)
    if total == 0:
        return 0.001
    half, running = total / 2, 0.0
    for number in range(bins):
        lower = number / bins
        index = int(lower * bins)
        if half >= running and half <= running + counts[index]:
            break
        running += lower * bins
    counted = torch.tensor(float(counts[index]), dtype=torch.float64)
    found = lower + float((half - running) / counted) / bins
    return max(found, 0.001)


def test_published_thresholds_are_searched_as_in_the_published_code():
    draw = np.random.default_rng(0)
    shapes = [
        draw.dirichlet(np.full(100, a)) for a in (0.02, 0.1, 1.0, 10.0) for _ in "ab"
    ]
    for size in (50, 3_000, 10**6):
        for shape in shapes:
            counts = draw.multinomial(size, shape).tolist()
            assert published_search(counts) == pytest.approx(plain_search(counts))
    # No bin holds half of the pixels, and the last one none: every pixel is sure.
    assert published_search([10_000] * 99 + [0]) == math.inf
    assert published_search([0] * 100) == 0.001


def test_with_a_sure_teacher_the_published_thresholds_keep_nearly_all_background():
    draw = torch.Generator().manual_seed(0)
    classes, size = 16, (1, 60, 80)
    logits = torch.randn(1, classes, *size[1:], generator=draw)
    label = torch.randint(0, classes, size, generator=draw)
    logits.scatter_(1, label[:, None], 5 + 3 * torch.rand(1, *size, generator=draw))
    log_p = logits.log_softmax(dim=1)
    batch = Batch(logits, torch.zeros(size, dtype=torch.uint8), ["a"], torch.arange(1))
    groups = (tuple(range(1, classes)), (classes,))
    shares = {}
    for name, thresholds_of in (
        ("entropy", published_thresholds),
        ("entropy_median", entropy_thresholds),
    ):
        thresholds = thresholds_of(teacher_of(logits), [batch], LabelMap(groups))
        labels = decide_by(rule(name), log_p, thresholds=thresholds)
        shares[name] = (labels != UNSURE).double().mean().item()
    assert shares["entropy"] > 0.85
    assert shares["entropy_median"] == pytest.approx(0.5, abs=0.05)


def test_the_published_entropy_is_a_mean_over_the_classes():
    logits = torch.randn(1, 5, 2, 3, generator=torch.Generator().manual_seed(1))
    p = logits.double().softmax(dim=1)
    expected = -(p * p.log()).sum(dim=1) / 5 / math.log(5)
    torch.testing.assert_close(published_entropy(logits).double(), expected)


def test_unsure_pixels_get_no_label():
    logits = torch.stack([sharp(torch.tensor([[0.1, 4.0]]), 1)])
    log_p, thresholds = logits.log_softmax(dim=1), torch.tensor([0.5, 0.5, 0.5])
    labels = decide_by(rule("entropy_median"), log_p, thresholds=thresholds)
    assert labels.tolist() == [[[UNSURE, 1]]]
    with pytest.raises(ValueError, match="threshold per class"):
        decide_by(rule("entropy_median"), log_p)


def test_export_counts_what_is_unsure(tmp_path):
    sharpness = torch.linspace(0.5, 5, 20).view(4, 5)
    logits = sharp(sharpness, 1)[None]
    targets = torch.zeros(1, 4, 5, dtype=torch.uint8)
    targets[0, 3, 4] = NEW
    batch = Batch(logits, targets, ["a"], torch.arange(1))
    table = tmp_path / "labels.csv"
    export_by(teacher_of(logits), "entropy_median", [batch], tmp_path / "labels", table)
    labels = np.array(Image.open(tmp_path / "labels/a.png"))
    assert set(np.unique(labels)) == {1, NEW, UNSURE}
    row = pd.read_csv(table).iloc[0]
    assert (row.background, row.recovered, row.unsure) == (
        19,
        (labels == 1).sum(),
        (labels == UNSURE).sum(),
    )
    assert row.recovered + row.unsure == row.background
