"""Files that are whole or not there, label images and fingerprints."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import kproba
from kproba.data.label_images import (
    LabelRangeError,
    label_palette,
    read_label_image,
    write_label_image,
)
from kproba.runtime.files import atomic_directory, atomic_path, read_json, write_json
from kproba.runtime.provenance import fingerprint, provenance


def _names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- atomic writing ----------------------------------------------------------------


def test_file_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
        assert temporary.parent == path.parent  # so that the move is one rename
    assert path.read_text() == "whole"
    assert _names(path.parent) == ["file.txt"]


def test_file_is_replaced(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


@pytest.mark.parametrize("before", [None, "old"])
def test_error_leaves_the_file_as_it_was(tmp_path, before):
    path = tmp_path / "file.txt"
    if before is not None:
        path.write_text(before)
    with pytest.raises(RuntimeError, match="broken"), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("broken")
    assert _names(tmp_path) == ([] if before is None else ["file.txt"])
    assert before is None or path.read_text() == before


def test_block_that_writes_nothing_is_an_error(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), atomic_path(path):
        pass
    assert path.read_text() == "old"


def test_folder_takes_the_place_of_the_old_one(tmp_path):
    path = tmp_path / "new" / "folder"
    for name in ("first", "second"):
        with atomic_directory(path) as temporary:
            (temporary / name).write_text("whole")
            assert not (path / name).exists()
    assert _names(path) == ["second"]
    assert _names(path.parent) == ["folder"]


@pytest.mark.parametrize("before", [None, "old"])
def test_error_leaves_the_folder_as_it_was(tmp_path, before):
    path = tmp_path / "folder"
    if before is not None:
        path.mkdir()
        (path / before).write_text("whole")
    with (
        pytest.raises(RuntimeError, match="broken"),
        atomic_directory(path) as temporary,
    ):
        (temporary / "half").write_text("half")
        raise RuntimeError("broken")
    assert _names(tmp_path) == ([] if before is None else ["folder"])
    assert before is None or _names(path) == [before]


# --- JSON and fingerprints ---------------------------------------------------------


def test_json_is_plain_and_nan_is_null(tmp_path):
    path = tmp_path / "file.json"
    content = {
        "nan": float("nan"),
        "numpy": [np.float64("nan"), np.float32(0.5), np.int64(3)],
        "nested": {1: ({"a": float("nan")},)},
        "array": np.array([[1.0, np.nan]]),
        "text": "κ",
        "yes": True,
        "none": None,
    }
    write_json(path, content)
    expected = {
        "nan": None,
        "numpy": [None, 0.5, 3],
        "nested": {"1": [{"a": None}]},
        "array": [[1.0, None]],
        "text": "κ",
        "yes": True,
        "none": None,
    }
    assert json.loads(path.read_text(encoding="utf-8")) == expected
    assert read_json(path) == expected
    assert "κ" in path.read_text(encoding="utf-8")


def test_infinity_is_refused_and_leaves_no_file(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "file.json", {"loss": float("inf")})
    assert _names(tmp_path) == []


def test_fingerprint_follows_the_content_of_files_not_their_names(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text("same")
    second.write_text("same")
    assert fingerprint(first) == fingerprint(second)
    second.write_text("other")
    assert fingerprint(first) != fingerprint(second)
    assert fingerprint({"a": 1}, first) != fingerprint({"a": 1}, second)


def test_fingerprint_follows_values_not_the_order_of_keys():
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert fingerprint({"a": 1, "b": [2]}) != fingerprint({"a": 1, "b": [3]})


@pytest.mark.parametrize(
    ("one", "other"), [((1, 2), (2, 1)), ((1,), ("1",)), ((1, 23), (12, 3))]
)
def test_fingerprint_tells_parts_apart(one, other):
    assert fingerprint(*one) != fingerprint(*other)


def test_provenance_names_versions_and_is_repeatable():
    about = provenance()
    assert {"kproba", "commit", "python", "torch", "torchvision"} <= about.keys()
    assert about == provenance() == json.loads(json.dumps(about))


PRINT_COMMIT = """
from kproba.runtime.provenance import package_commit
print(package_commit())
"""


def test_commit_is_that_of_the_package_with_a_mark_for_changes(tmp_path):
    """In a repository with a copy of the package."""
    package = tmp_path / "kproba"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(kproba.__file__).parent, package, ignore=ignore)
    (tmp_path / ".gitignore").write_text("__pycache__\n")
    author = ["-c", "user.name=a", "-c", "user.email=a@b.c"]

    def run(*words) -> str:
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        return subprocess.run(
            words,
            cwd=tmp_path,
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()

    run("git", "init", "--quiet")
    run("git", "add", ".")
    run("git", *author, "commit", "--quiet", "--message", "copy")
    commit = run("git", "rev-parse", "HEAD")
    print_commit = [sys.executable, "-c", PRINT_COMMIT]
    (tmp_path / "notes.txt").write_text("not in the package")
    assert run(*print_commit) == commit
    for changed in ("data/download.py", "bank/description.py", "__init__.py"):
        content = (package / changed).read_text()
        (package / changed).write_text(content + "# changed\n")
        assert run(*print_commit) == f"{commit}+changes"
        (package / changed).write_text(content)
    assert run(*print_commit) == commit


# --- label images ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("index", "colour"),
    [
        (0, (0, 0, 0)),
        (1, (128, 0, 0)),
        (2, (0, 128, 0)),
        (8, (64, 0, 0)),
        (15, (192, 128, 128)),
        (20, (0, 64, 128)),
        (255, (224, 224, 192)),
    ],
)
def test_palette_is_that_of_voc(index, colour):
    palette = label_palette()
    assert len(palette) == 3 * 256
    assert tuple(palette[3 * index : 3 * index + 3]) == colour


def test_palette_has_a_colour_for_every_label():
    colours = np.reshape(label_palette(), (256, 3))
    assert len(np.unique(colours, axis=0)) == 256


def test_label_image_keeps_all_labels_and_shows_the_palette(tmp_path):
    path = tmp_path / "labels.png"
    labels = np.arange(256, dtype=np.uint8).reshape(8, 32)
    write_label_image(path, labels)
    read = read_label_image(path)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, labels)
    with Image.open(path) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "P", (32, 8))
        assert image.convert("RGB").getpixel((15, 0)) == (192, 128, 128)


def test_labels_of_another_integer_type_are_written_too(tmp_path):
    write_label_image(tmp_path / "labels.png", np.array([[0, 255], [7, 1]]))
    assert read_label_image(tmp_path / "labels.png").tolist() == [[0, 255], [7, 1]]


def test_grey_and_small_palette_masks_are_read_by_value(tmp_path):
    labels = np.array([[0, 1], [2, 3]], np.uint8)
    grey = Image.fromarray(labels)
    grey.save(tmp_path / "grey.png")
    palette = Image.fromarray(labels)
    palette.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0, 0, 0, 200])
    palette.save(tmp_path / "palette.png", bits=2)
    for name in ("grey.png", "palette.png"):
        np.testing.assert_array_equal(read_label_image(tmp_path / name), labels)


@pytest.mark.parametrize(
    ("offset", "values", "expected"),
    [
        (0, [0, 7, 254, 255], [0, 7, 254, 255]),
        (1, [0, 7, 253, 255], [1, 8, 254, 255]),
        (-1, [1, 7, 254, 255], [0, 6, 253, 255]),
    ],
)
def test_offset_is_added_to_every_value_but_255(tmp_path, offset, values, expected):
    path = tmp_path / "mask.png"
    write_label_image(path, np.array([values]))
    labels = read_label_image(path, offset)
    assert labels.dtype == np.uint8
    assert labels.tolist() == [expected]


@pytest.mark.parametrize(("offset", "value"), [(1, 254), (-1, 0), (-8, 7), (250, 7)])
def test_label_that_leaves_its_range_by_the_offset_is_refused(tmp_path, offset, value):
    path = tmp_path / "mask.png"
    write_label_image(path, np.array([[100 if offset < 0 else 1, value, 255]]))
    with pytest.raises(LabelRangeError, match=rf"mask\.png holds {value}\. ") as error:
        read_label_image(path, offset)
    assert isinstance(error.value, ValueError)
    assert f"label offset {offset} is added" in str(error.value)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "I;16"])
def test_mask_of_colours_or_depth_is_refused_by_name(tmp_path, mode):
    path = tmp_path / "mask.png"
    Image.new(mode, (4, 3)).save(path)
    with pytest.raises(ValueError, match=rf"mask\.png has mode {mode}"):
        read_label_image(path)
