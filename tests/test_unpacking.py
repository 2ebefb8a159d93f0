"""Archives that mean harm or are damaged."""

import bz2
import gzip
import io
import lzma
import os
import re
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from snakemake_calls import names

from kproba.data import unpacking
from kproba.data.unpacking import unpack


def _tar(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def _member(
    name: str, kind: bytes = tarfile.REGTYPE, link: str = ""
) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.mode = kind, link, 0o4777
    return member


def _zip(path: Path, *members: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def _zip_link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, 0o120777 << 16
    return info


def test_archives_are_unpacked_side_by_side(tmp_path):
    first = _tar(tmp_path / "a.tar", (_member("x/1.jpg"), b"one"))
    second = _zip(tmp_path / "b.zip", ("x/2.png", b"two"), ("y/", b""))
    unpack([(first, None), (second, None)], tmp_path / "out")
    assert (tmp_path / "out/x/1.jpg").read_bytes() == b"one"
    assert (tmp_path / "out/x/2.png").read_bytes() == b"two"
    assert not (tmp_path / "out/x/1.jpg").stat().st_mode & 0o7111  # no permissions


@pytest.mark.parametrize("ending", ["gz", "xz", "bz2"])
def test_compressed_tar_is_unpacked(tmp_path, ending):
    with tarfile.open(tmp_path / "a.tar", f"w:{ending}") as archive:
        member = _member("1.jpg")
        member.size = 3
        archive.addfile(member, io.BytesIO(b"one"))
    unpack([(tmp_path / "a.tar", None)], tmp_path / "out")
    assert (tmp_path / "out/1.jpg").read_bytes() == b"one"


HOSTILE: dict[str, Callable[[Path], Path]] = {
    "tar with ../": lambda path: _tar(path, (_member("a/../../evil"), b"x")),
    "tar with /": lambda path: _tar(path, (_member("/tmp/evil"), b"x")),
    "tar with a link": lambda path: _tar(
        path, (_member("a", tarfile.SYMTYPE, "/etc/passwd"), b"")
    ),
    "tar with a hard link": lambda path: _tar(
        path, (_member("a", tarfile.LNKTYPE, "../evil"), b"")
    ),
    "tar with a link and a file behind it": lambda path: _tar(
        path, (_member("a", tarfile.SYMTYPE, ".."), b""), (_member("a/evil"), b"x")
    ),
    "tar with a device": lambda path: _tar(path, (_member("a", tarfile.CHRTYPE), b"")),
    "tar with a pipe": lambda path: _tar(path, (_member("a", tarfile.FIFOTYPE), b"")),
    "tar with a file twice": lambda path: _tar(
        path, (_member("a"), b"x"), (_member("a"), b"y")
    ),
    "tar with a file and a folder of one name, twice": lambda path: _tar(
        path, (_member("a"), b"x"), (_member("a/b"), b"y")
    ),
    "zip with ../": lambda path: _zip(path, ("../evil", b"x")),
    "zip with /": lambda path: _zip(path, ("/tmp/evil", b"x")),
    "zip with a backslash": lambda path: _zip(path, ("a\\..\\evil", b"x")),
    "zip with a link": lambda path: _zip(path, (_zip_link("a"), b"/etc/passwd")),
    "tar with an empty name": lambda path: _tar(path, (_member(""), b"x")),
    "tar with the name .": lambda path: _tar(path, (_member("."), b"x")),
    "tar with a line break": lambda path: _tar(path, (_member("a\nb"), b"x")),
    "tar with bytes that are no text": lambda path: _tar(
        path, (_member(os.fsdecode(b"caf\xe9.jpg")), b"x")
    ),
    "tar with a long name": lambda path: _tar(path, (_member("a" * 256), b"x")),
    "tar with a long name of few letters": lambda path: _tar(
        path, (_member("ä" * 128), b"x")
    ),
    "tar with a long path": lambda path: _tar(path, (_member("ab/" * 1400), b"x")),
    "zip with an empty name": lambda path: _patched(
        _zip(path, ("a", b"x")), (b"a", b"."), count=2
    ),
    "zip with a NUL in the name": lambda path: _patched(
        _zip(path, ("name", b"x")), (b"name", b"na\0e"), count=2
    ),
    "zip with a long name": lambda path: _zip(path, ("a" * 300, b"x")),
    "zip with more than it announces": lambda path: _resized(
        _zip(path, ("a", b"0123456789" * 100)), 999
    ),
    "zip with less than it announces": lambda path: _resized(
        _zip(path, ("a", b"0123456789" * 100)), 1001
    ),
    "zip that grows beyond the limit": lambda path: _resized(
        _zip(path, ("a", b"0")), 2**32 - 2
    ),
    "tar that grows beyond the limit": lambda path: _huge(path, 2**40),
    "tar with a size below 0": lambda path: _huge(path, -5),
    "tar with a header beyond the limit": lambda path: _huge(
        path, 2**30, tarfile.XHDTYPE
    ),
    "tar without its end, cut": lambda path: _cut(
        _tar(path, (_member("a"), b"x" * 512)), 1024
    ),
    "tar with a damaged second header": lambda path: _patched(
        _tar(path, (_member("a"), b"x"), (_member("b"), b"y")), (b"b\0\0", b"c\0\0")
    ),
    "gz of a cut tar": lambda path: _compressed(path, gzip.compress),
    "bz2 of a cut tar": lambda path: _compressed(path, bz2.compress),
    "xz of a cut tar": lambda path: _compressed(path, lzma.compress),
}


def _patched(path: Path, change: tuple[bytes, bytes], count: int = 1) -> Path:
    content = path.read_bytes()
    assert content.count(change[0]) >= count
    path.write_bytes(content.replace(*change))
    return path


def _resized(path: Path, size: int) -> Path:
    """A zip of one file that announces another size of its content."""
    with zipfile.ZipFile(path) as archive:
        true = struct.pack("<I", archive.infolist()[0].file_size)
    content = path.read_bytes()
    for start, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        place = content.index(start) + offset
        assert content[place : place + 4] == true
        content = content[:place] + struct.pack("<I", size) + content[place + 4 :]
    path.write_bytes(content)
    return path


def _huge(path: Path, size: int, kind: bytes = tarfile.REGTYPE) -> Path:
    """A tar of a header that announces more than follows."""
    member = _member("a", kind)
    member.size = size
    path.write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    return path


def _cut(path: Path, size: int) -> Path:
    path.write_bytes(path.read_bytes()[:size])
    return path


def _compressed(path: Path, compress: Callable[[bytes], bytes]) -> Path:
    content = _cut(_tar(path, (_member("a"), b"x" * 700)), 1200).read_bytes()
    path.write_bytes(compress(content))
    return path


REASONS = {
    "twice": "appears twice",
    "header beyond": "a header has|unexpected end|is incomplete|is damaged",
    "beyond the limit": "the limit",
    "link": "is a link or a device",
    "device": "is a link or a device",
    "pipe": "is a link or a device",
    "long": "is too long",
    "more than": "has more than the",
    "less than": "ends after 1000 of 1001 bytes",
    "below 0": "size of -5|is damaged|bytes",
    "cut": "is incomplete|unexpected end|ends after",
    "damaged": "header at byte 1024 is damaged",
    "empty name": "is not a file name",
    "name .": "is not a file name",
    "break": "is not printable",
    "no text": "is not printable",
    "NUL": "is not printable",
}


def _reason(case: str) -> str:
    found = [reason for word, reason in REASONS.items() if word in case]
    return found[0] if found else "would be written outside of the folder"


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_hostile_archive_is_refused_and_nothing_is_written(tmp_path, case):
    good = _tar(tmp_path / "good.tar", (_member("1.jpg"), b"one"))
    path = HOSTILE[case](tmp_path / "bad.archive")
    (tmp_path / "in").mkdir()
    with pytest.raises(ValueError, match="Expected an undamaged archive") as error:
        unpack([(good, None), (path, None)], tmp_path / "in" / "out")
    assert str(path) in str(error.value)
    assert re.search(_reason(case), str(error.value))
    assert "\n" not in str(error.value)
    assert names(tmp_path / "in") == []
    assert names(tmp_path) == ["bad.archive", "good.tar", "in"]


@pytest.mark.parametrize("share", [0, 0.3, 0.9])
@pytest.mark.parametrize("make", [_tar, _zip])
def test_cut_archive_is_refused_and_nothing_is_written(tmp_path, make, share):
    content = os.urandom(200_000)
    named = "1.jpg" if make is _zip else _member("1.jpg")
    path = make(tmp_path / "a.archive", (named, content))
    path.write_bytes(path.read_bytes()[: int(share * len(content))])
    with pytest.raises(ValueError, match="Expected an undamaged archive"):
        unpack([(path, None)], tmp_path / "out")
    assert names(tmp_path) == ["a.archive"]


def test_file_that_is_no_archive_is_refused(tmp_path):
    path = tmp_path / "a.zip"
    path.write_text("<html>quota exceeded</html>")
    with pytest.raises(ValueError, match=r"a\.zip"):
        unpack([(path, None)], tmp_path / "out")


@pytest.mark.parametrize("ending", ["zip", "gz", "xz", "bz2"])
def test_flipped_byte_is_refused_and_names_the_archive(tmp_path, ending):
    content = b"0123456789" * 20_000
    path = tmp_path / "a.archive"
    if ending == "zip":
        _zip(path, ("1.png", content))
    else:
        with tarfile.open(path, f"w:{ending}") as archive:
            member = _member("1.png")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    damaged = bytearray(path.read_bytes())
    for place in range(len(damaged) // 2, len(damaged) // 2 + 8):
        damaged[place] ^= 0xFF
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"a\.archive") as error:
        unpack([(path, None)], tmp_path / "out")
    assert "Delete the file" in str(error.value)
    assert names(tmp_path) == ["a.archive"]


def test_full_disk_is_no_fault_of_the_archive(tmp_path, monkeypatch):
    path = _tar(tmp_path / "a.tar", (_member("1.jpg"), b"one"))
    usage = shutil.disk_usage(tmp_path)._replace(free=2)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match=r"room for 3 bytes .* but 2 are free"):
        unpack([(path, None)], tmp_path / "out")
    assert names(tmp_path) == ["a.tar"]


def test_file_put_there_by_hand_is_verified(tmp_path):
    path = _tar(tmp_path / "a.tar", (_member("1.jpg"), b"one"))
    with pytest.raises(ValueError, match="expected md5"):
        unpack([(path, "0" * 32)], tmp_path / "out")


def test_earlier_folder_stays_when_unpacking_fails(tmp_path):
    good = _tar(tmp_path / "good.tar", (_member("1.jpg"), b"one"))
    unpack([(good, None)], tmp_path / "out")
    bad = _tar(tmp_path / "bad.tar", (_member("../evil"), b"x"))
    with pytest.raises(ValueError, match="would be written outside of the folder"):
        unpack([(bad, None)], tmp_path / "out")
    assert (tmp_path / "out/1.jpg").read_bytes() == b"one"


def test_names_that_differ_by_case_are_two_files(tmp_path):
    path = _tar(tmp_path / "a.tar", (_member("A.jpg"), b"1"), (_member("a.jpg"), b"2"))
    unpack([(path, None)], tmp_path / "out")
    assert names(tmp_path / "out") == ["A.jpg", "a.jpg"]


def test_tar_of_a_folder_as_it_is_has_the_entry_dot(tmp_path):
    folder = _member("./", tarfile.DIRTYPE)
    path = _tar(tmp_path / "a.tar", (folder, b""), (_member("./a.jpg"), b"1"))
    unpack([(path, None)], tmp_path / "out")
    assert names(tmp_path / "out") == ["a.jpg"]


def test_zip_inside_of_a_tar_stays_a_file(tmp_path):
    inner = _zip(tmp_path / "inner.zip", ("evil", b"x")).read_bytes()
    path = _tar(tmp_path / "a.tar", (_member("inner.zip"), inner))
    unpack([(path, None)], tmp_path / "out")
    assert (tmp_path / "out/inner.zip").read_bytes() == inner


@pytest.mark.parametrize("make", [_tar, _zip])
def test_too_many_entries_are_refused(tmp_path, monkeypatch, make):
    monkeypatch.setattr(unpacking, "MOST_MEMBERS", 2)
    entries = [(name if make is _zip else _member(name), b"x") for name in "abc"]
    path = make(tmp_path / "a.archive", *entries)
    with pytest.raises(ValueError, match="more than 2 entries"):
        unpack([(path, None)], tmp_path / "out")


def test_compressed_zeros_end_at_the_limit(tmp_path, monkeypatch):
    """The announced size is the true one: it is too large for this archive."""
    monkeypatch.setattr(unpacking, "ALLOWANCE", 0)
    path = _zip(tmp_path / "a.zip", ("a", bytes(10**6)))
    with pytest.raises(ValueError, match="with 'a' the files have 1000000 bytes"):
        unpack([(path, None)], tmp_path / "out")
    assert names(tmp_path) == ["a.zip"]


def test_pipe_in_place_of_an_archive_is_refused(tmp_path):
    os.mkfifo(tmp_path / "a.zip")
    with pytest.raises(ValueError, match="it is not a file"):
        unpack([(tmp_path / "a.zip", "0" * 32)], tmp_path / "out")
