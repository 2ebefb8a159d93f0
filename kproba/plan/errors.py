"""The error of a wrong configuration, and the hint that goes with it."""

import difflib
from collections.abc import Iterable


class ConfigError(ValueError):
    """The configuration is wrong; the message names the key and the remedy."""


def suggestion(word: str, known: Iterable[str]) -> str:
    """A hint with the known name most similar to a word; "" if there is none."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""
