"""Downloads from a server that cuts, lies and breaks."""

import errno
import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from snakemake_calls import names

from kproba.data import download as module
from kproba.data.download import Archive, DownloadError, download, verify

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
    assert f"download a.tar by hand and save it as {path}" in message
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
