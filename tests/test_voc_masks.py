"""The index of the real masks of VOC and SBD."""

import io
import json
import tarfile
import time
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from kproba.data.index import index_dataset
from kproba.data.kinds import KINDS
from kproba.data.label_images import read_label_image, write_label_image
from kproba.data.splits import parse_classes, read_index, select_images
from kproba.data.tasks import parse_task


@pytest.fixture(scope="module")
def voc_labels(test_data, tmp_path_factory) -> Path:
    """All 12,031 masks of VOC and SBD, behind pictures of their sizes."""
    root = tmp_path_factory.mktemp("voc") / "VOC2012"
    with tarfile.open(test_data / "voc_labels/SegmentationClassAug.tar.xz") as archive:
        archive.extractall(root, filter="data")
    (root / "JPEGImages").mkdir()
    pictures: dict[tuple[int, int], bytes] = {}
    for mask in sorted((root / "SegmentationClassAug").glob("*.png")):
        with Image.open(mask) as opened:
            size = opened.size
        if size not in pictures:
            buffer = io.BytesIO()
            Image.new("RGB", size, (90, 120, 60)).save(buffer, "JPEG")
            pictures[size] = buffer.getvalue()
        # A comment behind the picture keeps every file another one.
        content = pictures[size] + mask.stem.encode()
        (root / "JPEGImages" / f"{mask.stem}.jpg").write_bytes(content)
    return root


@pytest.fixture(scope="module")
def voc_index(voc_labels) -> tuple[pd.DataFrame, dict, float]:
    """Index and report of the real masks, and the seconds they took."""
    out = voc_labels.parent / "index"
    started = time.monotonic()
    index_dataset(
        out / "index.csv",
        out / "report.json",
        kind="voc",
        folder=voc_labels.parent,
        class_count=20,
        workers=2,
    )
    seconds = time.monotonic() - started
    report = json.loads((out / "report.json").read_text())
    return read_index(out / "index.csv"), report, seconds


def test_real_masks_give_the_published_presence(voc_index, presence_index):
    index, _, _ = voc_index
    published = presence_index("voc").set_index("id")
    ours = index.set_index("id")
    assert set(ours.index) == set(published.index)
    assert (ours["subset"] == published["subset"].reindex(ours.index)).all()
    for name, cell in ours["classes"].items():
        expected = parse_classes(published.loc[name, "classes"]) - {0, 255}
        assert parse_classes(cell) - {0, 255} == expected, name


def test_real_masks_are_those_of_the_field(voc_index):
    _, report, _ = voc_index
    assert report["images"] == {"train": 10582, "val": 1449}
    assert report["labels_sha256"] == KINDS["voc"].published_labels
    assert "unusual masks" not in report["warnings_by_kind"]


def test_real_masks_are_indexed_in_time(voc_index):
    _, _, seconds = voc_index
    assert seconds < 120


VOC_COUNTS = {
    ("15-1", "overlap"): [9568, 487, 299, 491, 500, 548],
    ("15-1", "disjoint"): [8437, 378, 299, 420, 500, 548],
    ("15-1_b", "disjoint"): [8452, 294, 696, 385, 491, 264],
    ("10-5", "overlap"): [6139, 5542, 2145],
}


@pytest.mark.parametrize(("task", "setting"), VOC_COUNTS)
def test_splits_of_the_real_masks_have_the_published_sizes(voc_index, task, setting):
    index, _, _ = voc_index
    groups = parse_task(task, 20, KINDS["voc"].class_orders())
    counts = [
        len(select_images(index, groups[: step + 1], setting))
        for step in range(len(groups))
    ]
    assert counts == VOC_COUNTS[task, setting]


def test_other_masks_in_the_place_of_voc_are_a_warning(voc_index, voc_labels):
    _, report, _ = voc_index
    masks = voc_labels / "SegmentationClassAug"
    name = sorted(masks.iterdir())[0]
    kept, labels = name.read_bytes(), read_label_image(name)
    labels[0, 0] = 255 - labels[0, 0] if labels[0, 0] in (0, 255) else 0
    try:
        write_label_image(name, labels)
        out = voc_labels.parent / "other"
        index_dataset(
            out / "index.csv",
            out / "report.json",
            kind="voc",
            folder=voc_labels,
            class_count=20,
        )
    finally:
        name.write_bytes(kept)
    content = json.loads((out / "report.json").read_text())
    assert content["warnings_by_kind"]["unusual masks"] == 1
    assert content["labels_sha256"] != report["labels_sha256"]
