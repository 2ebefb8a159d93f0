"""Odd files, names and layouts of datasets."""

import io
import json
import os
import shutil
import struct
import unicodedata
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from indexed_folders import index, kinds_of
from PIL import Image
from small_pictures import labels_of

from kproba.data.folders import Folders
from kproba.data.images import read_image
from kproba.data.kinds import KINDS
from kproba.data.kinds.pairs import LONGEST_ID, MissingDatasetError, make_ids
from kproba.data.label_images import read_label_image, write_label_image
from kproba.data.splits import read_index

# --- Files that cannot be read --------------------------------------------------------


def _png(width: int, height: int) -> bytes:
    """A PNG of such a size, with too little content."""
    content = b"\x89PNG\r\n\x1a\n"
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    for name, data in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0"))):
        check = struct.pack(">I", zlib.crc32(name + data))
        content += struct.pack(">I", len(data)) + name + data + check
    return content


def _encoded(kind: str, damage: Callable[[bytearray], object] | None = None) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(noise).save(buffer, kind)
    content = bytearray(buffer.getvalue())
    if damage is not None:
        damage(content)
    return bytes(content)


def _cut(content: bytearray) -> None:
    del content[len(content) // 2 :]


def _tiff_with_rationalexif_of() -> bytes:
    buffer = io.BytesIO()
    image = Image.new("RGB", (6, 4))
    image.save(buffer, "TIFF", tiffinfo={274: 1})
    content = bytearray(buffer.getvalue())
    place = content.index(struct.pack("<HHI", 274, 3, 1))
    content[place : place + 8] = struct.pack("<HHI", 274, 5, 1)
    return bytes(content)


UNREADABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "FIFO": (os.mkfifo, "is not a file, but a FIFO"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "not a file, but a device"),
    "dead link": (lambda path: path.symlink_to("nowhere.png"), "does not exist"),
    "loop of links": (lambda path: path.symlink_to(path.name), "symbolic links"),
    "empty": (lambda path: path.write_bytes(b""), "the file is empty"),
    "text": (lambda path: path.write_text("<html>"), "no known image format"),
    "20,000 pixels": (
        lambda path: path.write_bytes(_png(20000, 20000)),
        "more than 134 million pixels, which is the limit",
    ),
    "12,000 pixels": (
        lambda path: path.write_bytes(_png(12000, 12000)),
        "has 12000x12000 pixels, but the limit is 134 million",
    ),
    "a program": (
        lambda path: path.write_bytes(
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 4\n%%EndComments\n"
        ),
        "has the format EPS, which is not supported",
    ),
    **{
        f"cut {kind}": (
            lambda path, kind=kind: path.write_bytes(_encoded(kind, _cut)),
            "",
        )
        for kind in ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF", "AVIF", "DDS", "PPM")
    },
}


@pytest.mark.parametrize("what", ["image", "mask"])
@pytest.mark.parametrize("case", UNREADABLE)
def test_file_that_cannot_be_read_is_named_and_can_be_skipped(small_folder, case, what):
    spoil, reason = UNREADABLE[case]
    path = small_folder / f"{what}s/train/b.png"
    path.unlink()
    spoil(path)
    assert KINDS["folder"].digest_files(small_folder)
    with pytest.raises(ValueError, match=r"found 1 problem\(s\)") as error:
        index(small_folder)
    assert f"{path}: " in str(error.value)
    assert reason in str(error.value)
    [row] = pd.read_csv(small_folder.parent / "out/problems.csv").to_dict("records")
    assert row["path"] == str(path)
    assert row["kind"] in (f"unreadable {what}", "no label image")
    table, report = index(small_folder, on_error="skip")
    assert "b" not in table.index and len(table) == 4
    assert [entry["path"] for entry in report["problems"]] == [str(path)]


