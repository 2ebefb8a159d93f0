"""Layouts of the kinds of datasets, their class names, lists and orders."""

import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kproba.data.kinds import KINDS
from kproba.data.kinds.pairs import VAL_SHARE, MissingDatasetError
from kproba.data.kinds.voc import read_voc_ids
from kproba.data.label_images import write_label_image


def _write(image: Path, mask: Path) -> None:
    for path in (image, mask):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3)).save(image)
    write_label_image(mask, np.zeros((3, 4), np.uint8))


# --- Pascal VOC ----------------------------------------------------------------------


def _write_voc(root: Path, masks: Path | None = None) -> None:
    """Two training images and one validation image, with their lists in the folder."""
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train_aug.txt").write_text("2007_000032\n2007_000039\n")
    (lists / "val.txt").write_text("2007_000033\n")
    for name in ("2007_000032", "2007_000039", "2007_000033"):
        mask = (masks or root) / "SegmentationClassAug" / f"{name}.png"
        _write(root / "JPEGImages" / f"{name}.jpg", mask)


@pytest.mark.parametrize("nesting", ["", "VOC2012", "VOCdevkit/VOC2012"])
@pytest.mark.parametrize("masks_inside", [True, False])
def test_voc_is_found_in_its_layouts(tmp_path, nesting, masks_inside):
    root = tmp_path / nesting
    _write_voc(root, None if masks_inside else tmp_path)
    pairs, problems = KINDS["voc"].find_pairs(tmp_path, VAL_SHARE)
    assert problems == []
    assert [(pair.id, pair.subset) for pair in pairs] == [
        ("2007_000032", "train"),
        ("2007_000039", "train"),
        ("2007_000033", "val"),
    ]
    for pair in pairs:
        assert pair.image == root / "JPEGImages" / f"{pair.id}.jpg"
        assert pair.mask.is_file()


@pytest.mark.parametrize("gone", ["JPEGImages", "SegmentationClassAug"])
def test_missing_voc_says_what_to_fetch_and_where_to_put_it(tmp_path, gone):
    _write_voc(tmp_path)
    shutil.rmtree(tmp_path / gone)
    assert not KINDS["voc"].is_there(tmp_path)
    with pytest.raises(MissingDatasetError) as error:
        KINDS["voc"].find_pairs(tmp_path, VAL_SHARE)
    message = str(error.value)
    assert str(tmp_path) in message
    for part, archive in KINDS["voc"].archives.items():
        wanted = (part == "images") == (gone == "JPEGImages")
        assert (archive.name in message) == wanted
        assert (archive.mirrors[0] in message) == wanted
    assert f"with {gone}/." in message
    assert "download: true" in message
    [other] = {"JPEGImages", "SegmentationClassAug"} - {gone}
    assert f"Found instead: ImageSets, {other}." in message


def test_files_of_the_list_that_are_not_there_are_named(tmp_path):
    _write_voc(tmp_path)
    (tmp_path / "JPEGImages/2007_000032.jpg").unlink()
    (tmp_path / "SegmentationClassAug/2007_000033.png").unlink()
    pairs, problems = KINDS["voc"].find_pairs(tmp_path, VAL_SHARE)
    assert [pair.id for pair in pairs] == ["2007_000039"]
    assert [(problem.kind, Path(problem.path).name) for problem in problems] == [
        ("missing image", "2007_000032.jpg"),
        ("missing mask", "2007_000033.png"),
    ]


def test_images_outside_the_lists_are_left_out(tmp_path):
    _write_voc(tmp_path)
    _write(
        tmp_path / "JPEGImages/2012_000001.jpg",
        tmp_path / "SegmentationClassAug/2012_000001.png",
    )
    pairs, problems = KINDS["voc"].find_pairs(tmp_path, VAL_SHARE)
    assert (len(pairs), problems) == (3, [])


def test_validation_image_in_the_training_list_is_a_problem(tmp_path):
    """The lists of SBD contain images of VOC's val, which must not be trained on."""
    _write_voc(tmp_path)
    lists = tmp_path / "ImageSets/Segmentation"
    lists.joinpath("train_aug.txt").write_text("2007_000032\n2007_000033\n")
    pairs, [problem] = KINDS["voc"].find_pairs(tmp_path, VAL_SHARE)
    assert problem.kind == "train/val overlap"
    assert [(pair.id, pair.subset) for pair in pairs] == [
        ("2007_000032", "train"),
        ("2007_000033", "val"),
    ]


def test_id_twice_in_a_list_is_a_problem(tmp_path):
    _write_voc(tmp_path)
    lists = tmp_path / "ImageSets/Segmentation"
    lists.joinpath("val.txt").write_text("2007_000033\n2007_000033\n")
    pairs, [problem] = KINDS["voc"].find_pairs(tmp_path, VAL_SHARE)
    assert (problem.kind, problem.path) == ("duplicate id", "2007_000033")
    assert len(pairs) == 3


