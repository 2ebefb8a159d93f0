"""Python files of the user that add entries to the tables, without a fork.

    extensions: [my_terms.py]     # in the configuration

Such a file adds loss terms, heads, backbones, label rules, dataset kinds, measures and
methods by the functions of `kproba.extend`. Its content is one of the inputs of a job:
a job that uses an entry of a file records the path and SHA-256 of the file, and runs
again after the file was edited.
"""

import hashlib
import importlib.util
import logging
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger("kproba")


class ExtensionError(ValueError):
    """A file of extensions cannot be used; the message gives the reason."""


@dataclass(frozen=True)
class Extension:
    """A file of extensions.

    Attributes:
        path: As the configuration names it.
        sha256: Of its content.
    """

    path: str
    sha256: str


# Entries by kind and name: the file that added them, and their table.
_origins: dict[tuple[str, str], Extension] = {}
_tables: dict[tuple[str, str], dict[str, Any]] = {}
# By the absolute path, because one file may be named in several ways.
_loaded: dict[Path, Extension] = {}
_loading: list[Extension] = []


def add_entry(what: str, table: dict[str, Any], name: str, entry: Any) -> None:
    """Add an entry to a table; `kproba.extend` has a function for each table.

    Args:
        what: Kind of the entry, such as "loss term".
        table: Gets the entry.
        name: Its key.
        entry: Its value.

    Raises:
        ExtensionError: The table has another entry of that name.
    """
    if name in table:
        origin = _origins.get((what, name))
        where = f"from {origin.path}" if origin else "built in"
        raise ExtensionError(
            f"Expected a new name for a {what}, but '{name}' exists already ({where}). "
            f"Choose another name."
        )
    table[name] = entry
    if _loading:
        _origins[what, name] = _loading[-1]
        _tables[what, name] = table


def load_extensions(paths: Iterable[str]) -> None:
    """Run files of extensions; one that is loaded already, unchanged, is skipped.

    Args:
        paths: Files; relative ones from the working directory.

    Raises:
        ExtensionError: A file does not exist or fails; the message names it.
    """
    for path in paths:
        _load(path, Path(path).expanduser())


def load_recorded(
    extensions: Iterable[Mapping[str, str]], artifact: Path | None = None
) -> None:
    """Load the files that the settings of a job or an artifact record.

    Args:
        extensions: Result of `find_origins` at that time.
        artifact: The artifact; None for the settings of a job. An artifact may be read
            from another working directory and long after the file was edited. So a file
            is also looked for in the folders above the artifact, and a changed one is
            used with a warning.

    Raises:
        ExtensionError: A file is missing, or has changed since a job was planned.
    """
    for entry in extensions:
        path, recorded = entry["path"], entry["sha256"]
        if any(loaded.sha256 == recorded for loaded in _loaded.values()):
            continue
        found = Path(path).expanduser()
        if artifact is not None:
            found = _find(path, recorded, artifact)
        if _load(path, found).sha256 == recorded:
            continue
        if artifact is None:
            raise ExtensionError(
                f"Expected {path} to be unchanged since Snakemake planned this job, "
                f"but it was edited. Start Snakemake again."
            )
        log.warning("%s was edited after %s was written", found, artifact)


def find_origins(entries: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    """The files that added some entries, each once, sorted by path.

    Args:
        entries: Kinds and names, such as ("loss term", "focal").

    Returns:
        Path and SHA-256 of each file; empty if all entries are built in.
    """
    files = {_origins[entry] for entry in entries if entry in _origins}
    ordered = sorted(files, key=lambda file: file.path)
    return [{"path": file.path, "sha256": file.sha256} for file in ordered]


def _load(path: str, file: Path) -> Extension:
    """Load one file.

    Args:
        path: As it is named.
        file: Its path.
    """
    if file.suffix != ".py":
        raise ExtensionError(
            f"Expected a Python file of extensions with a name ending in .py, but got "
            f"{path}."
        )
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ExtensionError(
            f"Expected a Python file of extensions in {file.absolute()}, but it cannot "
            f"be read: {error.strerror}. Correct `extensions`, or put the file there."
        ) from error
    extension = Extension(path, hashlib.sha256(content).hexdigest())
    key = file.resolve()
    if key in _loaded and _loaded[key].sha256 == extension.sha256:
        return extension
    _forget(key)
    with _being_loaded(extension):
        try:
            _run(file, content, extension)
        except (Exception, SystemExit) as error:
            _remove_entries(extension)
            raise ExtensionError(_explain(path, file, error)) from error
    _loaded[key] = extension
    return extension


def _run(file: Path, content: bytes, extension: Extension) -> None:
    """Execute the content of a file as a separate module."""
    name = f"kproba_extension_{extension.sha256[:16]}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None  # for a name in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses need the module there
    # Not by the loader of the module: it would trust a cached .pyc, which does not
    # notice an edit within the same second that keeps the size.
    exec(compile(content, str(file), "exec"), module.__dict__)


def _explain(path: str, file: Path, error: BaseException) -> str:
    """Explain in one line why a file cannot be loaded."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(file)]
    where = f"{path}, line {lines[-1]}" if lines else path
    if isinstance(error, ExtensionError):
        return f"{where}: {error}"
    text = f"{type(error).__name__}: {error}".rstrip(": ")
    return (
        f"Expected a file of extensions that runs without an error, but {where} raised "
        f"{text}. Correct the file."
    )


def _find(path: str, recorded: str, artifact: Path) -> Path:
    """The file of an artifact, or a file with the same name if it was edited."""
    named = Path(path).expanduser()
    folders = [Path(), *artifact.absolute().parents]
    candidates = [folder / named for folder in folders if (folder / named).is_file()]
    if not candidates:
        raise ExtensionError(
            f"Expected {path}, the file of extensions that was used for {artifact}, "
            f"but it is neither in {Path().absolute()} nor in a folder above the "
            f"model. Put the file there, or run the command in the folder that "
            f"contains it."
        )
    for candidate in candidates:
        if hashlib.sha256(candidate.read_bytes()).hexdigest() == recorded:
            return candidate
    return candidates[0]


@contextmanager
def _being_loaded(extension: Extension) -> Iterator[None]:
    _loading.append(extension)
    try:
        yield
    finally:
        _loading.pop()


def _forget(file: Path) -> None:
    """Remove the entries of a file before its edited version is loaded."""
    if file in _loaded:
        _remove_entries(_loaded.pop(file))


def _remove_entries(extension: Extension) -> None:
    """Remove the entries of a file from their tables."""
    for key in [key for key, origin in _origins.items() if origin == extension]:
        del _tables[key][key[1]], _tables[key], _origins[key]
