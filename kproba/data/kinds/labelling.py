"""The keys `labels` and `labelmap`, for masks with other values than 0, 1, 2, .."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from kproba.data.kinds.class_names import BACKGROUND, check_names, read_lines
from kproba.data.labels import IGNORE
from kproba.data.masks import Colour, MaskForm

LABELMAP = "labelmap.txt"  # the name that CVAT uses
IGNORED = ("ignore", "ignored", "void")  # names that are not classes


def names_of_values(labels: Mapping[str, str]) -> list[str]:
    """The classes of the key `labels`, in the order of their values.

    Args:
        labels: Name of the class by value in the masks. "background" is not a class.
            Several values may have one name.

    Raises:
        ValueError: There are no classes, or a name or value cannot be used.
    """
    values = _sorted_values(labels)
    names = list(dict.fromkeys(name for _, name in values if name != BACKGROUND))
    if not names:
        raise ValueError(
            "Expected a class in `labels`, such as {10: cat}, but it has only the "
            "background. Add a class."
        )
    return check_names(names, "`labels`")


def form_of_values(labels: Mapping[str, str]) -> MaskForm:
    """The meaning of mask values according to the key `labels`."""
    number = {name: i for i, name in enumerate(names_of_values(labels), start=1)}
    number[BACKGROUND] = 0
    numbers = {value: number[name] for value, name in _sorted_values(labels)}
    return MaskForm(numbers=numbers, source="`labels` of the dataset")


def without_names(labels: Mapping[str, str]) -> dict[str, str]:
    """The key `labels` with numbers instead of names, because names change no mask."""
    numbers = form_of_values(labels).numbers
    return {
        str(value): str(label) if label else BACKGROUND
        for value, label in numbers.items()
    }


def values_of_labels(labels: Mapping[str, str]) -> dict[int, int]:
    """The value in masks of the background and of every class of `labels`.

    It is the first value of each. Where 0 is a class and no value the background, the
    background has 255.
    """
    values: dict[int, int] = {}
    for value, label in form_of_values(labels).numbers.items():
        values.setdefault(label, value)
    values.setdefault(0, IGNORE if 0 in values.values() else 0)
    return dict(sorted(values.items()))


def _sorted_values(labels: Mapping[str, str]) -> list[tuple[int, str]]:
    values = sorted((int(value), name) for value, name in labels.items())
    if any(value == IGNORE for value, _ in values):
        raise ValueError(
            f"Expected values other than {IGNORE} in `labels`, because {IGNORE} is "
            f"ignored, but got {IGNORE}. Remove it."
        )
    return values


def read_labelmap(path: Path) -> dict[Colour, str]:
    """Read the name of each colour from lines "name:red,green,blue::".

    Lines that start with "#" are comments; what follows the colour is not used.

    Raises:
        ValueError: The file cannot be read, a line is wrong, or a colour has two names.
    """
    colours: dict[Colour, str] = {}
    for number, line in enumerate(read_lines(path), start=1):
        if not line or line.startswith("#"):
            continue
        match = re.fullmatch(
            r"(.+?)\s*:\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*(:.*)?", line
        )
        if match is None or any(
            len(part) > 3 or int(part) > 255 for part in match.groups()[1:4]
        ):
            raise ValueError(
                f"Expected lines such as 'cat:48,112,32::' in {path}, with a colour "
                f"from 0 to 255, but line {number} is '{line[:80]}'. Correct it."
            )
        name = match[1].strip()
        red, green, blue = (int(part) for part in match.groups()[1:4])
        known = colours.setdefault((red, green, blue), name)
        if known != name:
            raise ValueError(
                f"Expected one name for each colour in {path}, but line {number} gives "
                f"{red},{green},{blue} the name '{name}', and an earlier line gives it "
                f"the name '{known}'. Correct one of the lines."
            )
    if not colours:
        raise ValueError(
            f"Expected lines such as 'cat:48,112,32::' in {path}, but the file has "
            f"none. Add one line for each class."
        )
    return colours


def names_of_colours(colours: Mapping[Colour, str], where: str) -> list[str]:
    """The classes of a labelmap in its order, without background and ignored colours.

    Raises:
        ValueError: There are no classes, or a name cannot be used.
    """
    names = [name for name in colours.values() if not _is_special(name)]
    if not names:
        raise ValueError(
            f"Expected at least one class in {where}, but there is none. Add a line "
            f"for each class."
        )
    return check_names(list(dict.fromkeys(names)), where)


def form_of_colours(
    colours: Mapping[Colour, str], names: Sequence[str], where: str
) -> MaskForm:
    """The meaning of mask colours according to a labelmap.

    Args:
        colours: As `read_labelmap` returns them.
        names: Names of the classes 1..N.
        where: The labelmap, for messages.

    Raises:
        ValueError: The labelmap has a name that is not a class.
    """
    labels = {name: label for label, name in enumerate(names, start=1)}
    table: dict[Colour, int] = {}
    for colour, name in colours.items():
        if name in labels:
            table[colour] = labels[name]
        elif _is_special(name):
            table[colour] = 0 if name.casefold() == BACKGROUND else IGNORE
        else:
            raise ValueError(
                f"Expected names of classes in {where}, but '{name}' is not in "
                f"{', '.join(names)}. Correct one of the two lists."
            )
    if 0 not in table.values():
        table.setdefault((0, 0, 0), 0)
    return MaskForm(colours=table, source=where)


def _is_special(name: str) -> bool:
    return name.casefold() in (BACKGROUND, *IGNORED)
