"""Fonts for names in any script, without importing matplotlib.

DejaVu Sans, which comes with matplotlib, has Latin, Greek, Cyrillic and more. For names
in other scripts, fonts of the system are searched for their letters.
"""

import importlib.util
import logging
import os
import unicodedata
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from PIL import ImageFont

log = logging.getLogger("kproba")

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

FONT_SUFFIXES = (".ttf", ".otf", ".ttc")
MOST_FONTS = 2000  # most files that are opened


def as_one_line(name: str) -> str:
    """A name as it is drawn: composed letters, and blanks for control characters."""
    composed = unicodedata.normalize("NFC", name)
    return "".join(
        " " if unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") else letter
        for letter in composed
    )


def find_font(name: str) -> Path | None:
    """A font file that has all letters of a name; None if there is none.

    Args:
        name: Any text.
    """
    return _find_font(frozenset(as_one_line(name)) - {" "})


@cache
def _find_font(letters: frozenset[str]) -> Path | None:
    wanted = {ord(letter) for letter in letters}
    return next((path for path in _fonts() if wanted <= _letters(path)), None)


def drawn_name(name: str, otherwise: str) -> str:
    """Return a text that a font can draw: the name, or a replacement.

    The first time that a name is replaced, a warning is logged.

    Args:
        name: Any text.
        otherwise: What is drawn if no font has all letters of the name, such as
            "class 7".
    """
    if find_font(name) is not None or not _has_fonts():
        return as_one_line(name)
    _say_replaced(name, otherwise)
    return otherwise


@cache
def _say_replaced(name: str, otherwise: str) -> None:
    log.warning(
        "No font on this system has the letters of %r, so figures show %r instead. "
        "Install a font for this script, for example a Noto font.",
        name,
        otherwise,
    )


def load_font(name: str, size: int) -> Font:
    """A font of some size that has the letters of a name.

    Args:
        name: Result of `drawn_name`.
        size: Height of the letters in pixels.
    """
    path = find_font(name)
    return _load(path, size) if path else ImageFont.load_default(size)


@cache
def _load(path: Path, size: int) -> Font:
    return ImageFont.truetype(str(path), size)


def font_families(names: list[str]) -> list[Path]:
    """Font files that together contain the letters of the names, as far as possible.

    Args:
        names: Any texts.
    """
    found = (find_font(name) for name in names)
    return list(dict.fromkeys(path for path in found if path is not None))


def _has_fonts() -> bool:
    """Whether a font file was found; otherwise Pillow's built-in font is used."""
    return next(_fonts(), None) is not None


def _fonts() -> Iterator[Path]:
    """Font files, DejaVu Sans first."""
    own = _font_of_matplotlib()
    if own is not None:
        yield own
    yield from _system_fonts()


@cache
def _font_of_matplotlib() -> Path | None:
    found = importlib.util.find_spec("matplotlib")
    if found is None or found.origin is None:
        return None
    path = Path(found.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf"
    return path if path.is_file() else None


@cache
def _system_fonts() -> tuple[Path, ...]:
    """Fonts where Linux and macOS keep them, regular ones before bold and italic."""
    data = os.environ.get("XDG_DATA_HOME", "~/.local/share")
    folders = [f"{data}/fonts", "~/.fonts", "/usr/local/share/fonts"]
    folders += ["/usr/share/fonts", "/Library/Fonts", "/System/Library/Fonts"]
    files = [
        Path(folder, name)
        for root in folders
        for folder, _, names in os.walk(Path(root).expanduser())
        for name in names
        if name.lower().endswith(FONT_SUFFIXES)
    ]
    files.sort(key=lambda path: ("regular" not in path.name.lower(), str(path)))
    return tuple(files[:MOST_FONTS])


@cache
def _letters(path: Path) -> frozenset[int]:
    """Code points that a font can draw; none if Pillow cannot use the font."""
    # It comes with matplotlib.
    from fontTools.ttLib import TTFont  # type: ignore[import-untyped]

    try:
        ImageFont.truetype(str(path), 16)  # fonts of bitmaps have their sizes only
        with TTFont(path, lazy=True, fontNumber=0) as font:
            return frozenset(font.getBestCmap() or ())
    except Exception:  # a damaged font may raise anything
        return frozenset()