def test_list_of_paths_is_refused(tmp_path):
    _write_voc(tmp_path)
    lists = tmp_path / "ImageSets/Segmentation"
    line = "/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png"
    lists.joinpath("train_aug.txt").write_text(line)
    with pytest.raises(ValueError, match=r"one id per line in .*train_aug\.txt"):
        KINDS["voc"].find_pairs(tmp_path, VAL_SHARE)


def test_own_training_list_wants_its_validation_list(tmp_path):
    _write_voc(tmp_path)
    (tmp_path / "ImageSets/Segmentation/val.txt").unlink()
    with pytest.raises(MissingDatasetError, match=r"val\.txt"):
        KINDS["voc"].find_pairs(tmp_path, VAL_SHARE)


def test_lists_of_the_field_have_their_sizes_and_share_no_image(tmp_path):
    lists = tmp_path / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    lists.joinpath("train.txt").write_text("2007_000032\n")  # as VOC publishes
    lists.joinpath("val.txt").write_text("2007_000033\n")
    ids = read_voc_ids(tmp_path)
    train, val = set(ids["train"]), set(ids["val"])
    assert (len(ids["train"]), len(train)) == (10582, 10582)
    assert (len(ids["val"]), len(val)) == (1449, 1449)
    assert not train & val


def test_lists_of_the_field_can_be_derived(test_data, presence_index):
    """Train is every mask of VOC and SBD that is not in VOC's val."""
    ids = read_voc_ids(Path("nowhere"))
    with tarfile.open(test_data / "voc_labels/SegmentationClassAug.tar.xz") as archive:
        masks = {Path(name).stem for name in archive.getnames() if name[-4:] == ".png"}
    assert masks - set(ids["val"]) == set(ids["train"])
    published = presence_index("voc")
    for subset in ("train", "val"):
        rows = published[published["subset"] == subset]
        assert set(rows["id"]) == set(ids[subset])


def test_real_folder_in_the_layout_of_voc_is_found(test_data):
    root = test_data / "voc_mini"
    pairs, problems = KINDS["voc"].find_pairs(root, VAL_SHARE)
    assert (len(pairs), problems) == (66, [])
    lists = root / "ImageSets/Segmentation"
    for subset, name in (("train", "train_aug"), ("val", "val")):
        ids = lists.joinpath(f"{name}.txt").read_text().split()
        assert [pair.id for pair in pairs if pair.subset == subset] == ids


# --- ADE20K --------------------------------------------------------------------------


@pytest.mark.parametrize("nesting", ["", "ADEChallengeData2016"])
def test_ade20k_is_found_in_its_layouts(tmp_path, nesting):
    root = tmp_path / nesting
    for part, name in (("training", "ADE_train_1"), ("validation", "ADE_val_1")):
        _write(
            root / f"images/{part}/{name}.jpg", root / f"annotations/{part}/{name}.png"
        )
    pairs, problems = KINDS["ade20k"].find_pairs(tmp_path, VAL_SHARE)
    assert problems == []
    assert [(pair.id, pair.subset) for pair in pairs] == [
        ("ADE_train_1", "train"),
        ("ADE_val_1", "val"),
    ]
    assert len(KINDS["ade20k"].find_folders(tmp_path)) == 4


def test_missing_ade20k_says_what_to_fetch(tmp_path):
    (tmp_path / "images/training").mkdir(parents=True)
    with pytest.raises(MissingDatasetError, match=r"ADEChallengeData2016\.zip"):
        KINDS["ade20k"].find_pairs(tmp_path, VAL_SHARE)


# --- folder --------------------------------------------------------------------------


def test_parts_of_a_folder_are_what_its_index_depends_on(small_folder):
    found = {
        path.relative_to(small_folder).as_posix()
        for path in KINDS["folder"].find_folders(small_folder)
    }
    assert found == {
        "images/train",
        "images/val",
        "masks/train",
        "masks/val",
    }
    shutil.rmtree(small_folder / "masks/train")
    assert KINDS["folder"].find_folders(small_folder) == []


def test_state_knows_added_removed_and_edited_files_and_no_others(small_folder):
    states = [KINDS["folder"].digest_files(small_folder)]
    (small_folder / "images/train/.DS_Store").write_bytes(b"x")
    (small_folder / "masks/train/Thumbs.db").write_bytes(b"x")
    assert KINDS["folder"].digest_files(small_folder) == states[0]
    mask = small_folder / "masks/train/b.png"
    content = mask.read_bytes()
    mask.write_bytes(content[:-1] + b"x")  # the same size
    os.utime(mask, ns=(1, 1))
    states.append(KINDS["folder"].digest_files(small_folder))
    shutil.copy(mask, small_folder / "masks/val/new.png")
    states.append(KINDS["folder"].digest_files(small_folder))
    (small_folder / "images/val/d.png").unlink()
    states.append(KINDS["folder"].digest_files(small_folder))
    assert len(set(states)) == 4
    assert KINDS["folder"].digest_files(small_folder / "nowhere") == ""


