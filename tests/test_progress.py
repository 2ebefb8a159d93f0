"""Progress of long stages, on a terminal and in a log."""

import io
import logging
import sys

import pytest

from kproba.runtime import progress
from kproba.runtime.progress import Stage


class Clock:
    """Stands still unless a test moves it."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch) -> Clock:
    monkeypatch.setattr(sys, "stderr", io.StringIO())  # no terminal
    return Clock(monkeypatch)


def lines(caplog) -> list[str]:
    return [record.message for record in caplog.records]


def test_a_log_gets_a_line_every_20_seconds_and_one_at_the_end(clock, caplog):
    caplog.set_level(logging.INFO)
    batches = [[1, 2], [3, 4], [5]]
    stage = Stage(batches, "testing", 5, size=len)
    taken = []
    for batch in stage:
        taken.append(batch)
        clock.now += 16
    assert taken == batches
    assert lines(caplog) == [
        "testing: 4/5 images, 0.1 per second, 0:00:08 left",
        "testing: 5/5 images, 0.1 per second, 0:00:00 left",
    ]
    caplog.clear()
    assert list(stage) == batches  # a second pass starts at zero, and is quick
    assert lines(caplog) == []


def test_a_thousand_items_do_not_flood_a_log(clock, caplog):
    caplog.set_level(logging.INFO)
    for _ in Stage(range(1000), "checking", 1000, unit="files"):
        clock.now += 0.5
    assert len(lines(caplog)) == 25
    assert lines(caplog)[0].startswith("checking: 40/1000 files, 2.0 per second, 0:08")


def test_other_processes_report_nothing(clock, caplog):
    caplog.set_level(logging.INFO)
    for _ in Stage(range(3), "testing", 3, enabled=False):
        clock.now += 60
    assert lines(caplog) == []


def test_a_terminal_gets_a_bar_and_no_lines(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(progress, "tqdm", Bar)
    assert list(Stage("abc", "testing", 6, size=lambda _: 2)) == list("abc")
    assert Bar.made.options["total"] == 6
    assert Bar.made.done == [2, 2, 2]
    assert lines(caplog) == []


class Bar:
    """Stands in for tqdm."""

    def __init__(self, **options):
        self.options, self.done = options, []
        Bar.made = self

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return False

    def update(self, units):
        """Remember."""
        self.done.append(units)
