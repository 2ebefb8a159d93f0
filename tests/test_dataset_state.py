"""The same pictures are the same dataset, wherever they are and whenever made."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kproba.data.index import index_dataset
from kproba.data.kinds import KINDS
from kproba.plan.dataset_state import state_of_files

FOLDER = KINDS["folder"]


def write_dataset(folder: Path) -> Path:
    for subset in ("train", "val"):
        for what in ("images", "masks"):
            (folder / what / subset).mkdir(parents=True)
        for number in range(2):
            name = f"{subset}{number}.png"
            pixels = np.full((8, 8, 3), 40 * number + len(subset), np.uint8)
            Image.fromarray(pixels).save(folder / "images" / subset / name)
            mask = np.full((8, 8), 1 + number, np.uint8)
            Image.fromarray(mask).save(folder / "masks" / subset / name)
    (folder / "classes.txt").write_text("background\ncat\ndog\n")
    return folder


@pytest.fixture
def dataset(tmp_path):
    """A folder, and the record of its index in the state "first"."""
    folder, out = write_dataset(tmp_path / "pets"), tmp_path / "out"
    state = state_of_files(FOLDER, folder, out / "files.json")
    index_dataset(
        out / "index.csv",
        out / "integrity.json",
        **{"kind": "folder", "folder": folder, "class_count": 2, "dataset": "pets"},
        state=state,
    )
    return folder, out / "files.json", state


def set_times(folder: Path, seconds: int) -> None:
    for path in folder.rglob("*"):
        os.utime(path, (seconds, seconds))


def copy_to(folder, how):
    other = folder.parent / "elsewhere" / "pets"
    other.parent.mkdir()
    if how == "moved":
        return folder.rename(other)
    if how == "linked":
        other.symlink_to(folder)
        return other
    if how == "copied with times":
        return shutil.copytree(folder, other)
    shutil.copytree(folder, other, copy_function=shutil.copyfile)
    set_times(other, 1_000_000_000)
    return other


@pytest.mark.parametrize("how", ["moved", "linked", "copied with times", "copied"])
def test_another_place_is_the_same_state(dataset, how):
    folder, record, state = dataset
    other = copy_to(folder, how)
    assert state_of_files(FOLDER, other, record) == state
    assert state_of_files(FOLDER, other, record) == state  # now without reading files


def test_contents_are_read_once_after_a_copy(dataset, monkeypatch):
    folder, record, state = dataset
    set_times(folder, 1_000_000_000)
    assert state_of_files(FOLDER, folder, record) == state
    read = []
    monkeypatch.setattr(hashlib, "file_digest", lambda *words: read.append(words))
    assert state_of_files(FOLDER, folder, record) == state
    assert not read


CHANGES = {
    "a picture edited": lambda folder: _edit(
        folder / "images" / "train" / "train0.png"
    ),
    "a mask edited, same size": lambda folder: _flip(folder / "masks/train/train0.png"),
    "a picture removed": lambda folder: (folder / "images/val/val1.png").unlink(),
    "a picture added": lambda folder: shutil.copy(
        folder / "images/train/train0.png", folder / "images/train/new.png"
    ),
    "a picture renamed": lambda folder: (folder / "images/val/val1.png").rename(
        folder / "images/val/other.png"
    ),
}


def _edit(path):
    Image.fromarray(np.full((8, 8, 3), 255, np.uint8)).save(path)


def _flip(path):
    """Another byte in a file of the same size, a second later."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, (2_000_000_000, 2_000_000_000))


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_other_contents_are_another_state(dataset, change):
    folder, record, state = dataset
    change(folder)
    assert state_of_files(FOLDER, folder, record) != state


@pytest.mark.parametrize(
    "damage", ["", "[]", "{}", '{"state": 1, "files": {}}', "\0", '{"state": "a"}']
)
def test_a_damaged_record_counts_as_none(dataset, damage):
    folder, record, _ = dataset
    record.write_text(damage)
    assert state_of_files(FOLDER, folder, record) == FOLDER.digest_files(folder)


def test_other_files_in_the_folder_change_nothing(dataset):
    folder, record, state = dataset
    (folder / "notes.md").write_text("new")
    (folder / "images" / "train" / "Thumbs.db").write_text("x")
    assert state_of_files(FOLDER, folder, record) == state
    assert json.loads(record.read_text())["state"] == state
