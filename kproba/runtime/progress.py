"""Progress of a long stage: a bar on a terminal, or regular lines in a log."""

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
    """Passes items on and reports how many are done; can be iterated repeatedly.

    If standard error is a terminal, the report is a bar. Otherwise it is a log line
    every 20 seconds, and one at the end of a stage that took longer than that.

    Args:
        items: The items to pass on.
        activity: The work on them, such as "evaluating".
        total: Number of units in all items.
        size: Counts the units of an item; None: one unit per item.
        unit: Name of the units, in the plural.
        enabled: Whether to report; True only in the first of several processes.
    """

    def __init__(
        self,
        items: Iterable[T],
        activity: str,
        total: int,
        *,
        size: Callable[[T], int] | None = None,
        unit: str = "images",
        enabled: bool = True,
    ):
        self.items, self.activity, self.total = items, activity, total
        self.size, self.unit, self.enabled = size, unit, enabled

    def __iter__(self) -> Iterator[T]:
        """One pass over the items."""
        if not self.enabled:
            return iter(self.items)
        return self._with_bar() if sys.stderr.isatty() else self._with_log_lines()

    def _count_units(self, item: T) -> int:
        return 1 if self.size is None else self.size(item)

    def _with_bar(self) -> Iterator[T]:
        unit = f" {self.unit}"
        with tqdm(total=self.total, desc=self.activity, unit=unit, leave=False) as bar:
            for item in self.items:
                units = self._count_units(item)
                yield item
                bar.update(units)

    def _with_log_lines(self) -> Iterator[T]:
        start = last = time.monotonic()
        done = 0
        for item in self.items:
            units = self._count_units(item)
            yield item
            done += units
            now = time.monotonic()
            # `last` has moved if the stage took long enough for a line before.
            ended = done >= self.total and last > start
            if now - last >= SECONDS or ended:
                rate = done / (now - start)
                seconds = max(self.total - done, 0) / rate
                log.info(
                    "%s: %d/%d %s, %.1f per second, %s left",
                    self.activity,
                    done,
                    self.total,
                    self.unit,
                    rate,
                    timedelta(seconds=round(seconds)),
                    extra=PROGRESS,
                )
                last = now
