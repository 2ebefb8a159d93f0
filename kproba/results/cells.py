"""Tables, cells and pictures of the page, before they become HTML."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import pandas as pd

from kproba.results.costs import duration
from kproba.results.tables import mean_and_deviation

HEAT = matplotlib.colormaps["cividis"]  # the same for colour-blind readers


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: What is read.
        sort: A number to sort by; None: the text.
        style: CSS of its colours.
        words: Whether its column holds words and no numbers.
    """

    text: str
    sort: float | None = None
    style: str = ""
    words: bool = False


@dataclass(frozen=True)
class Table:
    """A table that can be sorted.

    Attributes:
        caption: What it shows.
        columns: Headings with an explanation each, or "".
        rows: Cells; the first of a row is its heading.
    """

    caption: str
    columns: Sequence[tuple[str, str]]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Picture:
    """An embedded picture with a text for those who do not see it.

    Attributes:
        title: Above the caption.
        source: The picture as a data URI.
        alt: The text.
        caption: Below the title.
    """

    title: str
    source: str
    alt: str
    caption: str = ""


def number_cell(values: pd.Series) -> Cell:
    """Mean over seeds, with the deviation where there are several."""
    mean = float(values.astype(float).mean())
    return Cell(mean_and_deviation(values), None if math.isnan(mean) else mean)


def integer_cell(number: Any) -> Cell:
    """A whole number, such as a step: an int, or what pandas has for one."""
    return Cell(str(number), int(number))


def heat_cell(values: pd.Series) -> Cell:
    """The mean of percentages, on a background whose colour grows with it."""
    mean = float(values.astype(float).mean())
    if math.isnan(mean):
        return Cell("")
    colour = HEAT(mean / 100)[:3]
    red, green, blue = (round(255 * value) for value in colour)
    # Of black and white the one with more contrast, 4.5 at least (WCAG 2.2, 1.4.3).
    ink = "#000" if luminance(colour) > 0.179 else "#fff"
    style = f"background:rgb({red},{green},{blue});color:{ink}"
    return Cell(f"{mean:.0f}", mean, style)


def luminance(colour: Sequence[float]) -> float:
    """Relative luminance of sRGB in 0..1 (WCAG 2.2)."""
    srgb = np.array(colour)
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def duration_cell(values: pd.Series) -> Cell:
    """The mean of seconds over seeds."""
    mean = float(values.mean())
    return Cell(duration(mean), None if math.isnan(mean) else mean)