# --- orders --------------------------------------------------------------------------


def test_published_orders_of_voc_are_permutations():
    orders = KINDS["voc"].class_orders()
    assert "".join(orders) == "bcdefghijklmnopqrstuvw"
    for order in orders.values():
        assert sorted(order) == list(range(1, 21))
    assert len(set(orders.values())) == 22
    assert KINDS["ade20k"].class_orders() == {}


# --- class names ---------------------------------------------------------------------


def test_names_of_the_public_datasets():
    voc, ade = (
        KINDS["voc"].class_names(None, None),
        KINDS["ade20k"].class_names(None, None),
    )
    assert (len(voc), voc[0], voc[14], voc[19]) == (
        20,
        "aeroplane",
        "person",
        "tvmonitor",
    )
    assert (len(ade), ade[0], ade[12], ade[149]) == (150, "wall", "person", "flag")
    assert len(set(ade)) == 150


def test_names_of_voc_are_those_of_the_real_folder(test_data):
    listed = (test_data / "voc_animals/classes_voc21.txt").read_text().split()
    assert ["background", *KINDS["voc"].class_names(None, None)] == listed


def test_names_may_stand_in_the_configuration(tmp_path):
    assert KINDS["folder"].class_names(tmp_path, ["background", "a", "b"]) == ["a", "b"]
    with pytest.raises(ValueError, match="`classes` to start with 'background'"):
        KINDS["folder"].class_names(tmp_path, ["a", "b"])


@pytest.mark.parametrize("classes", [254, 1000])
def test_too_many_classes_for_a_byte_are_refused(tmp_path, classes):
    names = ["background", *(f"class {number}" for number in range(classes))]
    words = (
        rf"at most 253 classes, because a mask value is one byte, .* {classes}\. Merge"
    )
    with pytest.raises(ValueError, match=words):
        KINDS["folder"].class_names(tmp_path, names)
    assert len(KINDS["folder"].class_names(tmp_path, names[:254])) == 253


def test_byte_order_mark_is_no_part_of_a_name(tmp_path):
    (tmp_path / "classes.txt").write_text("background\ncat\n", "utf-8-sig")
    assert KINDS["folder"].class_names(tmp_path, None) == ["cat"]


def test_class_names_leave_the_background_and_last_blank_lines_out(tmp_path):
    (tmp_path / "classes.txt").write_text("background\n café \ndog\n\n\n", "utf-8")
    assert KINDS["folder"].class_names(tmp_path, None) == ["café", "dog"]


def test_blank_line_that_would_shift_the_labels_is_refused(tmp_path):
    (tmp_path / "classes.txt").write_text("background\n\ncat\n")
    with pytest.raises(ValueError, match="line 2 is empty"):
        KINDS["folder"].class_names(tmp_path, None)


def test_class_names_of_another_encoding_are_refused(tmp_path):
    (tmp_path / "classes.txt").write_bytes(b"background\ncaf\xe9\n")
    with pytest.raises(ValueError, match=r"Expected UTF-8 in .*classes\.txt"):
        KINDS["folder"].class_names(tmp_path, None)


def test_missing_class_names_are_reported(tmp_path):
    with pytest.raises(ValueError, match=r"classes\.txt.*no such file"):
        KINDS["folder"].class_names(tmp_path, None)


def test_missing_folder_is_reported_with_its_layout(tmp_path):
    with pytest.raises(MissingDatasetError, match="There is no such folder") as error:
        KINDS["folder"].class_names(tmp_path / "nowhere", None)
    assert "images/train/ and masks/train/" in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "start with 'background'.* it is empty"),
        ("cat\ndog\n", r"line 1 of .*classes.txt is 'cat'; the first line must be"),
        ("cat\nbackground\n", "is 'cat'; the first line must be 'background'"),
        ("background\ncat\ndog\ncat\n", "line 4 repeats 'cat' of line 2"),
        ("background\ncat\nbackground\n", "line 3 repeats 'background' of line 1"),
        ("background\n", "name a class after 'background'"),
        ("background\nca\x07t\n", r"printable names in .*'ca\\x07t'"),
    ],
)
def test_wrong_class_names_are_refused(tmp_path, content, message):
    (tmp_path / "classes.txt").write_text(content)
    with pytest.raises(ValueError, match=message):
        KINDS["folder"].class_names(tmp_path, None)
