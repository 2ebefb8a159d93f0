"""Warnings about a whole dataset."""

import shutil

import numpy as np
import pytest
from indexed_folders import index, kinds_of
from small_pictures import labels_of, save_turned


def test_class_without_images_is_named(folder_dataset):
    masks = {"train": {"a": labels_of(1)}, "val": {"b": labels_of(2)}}
    _, report = index(folder_dataset(masks))
    assert report["classes_without_images"] == {"train": [2, 3], "val": [1, 3]}
    texts = [warning["text"] for warning in report["warnings"]]
    assert "class 'dog' (label 2) is in no training image, so it cannot be learned" in (
        texts
    )
    assert (
        "class 'cat' (label 1) is in no validation image; its IoU counts as 0" in texts
    )


def test_an_addition_is_asked_for_its_own_classes_alone(folder_dataset):
    masks = {"train": {"a": labels_of(3)}, "val": {"b": labels_of(3)}}
    _, report = index(folder_dataset(masks), classes=[3])
    assert report["classes_without_images"] == {"train": [], "val": []}


WARNED: dict[str, tuple[list[int], set[str]]] = {
    "all occur": ([0, 1, 2, 3], set()),
    "last is nowhere": ([0, 1, 2], {"shifted labels"}),
    "middle is nowhere": ([0, 1, 3], set()),
    "0 is nowhere": ([1, 2, 3], {"no background"}),
}


@pytest.mark.parametrize("case", WARNED)
def test_labels_that_look_shifted_are_a_warning(folder_dataset, case):
    labels, expected = WARNED[case]
    mask = np.resize(np.array(labels, np.uint8), (4, 6))
    _, report = index(folder_dataset({"train": {"a": mask}, "val": {"b": mask}}))
    assert kinds_of(report) == expected


@pytest.mark.parametrize(
    ("crop_size", "warned"), [(2, True), (5, False), (None, False)]
)
def test_crop_that_shows_little_is_a_warning(folder_dataset, crop_size, warned):
    mask = labels_of(1, 2, 3, shape=(20, 20))
    folder = folder_dataset({"train": {"a": mask}, "val": {"b": mask}})
    _, report = index(folder, crop_size=crop_size)
    assert ("small crop" in kinds_of(report)) == warned
    assert ("`long_side: " in str(report["warnings"])) == warned


def test_pictures_that_nothing_reads_are_a_warning(small_folder):
    images = small_folder / "images"
    (images / "test").mkdir()
    for target in (images / "test/x.png", images / "y.png", images / "z.png"):
        shutil.copy(images / "train/b.png", target)
    (images / "train/b.heic").write_bytes(b"x")
    (images / "train/c.gif").write_bytes(b"x")
    _, report = index(small_folder)
    texts = {
        warning["text"]
        for warning in report["warnings"]
        if warning["kind"].startswith("unread")
    }
    assert len(texts) == 3
    for words in ("1 picture(s) directly in test/", "2 picture(s) directly in images/"):
        assert any(words in text for text in texts)
    assert any("1 .heic, 1 .gif" in text for text in texts)


@pytest.mark.parametrize("what", ["images", "masks"])
def test_no_picture_is_left_silently(small_folder, what):
    for path in (small_folder / what).glob("*/*.png"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"Expected train images .* the 5") as e:
        index(small_folder, on_error="skip")
    assert str(e.value).count("the file is empty") == 5


def test_turned_picture_as_tiff_is_upright_once(small_folder):
    (small_folder / "images/train/b.png").unlink()
    save_turned(small_folder / "images/train/b.tif", (4, 6), 6)
    table, _ = index(small_folder)
    assert tuple(table.loc["b", ["width", "height"]]) == (6, 4)
