"""Damages of files that several tests try: any content, and changed values."""

from collections.abc import Callable
from typing import Any

Change = Callable[[Any], Any]


def _nested(depth: int) -> bytes:
    return b'{"a":' * depth + b"1" + b"}" * depth


# What replaces the content of any file.
CONTENTS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda raw: b"",
    "blank": lambda raw: b" \n\n",
    "half": lambda raw: raw[: len(raw) // 2],
    "one byte": lambda raw: raw[:1],
    "binary": lambda raw: bytes(range(256)) * 20,
    "not UTF-8": lambda raw: b'{"a": "\xff\xfe"}',
    "text": lambda raw: b"no such thing",
    "a number": lambda raw: b"12",
    "a list": lambda raw: b"[1, 2]",
    "null": lambda raw: b"null",
    "an empty object": lambda raw: b"{}",
    "deeply nested": lambda raw: _nested(100_000),
    "deep lists": lambda raw: b"[" * 100_000 + b"]" * 100_000,
    "a key twice": lambda raw: b'{"a": 1, "a": 2}',
    "a huge number": lambda raw: b"9" * 10_000,
}


def put(*keys: Any, value: Any) -> Change:
    """A change that sets a value below some keys."""

    def change(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


def drop(*keys: Any) -> Change:
    """A change that removes a key below others."""

    def change(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        del content[keys[-1]]

    return change


NAN, INFINITE = float("nan"), float("inf")