@pytest.mark.parametrize("what", ["image", "mask"])
def test_folder_with_the_name_of_a_file_is_named(small_folder, what):
    path = small_folder / f"{what}s/train/b.png"
    path.unlink()
    path.mkdir()
    with pytest.raises(ValueError, match=r"b\.png is a folder"):
        index(small_folder)
    table, _ = index(small_folder, on_error="skip")
    assert "b" not in table.index


NAMES_TO_REFUSE = {
    "no UTF-8": os.fsdecode(b"caf\xe9"),
    "line break": "two\nlines",
    "escape": "a\x1b[31m",
}


@pytest.mark.parametrize("case", NAMES_TO_REFUSE)
def test_name_that_cannot_be_printed_is_a_problem(small_folder, case):
    for what in ("images", "masks"):
        part = small_folder / what / "train"
        shutil.copy(part / "b.png", part / f"{NAMES_TO_REFUSE[case]}.png")
    assert KINDS["folder"].digest_files(small_folder)
    with pytest.raises(ValueError, match="rename the file") as error:
        index(small_folder)
    assert len(str(error.value).splitlines()) == 4
    table, report = index(small_folder, on_error="skip")
    assert len(table) == 5
    assert report["problems_by_kind"] == {"unusable name": 2}


def test_links_between_folders_end_and_stay_in_their_subset(small_folder):
    for what in ("images", "masks"):
        (small_folder / what / "train/loop").symlink_to(".", target_is_directory=True)
        (small_folder / what / "train/above").symlink_to("..", target_is_directory=True)
    assert KINDS["folder"].digest_files(small_folder)
    table, _ = index(small_folder)
    assert sorted(table.index) == ["007", "a", "b", "c", "d"]


def _as_float(orientation: float) -> bytes:
    """EXIF data with an orientation that is no whole number."""
    entry = struct.pack("<HHIf", 0x0112, 11, 1, orientation)
    body = b"II*\0" + struct.pack("<IH", 8, 1) + entry
    return b"Exif\0\0" + body + struct.pack("<I", 0)


@pytest.mark.parametrize(
    "exif",
    [_as_float(float("inf")), _as_float(float("nan")), _as_float(2.5), b"Exif\0\0II"],
    ids=["inf", "nan", "2.5", "cut"],
)
@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
def test_odd_exif_data_change_nothing(small_folder, exif, ending):
    (small_folder / "images/train/b.png").unlink()
    path = small_folder / f"images/train/b.{ending}"
    Image.new("RGB", (6, 4), (9, 99, 200)).save(path, exif=exif)
    table, _ = index(small_folder)
    assert tuple(table.loc["b", ["width", "height"]]) == (6, 4)
    assert read_image(path).shape == (3, 4, 6)


def test_tiff_with_an_odd_orientation_is_read_or_named(small_folder):
    (small_folder / "images/train/b.png").unlink()
    path = small_folder / "images/train/b.tif"
    path.write_bytes(_tiff_with_rationalexif_of())
    table, report = index(small_folder, on_error="skip")
    named = [problem["path"] for problem in report["problems"]]
    assert named == ([] if "b" in table.index else [str(path)])


def test_narrow_picture_is_read(folder_dataset):
    mask = np.zeros((1, 30000), np.uint8)
    mask[0, :9] = 1
    folder = folder_dataset({"train": {"a": mask}, "val": {"b": labels_of(1)}})
    table, _ = index(folder, long_side=100)
    assert tuple(table.loc["a", ["width", "height"]]) == (100, 1)


# --- Names ----------------------------------------------------------------------------


def _rename_masks(folder: Path, suffix: str) -> None:
    for path in list(folder.glob("masks/*/*.png")):
        path.rename(path.with_name(f"{path.stem}{suffix}.png"))


