"""Reads artifacts in JSON: every key is declared, and every error is reported.

A *check* defines the allowed values. Checks are nested like the content that they
describe, and `read_record` applies a check to a file:

    STEP = record({"step": integer(most=1000), "loss": number()}, {"note": text()})
    content = read_record("step.json", STEP)

This module imports nothing that is slow: the plan reads artifacts, too.
"""

import json
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

# Takes a value and its position, such as "classes[2].name"; raises `MismatchError`.
Check = Callable[[Any, str], None]

REMAKE = (
    "Copy the file again from its source. Or delete it and let Snakemake write it "
    "again: snakemake .. -- FILE"
)
MOST_BYTES = 2**26  # of a JSON file; all files written here are far smaller
LONGEST_QUOTE = 60  # letters of a wrong value in a message


class ArtifactError(ValueError):
    """A file is not the expected artifact; the message names the file."""


class MismatchError(ValueError):
    """A value does not pass its check."""

    def __init__(self, where: str, expected: str, got: str):
        super().__init__(expected, got)
        self.where, self.expected, self.got = where, expected, got

    def describe(self, path: str | Path, remedy: str) -> str:
        """A sentence for the user with the expected and the actual value."""
        where = f" for `{self.where}`" if self.where else ""
        return f"Expected {self.expected}{where} in {path}, but {self.got}. {remedy}"


def read_record(path: str | Path, check: Check, *, remedy: str = REMAKE) -> Any:
    """Read a file in JSON and check its content.

    Args:
        path: The file.
        check: The check for its content.
        remedy: Advice for the user if the content is wrong.

    Raises:
        FileNotFoundError: There is no such file.
        ArtifactError: It is not a regular file, too large, not JSON, or has another
            content.
        OSError: It must not be read.
    """
    content = read_json(path, remedy=remedy)
    check_content(content, check, path, remedy=remedy)
    return content


def check_content(
    content: Any, check: Check, source: str | Path, *, remedy: str = REMAKE
) -> None:
    """Check content that was read already.

    Args:
        content: Plain values.
        check: The check for them.
        source: Their source, for the message.
        remedy: Advice for the user if the content is wrong.

    Raises:
        ArtifactError: The content does not pass the check.
    """
    try:
        check(content, "")
    except MismatchError as error:
        raise ArtifactError(error.describe(source, remedy)) from None


def read_json(path: str | Path, *, remedy: str = REMAKE) -> Any:
    """Read a file in JSON, of any content.

    Raises:
        FileNotFoundError, ArtifactError, OSError: As `read_record`.
    """
    raw = read_bytes(path, MOST_BYTES, remedy=remedy)
    return parse_json(raw, path, remedy=remedy)


def parse_json(raw: bytes, source: str | Path, *, remedy: str = REMAKE) -> Any:
    """Parse JSON: UTF-8, no key twice, no NaN or infinity.

    Args:
        raw: The text.
        source: Its source, for the message.
        remedy: Advice for the user if it is not valid JSON.

    Raises:
        ArtifactError: The text is not valid JSON.
    """
    try:
        return json.loads(
            raw.decode("utf-8"),
            parse_constant=_refuse_constant,
            object_pairs_hook=_unique_keys,
        )
    except UnicodeDecodeError as error:
        reason = f"byte {error.start} is not UTF-8 text"
    except RecursionError:
        reason = "its values are nested too deeply"
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        reason = f"it cannot be parsed ({where}: {error.msg})"
        if not raw.strip():
            reason = "the file is empty"
    except ValueError as error:
        reason = str(error)
    raise ArtifactError(f"Expected JSON in {source}, but {reason}. {remedy}")


def read_bytes(path: str | Path, most: int, *, remedy: str = REMAKE) -> bytes:
    """The content of a regular file; a file that could block is not opened.

    Args:
        path: The file.
        most: Largest number of bytes.
        remedy: Advice for the user if it cannot be read.

    Raises:
        FileNotFoundError: There is no such file.
        ArtifactError: It is a folder, FIFO or device, or too large.
        OSError: It must not be read.
    """
    size = regular_file(path, remedy=remedy)
    if size > most:
        raise ArtifactError(
            f"Expected at most {most} bytes in {path}, but it has {size}. {remedy}"
        )
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise OSError(
            f"Expected to read {path}, but: {error.strerror}. Check its permissions "
            f"and its disk."
        ) from error


