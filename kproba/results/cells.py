"""Tables and cells of the page, before they become HTML."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from kproba.results.costs import duration, size
from kproba.results.palette import cell_level


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: The text that is shown.
        sort: The exact number, to sort by and for the CSV file; None: the text.
        deviation: Standard deviation over seeds; None without.
        look: CSS class of the cell, such as "l3" for the third shade of a lost class.
        row: CSS classes of the row; of the first cell of a row only.
        words: Whether its column holds words and no numbers.
        best: Whether it holds the best value of its column.
    """

    text: str
    sort: float | None = None
    deviation: float | None = None
    look: str = ""
    row: str = ""
    words: bool = False
    best: bool = False


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: Its heading.
        note: An explanation, or "".
        look: CSS class of the heading.
        before: Words before the title for screen readers and CSV files.
    """

    title: str
    note: str = ""
    look: str = ""
    before: str = ""


@dataclass(frozen=True)
class Table:
    """A table that can be sorted and downloaded.

    Attributes:
        caption: What it shows.
        columns: Its columns.
        rows: Cells; the first of a row is its heading.
        look: CSS class of the table.
        short: A caption for the eye where the heading above says the rest; "": the
            whole caption.
    """

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    look: str = ""
    short: str = ""


def number_cell(values: pd.Series, digits: int = 1) -> Cell:
    """Mean over seeds, with the deviation where there are several."""
    numbers = values.astype(float)
    mean, deviation = float(numbers.mean()), float(numbers.std())
    if math.isnan(mean):
        return Cell("–")
    spread = None if math.isnan(deviation) else deviation
    return Cell(fixed(mean, digits), mean, spread)


def fixed(value: float, digits: int = 1) -> str:
    """A number with some digits after the point; never "-0.0"."""
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def percent_of(share: float) -> str:
    """A share in percent; one that is not 100 never looks like it.

    Args:
        share: Percent.
    """
    near = 99.5 <= share < 100.5 and abs(share - 100) >= 0.05
    return fixed(share, 1 if near else 0)


def integer_cell(number: Any) -> Cell:
    """A whole number, such as a step: an int, or what pandas has for one."""
    return Cell(str(number), int(number))


def change_cell(value: float, change: float, limit: float) -> Cell:
    """An IoU whose colour is its change.

    Args:
        value: IoU in percent; NaN for a class that is not seen yet.
        change: Points gained against the best earlier value; NaN without one.
        limit: Points at which the strongest colour begins.
    """
    if math.isnan(value):
        return Cell("")
    level = 0 if math.isnan(change) else cell_level(abs(change), limit)
    look = f"{'l' if change < 0 else 'g'}{level}" if level else ""
    return Cell(fixed(value, 0), value, look=look)


def share_cell(
    share: float, largest: float, *, hit: bool = False, edge: bool = False
) -> Cell:
    """A share of the pixels of a class; one that rounds to zero is empty.

    Args:
        share: Percent.
        largest: The share that has the strongest colour.
        hit: Whether these pixels are right; they have no shade of an error.
        edge: Whether the classes of a step begin with this column.
    """
    text = fixed(share, 0)
    level = 0 if hit or largest <= 0 else cell_level(share, largest)
    look = "hit" if hit else f"h{level}" if level and text != "0" else ""
    look = f"{look} edge".strip() if edge else look
    return Cell("" if text == "0" else text, share, look=look)


def duration_cell(values: pd.Series) -> Cell:
    """The mean of seconds over seeds."""
    mean = float(values.mean())
    return Cell(duration(mean), None if math.isnan(mean) else mean)


def size_cell(values: pd.Series) -> Cell:
    """The mean of MiB over seeds."""
    mean = float(values.mean())
    return Cell(size(mean), None if math.isnan(mean) else mean)


def mark_best(
    rows: Sequence[Sequence[Cell]], column: int, *, lowest: bool = False
) -> list[list[Cell]]:
    """Mark the best value of a column, and those that look the same.

    Args:
        rows: Rows that compete.
        column: Place of the column.
        lowest: Whether the smallest value is the best.
    """
    values = [row[column].sort for row in rows]
    numbers = [value for value in values if value is not None]
    marked = [list(row) for row in rows]
    if len(numbers) > 1:
        best = min(numbers) if lowest else max(numbers)
        for row, value in zip(marked, values, strict=True):
            if value is not None and round(value, 1) == round(best, 1):
                row[column] = replace(row[column], best=True)
    return marked
