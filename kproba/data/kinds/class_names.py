"""Class names of a dataset, from a list in the package, a file or the configuration."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from kproba.data.kinds.pairs import is_usable, printable
from kproba.data.pictures import UnreadableError, read_file

MOST_CLASSES = 253  # labels are bytes: 0 background, 254 unsure, 255 ignored
MOST_TEXT = 2**24  # bytes of a file of names or ids
BACKGROUND = "background"


LISTS = Path(str(files("kproba") / "lists"))


def read_list(name: str) -> list[str]:
    """The words of a list in the package, such as "voc_val"."""
    return (LISTS / f"{name}.txt").read_text().split()


def read_lines(path: Path) -> list[str]:
    """The lines of a text file in UTF-8, without blanks around them.

    Raises:
        ValueError: It cannot be read, is not UTF-8, or is larger than `MOST_TEXT`.
    """
    try:
        content = b"" if _is_empty(path) else read_file(path)
    except UnreadableError as error:
        raise ValueError(
            f"Expected a text file {path}, but: {error}. Replace it."
        ) from error
    if len(content) > MOST_TEXT:
        raise ValueError(
            f"Expected at most {MOST_TEXT // 2**20} MiB in {path}, but it has "
            f"{len(content) // 2**20} MiB. Replace it by a list of class names."
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"Expected UTF-8 in {path}, but got {error}. Save it as UTF-8."
        ) from error
    return [line.strip() for line in text.rstrip().splitlines()]


def _is_empty(path: Path) -> bool:
    try:
        return path.is_file() and not path.stat().st_size
    except OSError:
        return False


def read_class_names(path: Path) -> list[str]:
    """Read names from a file with one name per line, that of the background first.

    Raises:
        ValueError: The file cannot be read, is not UTF-8, or a line is empty.
    """
    names = read_lines(path)
    if "" in names:
        raise ValueError(
            f"Expected a name in every line of {path}, because the line number is "
            f"the label, but line {names.index('') + 1} is empty. Remove it."
        )
    return names


def check_class_names(
    names: Sequence[str], where: str, entry: str = "line"
) -> list[str]:
    """Check names that start with "background"; returns those of the classes 1..N.

    Args:
        names: All names.
        where: Source of the names, for messages.
        entry: Word for one name in this source, such as "line".

    Raises:
        ValueError: The background is not the first, a name repeats or cannot be
            printed, or there are too many names or none.
    """
    first = (
        f"{entry} 1 of {where} is '{printable(names[0])}'" if names else "it is empty"
    )
    if names[:1] != [BACKGROUND]:
        raise ValueError(
            f"Expected {where} to start with 'background', because 0 is the background "
            f"in masks, but {first}; the first {entry} must be 'background'. Add it."
        )
    first_places: dict[str, int] = {}
    for number, name in enumerate(names):
        if first_places.setdefault(name, number) < number:
            raise ValueError(
                f"Expected {where} to name each class once, but {entry} {number + 1} "
                f"repeats '{name}' of {entry} {first_places[name] + 1}. Correct it."
            )
    if len(names) < 2:
        raise ValueError(
            f"Expected {where} to name a class after 'background', but found none. Add "
            f"the class names in the order of their numbers in the masks."
        )
    return check_names(names[1:], where)


def check_names(names: Sequence[str], where: str) -> list[str]:
    """Check the names of classes, without the background; returns them.

    Raises:
        ValueError: A name cannot be printed, or there are too many.
    """
    unusable = [name for name in names if not is_usable(name) or not name.strip()]
    if unusable:
        raise ValueError(
            f"Expected printable names in {where}, but got '{printable(unusable[0])}'. "
            f"Rename the class."
        )
    if len(names) > MOST_CLASSES:
        raise ValueError(
            f"Expected at most {MOST_CLASSES} classes, because a mask value is one "
            f"byte, but {where} names {len(names)}. Merge or remove classes."
        )
    return list(names)