def regular_file(path: str | Path, *, remedy: str = REMAKE) -> int:
    """The size of a file in bytes, after a check that it is a regular one.

    Raises:
        FileNotFoundError: There is no such file.
        ArtifactError: It is a folder, FIFO or device.
        OSError: Its folder must not be read, or the name is invalid.
    """
    path = Path(path)
    try:
        status = path.stat()
    except FileNotFoundError:
        link = " (it is a link to a missing file)" if path.is_symlink() else ""
        raise FileNotFoundError(
            f"Expected the file {path}, but it does not exist{link}. {remedy}"
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise OSError(
            f"Expected the file {path}, but it cannot be found: {reason}. {remedy}"
        ) from error
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a device or a FIFO"
        raise ArtifactError(f"Expected a file in {path}, but it is {kind}. {remedy}")
    return status.st_size


def _refuse_constant(name: str) -> None:
    raise ValueError(f"it holds {name}, which is not a number")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {quote(twice)} appears twice")
    return content


def quote(value: object) -> str:
    """A short text for any value, for a message."""
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= LONGEST_QUOTE else f"{text[:LONGEST_QUOTE]}…"


# Checks


def anything(value: Any, where: str) -> None:
    """Any value."""


def flag(value: Any, where: str) -> None:
    """True or false."""
    if not isinstance(value, bool):
        raise MismatchError(where, "true or false", f"got {quote(value)}")


def integer(least: int = 0, most: int = 2**53) -> Check:
    """A whole number from `least` to `most`."""

    def check(value: Any, where: str) -> None:
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or not least <= value <= most:
            expected = f"a whole number from {least} to {most}"
            raise MismatchError(where, expected, f"got {quote(value)}")

    return check


def number(
    least: float = -1e300, most: float = 1e300, *, above: float | None = None
) -> Check:
    """A finite number from `least` to `most`, and greater than `above` if given."""

    def check(value: Any, where: str) -> None:
        real = isinstance(value, int | float) and not isinstance(value, bool)
        if not real or not least <= value <= most or not _above(value, above):
            low = f"from {least:g}" if above is None else f"above {above:g}"
            expected = f"a number {low} to {most:g}"
            raise MismatchError(where, expected, f"got {quote(value)}")

    return check


def _above(value: float, bound: float | None) -> bool:
    return bound is None or value > bound


def text(most: int = 1000) -> Check:
    """A text that is not empty and has no control characters."""

    def check(value: Any, where: str) -> None:
        good = isinstance(value, str) and 0 < len(value) <= most
        if not good or any(ord(letter) < ord(" ") for letter in value):
            raise MismatchError(
                where, f"a text of 1 to {most} letters", f"got {quote(value)}"
            )

    return check


def digest(value: Any, where: str) -> None:
    """A SHA-256 in hexadecimal."""
    good = isinstance(value, str) and len(value) == 64
    if not good or not set(value) <= set("0123456789abcdef"):
        raise MismatchError(where, "a SHA-256 of 64 digits", f"got {quote(value)}")


def choice(*values: Any) -> Check:
    """One of some values."""

    def check(value: Any, where: str) -> None:
        if not any(type(value) is type(one) and value == one for one in values):
            expected = f"one of {', '.join(map(str, values))}"
            raise MismatchError(where, expected, f"got {quote(value)}")

    return check


def maybe(inner: Check) -> Check:
    """A value or null."""

    def check(value: Any, where: str) -> None:
        if value is not None:
            inner(value, where)

    return check


def either(first: Check, second: Check) -> Check:
    """A value that one of two checks accepts; errors have the message of the second."""

    def check(value: Any, where: str) -> None:
        try:
            first(value, where)
        except MismatchError:
            second(value, where)

    return check


def list_of(
    inner: Check, *, least: int = 0, most: int = 100_000, distinct: bool = False
) -> Check:
    """A list of `least` to `most` values of one kind; all different if `distinct`."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, list | tuple) or not least <= len(value) <= most:
            expected = f"a list of {least} to {most} values"
            raise MismatchError(where, expected, f"got {quote(value)}")
        for number, item in enumerate(value):
            inner(item, f"{where}[{number}]")
        if distinct and len(set(value)) < len(value):
            raise MismatchError(where, "different values", "some appear twice")

    return check


def mapping_of(inner: Check, *, most: int = 100_000) -> Check:
    """An object of any keys whose values are of one kind."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, Mapping) or len(value) > most:
            expected = f"an object of at most {most} keys"
            raise MismatchError(where, expected, f"got {quote(value)}")
        for key, item in value.items():
            inner(item, _below(where, key))

    return check


def record(
    needed: Mapping[str, Check],
    optional: Mapping[str, Check] | None = None,
    *,
    others: bool = False,
) -> Check:
    """An object of certain keys.

    Args:
        needed: Keys that must be there, with the checks of their values.
        optional: Keys that may be there.
        others: Whether further keys are accepted. Otherwise they are errors, because a
            newer version may have written them.
    """
    checks = {**needed, **(optional or {})}

    def check(value: Any, where: str) -> None:
        if not isinstance(value, Mapping):
            expected = f"an object with the keys {', '.join(checks)}"
            raise MismatchError(where, expected, f"got {quote(value)}")
        for key in needed:
            if key not in value:
                raise MismatchError(_below(where, key), "a value", "the key is missing")
        unknown = [key for key in value if key not in checks]
        if unknown and not others:
            raise MismatchError(
                where,
                "only keys that this version knows",
                f"got {quote(unknown[0])}, which a newer version may have written",
            )
        for key, inner in checks.items():
            if key in value:
                inner(value[key], _below(where, key))

    return check


def _below(where: str, key: object) -> str:
    name = str(key)
    if len(name) > LONGEST_QUOTE:
        name = f"{name[:LONGEST_QUOTE]}…"
    return f"{where}.{name}" if where else name
