"""Python files of the user's that add entries to the tables, without a fork.

    extensions: [my_terms.py]     # in the configuration

Such a file adds loss terms, heads, backbones, label rules, dataset kinds and methods by
the functions of `kproba.extend`. Its content counts among what determines a result: a
job that uses an entry of a file records path and SHA-256 of it, and runs again when the
file was edited.
"""

import hashlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Entries by table and name: which file added them.
_origins: dict[tuple[str, str], "Extension"] = {}
_tables: dict[tuple[str, str], dict[str, Any]] = {}
_loaded: dict[str, "Extension"] = {}
_loading: list["Extension"] = []


class ExtensionError(ValueError):
    """A file of extensions cannot be used; the message says why."""


@dataclass(frozen=True)
class Extension:
    """A file of extensions.

    Attributes:
        path: As the configuration names it.
        sha256: Of its content.
    """

    path: str
    sha256: str


def add_entry(what: str, table: dict[str, Any], name: str, entry: Any) -> None:
    """Add an entry to a table; `kproba.extend` has a function for each table.

    Args:
        what: Kind of the entry, such as "loss term".
        table: Gets it.
        name: Its key.
        entry: Its value.

    Raises:
        ExtensionError: The table has another entry of that name.
    """
    if name in table:
        origin = _origins.get((what, name))
        where = f"in {origin.path}" if origin else "built in"
        raise ExtensionError(
            f"Expected a new name for a {what}, but '{name}' exists already ({where}). "
            f"Choose another name."
        )
    table[name] = entry
    _tables[what, name] = table
    if _loading:
        _origins[what, name] = _loading[-1]


def load_extensions(paths: Iterable[str]) -> None:
    """Run files of extensions; one that is loaded already, unchanged, is skipped.

    Raises:
        ExtensionError: A file does not exist or fails; the message names it.
    """
    for path in paths:
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise ExtensionError(
                f"Expected a Python file of extensions in {Path(path).absolute()}, but "
                f"it cannot be read: {error.strerror}. Correct `extensions`."
            ) from error
        extension = Extension(path, hashlib.sha256(content).hexdigest())
        if _loaded.get(path) == extension:
            continue
        _forget(path)
        with _being_loaded(extension):
            try:
                _run(path, extension)
            except ExtensionError:
                _forget(path)
                raise
            except Exception as error:
                _forget(path)
                raise ExtensionError(
                    f"Expected {path} to add extensions, but it raised "
                    f"{type(error).__name__}: {error}. Correct the file."
                ) from error
        _loaded[path] = extension


def load_recorded(extensions: Iterable[Mapping[str, str]]) -> None:
    """Load the files that an artifact records.

    Args:
        extensions: What `origins_of` returned when the artifact was made.

    Raises:
        ExtensionError: A file is not there any more.
    """
    load_extensions(entry["path"] for entry in extensions)


def origins_of(entries: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    """The files that added some entries, each once, sorted by path.

    Args:
        entries: Kinds and names, such as ("loss term", "focal").

    Returns:
        Path and SHA-256 of each file; empty if all entries are built in.
    """
    files = {_origins[entry] for entry in entries if entry in _origins}
    return [vars(file) for file in sorted(files, key=lambda file: file.path)]


def _run(path: str, extension: Extension) -> None:
    """Import a file under a name of its own."""
    name = f"kproba_extension_{extension.sha256[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # for any file name in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


@contextmanager
def _being_loaded(extension: Extension) -> Iterator[None]:
    _loading.append(extension)
    try:
        yield
    finally:
        _loading.pop()


def _forget(path: str) -> None:
    """Remove the entries that a file added before it was edited."""
    _loaded.pop(path, None)
    for key in [key for key, origin in _origins.items() if origin.path == path]:
        del _tables[key][key[1]], _tables[key], _origins[key]
