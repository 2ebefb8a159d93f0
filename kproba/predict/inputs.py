"""The input images of `kproba predict`: files, folders, and lists on stdin."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

from kproba.data.files import IMAGE_SUFFIXES, find_files
from kproba.data.pictures import (
    UnreadableError,
    check_file,
    open_image,
    unreadable_on_error,
    upright_size,
)

LONGEST_LINE = 2**14  # bytes of a line on standard input; Linux' paths have 4096
SHOWN = 160  # characters of a path in messages

STDIN = "-"


class Input(NamedTuple):
    """A file that may be an image, and the preferred name of its results.

    The name has no ending. It is the path below the named folder, or the file name.
    """

    path: Path
    name: str


class Skipped(NamedTuple):
    """An unusable file, folder or line of a list (shortened), with the reason."""

    path: str
    reason: str


@dataclass
class Inputs:
    """The files that the arguments of a prediction name.

    Attributes:
        files: Each file once, in the order of the arguments.
        skipped: Files and lines that cannot be used.
    """

    files: list[Input] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

    def skip(self, path: str | Path, reason: str) -> None:
        """Note a file that cannot be used."""
        self.skipped.append(Skipped(shortened(str(path)), reason))


def find_inputs(
    arguments: Iterable[str], leave_out: Callable[[Path], Iterable[Path]]
) -> Inputs:
    """The files that arguments name, each once.

    Args:
        arguments: Files, folders (searched with their subfolders), or "-" for a list on
            standard input, one path per line.
        leave_out: Folders below a named folder that are not searched.
    """
    inputs = Inputs()
    seen: set[str] = set()
    for argument in _with_lists(arguments, inputs):
        for entry in _files_of(argument, inputs, leave_out):
            identity = picture_identity(entry.path)
            if identity not in seen:
                seen.add(identity)
                inputs.files.append(entry)
    return inputs


def picture_identity(path: Path) -> str:
    """Absolute path of a picture; links are followed up to its folder."""
    folder, name = os.path.split(os.path.abspath(path))  # noqa: PTH100
    return os.path.join(os.path.realpath(folder), name)  # noqa: PTH118


def shortened(text: str) -> str:
    """A path for messages: printable and not too long."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in text)
    if len(shown) <= SHOWN:
        return shown
    half = SHOWN // 2
    return f"{shown[:half]} .. {shown[-half:]} ({len(text)} characters)"


def read_size(path: Path) -> tuple[int, int]:
    """Width and height of a picture when it is upright, from its header.

    Raises:
        UnreadableError: The file is not a usable image.
    """
    check_file(path)
    with unreadable_on_error(), open_image(path) as image:
        return upright_size(image)


def _with_lists(arguments: Iterable[str], inputs: Inputs) -> Iterator[str]:
    """The arguments, with the lines of standard input in place of "-"."""
    for argument in arguments:
        if argument != STDIN:
            yield argument
            continue
        for number, line in enumerate(_lines(_stdin()), start=1):
            text = os.fsdecode(
                line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            )
            if len(line) >= LONGEST_LINE:
                inputs.skip(text, f"line {number} of the list is too long for a path")
            elif "\0" in text:
                inputs.skip(text, f"line {number} of the list contains a NUL byte")
            elif text.strip():
                yield text


def _stdin() -> IO[Any] | None:
    return getattr(sys.stdin, "buffer", sys.stdin)


def _lines(stream: IO[Any] | None) -> Iterator[bytes]:
    """Lines of a stream without their ends, each cut to `LONGEST_LINE` bytes."""
    while stream is not None:
        line = stream.readline(LONGEST_LINE)
        if not line:
            return
        whole = line if isinstance(line, bytes) else os.fsencode(line)
        yield whole.rstrip(b"\r\n")
        while not whole.endswith(b"\n"):  # the rest of a line that was cut
            line = stream.readline(LONGEST_LINE)
            if not line:
                return
            whole = line if isinstance(line, bytes) else os.fsencode(line)


def _files_of(
    argument: str, inputs: Inputs, leave_out: Callable[[Path], Iterable[Path]]
) -> Iterator[Input]:
    """The files that one argument names."""
    path = Path(argument)
    if not argument:
        inputs.skip("''", "is not a file name")
    elif os.path.isdir(path):  # noqa: PTH112  # False for names that are no paths
        found = find_files(path, IMAGE_SUFFIXES, leave_out=list(leave_out(path)))
        for file in found.files:
            yield Input(file, file.relative_to(path).with_suffix("").as_posix())
        for unreadable, reason in found.unreadable:
            inputs.skip(unreadable, reason)
    else:
        try:
            check_file(path)
        except UnreadableError as error:
            inputs.skip(argument, str(error))
        else:
            yield Input(path, path.stem)
