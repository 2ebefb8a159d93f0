"""The index of a dataset: what is in it, and what it accepts."""

import json
import re
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from small_pictures import labels_of, save_turned

from kproba.data.images import read_image
from kproba.data.kinds.folder import is_held_out
from kproba.data.label_images import read_label_image
from kproba.data.splits import parse_classes, read_index


def test_index_names_size_subset_and_labels_of_every_image(small_folder, index_of):
    path, _ = index_of(small_folder)
    index = read_index(path)
    columns = ["id", "dataset", "image", "mask", "width", "height", "subset"]
    columns += ["classes", "image_sha256", "mask_sha256"]
    assert list(pd.read_csv(path).columns) == columns
    assert not index["label_offset"].any()
    facts = ["id", "width", "height", "subset", "classes"]
    assert index[facts].values.tolist() == [
        ["007", 4, 5, "train", "2"],
        ["a", 6, 4, "train", "0 2 3"],
        ["b", 6, 4, "train", "0 1 255"],
        ["c", 6, 4, "val", "0"],
        ["d", 6, 4, "val", "0 1"],
    ]
    for kind in ("image", "mask"):
        expected = small_folder / f"{kind}s" / "val" / "d.png"
        assert index.loc[index["id"] == "d", kind].item() == str(expected)


def test_integrity_report_counts_images_and_labels(small_folder, index_of):
    _, path = index_of(small_folder)
    report = json.loads(path.read_text())
    digest = report.pop("labels_sha256")
    assert re.fullmatch("[0-9a-f]{64}", digest)
    assert report == {
        "kind": "folder",
        "folder": str(small_folder),
        "images": {"train": 3, "val": 2},
        "images_with_label": {"0": 4, "1": 2, "2": 2, "3": 1, "255": 1},
        "classes_without_images": {"train": [], "val": [2, 3]},
        "on_error": "stop",
        "problems": [],
        "problems_by_kind": {},
        "warnings_by_kind": {"class without images": 2, "empty mask": 1},
        "warnings": [
            *(
                {
                    "kind": "class without images",
                    "path": str(small_folder),
                    "text": f"class '{name}' (label {label}) is in no validation "
                    f"image; its IoU counts as 0",
                }
                for label, name in ((3, "cow"), (2, "dog"))
            ),
            {
                "kind": "empty mask",
                "path": str(small_folder / "masks/val/c.png"),
                "text": "contains no class",
            },
        ],
    }


def test_labels_digest_knows_values_and_not_files(small_folder, index_of):
    def digest() -> str:
        _, path = index_of(small_folder)
        return json.loads(path.read_text())["labels_sha256"]

    before, mask = digest(), small_folder / "masks/train/a.png"
    grey = read_label_image(mask)
    Image.fromarray(grey).save(mask, compress_level=1)  # other bytes, same labels
    assert digest() == before
    grey[0, 0] = 1
    Image.fromarray(grey).save(mask)
    assert digest() != before


def test_image_and_mask_are_paired_whatever_the_ending(small_folder, index_of):
    image = small_folder / "images" / "train" / "b.png"
    Image.open(image).save(image.with_suffix(".JPG"), format="JPEG")
    image.unlink()
    (small_folder / "images" / "train" / "notes.txt").write_text("no image")
    path, _ = index_of(small_folder)
    index = read_index(path)
    assert len(index) == 5
    assert index.loc[index["id"] == "b", "image"].item().endswith("b.JPG")


@pytest.mark.parametrize("mode", ["CMYK", "L", "LA", "RGBA", "P"])
def test_images_of_other_colour_spaces_are_used_as_rgb(small_folder, mode, index_of):
    ending = "jpg" if mode == "CMYK" else "png"
    (small_folder / "images/train/a.png").unlink()
    path = small_folder / f"images/train/a.{ending}"
    Image.new("RGB", (6, 4), (200, 100, 50)).convert(mode).save(path)
    index, _ = index_of(small_folder)
    assert str(path) in read_index(index)["image"].tolist()
    image = read_image(path)
    assert image.shape == (3, 4, 6)
    grey = mode in ("L", "LA")
    expected = (124, 124, 124) if grey else (200, 100, 50)
    difference = image.float().mean(dim=(1, 2)) - torch.tensor(expected)
    assert difference.abs().max() <= 4  # the palette and JPEG round


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("mode", ["grey", "palette"])
def test_masks_of_few_bits_hold_their_stored_labels(small_folder, index_of, bits, mode):
    """Pillow stretches grey images of few bits over 0..255."""
    labels = np.zeros((4, 6), np.uint8)
    labels[0] = min(3, 2**bits - 1)
    path = small_folder / "masks/train/b.png"
    if mode == "palette":
        image = Image.fromarray(labels).convert("P")
        image.putpalette(list(range(48)))
        image.save(path, bits=bits)
    else:
        _save_grey(path, labels, bits)
    with Image.open(path) as stored:
        assert stored.mode == ("P" if mode == "palette" else "1" if bits == 1 else "L")
    np.testing.assert_array_equal(read_label_image(path), labels)
    index, _ = index_of(small_folder)
    cell = read_index(index).set_index("id").loc["b", "classes"]
    assert parse_classes(cell) == {0, int(labels[0, 0])}


