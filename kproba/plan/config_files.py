"""Checks configuration files before anybody reads their content.

YAML can name a part (`&x`) and use it again (`*x`). A few lines with such names can
stand for more values than fit into memory, or for a value that contains itself. The
checks work on the tree of a file, in which a part that is used twice is there once, so
they take no longer than the file is long.
"""

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml

from kproba.plan.errors import ConfigError

MOST_BYTES = 2**20  # of a file
MOST_VALUES = 100_000  # of a file, with repeated parts written out


class ConfigFileError(ConfigError):
    """A configuration file cannot be used; the message says why and what to do."""


def files_of_arguments(words: Sequence[str]) -> list[str]:
    """The configuration files that the command line of Snakemake names."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--configfile", "--configfiles"):
        parser.add_argument(name, nargs="+", action="extend", default=[], dest="files")
    try:
        options, _ = parser.parse_known_args(list(words))
    except SystemExit:  # no name after the option: Snakemake says so
        return []
    files: list[str] = options.files
    return files


def name_of_files(paths: Sequence[str | Path]) -> str:
    """A name for the report of a configuration: that of its files, without endings."""
    names = [re.sub(r"[^\w.-]", "_", Path(path).stem) for path in paths]
    return "+".join(names).lstrip(".")[:100] or "config"


def check_files(paths: Iterable[str | Path]) -> None:
    """Check configuration files.

    Raises:
        ConfigFileError: A file is missing, is no file or too large, is not UTF-8 or no
            YAML, has no keys, gives a key twice, contains itself, or stands for more
            than `MOST_VALUES` values.
    """
    for path in paths:
        _check_file(Path(path))


def _check_file(path: Path) -> None:
    where = path.expanduser().absolute()
    if not where.exists():
        raise ConfigFileError(
            f"Expected a configuration in {where}, but there is no such file. Check "
            f"the name after --configfile. (Name targets after `--`, because "
            f"--configfile takes all names that follow it.)"
        )
    if not where.is_file():
        raise ConfigFileError(
            f"Expected a configuration in {where}, but it is no regular file. Name a "
            f"YAML file."
        )
    if where.stat().st_size > MOST_BYTES:
        raise ConfigFileError(
            f"Expected a configuration of at most {MOST_BYTES} bytes, but {where} has "
            f"{where.stat().st_size}. Name a YAML file with settings."
        )
    try:
        text = where.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigFileError(
            f"Expected UTF-8 in {where}, but got {error}. Save it as UTF-8."
        ) from error
    except OSError as error:
        raise ConfigFileError(
            f"Expected to read {where}, but: {error.strerror}. Check its permissions."
        ) from error
    check_text(text, str(where))


def check_text(text: str, where: str) -> None:
    """Check the content of a configuration file.

    Args:
        text: YAML or JSON.
        where: The file, for messages.

    Raises:
        ConfigFileError: As `check_files`.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        lines = " ".join(str(error).split())
        raise ConfigFileError(
            f"Expected YAML in {where}, but: {lines}. Correct this line."
        ) from error
    except RecursionError as error:
        raise ConfigFileError(
            f"Expected a configuration with a few levels in {where}, but its lists and "
            f"sections are nested too deeply. Write it flatter."
        ) from error
    if not isinstance(root, yaml.MappingNode):
        raise ConfigFileError(
            f"Expected settings of the form `key: value` in {where}, but found "
            f"{'nothing' if root is None else 'none'}. See config/README.md."
        )
    values = _count(root, where, {}, set())
    if values > MOST_VALUES:
        raise ConfigFileError(
            f"Expected at most {MOST_VALUES} values in {where}, but with its repeated "
            f"parts (`*name`) written out it has {values:.3g}. Remove repeated parts."
        )


def _count(node: yaml.Node, where: str, known: dict[int, int], above: set[int]) -> int:
    """Values below a node, repeated parts counted as often as they are used."""
    if id(node) in known:
        return known[id(node)]
    if id(node) in above:
        raise ConfigFileError(
            f"Expected settings without circles in {where}, but the part that begins "
            f"in line {node.start_mark.line + 1} contains itself. Write it out."
        )
    above.add(id(node))
    total = 1
    if isinstance(node, yaml.MappingNode):
        _refuse_repeated_keys(node, where)
        for key, value in node.value:
            total += _count(key, where, known, above)
            total += _count(value, where, known, above)
    elif isinstance(node, yaml.SequenceNode):
        total += sum(_count(item, where, known, above) for item in node.value)
    above.discard(id(node))
    known[id(node)] = total
    return total


def _refuse_repeated_keys(node: yaml.MappingNode, where: str) -> None:
    lines: dict[str, int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.value == "<<":
            continue
        line = key.start_mark.line + 1
        if key.value in lines:
            raise ConfigFileError(
                f"Expected each key once in a section, but {where} has '{key.value}' "
                f"in line {lines[key.value]} and again in line {line}. Remove one: "
                f"the first would be ignored."
            )
        lines[key.value] = line


def check_command_line() -> None:
    """End the program with a message if a file of `--configfile` cannot be used.

    The profiles call this. Snakemake reads such files before the Snakefile, and ends in
    a traceback, or never, if one is missing, contains itself or grows without bound.
    """
    try:
        check_files(files_of_arguments(sys.argv[1:]))
    except ConfigFileError as error:
        sys.exit(f"Error: {error}")
