"""Downloads archives of public datasets and verifies them."""

import hashlib
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import requests
import urllib3

from kproba.runtime.files import read_json, write_json

log = logging.getLogger("kproba")

CHUNK = 1 << 20  # bytes


TIMEOUT = (20, 60)  # seconds to connect, and to wait for more data


TRIES = 4  # per mirror; each continues where the last one stopped


PAUSE = 2.0  # seconds before the second try, doubled for each further one


PROGRESS = 10.0  # seconds between two log lines


ALGORITHMS = {32: "md5", 40: "sha1", 64: "sha256"}  # by length in hex digits


class DownloadError(RuntimeError):
    """No mirror delivered a file; the message explains a download by hand."""


@dataclass(frozen=True)
class Archive:
    """An archive to download.

    Attributes:
        name: Name of the file.
        mirrors: URLs, which are tried in this order.
        checksum: MD5, SHA-1 or SHA-256 in hexadecimal; None if none is published.
    """

    name: str
    mirrors: tuple[str, ...]
    checksum: str | None


def download(archive: Archive, path: str | Path) -> None:
    """Download an archive to `path`, complete and verified, or not at all.

    After an interruption, the file `path`.part keeps what has arrived, and the next
    call continues it. If there is a checksum, another mirror may continue it, because
    the checksum would detect a mixture of two versions.

    Args:
        archive: The archive.
        path: Output file.

    Raises:
        DownloadError: Every mirror failed; the message gives the reason of each.
        OSError: The file cannot be written, for example because the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    reasons = []
    for url in archive.mirrors:
        continued = part.exists()
        try:
            _fetch(url, part, mixable=archive.checksum is not None)
            try:
                verify(part, archive.checksum)
            except ChecksumError:
                _remove_part(part)
                if not continued:
                    raise
                log.warning("%s: the kept part is damaged; starting again", url)
                _fetch(url, part, mixable=True)
                verify(part, archive.checksum)
        except (requests.RequestException, _Interrupted, ValueError) as error:
            if isinstance(error, ChecksumError):
                _remove_part(part)
            reasons.append(f"{url}: {error}")
            log.warning("%s", reasons[-1])
        else:
            part.replace(path)
            _remove_part(part)
            return
    listed = "".join(f"\n  {reason}" for reason in reasons) or "\n  no address is known"
    raise DownloadError(
        f"Expected to download {archive.name}, but no mirror delivered "
        f"it:{listed}\nRun again to continue the download. Or download {archive.name} "
        f"by hand and save it as {path}. Or give another URL under `mirrors`."
    )


def _fetch(url: str, part: Path, *, mixable: bool) -> None:
    """Append to `part` until the file at `url` is complete.

    Args:
        url: The file.
        part: The part downloaded so far, if there is one.
        mixable: Whether `part` may come from another URL.
    """
    for attempt in range(TRIES):
        try:
            _fetch_once(url, part, mixable=mixable)
        except (
            requests.ConnectionError,
            requests.Timeout,
            _Interrupted,
        ) as error:
            if attempt == TRIES - 1:
                raise
            log.warning("%s: %s; trying again", url, error)
            time.sleep(PAUSE * 2**attempt)
        else:
            return


class _Interrupted(OSError):
    """The connection ended before the end of the file."""


def _fetch_once(url: str, part: Path, *, mixable: bool) -> None:
    note = part.with_name(part.name + ".json")
    source = read_json(note) if note.exists() else {}
    have = part.stat().st_size if part.exists() else 0
    same = source.get("url") == url and source.get("version")
    if have and not (same or mixable):
        have = 0
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if same:
            headers["If-Range"] = source["version"]
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as reply:
        if reply.status_code == 416 and have:  # no bytes after the ones we have
            whole = reply.headers.get("Content-Range", "").rpartition("/")[2]
            if whole == str(have):
                return
            part.unlink()
            raise _Interrupted(
                f"{have} bytes were already downloaded, but the file has "
                f"{whole or 'fewer'}"
            )
        reply.raise_for_status()
        kind = reply.headers.get("Content-Type", "")
        if kind.startswith("text/html"):
            raise ValueError("expected an archive, but got a web page")
        resumed = reply.status_code == 206
        if resumed and not reply.headers.get("Content-Range", "").startswith(
            f"bytes {have}-"
        ):
            raise ValueError("the server continued at another byte than requested")
        if not resumed:
            have = 0
            part.unlink(missing_ok=True)  # before the note names another source
        version = reply.headers.get("ETag", "")
        if not version or version.startswith(
            "W/"
        ):  # equal weak tags do not mean equal bytes
            version = reply.headers.get("Last-Modified", "")
        write_json(note, {"url": url, "version": version})
        length = reply.headers.get("Content-Length")
        total = have + int(length) if length else None
        with part.open("ab" if have else "wb") as file:
            have = _copy(reply, file, have=have, total=total, name=part.stem)
    if total is not None and have != total:
        raise _Interrupted(f"the connection ended after {have} of {total} bytes")


def _copy(
    reply: requests.Response,
    file: IO[bytes],
    *,
    have: int,
    total: int | None,
    name: str,
) -> int:
    """Write a reply to a file and log progress; returns the size of the file."""
    started, first, last = time.monotonic(), have, time.monotonic()
    try:
        reply.raw.enforce_content_length = (
            False  # keep the bytes before an interruption
        )
        while chunk := reply.raw.read(CHUNK):
            file.write(chunk)
            have += len(chunk)
            now = time.monotonic()
            if now - last > PROGRESS:
                last = now
                speed = (have - first) / (now - started) / 1e6
                of = f" of {total / 1e6:.0f}" if total else ""
                log.info("%s: %.0f%s MB, %.1f MB/s", name, have / 1e6, of, speed)
    except urllib3.exceptions.HTTPError as error:
        raise _Interrupted(f"the connection broke after {have} bytes") from error
    return have


def _remove_part(part: Path) -> None:
    """Remove an incomplete file and the note about its source."""
    for path in (part, part.with_name(part.name + ".json")):
        path.unlink(missing_ok=True)


class ChecksumError(ValueError):
    """A file differs from the published one."""


def verify(path: str | Path, checksum: str | None) -> None:
    """Compare a file with its checksum.

    Args:
        path: The file.
        checksum: MD5, SHA-1 or SHA-256 in hexadecimal; None to check nothing.

    Raises:
        ChecksumError: They differ.
    """
    if checksum is None:
        return
    with Path(path).open("rb") as file:
        actual = hashlib.file_digest(file, ALGORITHMS[len(checksum)]).hexdigest()
    if actual != checksum.lower():
        raise ChecksumError(
            f"expected {ALGORITHMS[len(checksum)]} {checksum}, but {path} has {actual}"
        )
