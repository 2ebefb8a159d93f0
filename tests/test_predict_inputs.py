"""Files, folders and lists that `kproba predict` is given: odd ones are named."""

import io
import os
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_predictions import Command, noise, results, rows
from test_inference import step  # noqa: F401  # a fixture
from test_segmenter import trained  # noqa: F401

from kproba import cli
from kproba.data import pictures
from kproba.predict.inputs import SHOWN, picture_identity, shortened


@pytest.fixture
def predict(monkeypatch, capsys, caplog) -> Command:
    return Command(monkeypatch, capsys, caplog)


@pytest.fixture
def shots(tmp_path) -> Path:
    """A folder with one good picture."""
    folder = tmp_path / "shots"
    folder.mkdir()
    noise(60, 40).save(folder / "good.png")
    return folder


def encoded(kind: str, size: tuple[int, int] = (40, 30), **options) -> bytes:
    file = io.BytesIO()
    noise(*size).save(file, kind, **options)
    return file.getvalue()


def with_orientation(value: bytes, kind: int) -> bytes:
    """A JPEG whose EXIF orientation has an odd type or value."""
    entry = struct.pack("<HHI", 0x0112, kind, 1) + value.ljust(4, b"\0")[:4]
    tiff = b"II*\0\x08\0\0\0" + struct.pack("<H", 1) + entry + bytes(4)
    return encoded("JPEG", exif=b"Exif\0\0" + tiff + value)


def write(content: bytes):
    return lambda path: path.write_bytes(content)


def link(target: str):
    return lambda path: path.symlink_to(target)


