"""Reads tables of artifacts (.csv, .tsv) and checks all columns that are used."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from kproba.runtime.records import REMAKE, ArtifactError, quote, read_bytes

if TYPE_CHECKING:
    import pandas as pd

MOST_BYTES = 2**30  # of a table; an index of a million images has some hundred MiB


def read_table(
    path: str | Path,
    columns: Mapping[str, type],
    *,
    optional: Mapping[str, type] | None = None,
    separator: str = ",",
    remedy: str = REMAKE,
) -> "pd.DataFrame":
    """Read a table and check its columns.

    Args:
        path: The file, with a line of headings first.
        columns: Columns that it must have: `str`, `int` for whole numbers, `float` for
            numbers, of which an empty cell is NaN. Further columns stay text.
        optional: Columns that it may have.
        separator: Between two cells.
        remedy: Advice for the user if the table is wrong.

    Returns:
        The rows in the order of the file, at least none.

    Raises:
        FileNotFoundError: There is no such file.
        ArtifactError: It is not a table, lacks a column, or a cell is not a number.
        OSError: It must not be read.
    """
    table = _parse(path, separator, remedy)
    missing = [name for name in columns if name not in table]
    if missing:
        found = ", ".join(map(str, table.columns))
        raise ArtifactError(
            f"Expected the columns {', '.join(columns)} in {path}, but "
            f"{', '.join(missing)} is missing. The file has {quote(found)}. {remedy}"
        )
    kinds = {**columns, **(optional or {})}
    for name, kind in kinds.items():
        if name in table and kind is not str:
            table[name] = _numbers(table[name], kind, path, remedy)
    return table


def read_counts(path: str | Path, *, remedy: str = REMAKE) -> "pd.DataFrame":
    """Read a square table of counts with names in its first column and line.

    Raises:
        FileNotFoundError, ArtifactError, OSError: As `read_table`.
    """
    table = _parse(path, ",", remedy)
    counts = table.iloc[:, 1:].apply(lambda cells: _numbers(cells, int, path, remedy))
    if not len(table) or counts.shape[0] != counts.shape[1]:
        raise ArtifactError(
            f"Expected the same number of rows and columns of counts in {path}, but it "
            f"has {counts.shape[0]} rows and {counts.shape[1]} columns. {remedy}"
        )
    return counts.set_axis(table.iloc[:, 0], axis=0)


def _parse(path: str | Path, separator: str, remedy: str) -> "pd.DataFrame":
    """All cells as text."""
    import pandas as pd

    raw = read_bytes(path, MOST_BYTES, remedy=remedy)
    try:
        lines = io.StringIO(raw.decode("utf-8-sig"), newline="")
        # Line by line, because pandas fills up lines that were cut.
        rows = [row for row in csv.reader(lines, delimiter=separator, strict=True)]
        head, *body = [row for row in rows if row] or [[]]
        reason = _fault(head, body)
    except UnicodeDecodeError as error:
        reason = f"byte {error.start} is not UTF-8 text"
    except csv.Error as error:
        reason = f"it cannot be parsed ({error})"
    if reason:
        raise ArtifactError(f"Expected a table in {path}, but {reason}. {remedy}")
    return pd.DataFrame(body, columns=head, dtype=str)


def _fault(head: list[str], body: list[list[str]]) -> str:
    """The error in the lines of a table; empty if there is none."""
    if not head:
        return "the file is empty"
    if any("\0" in cell for row in (head, *body) for cell in row):
        return "it is not text"
    if len(set(head)) < len(head):
        return "two columns have the same heading"
    wrong = [number for number, row in enumerate(body, 2) if len(row) != len(head)]
    if wrong:
        cells = len(body[wrong[0] - 2])
        return f"line {wrong[0]} has {cells} cells instead of {len(head)}"
    return ""


def _numbers(
    cells: "pd.Series", kind: type, path: str | Path, remedy: str
) -> "pd.Series":
    """The cells of a column as numbers."""
    import numpy as np
    import pandas as pd

    empty = cells.str.strip() == ""
    values = pd.to_numeric(cells, errors="coerce").astype(float)
    good = np.isfinite(values) & (np.abs(values) < 2**63)
    if kind is int:
        good &= values.round() == values
    else:
        good |= empty | (cells.str.lower() == "nan")
    if not good.all():
        place = int(np.flatnonzero(~good)[0])
        what = "a whole number" if kind is int else "a number"
        raise ArtifactError(
            f"Expected {what} in the column {cells.name} of {path}, line {place + 2}, "
            f"but got {quote(cells.iloc[place])}. {remedy}"
        )
    return pd.to_numeric(cells).astype(int) if kind is int else values
