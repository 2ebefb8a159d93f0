"""Every fault of a dataset that its index refuses, skips or counts."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from small_pictures import labels_of, save_turned

from kproba.data.kinds.pairs import MissingDatasetError
from kproba.data.label_images import write_label_image
from kproba.data.splits import read_index

CLASS_COUNT = 3  # of the small folder


def _remove_mask(folder: Path) -> None:
    (folder / "masks/train/b.png").unlink()


def _add_mask(folder: Path) -> None:
    write_label_image(folder / "masks/val/z.png", labels_of())


def _shrink_mask(folder: Path) -> None:
    write_label_image(folder / "masks/train/b.png", labels_of(shape=(4, 5)))


def _transpose_mask(folder: Path) -> None:
    write_label_image(folder / "masks/train/b.png", labels_of(shape=(6, 4)))


def _colour_mask(folder: Path) -> None:
    colours = np.zeros((4, 6, 3), np.uint8)
    Image.fromarray(colours).save(folder / "masks/train/b.png")


def _deep_mask(folder: Path) -> None:
    values = np.full((4, 6), 256, np.uint16)
    Image.fromarray(values).save(folder / "masks/train/b.png")


def _label_beyond_classes(folder: Path) -> None:
    write_label_image(folder / "masks/train/b.png", labels_of(1, CLASS_COUNT + 1))


def _label_below_ignored(folder: Path) -> None:
    write_label_image(folder / "masks/train/b.png", labels_of(254))


def _cut_image(folder: Path) -> None:
    path = folder / "images/train/b.png"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _cut_jpeg(folder: Path) -> None:
    (folder / "images/train/b.png").unlink()
    path = folder / "images/train/b.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, quality=95)
    path.write_bytes(path.read_bytes()[:-20])


def _text_image(folder: Path) -> None:
    (folder / "images/train/b.png").write_text("<html>not found</html>")


def _cut_mask(folder: Path) -> None:
    path = folder / "masks/train/b.png"
    path.write_bytes(path.read_bytes()[:-30])


def _deep_image(folder: Path) -> None:
    values = np.array([[0, 1000, 30000, 65535, 0, 0]] * 4, np.uint16)
    Image.fromarray(values).save(folder / "images/train/b.png")


def _turned_image(folder: Path) -> None:
    """Stored on its side, with a mask that fits in no direction."""
    (folder / "images/train/b.png").unlink()
    save_turned(folder / "images/train/b.jpg", (3, 6), 6)


def _empty_image(folder: Path) -> None:
    (folder / "images/train/b.png").write_bytes(b"")


def _empty_mask(folder: Path) -> None:
    (folder / "masks/train/b.png").write_bytes(b"")


def _same_id_in_both_subsets(folder: Path) -> None:
    for kind in ("images", "masks"):
        shutil.copy(folder / kind / "train/b.png", folder / kind / "val/b.png")


FAULTS = [
    (_remove_mask, "missing mask", "images/train/b.png", "no mask"),
    (_add_mask, "missing image", "masks/val/z.png", "no image"),
    (_shrink_mask, "size mismatch", "masks/train/b.png", "5x4 pixels, but"),
    (_transpose_mask, "size mismatch", "masks/train/b.png", "4x6 pixels, but"),
    (_colour_mask, "no label image", "masks/train/b.png", "mode RGB"),
    (_deep_mask, "no label image", "masks/train/b.png", "mode I;16"),
    (_label_beyond_classes, "label out of range", "masks/train/b.png", "labels 4, but"),
    (_label_below_ignored, "label out of range", "masks/train/b.png", "labels 254,"),
    (_cut_image, "unreadable image", "images/train/b.png", "truncated"),
    (_cut_jpeg, "unreadable image", "images/train/b.jpg", "truncated"),
    (_empty_image, "unreadable image", "images/train/b.png", "the file is empty"),
    (_text_image, "unreadable image", "images/train/b.png", "no known image format"),
    (_deep_image, "unreadable image", "images/train/b.png", "mode I;16"),
    (_empty_mask, "unreadable mask", "masks/train/b.png", "the file is empty"),
    (_cut_mask, "unreadable mask", "masks/train/b.png", "truncated"),
    (_turned_image, "size mismatch", "masks/train/b.png", "EXIF orientation is 6"),
    (_same_id_in_both_subsets, "train/val overlap", "images/train/b.png", "and in val"),
]


@pytest.mark.parametrize(("spoil", "kind", "named", "reason"), FAULTS)
def test_faulty_image_is_refused_by_name_and_nothing_is_written(
    small_folder, spoil, kind, named, reason, index_of
):
    spoil(small_folder)
    with pytest.raises(ValueError, match=r"found 1 problem\(s\)") as error:
        index_of(small_folder)
    first, line, last = str(error.value).splitlines()
    assert str(small_folder) in first
    assert str(small_folder / named) in line
    assert reason in line
    assert "on_error: skip" in last
    written = [path.name for path in (small_folder.parent / "out").iterdir()]
    assert written == ["problems.csv"]
    [problem] = pd.read_csv(small_folder.parent / "out/problems.csv").to_dict("records")
    assert (problem["kind"], problem["path"]) == (kind, str(small_folder / named))


@pytest.mark.parametrize(("spoil", "kind", "named", "reason"), FAULTS)
def test_faulty_image_is_skipped_on_request(
    small_folder, spoil, kind, named, reason, index_of
):
    spoil(small_folder)
    path, report = index_of(small_folder, on_error="skip")
    content = json.loads(report.read_text())
    assert [problem["path"] for problem in content["problems"]] == [
        str(small_folder / named)
    ]
    assert content["problems_by_kind"] == {kind: 1}
    index = read_index(path)
    train = ["007", "a"] + (["b"] if kind == "missing image" else [])
    val = ["c", "d"] + (["b"] if kind == "train/val overlap" else [])
    assert index.loc[index["subset"] == "train", "id"].tolist() == train
    assert sorted(index.loc[index["subset"] == "val", "id"]) == sorted(val)


def test_two_images_of_one_name_are_both_refused(small_folder, index_of):
    shutil.copy(
        small_folder / "images/train/b.png", small_folder / "images/train/b.bmp"
    )
    with pytest.raises(ValueError, match=r"found 2 problem\(s\)") as error:
        index_of(small_folder)
    for name in ("b.png", "b.bmp"):
        assert (
            f"{small_folder}/images/train/{name}: another image has the id 'b'"
            in str(error.value)
        )


@pytest.mark.parametrize("what", ["images", "masks"])
def test_half_a_validation_set_is_refused(small_folder, what, index_of):
    shutil.rmtree(small_folder / what / "val")
    with pytest.raises(MissingDatasetError, match="one of the two folders") as error:
        index_of(small_folder)
    assert str(small_folder / what / "val") in str(error.value)


@pytest.mark.parametrize("what", ["images", "masks"])
def test_folder_without_training_images_is_refused(small_folder, what, index_of):
    shutil.rmtree(small_folder / what / "train")
    with pytest.raises(MissingDatasetError, match="images/train/ and masks/train/"):
        index_of(small_folder)


def test_empty_validation_set_is_refused(small_folder, index_of):
    for kind in ("images", "masks"):
        for path in (small_folder / kind / "val").iterdir():
            path.unlink()
    with pytest.raises(ValueError, match=r"Expected val images .*val_share"):
        index_of(small_folder)


def test_all_images_skipped_is_refused(small_folder, index_of):
    for path in (small_folder / "masks/val").iterdir():
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"Expected val images .* the 2 skipped"):
        index_of(small_folder, on_error="skip")


def test_many_problems_are_counted_and_the_first_twenty_named(folder_dataset, index_of):
    masks = {f"{number:02d}": labels_of() for number in range(26)}
    folder = folder_dataset({"train": masks, "val": {"v": labels_of()}})
    for path in sorted((folder / "masks/train").iterdir())[1:]:
        path.unlink()
    with pytest.raises(ValueError, match=r"found 25 problem\(s\)") as error:
        index_of(folder)
    lines = str(error.value).splitlines()[1:-2]
    named = [line.split(":")[0].strip() for line in lines]
    assert named == [
        str(folder / f"images/train/{number:02d}.png") for number in range(1, 21)
    ]
    assert "and 5 more, all in" in str(error.value)
    assert len(pd.read_csv(folder.parent / "out/problems.csv")) == 25


def test_corrected_dataset_leaves_no_list_of_problems(small_folder, index_of):
    image = small_folder / "images/train/b.png"
    content = image.read_bytes()
    _cut_image(small_folder)
    with pytest.raises(ValueError, match="found 1 problem"):
        index_of(small_folder)
    image.write_bytes(content)
    index, report = index_of(small_folder)
    assert sorted(path.name for path in index.parent.iterdir()) == (
        ["files.json", index.name, "masks", report.name]
    )


def test_problems_of_pairing_and_of_content_stand_in_one_message(
    small_folder, index_of
):
    _remove_mask(small_folder)
    write_label_image(small_folder / "masks/val/c.png", labels_of(9))
    with pytest.raises(ValueError, match=r"found 2 problem\(s\)") as error:
        index_of(small_folder)
    assert "no mask" in str(error.value)
    assert "labels 9" in str(error.value)


def test_problems_and_warnings_are_logged(small_folder, index_of, caplog):
    _cut_image(small_folder)
    with caplog.at_level("INFO"):
        index_of(small_folder, on_error="skip")
    for words in (
        "1 skipped, all in",
        "b.png: ",
        "4 unusual, all in",
        "contains no class",
    ):
        assert words in caplog.text