SKIPPED = {
    "empty.png": (write(b""), "empty"),
    "text.jpg": (write(b"no picture"), "no known image format"),
    "zeros.tif": (write(bytes(500)), "no known image format"),
    "a folder that is named like a picture.jpg": (Path.mkdir, ""),
    "fifo.png": (os.mkfifo, "a FIFO"),
    "device.png": (link("/dev/zero"), "a device"),
    "dangling.png": (link("nowhere"), "a link to a file that does not exist"),
    "dangling": (link("nowhere"), "is a link to a file that"),
    "loop.png": (link("loop.png"), ""),
    "loop": (link("loop"), "is a link to a file that"),
    "deep.png": (lambda path: Image.new("I;16", (8, 8)).save(path), "8 bits"),
    "deep.tif": (lambda path: Image.new("F", (8, 8)).save(path), "8 bits"),
    **{
        f"cut.{kind}": (write(encoded(kind)[: len(encoded(kind)) * 2 // 3]), "")
        for kind in ("png", "jpeg", "bmp", "webp", "tiff")
    },
    "header.jpg": (write(encoded("JPEG")[:30]), ""),
    "huge.bmp": (
        write(encoded("BMP")[:18] + struct.pack("<ii", 60_000, 60_000) + bytes(40)),
        "",
    ),
}


def test_odd_files_in_a_folder_are_named_and_the_others_done(predict, shots, tmp_path):
    for name, (make, _) in SKIPPED.items():
        make(shots / name)
    out = tmp_path / "out"
    status, said = predict(shots, "--out", out)
    assert status == 3
    for name, (_, reason) in SKIPPED.items():
        if "folder" not in name:
            [line] = [part for part in said.splitlines() if f"{shots / name}: " in part]
            assert reason in line
    assert results(out) == {"areas.csv", "masks/good.png", "overlays/good.jpg"}
    assert {row["result"] for row in rows(out)} == {"good"}


@pytest.mark.parametrize("name", SKIPPED)
def test_each_odd_file_alone_is_an_error_before_the_model_is_loaded(
    predict, tmp_path, name
):
    make, reason = SKIPPED[name]
    make(tmp_path / name)
    status, said = predict(tmp_path / name, "--out", tmp_path / "out")
    assert status == 1
    headers_are_right = name.startswith(("cut", "deep"))  # seen when they are decoded
    assert predict.model is None or headers_are_right
    assert "Error: Expected" in said
    assert reason.replace("is a link to a file that", "link") in said
    assert not (tmp_path / "out").exists()


USED = {
    "orientation inf": with_orientation(struct.pack("<f", float("inf")), 11),
    "orientation 0": with_orientation(struct.pack("<H", 0), 3),
    "orientation 65535": with_orientation(struct.pack("<H", 65535), 3),
    "orientation in letters": with_orientation(b"six", 2),
    "orientation of no type": with_orientation(b"\1", 99),
    "one pixel": encoded("PNG", (1, 1)),
    "a line": encoded("PNG", (3000, 1)),
    "a column": encoded("PNG", (1, 3000)),
}


@pytest.mark.parametrize("name", USED)
def test_odd_pictures_that_can_be_used_are(predict, tmp_path, name):
    (tmp_path / "a.jpg").write_bytes(USED[name])
    status, _ = predict(tmp_path / "a.jpg", "--out", tmp_path / "out", "--tile", 64)
    assert status == 0
    with Image.open(tmp_path / "a.jpg") as image:
        assert Image.open(tmp_path / "out/masks/a.png").size == image.size


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (1, 1500), (1500, 1), (70, 3)])
def test_a_network_segments_pictures_of_any_shape(trained, size, capsys):  # noqa: F811
    noise(*size).save(trained / "a.png")
    with pytest.raises(SystemExit) as ended:
        words = [trained, trained / "a.png", "--out", trained / "out", "--tile", "64"]
        cli.main(["predict", *map(str, words)])
    assert ended.value.code == 0
    assert Image.open(trained / "out/masks/a.png").size == size


def test_pictures_above_the_limit_are_named(predict, shots, tmp_path, monkeypatch):
    noise(300, 200).save(shots / "large.png")
    monkeypatch.setattr(pictures, "MOST_PIXELS", 50_000)
    status, said = predict(shots, "--out", tmp_path / "out")
    assert status == 3
    assert f"skipped {shots / 'large.png'}: has 300x200 pixels, but the limit" in said
    assert results(tmp_path / "out") >= {"masks/good.png"}


@pytest.mark.parametrize("error", [MemoryError, RuntimeError, NotImplementedError])
def test_errors_of_one_image_skip_that_image(
    predict, shots, tmp_path, monkeypatch, error
):
    """Of three that are segmented together, the other two are done."""
    for name in ("bad", "better"):
        noise(60, 40, seed=len(name)).save(shots / f"{name}.png")
    bad = np.asarray(noise(60, 40, seed=3))

    def load(*words):
        segmenter = predict.load(*words)
        scores = segmenter.predictor.log_scores

        def log_scores(images):
            for image in images:
                if np.array_equal(image.permute(1, 2, 0).numpy(), bad):
                    raise error("can't allocate memory: you tried 9 bytes\nand more")
            return scores(images)

        segmenter.predictor.log_scores = log_scores
        return segmenter

    monkeypatch.setattr("kproba.predict.predict._load", load)
    status, said = predict(shots, "--out", tmp_path / "out", "--no-overlays")
    assert status == 3
    assert f"skipped {shots / 'bad.png'}: does not fit into memory at 60x40" in said
    assert results(tmp_path / "out") == {
        *("areas.csv", "masks/good.png", "masks/better.png")
    }
    status, said = predict(
        shots / "bad.png", "--out", tmp_path / "out", "--no-overlays"
    )
    assert status == 1
    assert "Lower compute.batch_size" in said and "--tile" in said


# --- lists on standard input ---------------------------------------------------------

LISTS = {
    "windows": (b"\xef\xbb\xbf{a}\r\n\r\n{b}\r\n", ["a", "b"], []),
    "no end of line": (b"{a}\n{b}", ["a", "b"], []),
    "twice": (b"{a}\n{a}\n", ["a"], []),
    "nul": (b"{a}\n{b}\0{b}\n", ["a"], ["line 2 of the list contains a NUL byte"]),
    "find -print0": (b"{a}\0{b}\0", [], ["contains a NUL byte"]),
    "not utf-8": (b"{a}\n\xff\xfe/x.jpg\n", ["a"], ["No such file"]),
    "too long for a name": (b"{a}\n" + 5000 * b"x" + b"\n{b}\n", ["a", "b"], ["long"]),
    "too long for a path": (
        b"{a}\n" + 100_000 * b"x/" + b"\n{b}\n",
        ["a", "b"],
        ["line 2 of the list is too long"],
    ),
    "binary": (b"{a}\n" + bytes(range(1, 32)) + b"\n", ["a"], ["No such file"]),
    "missing": (b"{a}\nnone.jpg\n", ["a"], ["skipped none.jpg: No such file"]),
    "empty": (b"\n\r\n", [], []),
}


@pytest.mark.parametrize("kind", LISTS)
def test_lists_on_standard_input(predict, tmp_path, monkeypatch, kind):
    content, done, reasons = LISTS[kind]
    for name in ("a", "b"):
        path = tmp_path / f"{name} ö.png"
        noise(60, 40).save(path)
        content = content.replace(f"{{{name}}}".encode(), os.fsencode(path))
    stdin = io.TextIOWrapper(io.BytesIO(content), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", stdin)
    out = tmp_path / "out"
    status, said = predict("-", "--out", out, "--no-overlays")
    assert status == (1 if not done else 3 if reasons else 0)
    for reason in reasons:
        assert reason in said
    assert max(len(line) for line in said.splitlines()) < 500
    if done:
        masks = {f"masks/{name} ö.png" for name in done}
        assert results(out) == {"areas.csv", *masks}
    else:
        assert not out.exists()


def test_names_that_are_no_utf_8_are_used(predict, tmp_path):
    """Linux allows any bytes in names."""
    path = tmp_path / os.fsdecode(b"caf\xe9.png")
    noise(60, 40).save(path)
    status, _ = predict(tmp_path, "--out", tmp_path / "out", "--no-overlays")
    assert status == 0
    assert {row["file"] for row in rows(tmp_path / "out")} == {str(path)}


@pytest.mark.parametrize(
    ("argument", "reason"),
    [
        ("", "is not a file name"),
        ("x" * 300 + ".jpg", "too long"),
        ("none.jpg", "No such file"),
        ("none/", "No such file"),
    ],
)
def test_arguments_that_are_no_files(predict, tmp_path, argument, reason):
    status, said = predict(argument, "--out", tmp_path / "out")
    assert status == 1
    assert reason in said
    noise(60, 40).save(tmp_path / "a.png")
    status, said = predict(argument, tmp_path / "a.png", "--out", tmp_path / "out")
    assert status == 3
    assert reason in said


# --- folders -------------------------------------------------------------------------


def test_hidden_files_and_own_results_are_left_out(predict, shots):
    (shots / "._good.png").write_bytes(b"of macOS")
    out = shots / "found"
    for _ in range(3):
        status, _ = predict(shots, "--out", out)
        assert status == 0
        names = {"masks/good.png", "overlays/good.jpg", "areas.csv"}
        assert results(out) == names
    status, _ = predict(shots, "--out", shots.parent / "elsewhere")
    assert results(shots.parent / "elsewhere") == names


def test_results_may_go_into_the_folder_of_the_pictures(predict, shots):
    for _ in range(2):
        assert predict(shots, "--out", shots).status == 0
        assert results(shots) == {
            *("good.png", "areas.csv", "masks/good.png", "overlays/good.jpg")
        }


def test_a_folder_that_must_not_be_read_is_named(predict, shots, tmp_path, monkeypatch):
    locked = shots / "locked"
    locked.mkdir()
    original = os.scandir

    def scandir(path):
        if Path(path) == locked:
            raise PermissionError(13, "Permission denied", str(path))
        return original(path)

    monkeypatch.setattr(os, "scandir", scandir)
    status, said = predict(shots, "--out", tmp_path / "out")
    assert status == 3
    assert f"skipped {locked}: Permission denied" in said


def test_a_file_that_is_named_twice_is_segmented_once(predict, shots, tmp_path):
    (tmp_path / "linked").symlink_to(shots)
    good = shots / "good.png"
    status, said = predict(
        shots, good, tmp_path / "linked/good.png", "--out", tmp_path / "out"
    )
    assert status == 0
    assert "segmented 1 of 1 images" in said
    assert picture_identity(tmp_path / "linked/good.png") == str(good.resolve())


def test_messages_show_long_and_odd_names_shortened():
    assert shortened("a b.jpg") == "a b.jpg"
    assert shortened("a\nb\x1b.jpg") == "a?b?.jpg"
    assert len(shortened("x" * 9000)) < SHOWN + 40
