"""Downloads from a server that cuts, lies and breaks; archives that mean harm."""

import errno
import hashlib
import io
import os
import shutil
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from snakemake_calls import names

from kproba.data import download as module
from kproba.data.download import Archive, DownloadError, download, unpack, verify

CONTENT = bytes(range(256)) * 4096  # 1 MiB
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT under any name; what it does wrong can be set.

    Attributes:
        cuts: Bytes after which the next replies end, one entry a reply.
        ranges: Whether it can resume.
        status: Of every reply, if not 200 or 206.
        content: What it serves.
        kind: Its content type.
        requests: Range headers of the requests, "" for none.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.cuts: list[int] = []
        self.ranges = True
        self.status: int | None = None
        self.content = CONTENT
        self.kind = "application/x-tar"
        self.tag = '"one"'
        self.requests: list[str] = []

    def url(self, name: str = "a.tar") -> str:
        """URL of a file."""
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(BaseHTTPRequestHandler):
    """Answers as the attributes of its server say."""

    server: Server

    def do_GET(self) -> None:
        """Send the rest of the content, or less."""
        server, wanted = self.server, self.headers.get("Range", "")
        server.requests.append(wanted)
        if server.status:
            self.send_error(server.status)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        same = self.headers.get("If-Range") in (None, server.tag)
        if not (wanted and server.ranges and same):
            start = 0
        total = len(server.content)
        if start >= total:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{total}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        self.send_header("Content-Length", str(total - start))
        self.send_header("Content-Type", server.kind)
        self.send_header("ETag", server.tag)
        self.end_headers()
        body = server.content[start:]
        if server.cuts:
            body = body[: server.cuts.pop(0)]
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Stay quiet."""


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.setattr(module, "PAUSE", 0.0)
    running = Server()
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    yield running
    running.shutdown()
    running.server_close()


def _archive(*urls: str, checksum: str | None = SHA256) -> Archive:
    return Archive("a.tar", urls, checksum)


def test_file_arrives_whole_and_nothing_else_stays(server, tmp_path):
    download(_archive(server.url()), tmp_path / "new" / "a.tar")
    assert (tmp_path / "new/a.tar").read_bytes() == CONTENT
    assert names(tmp_path / "new") == ["a.tar"]


def test_cut_connection_is_resumed_where_it_ended(server, tmp_path):
    server.cuts = [300_000, 200_000]
    download(_archive(server.url()), tmp_path / "a.tar")
    assert (tmp_path / "a.tar").read_bytes() == CONTENT
    assert server.requests == ["", "bytes=300000-", "bytes=500000-"]


def test_next_call_goes_on_after_all_tries_failed(server, tmp_path):
    server.cuts = [100_000] * module.TRIES
    with pytest.raises(DownloadError, match="ended after 400000 of 1048576 bytes"):
        download(_archive(server.url()), tmp_path / "a.tar")
    assert not (tmp_path / "a.tar").exists()
    assert (tmp_path / "a.tar.part").stat().st_size == 400_000
    download(_archive(server.url()), tmp_path / "a.tar")
    assert server.requests[-1] == "bytes=400000-"
    assert (tmp_path / "a.tar").read_bytes() == CONTENT


def test_server_that_cannot_resume_starts_again(server, tmp_path):
    server.cuts, server.ranges = [300_000], False
    download(_archive(server.url()), tmp_path / "a.tar")
    assert (tmp_path / "a.tar").read_bytes() == CONTENT


def test_file_that_changed_in_between_is_not_mixed(server, tmp_path):
    server.cuts = [200_000] * module.TRIES
    with pytest.raises(DownloadError):
        download(_archive(server.url(), checksum=None), tmp_path / "a.tar")
    server.content, server.tag = CONTENT[::-1], '"two"'
    download(_archive(server.url(), checksum=None), tmp_path / "a.tar")
    assert (tmp_path / "a.tar").read_bytes() == CONTENT[::-1]


def test_part_of_another_mirror_is_used_only_with_a_checksum(server, tmp_path):
    for checksum, expected in ((SHA256, "bytes=1000-"), (None, "")):
        (tmp_path / "a.tar.part").write_bytes(CONTENT[:1000])
        download(_archive(server.url(), checksum=checksum), tmp_path / "a.tar")
        assert server.requests[-1] == expected
        assert (tmp_path / "a.tar").read_bytes() == CONTENT


def test_complete_part_needs_no_byte_more(server, tmp_path):
    (tmp_path / "a.tar.part").write_bytes(CONTENT)
    download(_archive(server.url()), tmp_path / "a.tar")
    assert (tmp_path / "a.tar").read_bytes() == CONTENT


def test_part_that_is_too_long_is_dropped(server, tmp_path):
    (tmp_path / "a.tar.part").write_bytes(CONTENT + b"more")
    download(_archive(server.url()), tmp_path / "a.tar")
    assert (tmp_path / "a.tar").read_bytes() == CONTENT


def test_dead_mirror_is_followed_by_the_next(server, tmp_path):
    dead = "http://127.0.0.1:9/a.tar"
    download(_archive(dead, server.url()), tmp_path / "a.tar")
    assert (tmp_path / "a.tar").read_bytes() == CONTENT


def test_dead_mirrors_say_what_to_fetch_and_where_to_put_it(server, tmp_path):
    server.status = 404
    path = tmp_path / "a.tar"
    with pytest.raises(DownloadError) as error:
        download(_archive("http://127.0.0.1:9/a.tar", server.url()), path)
    message = str(error.value)
    assert "http://127.0.0.1:9/a.tar: " in message
    assert f"{server.url()}: 404" in message
    assert f"fetch a.tar by hand, put it at {path}" in message
    assert "`mirrors`" in message


def test_wrong_content_is_refused_and_not_kept(server, tmp_path):
    server.content = CONTENT[::-1]
    with pytest.raises(DownloadError, match=f"expected sha256 {SHA256}"):
        download(_archive(server.url()), tmp_path / "a.tar")
    assert names(tmp_path) == []


def test_damaged_part_is_fetched_again(server, tmp_path):
    (tmp_path / "a.tar.part").write_bytes(b"x" * 1000)
    download(_archive(server.url()), tmp_path / "a.tar")
    assert server.requests == ["bytes=1000-", ""]
    assert (tmp_path / "a.tar").read_bytes() == CONTENT


def test_web_page_in_place_of_the_archive_is_refused(server, tmp_path):
    server.kind = "text/html; charset=utf-8"
    with pytest.raises(DownloadError, match="got a web page"):
        download(_archive(server.url(), checksum=None), tmp_path / "a.tar")


@pytest.mark.parametrize("algorithm", ["md5", "sha1", "sha256"])
def test_checksums_of_every_kind(tmp_path, algorithm):
    path = tmp_path / "a"
    path.write_bytes(CONTENT)
    digest = hashlib.new(algorithm, CONTENT).hexdigest()
    verify(path, digest.upper())
    verify(path, None)
    with pytest.raises(ValueError, match=f"expected {algorithm} {digest[::-1]}"):
        verify(path, digest[::-1])


# --- unpacking -----------------------------------------------------------------------


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


@pytest.mark.parametrize("ending", ["gz", "xz"])
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
}


def _reason(case: str) -> str:
    if "twice" in case:
        return "appears twice"
    if any(word in case for word in ("link", "device", "pipe")):
        return "is a link or a device"
    return "leads out of the folder"


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_hostile_archive_is_refused_and_nothing_is_written(tmp_path, case):
    good = _tar(tmp_path / "good.tar", (_member("1.jpg"), b"one"))
    path = HOSTILE[case](tmp_path / "bad.archive")
    (tmp_path / "in").mkdir()
    with pytest.raises(ValueError, match="Expected an undamaged archive") as error:
        unpack([(good, None), (path, None)], tmp_path / "in" / "out")
    assert str(path) in str(error.value)
    assert _reason(case) in str(error.value)
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


@pytest.mark.parametrize("ending", ["zip", "gz", "xz"])
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


def test_disk_that_fills_up_stops_the_download_and_keeps_its_part(
    server, tmp_path, monkeypatch
):
    def full(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "a.tar.part").write_bytes(CONTENT[:1000])
    monkeypatch.setattr(module, "_copy", full)
    with pytest.raises(OSError, match="No space left"):
        download(_archive(server.url(), server.url("b.tar")), tmp_path / "a.tar")
    assert server.requests == ["bytes=1000-"]
    assert (tmp_path / "a.tar.part").read_bytes() == CONTENT[:1000]


def test_file_put_there_by_hand_is_verified(tmp_path):
    path = _tar(tmp_path / "a.tar", (_member("1.jpg"), b"one"))
    with pytest.raises(ValueError, match="expected md5"):
        unpack([(path, "0" * 32)], tmp_path / "out")


def test_earlier_folder_stays_when_unpacking_fails(tmp_path):
    good = _tar(tmp_path / "good.tar", (_member("1.jpg"), b"one"))
    unpack([(good, None)], tmp_path / "out")
    bad = _tar(tmp_path / "bad.tar", (_member("../evil"), b"x"))
    with pytest.raises(ValueError, match="leads out of the folder"):
        unpack([(bad, None)], tmp_path / "out")
    assert (tmp_path / "out/1.jpg").read_bytes() == b"one"
