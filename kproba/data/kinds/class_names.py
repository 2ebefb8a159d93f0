"""Class names of a dataset, from a list in the package, a file or the configuration."""

from collections import Counter
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

MOST_CLASSES = 253  # labels are bytes: 0 background, 254 unsure, 255 ignored


LISTS = Path(str(files("kproba") / "lists"))


def read_list(name: str) -> list[str]:
    """The words of a list in the package, such as "voc_val"."""
    return (LISTS / f"{name}.txt").read_text().split()


def read_class_names(path: Path) -> list[str]:
    """Read names from a file with one name per line, that of the background first.

    Raises:
        ValueError: The file is not UTF-8, or a line is empty.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"Expected UTF-8 in {path}, but got {error}. Save it as UTF-8."
        ) from error
    names = [line.strip() for line in text.rstrip().splitlines()]
    if "" in names:
        raise ValueError(
            f"Expected a name in every line of {path}, because the line number is "
            f"the label, but line {names.index('') + 1} is empty. Remove it."
        )
    return names


def check_class_names(names: Sequence[str], where: str) -> list[str]:
    """Check names that start with "background"; returns those of the classes 1..N.

    Args:
        names: All names.
        where: Where the names come from, for messages.

    Raises:
        ValueError: The background is not the first, a name repeats, or there are too
            many names or none.
    """
    twice = [name for name, count in Counter(names).items() if count > 1]
    if names[:1] != ["background"] or twice or len(names) < 2:
        raise ValueError(
            f"Expected {where} to start with 'background' and to name each class once, "
            f"but it starts with {list(names[:1])}, repeats {twice} and names "
            f"{len(names)}. Correct the names."
        )
    if len(names) - 1 > MOST_CLASSES:
        raise ValueError(
            f"Expected at most {MOST_CLASSES} classes, because masks hold bytes, but "
            f"{where} names {len(names) - 1}. Merge or remove some."
        )
    return list(names[1:])
