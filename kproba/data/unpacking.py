"""Unpacks archives safely: inside one folder, bounded, completely or not at all."""

import bz2
import copy
import errno
import gzip
import lzma
import os
import shutil
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from kproba.data.download import ChecksumError, verify
from kproba.data.kinds.pairs import is_usable, printable
from kproba.runtime.files import atomic_directory

CHUNK = 1 << 20  # bytes
MOST_MEMBERS = 10**6
# What an archive may unpack to: this many times its size, and so many bytes more.
GROWTH, ALLOWANCE = 200, 2**30
LONGEST_PART, LONGEST_PATH = 255, 4095  # bytes of a name, and of a path
MOST_HEADER = 2**24  # bytes of a header in a tar, which is read into memory
BLOCK = 512  # bytes of a block in a tar
FULL = (errno.ENOSPC, errno.EDQUOT)
ZIP_STARTS = (b"PK\x03\x04", b"PK\x05\x06")


class UnsafeEntryError(ValueError):
    """An archive has an entry that must not be unpacked."""


class _Entry(NamedTuple):
    """A file in an archive: its name, its announced size, and its content."""

    name: str
    size: int
    content: IO[bytes]


def unpack(archives: Sequence[tuple[Path, str | None]], folder: str | Path) -> None:
    """Unpack archives into one new folder, completely or not at all.

    Archives cannot write outside the folder, and cannot create links, devices or
    permissions. They may have `MOST_MEMBERS` files, and unpack to `GROWTH` times their
    size and `ALLOWANCE` bytes.

    Args:
        archives: Files (.tar, .tar.gz, .tar.bz2, .tar.xz, .zip) with their checksums.
        folder: Output folder, which is replaced if it exists.

    Raises:
        ValueError: An archive is damaged, is not the published one, or has an entry
            that is unsafe or too large; the message names both.
        OSError: The disk is full, or the folder cannot be written.
    """
    with atomic_directory(folder) as temporary:
        for path, checksum in archives:
            _Unpacking(Path(path), temporary).run(checksum)


