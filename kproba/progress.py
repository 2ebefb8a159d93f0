"""How far a long stage is: a bar on a terminal, now and then a line in a log."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import TypeVar

from tqdm import tqdm

log = logging.getLogger("kproba")

T = TypeVar("T")
SECONDS = 20.0  # between two lines of a log


def progress(
    items: Iterable[T],
    what: str,
    total: int,
    *,
    unit: str = "images",
    counts: Iterable[int] | None = None,
    shown: bool = True,
) -> Iterator[T]:
    """Pass items on and tell how many are done.

    Where standard error is a terminal, a bar; else a log line every 20 seconds and one
    at the end of a stage that took longer than that.

    Args:
        items: What is worked through.
        what: What is done with them, such as "testing".
        total: How many there are, in units.
        unit: What is counted.
        counts: Units of every item; None: one each.
        shown: False for all but the first of several processes, which tell nothing.
    """
    each = iter(counts) if counts is not None else None
    if not shown:
        yield from items
    elif sys.stderr.isatty():
        with tqdm(total=total, desc=what, unit=f" {unit}", dynamic_ncols=True) as bar:
            for item in items:
                yield item
                bar.update(next(each) if each is not None else 1)
    else:
        yield from _logged(items, what, total, unit, each)


def _logged(
    items: Iterable[T], what: str, total: int, unit: str, each: Iterator[int] | None
) -> Iterator[T]:
    start = last = time.monotonic()
    done = 0
    for item in items:
        yield item
        done += next(each) if each is not None else 1
        now = time.monotonic()
        if now - last >= SECONDS or (done >= total and last > start):
            rate = done / (now - start)
            left = timedelta(seconds=round(max(total - done, 0) / rate))
            log.info(
                "%s: %d/%d %s, %.1f a second, %s left",
                *(what, done, total, unit, rate, left),
            )
            last = now