@pytest.mark.parametrize("suffix", ["_mask", "_gtFine_labelTrainIds", ".jpg", "-ü"])
def test_suffix_of_masks_is_suggested_and_used(small_folder, suffix):
    _rename_masks(small_folder, suffix)
    with pytest.raises(ValueError, match=f"`mask_suffix: {suffix}`"):
        index(small_folder)
    table, _ = index(small_folder, options={"mask_suffix": suffix})
    assert len(table) == 5


def test_single_odd_name_is_no_suffix(small_folder):
    (small_folder / "masks/train/b.png").rename(small_folder / "masks/train/b_m.png")
    with pytest.raises(ValueError, match=r"found 2 problem\(s\)") as error:
        index(small_folder)
    assert "mask_suffix" not in str(error.value)


@pytest.mark.parametrize("forms", [("NFD", "NFC"), ("NFC", "NFD"), ("NFD", "NFD")])
def test_composed_and_decomposed_names_are_one(small_folder, forms):
    for what, form in zip(("images", "masks"), forms, strict=True):
        path = small_folder / what / "train/b.png"
        path.rename(path.with_name(unicodedata.normalize(form, "Möwe é") + ".png"))
    table, _ = index(small_folder)
    assert unicodedata.normalize("NFC", "Möwe é") in table.index
    assert all(Path(path).is_file() for path in (*table["image"], *table["mask"]))


def test_near_miss_is_in_the_message(small_folder):
    path = small_folder / "masks/train/b.png"
    Image.open(path).convert("L").save(path.with_suffix(".jpg"))
    path.unlink()
    with pytest.raises(ValueError, match=r"b\.jpg exists, but is not a PNG"):
        index(small_folder)


def test_ids_of_subfolders_are_unique_and_short():
    names = ["a__b", "a/b", "c/d", "e" * 240, "f/" * 200 + "g"]
    ids = make_ids(names)
    assert ids["a__b"] == "a__b"
    assert ids["a/b"].startswith("a__b~")
    assert ids["c/d"] == "c__d"
    assert len(set(ids.values())) == len(names)
    assert all(len(name.encode()) <= LONGEST_ID for name in ids.values())
    assert not any("/" in name for name in ids.values())


# --- Layouts --------------------------------------------------------------------------


def _flat(folder: Path) -> None:
    for what in ("images", "masks"):
        for subset in ("train", "val"):
            for path in (folder / what / subset).iterdir():
                path.rename(folder / what / path.name)
            (folder / what / subset).rmdir()


def test_flat_folders_hold_a_share_out(small_folder):
    _flat(small_folder)
    table, report = index(small_folder, val_share=0.5)
    assert sorted(table.index) == ["007", "a", "b", "c", "d"]
    assert set(table["subset"]) == {"train", "val"}
    assert kinds_of(report) <= {"shifted labels"}
    assert len(KINDS["folder"].find_folders(small_folder)) == 2


@pytest.mark.parametrize("name", ["training", "validation", "test"])
def test_other_names_of_subsets_are_not_taken_for_subfolders(small_folder, name):
    _flat(small_folder)
    (small_folder / "images" / name).mkdir()
    with pytest.raises(MissingDatasetError, match=rf"images/{name}. Rename"):
        index(small_folder)


def test_pictures_in_subfolders_are_read(small_folder):
    for what in ("images", "masks"):
        part = small_folder / what / "train"
        (part / "site a").mkdir()
        (part / "b.png").rename(part / "site a/b.png")
    state = KINDS["folder"].digest_files(small_folder)
    table, _ = index(small_folder)
    assert Path(table.loc["site a__b", "image"]).is_file()
    os.utime(small_folder / "images/train/site a/b.png", ns=(1, 1))
    assert KINDS["folder"].digest_files(small_folder) != state


def test_same_files_elsewhere_have_the_same_digest(small_folder, tmp_path):
    (small_folder / "images/train/dead.png").symlink_to("nowhere")
    shutil.copytree(small_folder, tmp_path / "other", symlinks=True)
    (tmp_path / "link").symlink_to(small_folder)
    digests = {
        KINDS["folder"].digest_files(path)
        for path in (small_folder, tmp_path / "other", tmp_path / "link")
    }
    assert len(digests) == 1


