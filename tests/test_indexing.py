"""The index of a dataset: what is in it, and every fault that stops it."""

import io
import json
import re
import shutil
import struct
import tarfile
import time
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from kproba.data.augmentation import Augmentation
from kproba.data.images import read_image
from kproba.data.index import index_dataset
from kproba.data.kinds import KINDS
from kproba.data.kinds.folder import is_held_out
from kproba.data.kinds.pairs import MissingDatasetError
from kproba.data.label_images import read_label_image, write_label_image
from kproba.data.loaders import TrainingImages, WholeImages
from kproba.data.splits import (
    parse_classes,
    read_index,
    select_images,
    write_split,
)
from kproba.data.tasks import parse_task

CLASS_COUNT = 3  # of the small folder


def _labels(*values: int, shape: tuple[int, int] = (4, 6)) -> np.ndarray:
    """A mask of `shape` that starts with `values`."""
    mask = np.zeros(shape, np.uint8)
    mask.ravel()[: len(values)] = values
    return mask


def test_index_names_size_subset_and_labels_of_every_image(small_folder, index_of):
    path, _ = index_of(small_folder)
    index = read_index(path)
    columns = ["id", "image", "mask", "width", "height", "subset", "classes"]
    assert list(pd.read_csv(path).columns) == columns
    assert list(index.columns) == [*columns, "label_offset"]
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
        "on_error": "stop",
        "problems": [],
        "problems_by_kind": {},
        "warnings_by_kind": {"empty mask": 1},
        "warnings": [
            {
                "kind": "empty mask",
                "path": str(small_folder / "masks/val/c.png"),
                "text": "holds no class",
            }
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


def _remove_mask(folder: Path) -> None:
    (folder / "masks/train/b.png").unlink()


def _add_mask(folder: Path) -> None:
    write_label_image(folder / "masks/val/z.png", _labels())


def _shrink_mask(folder: Path) -> None:
    write_label_image(folder / "masks/train/b.png", _labels(shape=(4, 5)))


def _transpose_mask(folder: Path) -> None:
    write_label_image(folder / "masks/train/b.png", _labels(shape=(6, 4)))


def _colour_mask(folder: Path) -> None:
    colours = np.zeros((4, 6, 3), np.uint8)
    Image.fromarray(colours).save(folder / "masks/train/b.png")


def _deep_mask(folder: Path) -> None:
    Image.fromarray(np.zeros((4, 6), np.uint16)).save(folder / "masks/train/b.png")


def _label_beyond_classes(folder: Path) -> None:
    write_label_image(folder / "masks/train/b.png", _labels(1, CLASS_COUNT + 1))


def _label_below_ignored(folder: Path) -> None:
    write_label_image(folder / "masks/train/b.png", _labels(254))


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


def _save_turned(path: Path, size: tuple[int, int], orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", size, (9, 99, 200)).save(path, exif=exif)


def _deep_image(folder: Path) -> None:
    values = np.array([[0, 1000, 30000, 65535, 0, 0]] * 4, np.uint16)
    Image.fromarray(values).save(folder / "images/train/b.png")


def _turned_image(folder: Path) -> None:
    """Stored on its side, with a mask of the upright picture."""
    (folder / "images/train/b.png").unlink()
    _save_turned(folder / "images/train/b.jpg", (4, 6), 6)


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
    (_turned_image, "size mismatch", "masks/train/b.png", "EXIF orientation 6"),
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
    masks = {f"{number:02d}": _labels() for number in range(26)}
    folder = folder_dataset({"train": masks, "val": {"v": _labels()}})
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
        [index.name, report.name]
    )


def test_problems_of_pairing_and_of_content_stand_in_one_message(
    small_folder, index_of
):
    _remove_mask(small_folder)
    write_label_image(small_folder / "masks/val/c.png", _labels(9))
    with pytest.raises(ValueError, match=r"found 2 problem\(s\)") as error:
        index_of(small_folder)
    assert "no mask" in str(error.value)
    assert "labels 9" in str(error.value)


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
    _save_turned(path, (4, 6), 6)
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
    assert "'train': 20210, 'val': 2000" in warning["text"]


def test_problems_and_warnings_are_logged(small_folder, index_of, caplog):
    _cut_image(small_folder)
    with caplog.at_level("INFO"):
        index_of(small_folder, on_error="skip")
    for words in (
        "1 skipped, all in",
        "b.png: ",
        "1 unusual, all in",
        "holds no class",
    ):
        assert words in caplog.text


@pytest.mark.parametrize("orientation", [3, 6])
def test_stored_orientation_is_used_for_image_and_mask(
    small_folder, orientation, index_of
):
    """EXIF says turned, the mask has the stored size: both are used as stored."""
    (small_folder / "images/train/b.png").unlink()
    _save_turned(small_folder / "images/train/b.jpg", (6, 4), orientation)
    index, report = index_of(small_folder)
    row = read_index(index).set_index("id").loc["b"]
    assert (row["width"], row["height"]) == (6, 4)
    assert read_image(row["image"]).shape == (3, 4, 6)
    content = json.loads(report.read_text())
    assert content["warnings_by_kind"]["turned image"] == 1


def test_names_may_hold_blanks_and_any_script(folder_dataset, index_of):
    names = ["two words", "Größe", "猫 1", "a.b", 'comma,quote"']
    masks = {name: _labels(1) for name in names}
    folder = folder_dataset({"train": masks, "val": {"ü v": _labels(2)}})
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


def test_processes_and_one_loop_give_the_same_index(folder_dataset, index_of):
    masks = {f"{number:03d}": _labels(number % 4) for number in range(150)}
    folder = folder_dataset({"train": masks, "val": {"v": _labels(1)}})
    contents = []
    for workers in (1, 3):
        index, report = index_of(folder, workers=workers)
        contents.append((index.read_text(), report.read_text()))
    assert contents[0] == contents[1]


# --- held out ------------------------------------------------------------------------


def test_share_is_held_out_by_name(folder_dataset, index_of):
    masks = {f"image {number}": _labels(1) for number in range(400)}
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


# --- real masks ----------------------------------------------------------------------


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


# --- label offset ------------------------------------------------------------------


@pytest.fixture
def shifted(folder_dataset, monkeypatch):
    """A folder of a kind whose masks store the first class as 0 and ignore 255."""
    kind = replace(KINDS["folder"], name="shifted", label_offset=1)
    monkeypatch.setitem(KINDS, "shifted", kind)
    masks = {"a": _labels(), "b": _labels(2, 1, 255)}
    return folder_dataset({"train": masks, "val": {"c": _labels(1)}})


def test_label_offset_is_in_the_index_and_added_to_the_labels(shifted, index_of):
    path, report = index_of(shifted, kind="shifted")
    index = read_index(path)
    assert index["label_offset"].tolist() == [1, 1, 1]
    assert index["classes"].tolist() == ["1", "1 2 3 255", "1 2"]
    content = json.loads(report.read_text())
    assert content["images_with_label"] == {"1": 3, "2": 2, "3": 1, "255": 1}
    assert content["warnings"] == []  # a mask of class 1 alone is not empty


def test_class_count_is_checked_after_the_label_offset(shifted, index_of):
    with pytest.raises(ValueError, match=r"b\.png: holds the labels 3, .* end at 2"):
        index_of(shifted, kind="shifted", class_count=2)
    write_label_image(shifted / "masks/train/a.png", _labels(254))
    with pytest.raises(ValueError, match=r"a\.png: Expected mask values that stay"):
        index_of(shifted, kind="shifted")


def test_without_an_offset_the_index_has_no_such_column(small_folder, index_of):
    path, _ = index_of(small_folder)
    header = path.read_text().splitlines()[0]
    assert header == "id,image,mask,width,height,subset,classes"
    assert read_index(path)["label_offset"].tolist() == [0] * 5


def test_split_has_the_offset_only_if_a_row_needs_it(
    shifted, folder_dataset, index_of, tmp_path
):
    groups = parse_task("offline", 3)
    for kind, expected in (("shifted", True), ("folder", False)):
        index, _ = index_of(shifted, kind=kind)
        split = tmp_path / f"{kind}.csv"
        write_split([index], split, groups=groups, setting="overlap")
        assert ("label_offset" in split.read_text()) == expected


def test_loaders_add_the_offset_of_each_row(shifted, index_of):
    """As with an addition of another kind: one row with an offset, one without."""
    index = read_index(index_of(shifted, kind="shifted")[0])
    rows = index[index["id"] == "b"]
    rows = pd.concat([rows, rows.assign(label_offset=0, id="b0")], ignore_index=True)
    table = np.arange(256, dtype=np.uint8)
    stored = _labels(2, 1, 255)
    with_offset = np.where(stored == 255, 255, stored + 1)
    augmentation = Augmentation(6, (1.0, 1.0), 0.0)
    images = TrainingImages(rows, augmentation=augmentation, seed=0, label_table=table)
    whole = [target for _, target, *_ in (WholeImages(rows, table)[k] for k in (0, 1))]
    decoded = [images.decode(number)[1] for number in (0, 1)]
    for targets in (whole, decoded):
        np.testing.assert_array_equal(targets[0], with_offset)
        np.testing.assert_array_equal(targets[1], stored)


def test_pseudo_labels_have_no_offset(shifted, index_of, tmp_path):
    rows = read_index(index_of(shifted, kind="shifted")[0])
    pseudo_labels = tmp_path / "labels"
    pseudo_labels.mkdir()
    for name in rows["id"]:
        write_label_image(pseudo_labels / f"{name}.png", _labels(2))
    images = TrainingImages(
        rows,
        augmentation=Augmentation(6, (1.0, 1.0), 0.0),
        seed=0,
        label_table=None,
        pseudo_labels=pseudo_labels,
    )
    np.testing.assert_array_equal(images.decode(0)[1], _labels(2))
