"""The output folder of `kproba predict`; files of the user are never replaced.

`.kproba-predictions.jsonl` in that folder records the name of the results of each
picture, and the digest of every file that was written. A file is replaced only if its
digest is recorded there. The record grows line by line, before each file gets its name,
so all files of a killed run are in it.
"""

import contextlib
import csv
import fcntl
import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from kproba.data.files import AREAS
from kproba.predict.inputs import Input, picture_identity, shortened
from kproba.runtime.files import FullDiskError, atomic_path

RECORD = ".kproba-predictions.jsonl"

# Kinds of results: the folder, and the ending of its files.
KINDS = {
    "masks": ".png",
    "overlays": ".jpg",
    "confidence": ".png",
    "probabilities": ".npz",
}

# `result` is the name of a picture's files without their ending.
AREA_COLUMNS = (
    *("file", "result", "width", "height", "how"),
    *("class", "label", "pixels", "percent"),
)
OLDER_COLUMNS = tuple(column for column in AREA_COLUMNS if column != "result")

MOST_NAMED = 5  # files in a message


class WriteError(OSError):
    """A result could not be written; the message names it."""


class OutputFolder:
    """Output folder of predictions.

    Args:
        folder: It need not exist.
        kinds: The kinds of `KINDS` that are written.
    """

    def __init__(self, folder: Path, kinds: Sequence[str]):
        self.folder, self.kinds = folder, tuple(kinds)
        self._made: list[Path] = []  # folders that were made for it, the outermost last
        self._is_new = False  # whether no prediction went into it before
        self._digests: dict[str, set[str]] = {}  # of files of predictions
        self._pictures: dict[str, str] = {}  # the picture of each name

    def leave_out(self, searched: Path) -> list[Path]:
        """The result folders, which a search for pictures leaves out.

        Args:
            searched: The folder that is searched, which may be this one.
        """
        same = os.path.realpath(searched) == os.path.realpath(self.folder)
        return [self.folder / kind for kind in KINDS] if same else [self.folder]

    def prepare(self, inputs: Sequence[Input]) -> list[Input]:
        """Create the folder, and check that no file of the user would be replaced.

        Args:
            inputs: The pictures with the preferred names of their results.

        Returns:
            The same pictures with their final names: the name of an earlier run, or the
            preferred name, with a number if another picture has that name.

        Raises:
            ValueError: An existing file is a link or was not written by a prediction;
                or a picture is a result in this folder.
            OSError: The folder cannot be created or written to.
        """
        self._check_inputs(inputs)
        self._make()
        try:
            return self._claim(inputs)
        except OSError as error:
            self.remove_if_unused()
            raise OSError(
                f"Expected to read and write {self.folder}, but: "
                f"{error.strerror or error}. Name another --out."
            ) from error
        except BaseException:
            self.remove_if_unused()
            raise

    def _claim(self, inputs: Sequence[Input]) -> list[Input]:
        """Give pictures their names, and check and record them."""
        with self._locked():
            self._read_record()
            known = dict(self._pictures)
            named = self._give_names(inputs)
            self._check_files(named)
            self._append(
                {"result": name, "picture": picture}
                for name, picture in self._pictures.items()
                if name not in known
            )
        return named

    def path(self, kind: str, name: str) -> Path:
        """File of a result.

        Args:
            kind: A key of `KINDS`.
            name: Name of the picture's results.
        """
        return self.folder / kind / f"{name}{KINDS[kind]}"

    def write(self, kind: str, name: str, content: bytes) -> None:
        """Write a result, whole or not at all.

        Args:
            kind: A key of `KINDS`.
            name: Name of the picture's results.
            content: The file.

        Raises:
            FullDiskError: The disk is full.
            WriteError: The file cannot be written, or would replace a file of the user.
        """
        path = self.path(kind, name)
        part = path.with_name(f".kproba-{os.getpid()}.part")  # fits beside any name
        try:
            problem = self._problem_of(path)
            if problem:  # or another prediction wrote it meanwhile
                self._read_record()
                problem = self._problem_of(path)
            if problem:
                raise WriteError(f"{path} {problem}")
            with atomic_path(part) as temporary:
                temporary.write_bytes(content)
            key, digest = self._key(path), _digest(content)
            if digest not in self._digests.get(key, ()):
                self._append([{"file": key, "digest": digest}])
                self._digests.setdefault(key, set()).add(digest)
            part.replace(path)
        except WriteError:
            raise
        except FullDiskError as error:
            raise FullDiskError(
                error.errno, str(error).replace(str(part), str(path))
            ) from error
        except OSError as error:
            reason = (error.strerror or str(error)).replace(str(part), path.name)
            raise WriteError(
                f"{shortened(str(path))} was not written: {reason}"
            ) from error
        finally:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)

    def write_areas(self, rows: Iterable[Sequence[Any]]) -> None:
        """Add rows to areas.csv; they replace rows of the same results.

        Args:
            rows: With values for `AREA_COLUMNS`.

        Raises:
            OSError: The file cannot be written.
        """
        path = self.folder / AREAS
        try:
            self._merge_areas(path, rows)
        except (FullDiskError, WriteError):
            raise
        except OSError as error:
            raise WriteError(
                f"{path} was not written: {error.strerror or error}"
            ) from error

    def _merge_areas(self, path: Path, rows: Iterable[Sequence[Any]]) -> None:
        new: dict[str, list[Sequence[Any]]] = {}
        for row in rows:
            new.setdefault(str(row[1]), []).append(row)
        if not new:
            return
        with self._locked():
            groups: dict[Any, list[Sequence[Any]]] = {}
            for row in _read_areas(path):
                groups.setdefault(row[1] or ("", row[0]), []).append(row)
            with (
                atomic_path(path) as temporary,
                temporary.open(
                    "w", newline="", encoding="utf-8", errors="surrogateescape"
                ) as file,
            ):
                table = csv.writer(file)
                table.writerow(AREA_COLUMNS)
                for group in (groups | new).values():
                    table.writerows(group)

    def remove_if_unused(self) -> None:
        """Remove the folders that `prepare` created, if they are still empty."""
        with contextlib.suppress(OSError):
            if self._is_new and not self._digests:
                (self.folder / RECORD).unlink(missing_ok=True)
                for folder in self._made:
                    folder.rmdir()

    def _check_inputs(self, inputs: Sequence[Input]) -> None:
        """Refuse pictures that are results in this folder."""
        folders = [os.path.realpath(self.folder / kind) + os.sep for kind in KINDS]
        own = [
            shortened(str(entry.path))
            for entry in inputs
            if os.path.realpath(entry.path).startswith(tuple(folders))
        ]
        if own:
            raise ValueError(
                f"Expected input images outside of the output folder {self.folder}, "
                f"but these are results in it: {_first(own)}. Name another --out."
            )

    def _make(self) -> None:
        """Create the folder and try to write into it.

        Raises:
            OSError: It cannot be created or written to.
        """
        try:
            self._made = [
                folder
                for folder in (self.folder, *self.folder.parents)
                if not os.path.lexists(folder)
            ]
            self.folder.mkdir(parents=True, exist_ok=True)
            self._is_new = not (self.folder / RECORD).exists()
            self._append([])
        except (OSError, ValueError) as error:
            for folder in self._made:
                with contextlib.suppress(OSError):
                    folder.rmdir()
            reason = getattr(error, "strerror", None) or str(error)
            raise OSError(
                f"Expected a writable folder for --out, but got "
                f"{shortened(str(self.folder))}: {reason}. Name another folder."
            ) from error

    def _give_names(self, inputs: Sequence[Input]) -> list[Input]:
        names = {picture: name for name, picture in self._pictures.items()}
        named = []
        for path, wanted in inputs:
            picture = self._relative(path)
            name, number = names.get(picture, wanted), 1
            while self._pictures.get(name, picture) != picture:
                number += 1
                name = f"{wanted}-{number}"
            self._pictures[name] = picture
            named.append(Input(path, name))
        return named

    def _check_files(self, named: Sequence[Input]) -> None:
        """Raise an error if a file that no prediction wrote would be replaced."""
        _read_areas(self.folder / AREAS)
        paths = [self.path(kind, entry.name) for entry in named for kind in self.kinds]
        problems = {path: self._problem_of(path) for path in paths}
        found = [f"{shortened(str(p))} {why}" for p, why in problems.items() if why]
        if found:
            raise ValueError(
                f"Expected to replace only files of an earlier prediction in "
                f"{self.folder}, but {_first(found)}. Nothing was written. Name "
                f"another --out."
            )

    def _problem_of(self, path: Path) -> str | None:
        """The reason why a result must not be written here; None if there is none."""
        folder = os.path.realpath(path.parent)
        if folder != os.path.normpath(
            os.path.join(  # noqa: PTH118
                os.path.realpath(self.folder),
                os.path.dirname(self._key(path)),  # noqa: PTH120
            )
        ):
            return "is in a linked folder"
        try:
            status = path.lstat()
        except (OSError, ValueError):  # it does not exist, or writing it will fail
            return None
        if not stat.S_ISREG(status.st_mode):
            return "is a link" if stat.S_ISLNK(status.st_mode) else "is not a file"
        known = self._digests.get(self._key(path), set())
        try:
            if known and _digest(path.read_bytes()) in known:
                return None
        except OSError as error:
            return f"cannot be read ({error.strerror})"
        return "was not written by a prediction, or was changed afterwards"

    def _key(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def _relative(self, path: Path) -> str:
        """Path of a picture from this folder, so that both may move together."""
        return os.path.relpath(picture_identity(path), os.path.realpath(self.folder))

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Run a block that only one prediction into this folder runs at a time."""
        with (self.folder / RECORD).open("a") as file:
            with contextlib.suppress(OSError):  # some network drives have no locks
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _read_record(self) -> None:
        for line in (self.folder / RECORD).read_bytes().splitlines():
            try:
                entry = json.loads(line)
                if "file" in entry:
                    digests = self._digests.setdefault(str(entry["file"]), set())
                    digests.add(str(entry["digest"]))
                else:
                    self._pictures[str(entry["result"])] = str(entry["picture"])
            except (ValueError, KeyError, TypeError, RecursionError):
                continue  # a line that a killed process did not finish

    def _append(self, entries: Iterable[dict[str, str]]) -> None:
        """Add lines to the record."""
        path = self.folder / RECORD
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise FileExistsError(0, f"{path} is not a file")
        # The first end of line closes a line that a killed process did not finish.
        lines = [f"\n{json.dumps(entry)}\n" for entry in entries]
        with path.open("ab") as file:
            file.write("".join(lines).encode())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _first(items: Sequence[str]) -> str:
    """The first items as text, and how many more there are."""
    more = len(items) - MOST_NAMED
    rest = f" and {more} more" if more > 0 else ""
    return ", ".join(items[:MOST_NAMED]) + rest


def _read_areas(path: Path) -> list[list[str]]:
    """Rows of an areas.csv with values for `AREA_COLUMNS`; none if there is no file.

    Raises:
        ValueError: No prediction wrote this file.
    """
    if not os.path.lexists(path):
        return []
    reason = "is a link, or not a file"
    if path.is_file() and not path.is_symlink():
        try:
            with path.open(
                newline="", encoding="utf-8", errors="surrogateescape"
            ) as file:
                header, *rows = list(csv.reader(file)) or [[]]
            if tuple(header) == OLDER_COLUMNS:
                rows = [[row[0], "", *row[1:]] for row in rows]
                header = list(AREA_COLUMNS)
            wanted = len(AREA_COLUMNS)
            if tuple(header) == AREA_COLUMNS and all(len(r) == wanted for r in rows):
                return rows
            reason = "has other columns or rows"
        except (csv.Error, OSError, IndexError) as error:
            reason = f"cannot be read ({error})"
    raise ValueError(
        f"Expected {path} to be the table of an earlier prediction, but it {reason}. "
        f"Nothing was written. Name another --out, or move that file away."
    )