class _Unpacking:
    """Unpacks one archive.

    Args:
        path: The archive.
        folder: Output folder for its files.
    """

    def __init__(self, path: Path, folder: Path):
        self.path, self.folder = path, folder
        self.member = ""  # the current one, for messages
        self.limit = 0  # bytes that may be unpacked
        self.total = 0  # bytes that were announced so far

    def run(self, checksum: str | None) -> None:
        """Verify the archive and write its files.

        Raises:
            ValueError, OSError: As for `unpack`.
        """
        try:
            if not self.path.is_file():
                raise UnsafeEntryError("it is not a file")
            verify(self.path, checksum)
            self.limit = GROWTH * self.path.stat().st_size + ALLOWANCE
            for entry in self._entries():
                self._write(entry)
        except _NoRoomError:
            raise
        except OSError as error:
            if error.errno in FULL:
                raise
            if error.errno in (None, errno.EINVAL):  # of decoders, and of bad offsets
                raise self._damaged(error) from error
            raise OSError(
                f"Expected to unpack {self.path} into {self.folder.parent}, but: "
                f"{error}. Correct this and run again."
            ) from error
        except Exception as error:  # damaged archives raise nearly anything
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> ValueError:
        text = printable(str(error)) or type(error).__name__
        if self.member and not isinstance(error, UnsafeEntryError | ChecksumError):
            text = f"'{_shorten(self.member)}': {text}"
        return ValueError(
            f"Expected an undamaged archive in {self.path}, but: {text}. Delete "
            f"the file and run again, or replace it by a good copy."
        )

    def _entries(self) -> Iterator[_Entry]:
        """Every file in the archive, without folders."""
        with self.path.open("rb") as file:
            start = file.read(4)
        return self._zip_entries() if start in ZIP_STARTS else self._tar_entries()

    def _zip_entries(self) -> Iterator[_Entry]:
        with zipfile.ZipFile(self.path) as archive:
            infos = archive.infolist()
            _check_count(len(infos))
            for info in infos:
                self.member = info.orig_filename
                kind = (info.external_attr >> 16) & 0o170000
                if kind not in (0, 0o100000, 0o040000):
                    raise UnsafeEntryError(
                        f"'{_shorten(self.member)}' is a link or a device"
                    )
                self._check(info.orig_filename, info.is_dir(), info.file_size)
            self._check_room(self.total)
            for info in infos:
                self.member = info.orig_filename
                if info.is_dir():
                    continue
                # Read one byte more, to detect a file that is longer than announced.
                longer = copy.copy(info)
                longer.file_size += 1
                with archive.open(longer) as stream:
                    yield _Entry(info.filename, info.file_size, stream)

    def _tar_entries(self) -> Iterator[_Entry]:
        with (
            _open_tar(self.path) as file,
            tarfile.open(fileobj=_Bounded(file, self.limit), mode="r:") as archive,  # type: ignore[call-overload]
        ):
            for number, member in enumerate(archive, start=1):
                self.member = member.name
                _check_count(number)
                self._check(member.name, member.isdir(), member.size)
                archive.members = []  # tarfile keeps them all
                if member.isdir():
                    continue
                if not member.isreg():
                    raise UnsafeEntryError(
                        f"'{_shorten(member.name)}' is a link or a device"
                    )
                content = archive.extractfile(member)
                assert content is not None  # a regular file
                yield _Entry(member.name, member.size, content)
            self.member = ""
            _check_end(file, archive.offset, self.limit)

    def _check(self, name: str, is_folder: bool, size: int) -> None:
        """Refuse a name or a size that an entry must not have.

        Raises:
            UnsafeEntryError: The message names the entry.
        """
        self._check_name(name, is_folder)
        if is_folder:
            return
        if size < 0:
            raise UnsafeEntryError(f"'{_shorten(name)}' has a size of {size} bytes")
        self.total += size
        if self.total > self.limit:
            raise UnsafeEntryError(
                f"with '{_shorten(name)}' the files have {self.total} bytes, but the "
                f"limit for this archive is {self.limit} ({GROWTH} times its size plus "
                f"{ALLOWANCE // 2**30} GiB)"
            )

    def _check_name(self, name: str, is_folder: bool) -> None:
        path, shown = PurePosixPath(name), _shorten(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name:
            raise UnsafeEntryError(f"'{shown}' would be written outside of the folder")
        if not path.parts and not is_folder:
            raise UnsafeEntryError(f"'{shown}' is not a file name")
        if not is_usable(name):
            raise UnsafeEntryError(f"the name '{shown}' is not printable UTF-8")
        longest = max((len(os.fsencode(part)) for part in path.parts), default=0)
        if (
            longest > LONGEST_PART
            or len(os.fsencode(self.folder.absolute() / path)) > LONGEST_PATH
        ):
            raise UnsafeEntryError(
                f"'{shown}' is too long: a name may have {LONGEST_PART} bytes, and a "
                f"path {LONGEST_PATH}"
            )

    def _write(self, entry: _Entry) -> None:
        """Write a new file of a known size."""
        path = self.folder / PurePosixPath(entry.name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("xb")
        except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
            raise UnsafeEntryError(f"'{_shorten(entry.name)}' appears twice") from error
        self._check_room(entry.size)
        written = 0
        with file:
            while chunk := entry.content.read(min(CHUNK, entry.size - written + 1)):
                written += len(chunk)
                if written > entry.size:
                    raise EOFError(
                        f"has more than the {entry.size} bytes in its header"
                    )
                file.write(chunk)
        if written < entry.size:
            raise EOFError(f"ends after {written} of {entry.size} bytes")

    def _check_room(self, size: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if size > free:
            raise _NoRoomError(
                f"Expected room for {size} bytes in {self.folder.parent}, but {free} "
                f"are free. Free some space and run again."
            )


class _NoRoomError(OSError):
    """The disk has no room for the files of an archive."""


class _Bounded:
    """A file that limits each read of tarfile to the largest header.

    Args:
        file: The tar, decompressed.
        limit: Bytes after which it must have ended.
    """

    def __init__(self, file: IO[bytes], limit: int):
        self.file, self.limit = file, limit

    def read(self, size: int = -1) -> bytes:
        """Read some bytes."""
        if not 0 <= size <= MOST_HEADER:
            raise UnsafeEntryError(
                f"a header has {size} bytes, but the limit is {MOST_HEADER}"
            )
        return self.file.read(size)

    def seek(self, position: int) -> int:
        """Go to a byte."""
        if position > self.limit + MOST_HEADER:
            raise UnsafeEntryError(
                f"an entry ends at byte {position}, but the limit for this archive is "
                f"{self.limit}"
            )
        return self.file.seek(position)

    def tell(self) -> int:
        """The place of the next byte."""
        return self.file.tell()

    def close(self) -> None:
        """Do nothing, because the caller closes the file."""


def _open_tar(path: Path) -> IO[bytes]:
    """A tar, decompressed."""
    with path.open("rb") as file:
        start = file.read(6)
    if start[:2] == b"\x1f\x8b":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if start[:3] == b"BZh":
        return bz2.open(path, "rb")
    if start == b"\xfd7zXZ\0":
        return lzma.open(path, "rb")
    return path.open("rb")


def _check_end(file: IO[bytes], offset: int, limit: int) -> None:
    """Refuse a tar that ends without its empty block; read to the end of the file.

    A compressed file has its checksum there.

    Raises:
        EOFError: The end is missing, or a header is damaged.
        UnsafeEntryError: Too many bytes follow the end.
    """
    file.seek(offset)
    block = file.read(BLOCK)
    if len(block) < BLOCK:
        raise EOFError(f"the file is incomplete: it ends at byte {offset + len(block)}")
    if block.strip(b"\0"):
        raise EOFError(f"the header at byte {offset} is damaged")
    while file.read(CHUNK):
        if file.tell() > limit + MOST_HEADER:
            raise UnsafeEntryError(f"it unpacks to more than {limit} bytes")


def _check_count(count: int) -> None:
    if count > MOST_MEMBERS:
        raise UnsafeEntryError(f"it has more than {MOST_MEMBERS} entries")


def _shorten(name: str) -> str:
    """A name for a message."""
    return printable(name if len(name) <= 200 else f"{name[:200]}..")
