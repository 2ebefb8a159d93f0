"""Layouts of the kinds of datasets, their class names, lists and orders."""

import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kproba.artifacts import write_label_image
from kproba.datasets import (
    ARCHIVES,
    MissingDatasetError,
    class_names,
    class_orders,
    find_pairs,
    is_there,
    parts,
    state_of,
    voc_ids,
)


def _write(image: Path, mask: Path) -> None:
    for path in (image, mask):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3)).save(image)
    write_label_image(mask, np.zeros((3, 4), np.uint8))


# --- Pascal VOC ----------------------------------------------------------------------


def _write_voc(root: Path, masks: Path | None = None) -> None:
    """Two training images and one validation image, with lists of their own."""
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
    pairs, problems = find_pairs("voc", tmp_path)
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
    assert not is_there("voc", tmp_path)
    with pytest.raises(MissingDatasetError) as error:
        find_pairs("voc", tmp_path)
    message = str(error.value)
    assert str(tmp_path) in message
    for archive in ARCHIVES["voc"].values():
        assert archive.name in message
        assert archive.mirrors[0] in message
    assert "download: true" in message
    [other] = {"JPEGImages", "SegmentationClassAug"} - {gone}
    assert f"Found there: ImageSets, {other}." in message


def test_files_of_the_list_that_are_not_there_are_named(tmp_path):
    _write_voc(tmp_path)
    (tmp_path / "JPEGImages/2007_000032.jpg").unlink()
    (tmp_path / "SegmentationClassAug/2007_000033.png").unlink()
    pairs, problems = find_pairs("voc", tmp_path)
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
    pairs, problems = find_pairs("voc", tmp_path)
    assert (len(pairs), problems) == (3, [])


def test_validation_image_in_the_training_list_is_a_problem(tmp_path):
    """SBD's own lists hold images of VOC's val: adding them whole leaks the test."""
    _write_voc(tmp_path)
    lists = tmp_path / "ImageSets/Segmentation"
    lists.joinpath("train_aug.txt").write_text("2007_000032\n2007_000033\n")
    pairs, [problem] = find_pairs("voc", tmp_path)
    assert problem.kind == "train/val overlap"
    assert [(pair.id, pair.subset) for pair in pairs] == [
        ("2007_000032", "train"),
        ("2007_000033", "val"),
    ]


def test_id_twice_in_a_list_is_a_problem(tmp_path):
    _write_voc(tmp_path)
    lists = tmp_path / "ImageSets/Segmentation"
    lists.joinpath("val.txt").write_text("2007_000033\n2007_000033\n")
    pairs, [problem] = find_pairs("voc", tmp_path)
    assert (problem.kind, problem.path) == ("duplicate id", "2007_000033")
    assert len(pairs) == 3


def test_list_of_paths_is_refused(tmp_path):
    _write_voc(tmp_path)
    lists = tmp_path / "ImageSets/Segmentation"
    line = "/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png"
    lists.joinpath("train_aug.txt").write_text(line)
    with pytest.raises(ValueError, match=r"one id a line in .*train_aug\.txt"):
        find_pairs("voc", tmp_path)


def test_own_training_list_wants_its_validation_list(tmp_path):
    _write_voc(tmp_path)
    (tmp_path / "ImageSets/Segmentation/val.txt").unlink()
    with pytest.raises(MissingDatasetError, match=r"val\.txt"):
        find_pairs("voc", tmp_path)


def test_lists_of_the_field_have_their_sizes_and_share_no_image(tmp_path):
    lists = tmp_path / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    lists.joinpath("train.txt").write_text("2007_000032\n")  # as VOC publishes
    lists.joinpath("val.txt").write_text("2007_000033\n")
    ids = voc_ids(tmp_path)
    train, val = set(ids["train"]), set(ids["val"])
    assert (len(ids["train"]), len(train)) == (10582, 10582)
    assert (len(ids["val"]), len(val)) == (1449, 1449)
    assert not train & val


def test_lists_of_the_field_can_be_derived(test_data, presence_index):
    """Train is every mask of VOC and SBD that is not in VOC's val."""
    ids = voc_ids(Path("nowhere"))
    with tarfile.open(test_data / "voc_labels/SegmentationClassAug.tar.xz") as archive:
        masks = {Path(name).stem for name in archive.getnames() if name[-4:] == ".png"}
    assert masks - set(ids["val"]) == set(ids["train"])
    published = presence_index("voc")
    for subset in ("train", "val"):
        rows = published[published["subset"] == subset]
        assert set(rows["id"]) == set(ids[subset])


def test_real_folder_in_the_layout_of_voc_is_found(test_data):
    root = test_data / "voc_mini"
    pairs, problems = find_pairs("voc", root)
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
    pairs, problems = find_pairs("ade20k", tmp_path)
    assert problems == []
    assert [(pair.id, pair.subset) for pair in pairs] == [
        ("ADE_train_1", "train"),
        ("ADE_val_1", "val"),
    ]
    assert len(parts("ade20k", tmp_path)) == 4