def _save_grey(path: Path, labels: np.ndarray, bits: int) -> None:
    """A grey PNG of so many bits, which Pillow itself does not write."""
    rows = []
    for row in labels:
        text = "".join(f"{value:0{bits}b}" for value in row)
        text += "0" * (-len(text) % 8)
        packed = bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))
        rows.append(b"\0" + packed)
    height, width = labels.shape
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for name, data in (
        (b"IHDR", header),
        (b"IDAT", zlib.compress(b"".join(rows))),
        (b"IEND", b""),
    ):
        check = struct.pack(">I", zlib.crc32(name + data))
        content += struct.pack(">I", len(data)) + name + data + check
    path.write_bytes(content)


def test_tiff_is_used_upright_as_it_is_opened(small_folder, index_of):
    (small_folder / "images/train/b.png").unlink()
    path = small_folder / "images/train/b.tif"
    save_turned(path, (4, 6), 6)
    index, report = index_of(small_folder)
    row = read_index(index).set_index("id").loc["b"]
    assert (row["width"], row["height"]) == (6, 4)
    assert read_image(path).shape == (3, 4, 6)
    assert "turned image" not in json.loads(report.read_text())["warnings_by_kind"]


def test_part_of_ade20k_is_a_warning(small_folder, index_of, tmp_path):
    root = tmp_path / "ade"
    for subset, part in (("train", "training"), ("val", "validation")):
        shutil.copytree(small_folder / "images" / subset, root / "images" / part)
        shutil.copytree(small_folder / "masks" / subset, root / "annotations" / part)
    _, report = index_of(root, kind="ade20k", class_count=150)
    warnings = json.loads(report.read_text())["warnings"]
    [warning] = [entry for entry in warnings if entry["kind"] == "incomplete dataset"]
    assert "20210 train, 2000 val" in warning["text"]


def test_names_may_hold_blanks_and_any_script(folder_dataset, index_of):
    names = ["two words", "Größe", "猫 1", "a.b", 'comma,quote"']
    masks = {name: labels_of(1) for name in names}
    folder = folder_dataset({"train": masks, "val": {"ü v": labels_of(2)}})
    index, _ = index_of(folder)
    table = read_index(index)
    assert sorted(table["id"]) == sorted([*names, "ü v"])
    for path in (*table["image"], *table["mask"]):
        assert Path(path).is_file()


def test_hidden_and_other_files_are_left_out(small_folder, index_of):
    (small_folder / "images/train/._b.png").write_bytes(b"resource fork")
    (small_folder / "images/train/Thumbs.db").write_bytes(b"")
    index, _ = index_of(small_folder)
    assert len(read_index(index)) == 5


def test_same_picture_in_train_and_val_is_a_warning(small_folder, index_of):
    shutil.copy(small_folder / "images/train/a.png", small_folder / "images/val/d.png")
    _, report = index_of(small_folder)
    [warning] = [
        warning
        for warning in json.loads(report.read_text())["warnings"]
        if warning["kind"] == "same image in train and val"
    ]
    assert {"a.png", "d.png"} <= set(re.findall(r"\w\.png", str(warning)))


def test_a_background_that_no_mask_has_is_one_warning(folder_dataset, index_of, caplog):
    full = np.full((4, 6), 1, np.uint8)
    folder = folder_dataset({"train": {"a": full, "b": 2 * full}, "val": {"c": full}})
    _, report = index_of(folder)
    [warning] = [
        entry
        for entry in json.loads(report.read_text())["warnings"]
        if entry["kind"] != "class without images"
    ]
    assert warning["kind"] == "no background"
    assert warning["path"] == str(folder)
    assert "label 0 occurs in no mask" in warning["text"]
    assert "Set evaluation.policy to mib" in caplog.text


def test_processes_and_one_loop_give_the_same_index(folder_dataset, index_of):
    masks = {f"{number:03d}": labels_of(number % 4) for number in range(150)}
    folder = folder_dataset({"train": masks, "val": {"v": labels_of(1)}})
    contents = []
    for workers in (1, 3):
        index, report = index_of(folder, workers=workers)
        contents.append((index.read_text(), report.read_text()))
    assert contents[0] == contents[1]


# --- held out ------------------------------------------------------------------------


def test_share_is_held_out_by_name(folder_dataset, index_of):
    masks = {f"image {number}": labels_of(1) for number in range(400)}
    folder = folder_dataset({"train": masks})
    index, _ = index_of(folder, val_share=0.25)
    table = read_index(index).set_index("id")
    tested = set(table.index[table["subset"] == "val"])
    assert 75 <= len(tested) <= 125
    for name in list(masks)[:200]:
        for kind in ("images", "masks"):
            (folder / kind / "train" / f"{name}.png").unlink()
    index, _ = index_of(folder, val_share=0.25)
    table = read_index(index).set_index("id")
    assert len(table) == 200
    assert set(table.index[table["subset"] == "val"]) == tested & set(table.index)


def test_larger_share_keeps_what_a_smaller_one_held_out():
    names = [str(number) for number in range(1000)]
    small, large = (
        {name for name in names if is_held_out(name, share)} for share in (0.1, 0.3)
    )
    assert small < large
    assert 60 <= len(small) <= 140
    assert 250 <= len(large) <= 350
