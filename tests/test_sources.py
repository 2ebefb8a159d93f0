"""Pictures are read as the index saw them, or the job ends with a message."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from indexed_folders import exif_of
from PIL import Image

from kproba.data.folders import Folders, parse_folders
from kproba.data.index import index_dataset
from kproba.data.sources import ChangedPictureError, Source, digest, list_sources
from kproba.data.splits import read_index, write_split

SIZE = (12, 8)  # width and height


def write(folder: Path, *, orientation: int = 1, long_side: int | None = None):
    """The sources of a folder of two pictures, one of each subset."""
    random = np.random.default_rng(0)
    for subset in ("train", "val"):
        for what in ("images", "masks"):
            (folder / what / subset).mkdir(parents=True, exist_ok=True)
        width, height = SIZE
        pixels = random.integers(0, 256, (height, width, 3)).astype(np.uint8)
        image = folder / "images" / subset / f"{subset}.png"
        Image.fromarray(pixels).save(image, exif=exif_of(orientation))
        labels = np.zeros((height, width), np.uint8)
        labels[:, : width // 2] = 1
        upright = np.rot90(labels, -1) if orientation == 6 else labels
        Image.fromarray(upright.copy()).save(folder / "masks" / subset / image.name)
    (folder / "classes.txt").write_text("background\ncat\n")
    out = folder.parent / "out"
    index_dataset(
        out / "index.csv",
        out / "integrity.json",
        **{"kind": "folder", "folder": folder, "class_count": 1, "dataset": "pets"},
        long_side=long_side,
    )
    folders = {"pets": Folders(str(folder), str(out / "masks"))}
    return list_sources(read_index(out / "index.csv", folders))


def test_a_picture_and_its_labels(tmp_path):
    train, _ = write(tmp_path / "pets")
    assert train.id == "train"
    stored = np.asarray(Image.open(tmp_path / "pets/images/train/train.png"))
    assert np.array_equal(train.read_image().permute(1, 2, 0).numpy(), stored)
    assert train.read_labels().tolist() == [[1] * 6 + [0] * 6] * 8


def test_a_turned_picture_is_upright_with_its_labels(tmp_path):
    train, _ = write(tmp_path / "pets", orientation=6)
    assert train.read_image().shape == (3, 12, 8)
    assert (train.width, train.height) == (8, 12)
    assert train.read_labels().shape == (12, 8)
    assert train.read_labels()[0].tolist() == [1] * 8


def test_long_side_holds_for_picture_and_labels(tmp_path):
    train, _ = write(tmp_path / "pets" / "a", long_side=None)
    full = train.read_labels()
    (_, small), *_ = [write(tmp_path / "pets" / "b", long_side=32)]
    assert small.read_image().shape == (3, 8, 12)  # nothing is enlarged
    source = train._replace(width=6, height=4)
    assert source.read_image().shape == (3, 4, 6)
    assert set(np.unique(source.read_labels())) <= set(np.unique(full))


CHANGES = {
    "picture replaced": (
        "image",
        lambda path: Image.new("RGB", SIZE).save(path),
        "content has changed",
    ),
    "picture of another size": (
        "image",
        lambda path: Image.new("RGB", (5, 5)).save(path),
        "content has changed",
    ),
    "picture removed": ("image", lambda path: path.unlink(), "No such file"),
    "picture empty": ("image", lambda path: path.write_bytes(b""), "is empty"),
    "picture a folder": (
        "image",
        lambda path: (path.unlink(), path.mkdir()),
        "is not a file, but a folder",
    ),
    "mask of another size": (
        "mask",
        lambda path: Image.new("L", (5, 5)).save(path),
        "content has changed",
    ),
    "mask with unknown labels": (
        "mask",
        lambda path: Image.new("L", SIZE, 77).save(path),
        "content has changed",
    ),
    "mask removed": ("mask", lambda path: path.unlink(), "No such file"),
}


@pytest.mark.parametrize(("what", "change", "message"), CHANGES.values(), ids=CHANGES)
def test_what_changed_since_the_index_is_named(tmp_path, what, change, message):
    train, _ = write(tmp_path / "pets")
    path = Path(getattr(train, what))
    change(path)
    read = train.read_image if what == "image" else train.read_labels
    with pytest.raises(ChangedPictureError) as caught:
        read()
    assert str(path) in str(caught.value) and message in str(caught.value)
    assert "Run snakemake again" in str(caught.value)


def test_a_row_of_an_earlier_version_is_read_without_comparison(tmp_path):
    image, mask = tmp_path / "a.png", tmp_path / "a_mask.png"
    Image.new("RGB", SIZE).save(image)
    Image.new("L", SIZE, 3).save(mask)
    row = {"id": "a", "image": str(image), "mask": str(mask), "label_offset": 1}
    source = Source.from_row(row)
    assert source.read_image().shape == (3, 8, 12)
    assert set(source.read_labels().ravel()) == {4}
    assert digest(image.read_bytes()) != source.image_sha256 == ""


def test_paths_are_those_of_the_folders_that_are_named(tmp_path):
    write(tmp_path / "pets")
    moved = (tmp_path / "pets").rename(tmp_path / "elsewhere")
    index = tmp_path / "out" / "index.csv"
    folders = parse_folders(f'{{"pets": ["{moved}", "masks"]}}')
    [train, _] = list_sources(read_index(index, folders))
    assert isinstance(train.read_image(), torch.Tensor)
    with pytest.raises(ValueError, match="names the dataset 'pets'"):
        read_index(index, {"others": Folders("a", "b")})


def test_a_split_keeps_digests_and_relative_paths(tmp_path):
    write(tmp_path / "pets")
    split = tmp_path / "split.csv"
    write_split([tmp_path / "out/index.csv"], split, groups=((1,),), setting="overlap")
    [row] = pd.read_csv(split, dtype=str).to_dict("records")
    assert row["image"] == "images/train/train.png"
    content = (tmp_path / "pets/images/train/train.png").read_bytes()
    assert row["image_sha256"] == digest(content)