def test_missing_ade20k_says_what_to_fetch(tmp_path):
    (tmp_path / "images/training").mkdir(parents=True)
    with pytest.raises(MissingDatasetError, match=r"ADEChallengeData2016\.zip"):
        find_pairs("ade20k", tmp_path)


# --- folder --------------------------------------------------------------------------


def test_parts_of_a_folder_are_what_its_index_depends_on(small_folder):
    found = {
        path.relative_to(small_folder).as_posix()
        for path in parts("folder", small_folder)
    }
    assert found == {
        "images/train",
        "images/val",
        "masks/train",
        "masks/val",
    }
    shutil.rmtree(small_folder / "masks/train")
    assert parts("folder", small_folder) == []


def test_state_knows_added_removed_and_edited_files_and_no_others(small_folder):
    states = [state_of("folder", small_folder)]
    (small_folder / "images/train/.DS_Store").write_bytes(b"x")
    (small_folder / "masks/train/Thumbs.db").write_bytes(b"x")
    assert state_of("folder", small_folder) == states[0]
    mask = small_folder / "masks/train/b.png"
    content = mask.read_bytes()
    mask.write_bytes(content[:-1] + b"x")  # the same size
    os.utime(mask, ns=(1, 1))
    states.append(state_of("folder", small_folder))
    shutil.copy(mask, small_folder / "masks/val/new.png")
    states.append(state_of("folder", small_folder))
    (small_folder / "images/val/d.png").unlink()
    states.append(state_of("folder", small_folder))
    assert len(set(states)) == 4
    assert state_of("folder", small_folder / "nowhere") == ""


def test_name_that_is_no_utf8_is_refused(small_folder):
    name = os.fsdecode(b"caf\xe9.png")
    shutil.copy(
        small_folder / "images/train/b.png", small_folder / "images/train" / name
    )
    with pytest.raises(ValueError, match="Rename the file"):
        find_pairs("folder", small_folder)


# --- orders --------------------------------------------------------------------------


def test_published_orders_of_voc_are_permutations():
    orders = class_orders("voc")
    assert "".join(orders) == "bcdefghijklmnopqrstuvw"
    for order in orders.values():
        assert sorted(order) == list(range(1, 21))
    assert len(set(orders.values())) == 22
    assert class_orders("ade20k") == {}


# --- class names ---------------------------------------------------------------------


def test_names_of_the_public_datasets():
    voc, ade = class_names("voc", None), class_names("ade20k", None)
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
    assert ["background", *class_names("voc", None)] == listed


def test_names_may_stand_in_the_configuration(tmp_path):
    assert class_names("folder", tmp_path, ["background", "a", "b"]) == ["a", "b"]
    with pytest.raises(ValueError, match="`classes` to start with 'background'"):
        class_names("folder", tmp_path, ["a", "b"])


def test_too_many_classes_for_a_byte_are_refused(tmp_path):
    names = ["background", *(f"class {number}" for number in range(255))]
    with pytest.raises(ValueError, match="at most 253 classes"):
        class_names("folder", tmp_path, names)


def test_byte_order_mark_is_no_part_of_a_name(tmp_path):
    (tmp_path / "classes.txt").write_text("background\ncat\n", "utf-8-sig")
    assert class_names("folder", tmp_path) == ["cat"]


def test_class_names_leave_the_background_and_last_blank_lines_out(tmp_path):
    (tmp_path / "classes.txt").write_text("background\n café \ndog\n\n\n", "utf-8")
    assert class_names("folder", tmp_path) == ["café", "dog"]


def test_blank_line_that_would_shift_the_labels_is_refused(tmp_path):
    (tmp_path / "classes.txt").write_text("background\n\ncat\n")
    with pytest.raises(ValueError, match="line 2 is empty"):
        class_names("folder", tmp_path)


def test_class_names_of_another_encoding_are_refused(tmp_path):
    (tmp_path / "classes.txt").write_bytes(b"background\ncaf\xe9\n")
    with pytest.raises(ValueError, match=r"Expected UTF-8 in .*classes\.txt"):
        class_names("folder", tmp_path)


def test_missing_class_names_are_reported(tmp_path):
    with pytest.raises(ValueError, match=r"classes\.txt.*no such file"):
        class_names("folder", tmp_path)


def test_missing_folder_is_reported_with_its_layout(tmp_path):
    with pytest.raises(MissingDatasetError, match="There is no such folder") as error:
        class_names("folder", tmp_path / "nowhere")
    assert "images/train/ and masks/train/" in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "start with 'background'"),
        ("cat\ndog\n", r"starts with \['cat'\]"),
        ("cat\nbackground\n", r"starts with \['cat'\]"),
        ("background\ncat\ndog\ncat\n", r"repeats \['cat'\]"),
        ("background\ncat\nbackground\n", r"repeats \['background'\]"),
    ],
)
def test_wrong_class_names_are_refused(tmp_path, content, message):
    (tmp_path / "classes.txt").write_text(content)
    with pytest.raises(ValueError, match=message):
        class_names("folder", tmp_path)
