"""Masks of other forms: what is read without a loss, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from indexed_folders import exif_of, index, kinds_of
from PIL import Image
from small_pictures import labels_of

from kproba.data.images import read_image
from kproba.data.kinds import KINDS
from kproba.data.label_images import read_label_image, write_label_image

NAMES = ["background", "cat", "dog", "cow"]
COLOURS = np.array([(0, 0, 0), (48, 112, 32), (176, 112, 32), (250, 50, 83)], np.uint8)
LABELMAP = (
    "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:48,112,32::\n"
    "dog:176,112,32::\ncow:250,50,83::\n"
)


# --- Masks that lose nothing ----------------------------------------------------------


def _save(folder: Path, suffix: str, image: Image.Image, **options: Any) -> None:
    (folder / "masks/train/b.png").unlink(missing_ok=True)
    image.save(folder / f"masks/train/b{suffix}", **options)


STORED = labels_of(1, 3, 2, 255)
GAPS = np.array([0, 10, 20, 30], np.uint8)
READ: dict[str, tuple[Callable[[Path], object], dict[str, Any]]] = {
    "bmp": (lambda folder: _save(folder, ".bmp", Image.fromarray(STORED)), {}),
    "tif": (lambda folder: _save(folder, ".tif", Image.fromarray(STORED)), {}),
    "packed TIFF": (
        lambda folder: _save(
            folder, ".TIFF", Image.fromarray(STORED), compression="tiff_lzw"
        ),
        {},
    ),
    "16 bits": (
        lambda folder: _save(folder, ".png", Image.fromarray(STORED.astype(np.uint16))),
        {},
    ),
    "32 bits": (
        lambda folder: _save(folder, ".tif", Image.fromarray(STORED.astype(np.int32))),
        {},
    ),
    "turned by its own EXIF data": (
        lambda folder: _save(
            folder,
            ".png",
            Image.fromarray(np.rot90(STORED).copy()),
            exif=exif_of(6),
        ),
        {},
    ),
}


@pytest.mark.parametrize("case", READ)
def test_mask_of_another_lossless_form_is_converted(small_folder, case):
    write, settings = READ[case]
    write(small_folder)
    table, report = index(small_folder, **settings)
    np.testing.assert_array_equal(read_label_image(table.loc["b", "mask"]), STORED)
    assert table["mask_made"].tolist() == [0, 0, 1, 0, 0]
    assert table.loc["b", "classes"] == "0 1 2 3 255"
    assert report["problems"] == []


def _rewrite(folder: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Store all masks in another way."""
    for path in folder.glob("masks/*/*.png"):
        Image.fromarray(change(read_label_image(path))).save(path)


def _with_gaps(folder: Path) -> None:
    _rewrite(folder, lambda mask: np.where(mask == 255, 255, 10 * mask).astype("u1"))


def _in_colour(folder: Path) -> None:
    _rewrite(folder, lambda mask: COLOURS[np.where(mask == 255, 0, mask)])


def _in_palette(folder: Path) -> None:
    for path in folder.glob("masks/*/*.png"):
        labels = read_label_image(path)
        image = Image.fromarray(3 - np.where(labels == 255, 0, labels))
        image.putpalette(COLOURS[::-1].tobytes())
        image.save(path)


def _with_labelmap(folder: Path, name: str = "labelmap.txt") -> None:
    _in_colour(folder)
    (folder / name).write_text(LABELMAP)


MAPS: dict[str, tuple[Callable[[Path], object], dict[str, Any]]] = {
    "labels": (_with_gaps, {"labels": {"10": "cat", "20": "dog", "30": "cow"}}),
    "labels with the background": (
        _with_gaps,
        {"labels": {"0": "background", "10": "cat", "20": "dog", "30": "cow"}},
    ),
    "labelmap.txt": (_with_labelmap, {}),
    "named labelmap": (
        lambda folder: _with_labelmap(folder, "colours.txt"),
        {"labelmap": "colours.txt"},
    ),
    "palette and labelmap": (
        lambda folder: (
            _in_palette(folder),
            (folder / "labelmap.txt").write_text(LABELMAP),
        ),
        {},
    ),
}


@pytest.mark.parametrize("case", MAPS)
def test_values_and_colours_are_read_through_a_map(small_folder, case):
    before, _ = index(small_folder)
    truth = {name: read_label_image(row["mask"]) for name, row in before.iterrows()}
    if "labels" not in MAPS[case][1]:  # no colour is ignored
        truth = {name: np.where(mask == 255, 0, mask) for name, mask in truth.items()}
    write, options = MAPS[case]
    write(small_folder)
    table, _ = index(small_folder, options=options)
    assert table["mask_made"].all()
    for name, expected in truth.items():
        labels = read_label_image(table.loc[name, "mask"])
        np.testing.assert_array_equal(labels, expected)
    kind = KINDS["folder"].with_settings(options)
    assert kind.class_names(small_folder, None) == NAMES[1:]


