"""The output folder of `kproba predict`: nothing of the user's is replaced or lost."""

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_predictions import Command, noise, results, rows

from kproba.predict import segmenter
from kproba.predict.inputs import Input
from kproba.predict.outputs import RECORD, OutputFolder, WriteError
from kproba.runtime.files import FullDiskError


@pytest.fixture
def predict(monkeypatch, capsys, caplog) -> Command:
    return Command(monkeypatch, capsys, caplog)


@pytest.fixture
def shots(tmp_path) -> Path:
    """A folder with two pictures."""
    (tmp_path / "shots").mkdir()
    noise(60, 40).save(tmp_path / "shots/a.png")
    noise(60, 40, 1).save(tmp_path / "shots/b.png")
    return tmp_path / "shots"


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in results(folder)}


# --- what is refused -----------------------------------------------------------------


def user_file(name: str):
    def make(out: Path) -> None:
        path = out / name
        path.parent.mkdir(parents=True)
        path.write_bytes(b"of the user")

    return make


def link_to(name: str, target: str):
    def make(out: Path) -> None:
        (out / name).parent.mkdir(parents=True)
        user = out.parent / "user"
        user.mkdir()
        (user / "file").write_bytes(b"of the user")
        (out / name).symlink_to(user / target)

    return make


def folder(name: str):
    return lambda out: (out / name).mkdir(parents=True)


