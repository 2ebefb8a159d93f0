"""Checks configuration files before Snakemake reads them.

YAML can name a part (`&x`) and use it again (`*x`). A few lines with such names can
expand to more values than fit into memory, or to a value that contains itself. The
checks use the syntax tree of the file, which holds a repeated part only once. So their
time is proportional to the length of the file.
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
    """A configuration file cannot be used; the message has the reason and a remedy."""


def files_of_arguments(words: Sequence[str]) -> list[str]:
    """The configuration files that the command line of Snakemake names."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--configfile", "--configfiles"):
        parser.add_argument(name, nargs="+", action="extend", default=[], dest="files")
    try:
        options, _ = parser.parse_known_args(list(words))
    except SystemExit:  # no name after the option: Snakemake reports it
        return []
    files: list[str] = options.files
    return files


def name_of_files(paths: Sequence[str | Path]) -> str:
    """Name of a configuration's report: the names of its files, without endings."""
    names = [re.sub(r"[^\w.-]", "_", Path(path).stem) for path in paths]
    return "+".join(names).lstrip(".")[:100] or "config"


def check_files(paths: Iterable[str | Path]) -> None:
    """Check configuration files.

    Raises:
        ConfigFileError: A file is missing, not a regular file, too large, not UTF-8 or
            not YAML, has no keys, has a key twice, contains itself, or expands to more
            than `MOST_VALUES` values.
    """
    for path in paths:
        _check_file(Path(path))


def _check_file(path: Path) -> None:
    where = path.expanduser().absolute()
    if not where.exists():
        raise ConfigFileError(
            f"Expected a configuration in {where}, but there is no such file. Check "
            f"the name after --configfile. (Put `--` before the targets, because "
            f"--configfile takes every name after it as a file.)"
        )
    if not where.is_file():
        raise ConfigFileError(
            f"Expected a configuration in {where}, but it is not a regular file. Name "
            f"a YAML file."
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
            f"sections are nested too deeply. Use fewer levels."
        ) from error
    if not isinstance(root, yaml.MappingNode):
        raise ConfigFileError(
            f"Expected settings of the form `key: value` in {where}, but "
            f"{'the file is empty' if root is None else 'it has none'}. See "
            f"config/README.md."
        )
    values = _count(root, where, {}, set())
    if values > MOST_VALUES:
        raise ConfigFileError(
            f"Expected at most {MOST_VALUES} values in {where}, but it has "
            f"{values:.3g} when its repeated parts (`*name`) are written out. Remove "
            f"repeated parts."
        )


def _count(node: yaml.Node, where: str, known: dict[int, int], above: set[int]) -> int:
    """Values below a node, repeated parts counted as often as they are used."""
    if id(node) in known:
        return known[id(node)]
    if id(node) in above:
        raise ConfigFileError(
            f"Expected no part that contains itself in {where}, but the part that "
            f"begins in line {node.start_mark.line + 1} does. Replace the reference by "
            f"its values."
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

    The profiles call this. Snakemake reads such files before the Snakefile. If a file
    is missing, contains itself or expands without bound, Snakemake would print a
    traceback or never end.
    """
    try:
        check_files(files_of_arguments(sys.argv[1:]))
    except ConfigFileError as error:
        sys.exit(f"Error: {error}")