REFUSED: dict[str, tuple[Callable[[Path], object], dict[str, Any], str]] = {
    "colours without a labelmap": (
        _in_colour,
        {},
        r"0,0,0 \(.* %\), 48,112,32 \(.* %\).*; .* labelmap\.txt",
    ),
    "colour that the labelmap lacks": (
        lambda folder: (
            _in_colour(folder),
            (folder / "labelmap.txt").write_text(LABELMAP.replace("50,83", "50,84")),
        ),
        {},
        r"colours 250,50,83 \(4.17 %\), which are not in .*labelmap\.txt",
    ),
    "value that labels lack": (
        _with_gaps,
        {"labels": {"10": "cat", "20": "dog"}},
        "values 30, which are not in `labels`",
    ),
    "gaps without a map": (_with_gaps, {}, "labels 20, 30, but .* `labels`"),
    "JPEG": (
        lambda folder: _save(folder, ".png", Image.fromarray(STORED), format="JPEG"),
        {},
        "is a JPEG image, and this format may change labels",
    ),
    "TIFF of JPEGs": (
        lambda folder: _save(
            folder, ".tif", Image.fromarray(STORED), compression="jpeg"
        ),
        {},
        "TIFF with jpeg compression",
    ),
    "numbers with fractions": (
        lambda folder: _save(
            folder, ".tif", Image.fromarray(STORED.astype(np.float32))
        ),
        {},
        "has mode F",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_mask_that_no_map_explains_says_the_way_out(small_folder, case):
    write, options, message = REFUSED[case]
    write(small_folder)
    with pytest.raises(ValueError, match=message):
        index(small_folder, options=options)


def test_values_of_masks_for_predictions():
    labels = {"7": "road", "8": "road", "11": "car"}
    kind = KINDS["folder"].with_settings({"labels": labels})
    assert kind.mask_values() == {0: 0, 1: 7, 2: 11}
    kind = KINDS["folder"].with_settings({"labels": {"0": "road", "1": "car"}})
    assert kind.mask_values() == {0: 255, 1: 0, 2: 1}
    assert KINDS["folder"].with_settings({}).mask_values() == {}


@pytest.mark.parametrize(
    ("options", "listed", "message"),
    [
        ({"labels": {"1": "background"}}, None, "Expected a class in `labels`"),
        ({"labels": {"255": "cat"}}, None, "values other than 255"),
        ({"labels": {"1": "cat"}}, NAMES, "either `labels` or `classes`, but got both"),
        ({"labels": {"1": "cat"}, "labelmap": "x"}, None, "`labels` or `labelmap`"),
    ],
)
def test_wrong_map_of_values_is_refused(small_folder, options, listed, message):
    kind = KINDS["folder"].with_settings(options)
    with pytest.raises(ValueError, match=message):
        kind.class_names(small_folder, listed)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file has none"),
        ("cat 1 2 3", "line 1 is 'cat 1 2 3'"),
        ("cat:1,2,256::", "a colour from 0 to 255"),
        ("cat:1,2,3::\ndog:1,2,3::", "line 2 gives 1,2,3 the name 'dog'"),
        ("cat:1,2,3::\nhorse:4,5,6::", "'horse' is not in cat, dog, cow"),
        ("cat::::", "line 1 is 'cat::::'"),
    ],
)
def test_wrong_labelmap_is_refused(small_folder, text, message):
    (small_folder / "labelmap.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        index(small_folder)


def test_labelmap_alone_names_the_classes(small_folder):
    _with_labelmap(small_folder)
    (small_folder / "classes.txt").unlink()
    assert KINDS["folder"].class_names(small_folder, None) == NAMES[1:]


# --- Pictures that are shown turned ---------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("drawn", ["upright", "as stored"])
def test_mask_lies_over_the_upright_picture(folder_dataset, orientation, drawn):
    """One corner is bright in the picture and labelled in the mask."""
    folder = folder_dataset(
        {"train": {"a": labels_of(1), "t": labels_of(1)}, "val": {"v": labels_of(1)}}
    )
    stored = np.zeros((16, 32, 3), np.uint8)
    stored[:8, :8] = 255
    image = folder / "images/train/a.png"
    Image.fromarray(stored).save(image, exif=exif_of(orientation))
    upright = read_image(image)[0].numpy() > 127
    marked = upright if drawn == "upright" else stored[..., 0] > 127
    write_label_image(folder / "masks/train/a.png", marked.astype(np.uint8))
    table, report = index(folder)
    row = table.loc["a"]
    assert (row["height"], row["width"]) == upright.shape
    labels = read_label_image(row["mask"])
    sideways = orientation >= 5
    if drawn == "upright" or sideways:
        np.testing.assert_array_equal(labels == 1, upright)
    expected = set() if orientation == 1 else {"turned image"}
    if sideways:
        expected = {"turned mask"} if drawn == "as stored" else set()
    assert kinds_of(report) == expected
    assert row["mask_made"] == int(sideways and drawn == "as stored")