def test_record_of_files_has_sizes_times_and_digests(small_folder):
    colours = "cat:48,112,32::\ndog:176,112,32::\ncow:250,50,83::\n"
    (small_folder / "labelmap.txt").write_text(colours)
    for path in small_folder.glob("masks/*/*.png"):
        Image.fromarray(read_label_image(path)).save(path)
    index(small_folder, state="0123")
    content = json.loads((small_folder.parent / "out/files.json").read_text())
    assert content["state"] == "0123"
    files = KINDS["folder"].list_files(small_folder)
    assert content["files"].keys() == files.keys()
    assert {"labelmap.txt", "classes.txt", "images/train/a.png"} <= files.keys()
    for name, (size, mtime, digest) in content["files"].items():
        status = (small_folder / name).stat()
        assert (size, mtime) == (status.st_size, status.st_mtime_ns)
        assert len(digest) == 16


def test_index_can_move_with_its_dataset(small_folder, tmp_path):
    (small_folder / "masks/train/b.png").unlink()
    Image.fromarray(labels_of(1)).save(small_folder / "masks/train/b.bmp")
    index(small_folder)
    text = (tmp_path / "out/index.csv").read_text()
    assert str(tmp_path) not in text
    small_folder.rename(tmp_path / "moved")
    folders = Folders(str(tmp_path / "moved"), str(tmp_path / "out/masks"))
    table = read_index(tmp_path / "out/index.csv", {"pets": folders})
    assert all(Path(path).is_file() for path in (*table["image"], *table["mask"]))


def test_long_side_scales_what_is_longer(folder_dataset):
    masks = {"a": labels_of(1, shape=(40, 80)), "b": labels_of(2, shape=(16, 32))}
    folder = folder_dataset({"train": masks, "val": {"c": labels_of(1, shape=(90, 9))}})
    table, _ = index(folder, long_side=40)
    sizes = {name: (row["width"], row["height"]) for name, row in table.iterrows()}
    assert sizes == {"a": (40, 20), "b": (32, 16), "c": (4, 40)}


# --- Pascal VOC -----------------------------------------------------------------------


@pytest.fixture
def plain_voc(tmp_path: Path) -> Path:
    """VOC as its own archive has it: two training images and one validation image."""
    root = tmp_path / "voc/VOCdevkit/VOC2012"
    for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / part).mkdir(parents=True)
    for name in ("1", "2", "3"):
        Image.new("RGB", (6, 4)).save(root / f"JPEGImages/{name}.jpg")
        write_label_image(root / f"SegmentationClass/{name}.png", labels_of(int(name)))
    (root / "ImageSets/Segmentation/train.txt").write_text("1\n2\n")
    (root / "ImageSets/Segmentation/val.txt").write_text("3\n")
    return tmp_path / "voc"


def test_voc_without_the_augmented_masks_says_the_way_out(plain_voc):
    with pytest.raises(MissingDatasetError) as error:
        index(plain_voc, kind="voc", class_count=20)
    message = str(error.value)
    assert "SegmentationClassAug.zip" in message
    assert "VOCtrainval" not in message
    assert "`masks: SegmentationClass`" in message


def test_voc_is_used_with_its_own_masks(plain_voc):
    options = {"masks": "SegmentationClass"}
    _, report = index(plain_voc, kind="voc", class_count=20, options=options)
    assert report["images"] == {"train": 2, "val": 1}
    assert "1464 train" in str(report["warnings"])
    lists = plain_voc / "VOCdevkit/VOC2012/ImageSets/Segmentation"
    (lists / "train.txt").unlink()
    with pytest.raises(MissingDatasetError, match=r"train\.txt is missing"):
        index(plain_voc, kind="voc", class_count=20, options=options)