REFUSED = {
    "a mask": user_file("masks/a.png"),
    "an overlay": user_file("overlays/b.jpg"),
    "a mask that is a folder": folder("masks/a.png"),
    "a mask that is a link": link_to("masks/a.png", "file"),
    "a mask that is a link that leads nowhere": link_to("masks/b.png", "none"),
    "a linked folder of masks": link_to("masks", "."),
    "a linked folder of overlays": link_to("overlays", "."),
    "a table": user_file("areas.csv"),
    "a table that is a link": link_to("areas.csv", "file"),
    "a table that is a folder": folder("areas.csv"),
    "a folder of masks that is a link to a file": link_to("masks", "file"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_nothing_of_the_users_is_replaced(predict, shots, tmp_path, kind):
    out = tmp_path / "out"
    REFUSED[kind](out)
    before = {
        path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")
    }
    status, said = predict(shots, "--out", out)
    assert status == 1
    assert predict.model is None
    assert "Error: Expected" in said and "Name another --out" in said
    assert str(out) in said
    after = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    assert after == before


def test_the_truth_of_a_dataset_is_not_replaced(predict, tmp_path):
    for kind in ("images", "masks"):
        (tmp_path / kind / "train").mkdir(parents=True)
        for number in range(9):
            noise(60, 40, number).save(tmp_path / kind / "train" / f"{number}.png")
    before = contents(tmp_path)
    status, said = predict(tmp_path / "images", "--out", tmp_path)
    assert status == 1
    assert f"{tmp_path}/masks/train/0.png was not written by a prediction" in said
    assert "and 4 more" in said
    assert contents(tmp_path) == before


@pytest.mark.parametrize("before", [False, True], ids=["users", "predicted"])
def test_an_input_that_is_an_output_is_refused(predict, shots, tmp_path, before):
    out = tmp_path / "out"
    if before:
        predict(shots, "--out", out)
    else:
        (out / "masks").mkdir(parents=True)
        noise(60, 40).save(out / "masks/a.png")
    content = contents(out)
    for given in (out / "masks/a.png", out / "masks"):
        status, said = predict(given, "--out", out)
        assert status == 1
        assert "masks/a.png" in said
        assert contents(out) == content


def test_a_result_that_the_user_changed_is_kept(predict, shots, tmp_path):
    out = tmp_path / "out"
    assert predict(shots, "--out", out).status == 0
    noise(60, 40).convert("L").save(out / "masks/a.png")
    mended = contents(out)
    status, said = predict(shots, "--out", out)
    assert status == 1
    assert f"{out}/masks/a.png was not written by a prediction, or was changed" in said
    assert contents(out) == mended


def a_file(path: Path) -> Path:
    path.write_bytes(b"of the user")
    return path


UNUSABLE = {
    "a file": a_file,
    "below a file": lambda path: a_file(path) / "deep" / "er",
    "a link that leads nowhere": lambda path: path.symlink_to("nowhere/at/all") or path,
    "a link to itself": lambda path: path.symlink_to(path) or path,
    "too long": lambda path: path / ("x" * 300),
    "not to be made": lambda path: Path("/proc/x"),
    "a device": lambda path: Path("/dev/null"),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_folders_that_cannot_be_used(predict, shots, tmp_path, kind):
    out = UNUSABLE[kind](tmp_path / "out")
    status, said = predict(shots, "--out", out)
    assert status == 1
    assert predict.model is None
    assert "Error: Expected a writable folder for --out, but got" in said
    assert kind != "too long" or not (tmp_path / "out").exists()


# --- names, and the rows of several runs ---------------------------------------------


def test_names_and_rows_stay_over_several_runs(predict, tmp_path):
    out = tmp_path / "out"
    for name in ("x/a.png", "y/a.jpg", "y/a.png", "z/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        noise(60, 40, len(name)).save(tmp_path / name)

    def table():
        return {
            row["file"].removeprefix(f"{tmp_path}/"): row["result"] for row in rows(out)
        }

    assert predict(tmp_path / "x/a.png", "--out", out).status == 0
    assert table() == {"x/a.png": "a"}
    assert predict(tmp_path / "y", tmp_path / "z/b.png", "--out", out).status == 0
    known = {"x/a.png": "a", "y/a.jpg": "a-2", "y/a.png": "a-3", "z/b.png": "b"}
    assert table() == known
    first = contents(out)
    # In another order, from another folder, and a part of them only.
    assert predict(tmp_path / "y/a.png", tmp_path / "x", "--out", out).status == 0
    assert table() == known
    assert contents(out) == first


def test_pictures_and_results_that_move_together_keep_their_names(predict, tmp_path):
    (tmp_path / "one").mkdir()
    noise(60, 40).save(tmp_path / "one/a.png")
    predict(tmp_path / "one/a.png", "--out", tmp_path / "one/out")
    (tmp_path / "one").rename(tmp_path / "two")
    assert predict(tmp_path / "two/a.png", "--out", tmp_path / "two/out").status == 0
    assert results(tmp_path / "two/out") == {
        *("areas.csv", "masks/a.png", "overlays/a.jpg")
    }


def test_the_rows_of_a_result_are_replaced(predict, shots, tmp_path):
    out = tmp_path / "out"
    predict(shots, "--out", out)
    Image.new("RGB", (50, 50), "red").save(shots / "a.png")
    assert predict(shots / "a.png", "--out", out).status == 0
    of_a = [row for row in rows(out) if row["result"] == "a"]
    assert [(row["width"], row["class"], row["percent"]) for row in of_a] == [
        ("50", "background", "100.000")
    ]
    assert {row["result"] for row in rows(out)} == {"a", "b"}


def test_tables_of_older_versions_are_continued(predict, shots, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "areas.csv").write_text(
        "file,width,height,how,class,label,pixels,percent\n"
        "old.jpg,4,3,whole,cat,1,12,100.000\n"
    )
    assert predict(shots, "--out", out).status == 0
    table = rows(out)
    assert (table[0]["file"], table[0]["result"], table[0]["pixels"]) == (
        *("old.jpg", "", "12"),
    )
    assert {row["result"] for row in table} == {"", "a", "b"}


@pytest.mark.parametrize(
    "content", [b"", b"a,b\n1,2\n", b"\0\xff\n", b"file;result\n", b"x" * 200_000]
)
def test_a_table_of_something_else_is_kept(predict, shots, tmp_path, content):
    out = tmp_path / "out"
    out.mkdir()
    (out / "areas.csv").write_bytes(content)
    status, said = predict(shots, "--out", out)
    assert status == 1
    assert f"Expected {out / 'areas.csv'} to be the table of an earlier" in said
    assert (out / "areas.csv").read_bytes() == content
    assert results(out) == {"areas.csv"}


def test_a_killed_run_is_repeated(predict, shots, tmp_path):
    """It leaves files with lines in the record, the last of which may be cut."""
    out = tmp_path / "out"
    predict(shots, "--out", out)
    (out / "areas.csv").unlink()
    with (out / RECORD).open("ab") as file:
        file.write(b'\n{"file": "masks/b.p')
    noise(60, 40, 5).save(shots / "c.png")
    for _ in range(2):
        assert predict(shots, "--out", out).status == 0
        assert {row["result"] for row in rows(out)} == {"a", "b", "c"}
        size = (out / RECORD).stat().st_size
    assert predict(shots, "--out", out).status == 0
    assert (out / RECORD).stat().st_size == size  # it does not grow for ever


def test_two_runs_at_once_share_a_folder(tmp_path):
    """Each chooses its names while the other has written nothing yet."""
    named = []
    for number in range(2):
        path = tmp_path / str(number) / "a.png"
        path.parent.mkdir()
        noise(20, 20).save(path)
        out = OutputFolder(tmp_path / "out", ["masks"])
        named.append((out, out.prepare([Input(path, "a")])[0].name))
    assert [name for _, name in named] == ["a", "a-2"]
    for out, name in named:
        out.write("masks", name, b"content")
        out.write_areas([["f", name, 1, 1, "whole", "cat", 1, 1, "100.000"]])
    assert {row["result"] for row in rows(tmp_path / "out")} == {"a", "a-2"}


def test_two_runs_of_one_picture_at_once(tmp_path):
    noise(20, 20).save(tmp_path / "a.png")
    outs = [OutputFolder(tmp_path / "out", ["masks"]) for _ in range(2)]
    for out in outs:
        assert out.prepare([Input(tmp_path / "a.png", "a")])[0].name == "a"
    for number, out in enumerate(outs):
        out.write("masks", "a", f"content {number}".encode())
    assert (tmp_path / "out/masks/a.png").read_bytes() == b"content 1"


def test_a_table_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    out = OutputFolder(tmp_path / "out", ["masks"])
    out.prepare([])

    def fail(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(WriteError, match=r"out/areas\.csv was not written: Input"):
        out.write_areas([["f", "a", 1, 1, "whole", "cat", 1, 1, "100.000"]])
    assert results(tmp_path / "out") == set()


def test_a_file_that_comes_while_predicting_is_kept(tmp_path):
    noise(20, 20).save(tmp_path / "a.png")
    out = OutputFolder(tmp_path / "out", ["masks"])
    out.prepare([Input(tmp_path / "a.png", "a")])
    (tmp_path / "out/masks").mkdir()
    (tmp_path / "out/masks/a.png").write_bytes(b"of the user")
    with pytest.raises(WriteError, match=r"masks/a\.png was not written"):
        out.write("masks", "a", b"content")
    assert results(tmp_path / "out") == {"masks/a.png"}


# --- what cannot be written ----------------------------------------------------------


@pytest.fixture
def broken_disk(monkeypatch):
    """Lets writing a file fail whose content has a mark; leaves half of it."""

    def set_up(mark: bytes, number: int) -> None:
        write = Path.write_bytes

        def write_bytes(path: Path, content: bytes) -> int:
            if mark in content:
                write(path, content[: len(content) // 2])
                raise OSError(number, os.strerror(number), str(path))
            return write(path, content)

        monkeypatch.setattr(Path, "write_bytes", write_bytes)

    return set_up


JPEG = b"\xff\xd8\xff"  # overlays alone


@pytest.mark.parametrize(
    ("number", "status"),
    [(errno.ENOSPC, 1), (errno.EDQUOT, 1), (errno.EFBIG, 3), (errno.EACCES, 3)],
)
def test_a_file_that_cannot_be_written_is_named_and_not_left(
    predict, shots, tmp_path, broken_disk, number, status
):
    out = tmp_path / "out"
    broken_disk(JPEG, number)
    ended, said = predict(shots, "--out", out, "--batch-size", 1)
    # No image is done with all its results, though all masks may be.
    assert ended == 1
    assert f"{out}/overlays/a.jpg" in said
    assert "areas.csv could" not in said and ".part" not in said
    done = {"masks/a.png"} if status == 1 else {"masks/a.png", "masks/b.png"}
    assert results(out) == {"areas.csv", *done}
    assert {f"masks/{row['result']}.png" for row in rows(out)} == done
    assert not [path for path in out.rglob(".*") if path.name != RECORD]


def test_one_name_that_is_too_long_loses_nothing_of_the_others(
    predict, shots, tmp_path
):
    out = tmp_path / "out"
    fits, too_long = "ö" * 125 + "x", "x" * 253  # with .png 255 and 257 bytes
    noise(60, 40, 3).save(shots / f"{fits}.png")
    noise(60, 40, 4).save(shots / too_long, "PNG")
    status, said = predict(
        shots, shots / too_long, "--out", out, "--no-overlays", "--confidence"
    )
    assert status == 3
    assert "File name too long" in said
    assert {row["result"] for row in rows(out)} == {"a", "b", fits}
    assert (out / f"masks/{fits}.png").is_file()
    assert (out / f"confidence/{fits}.png").is_file()


def test_a_name_that_is_a_folder_of_another_picture(predict, tmp_path):
    shots = tmp_path / "shots"
    (shots / "a.png").mkdir(parents=True)
    noise(60, 40).save(shots / "a.png/b.png")
    noise(60, 40).save(shots / "a.jpg")
    status, said = predict(shots, "--out", tmp_path / "out")
    assert status == 3
    assert "skipped" in said and "masks/a.png" in said
    assert len({row["result"] for row in rows(tmp_path / "out")}) == 1


def test_a_full_disk_names_the_file(tmp_path, broken_disk):
    out = OutputFolder(tmp_path, ["masks"])
    broken_disk(b"content", errno.ENOSPC)
    with pytest.raises(FullDiskError, match=r"The disk is full: .*/masks/x\.png could"):
        out.write("masks", "x", b"content")
    assert not (tmp_path / "masks/x.png").exists()


# --- runs that end early -------------------------------------------------------------


def interrupt(model) -> None:
    raise KeyboardInterrupt


def give_nan(model) -> None:
    model._check_finite(torch.tensor([np.nan]))


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (interrupt, 130, "Interrupted. 1 of 2 images were segmented, in"),
        (give_nan, 1, "Error: Expected probabilities from the model, but its output"),
    ],
    ids=["Ctrl-C", "NaN"],
)
def test_what_was_done_is_kept(
    predict, shots, tmp_path, monkeypatch, capsys, error, status, message
):
    out, calls = tmp_path / "out", []
    segment = segmenter.Segmenter.predict_batch

    def predict_batch(self, images, **how):
        calls.append(images)
        if len(calls) == 2:
            error(self)
        return segment(self, images, **how)

    monkeypatch.setattr(segmenter.Segmenter, "predict_batch", predict_batch)
    ended, said = predict(shots, "--out", out, "--batch-size", 1)
    assert ended == status
    assert message in said
    assert {row["result"] for row in rows(out)} == {"a"}
    assert results(out) == {"areas.csv", "masks/a.png", "overlays/a.jpg"}


def test_nothing_is_left_if_nothing_was_done(predict, tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    out = tmp_path / "deep/er"
    assert predict(tmp_path / "a.png", "--out", out).status == 1
    assert not (tmp_path / "deep").exists()
    (tmp_path / "mine").mkdir()
    assert predict(tmp_path / "a.png", "--out", tmp_path / "mine").status == 1
    assert list((tmp_path / "mine").iterdir()) == []


# --- large images --------------------------------------------------------------------


def test_large_images_are_said_to_be_in_parts(predict, shots, tmp_path, monkeypatch):
    monkeypatch.setattr(segmenter, "MOST_VALUES", 2 * 70 * 70)
    noise(90, 80).save(shots / "large.png")
    out = tmp_path / "out"
    status, said = predict(shots, "--out", out, "--confidence", "--tile", 64)
    assert status == 0
    assert "large.png does not fit into memory as a whole: 4 tiles, in parts" in said
    how = {row["result"]: row["how"] for row in rows(out)}
    assert how == {"a": "whole", "b": "whole", "large": "4 tiles, in parts"}
    mask = np.asarray(Image.open(out / "masks/large.png"))
    assert mask.shape == (80, 90)
    status, said = predict(shots, "--out", out, "--probabilities", "--tile", 64)
    assert status == 3
    assert "large.png: the probabilities of 90x80 pixels and 2 classes" in said
    assert results(out) >= {"probabilities/a.npz"}
    assert "probabilities/large.npz" not in results(out)


def test_overlays_have_sides_that_a_jpeg_can_have(predict, tmp_path):
    Image.new("RGB", (66_000, 2)).save(tmp_path / "a.png")
    assert predict(tmp_path / "a.png", "--out", tmp_path / "out").status == 0
    assert Image.open(tmp_path / "out/masks/a.png").size == (66_000, 2)
    assert Image.open(tmp_path / "out/overlays/a.jpg").width == 65_500


def test_results_may_be_copied_with_their_record(predict, shots, tmp_path):
    predict(shots, "--out", tmp_path / "out")
    shutil.copytree(tmp_path / "out", tmp_path / "copy")
    assert predict(shots, "--out", tmp_path / "copy").status == 0
    assert contents(tmp_path / "copy") == contents(tmp_path / "out")
