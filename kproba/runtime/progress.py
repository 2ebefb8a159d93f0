"""How far a long stage is: a bar on a terminal, now and then a line in a log."""

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Generic, TypeVar

from tqdm import tqdm

from kproba.runtime.logs import PROGRESS

log = logging.getLogger("kproba")

T = TypeVar("T")


SECONDS = 20.0  # between two lines of a log


class Stage(Generic[T]):
    """Items passed on, as often as wanted, while it is told how many are done.

    Where standard error is a terminal, a bar; else a log line every 20 seconds and one
    at the end of a stage that took longer than that.

    Args:
        items: What is worked through.
        what: What is done with them, such as "testing".
        total: How many there are, in units.
        size: Units of an item; None: one.
        unit: What is counted.
        shown: False for all but the first of several processes, which tell nothing.
    """

    def __init__(
        self,
        items: Iterable[T],
        what: str,
        total: int,
        *,
        size: Callable[[T], int] | None = None,
        unit: str = "images",
        shown: bool = True,
    ):
        self.items, self.what, self.total = items, what, total
        self.size, self.unit, self.shown = size, unit, shown

    def __iter__(self) -> Iterator[T]:
        """One pass over the items."""
        if not self.shown:
            return iter(self.items)
        return self._bar() if sys.stderr.isatty() else self._lines()

    def _units(self, item: T) -> int:
        return 1 if self.size is None else self.size(item)

    def _bar(self) -> Iterator[T]:
        unit = f" {self.unit}"
        with tqdm(total=self.total, desc=self.what, unit=unit, leave=False) as bar:
            for item in self.items:
                units = self._units(item)
                yield item
                bar.update(units)

    def _lines(self) -> Iterator[T]:
        start = last = time.monotonic()
        done = 0
        for item in self.items:
            units = self._units(item)
            yield item
            done += units
            now = time.monotonic()
            ended = done >= self.total and last > start
            if now - last >= SECONDS or ended:
                rate = done / (now - start)
                seconds = max(self.total - done, 0) / rate
                log.info(
                    "%s: %d/%d %s, %.1f a second, %s left",
                    *(self.what, done, self.total, self.unit, rate),
                    timedelta(seconds=round(seconds)),
                    extra=PROGRESS,
                )
                last = now
