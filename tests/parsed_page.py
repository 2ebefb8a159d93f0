"""Writes the page of results and reads it back."""

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from small_experiment import CLASS_NAMES, GROUPS, write_tables

from kproba.results.experiment import Experiment
from kproba.results.page import write_report

SPACES = dict.fromkeys((0xA0, 0x202F), " ")  # at which no line ends


class ParsedPage(HTMLParser):
    """Tags, tables and texts of a page.

    Attributes:
        tags: Every tag with its attributes.
        tables: By caption the lines of a table, the headings first.
        cells: By caption the attributes of the cells, as `tables` has their texts.
        texts: All texts.
    """

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.cells: dict[str, list[list[dict[str, str | None]]]] = {}
        self.texts: list[str] = []
        self._cell = False
        self._hidden = False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        """Note a tag."""
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        self._hidden = "vh" in (attributes.get("class") or "").split()
        if tag == "tr" and hasattr(self, "_lines"):
            self._lines.append([])
            self._attributes.append([])
        if tag in ("th", "td") and hasattr(self, "_lines"):
            self._cell = True
            self._lines[-1].append("")
            self._attributes[-1].append(attributes)

    def handle_endtag(self, tag):
        """Note the end of a cell or a table."""
        if tag in ("th", "td"):
            self._cell = False
        if tag == "span":
            self._hidden = False
        if tag == "table" and hasattr(self, "_lines"):
            del self._lines

    def handle_data(self, data):
        """Note a text, in its cell if it is in a table."""
        tag, text = self.tags[-1][0] if self.tags else "", data.strip()
        text = text.translate(SPACES)
        if not text:
            return
        self.texts.append(text)
        if tag == "caption" and not hasattr(self, "_lines"):
            self._lines = self.tables.setdefault(text, [])
            self._attributes = self.cells.setdefault(text, [])
        elif self._cell and not self._hidden and hasattr(self, "_lines"):
            self._lines[-1][-1] += data

    def ids(self, *tags: str) -> list[str]:
        """The ids of some kinds of elements, in order."""
        return [a["id"] for tag, a in self.tags if tag in tags and a.get("id")]


def experiment(index: Path, **changes: Any) -> Experiment:
    """The small experiment as the page gets it."""
    settings = {
        **{"dataset": "pets", "kind": "folder", "task": "1-1", "setting": "overlap"},
        **{"groups": GROUPS, "names": CLASS_NAMES, "indices": [index]},
    }
    return Experiment(**{**settings, **changes})


def write_page(results, folder: Path, *experiments: Experiment) -> ParsedPage:
    """Write the page of one or more experiments and read it back."""
    summary, classes, quality = write_tables(results, folder)
    tables = {"summary": summary, "classes": classes, "pseudo_labels": quality}
    write_report(results, experiments, folder / "report.html", **tables)
    return ParsedPage((folder / "report.html").read_text(encoding="utf-8"))
