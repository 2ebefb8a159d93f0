"""Measurement of times and memory, and the rows of the table."""

import gc
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

THREADS = 2
REPEATS = 5
HERE = Path(__file__).parent
ROOT = HERE.parent


@dataclass(frozen=True)
class Result:
    """A line of the table.

    Attributes:
        name: The measured work, or the two compared sides.
        ratio: The figure.
        goal: Such as "≤ 1.3", "" for none.
        detail: The two sides.
    """

    name: str
    ratio: float
    goal: str = ""
    detail: str = ""

    @property
    def reached(self) -> str:
        """Yes or no; "–" without a goal."""
        if not self.goal:
            return "–"
        sign, bound = self.goal.split()
        good = self.ratio <= float(bound) if sign == "≤" else self.ratio >= float(bound)
        return "yes" if good else "**no**"


def compare(
    measured: Callable[[], object], against: Callable[[], object]
) -> tuple[float, float, float]:
    """Median ratio of seconds, and the median seconds of both sides."""
    measured()
    against()
    seconds: list[tuple[float, float]] = []
    for _ in range(REPEATS):
        pair = []
        for side in (measured, against):
            gc.collect()
            started = time.perf_counter()
            side()
            pair.append(time.perf_counter() - started)
        seconds.append((pair[0], pair[1]))
    ratios = [own / other for own, other in seconds]
    return (
        statistics.median(ratios),
        statistics.median(own for own, _ in seconds),
        statistics.median(other for _, other in seconds),
    )


def seconds_of_command(*words: str) -> float:
    """Median seconds of a command in the root of the repository."""
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        subprocess.run(words, check=True, capture_output=True, cwd=ROOT)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def growth(work: Callable[[], object]) -> int:
    """Bytes by which a piece of work raises the peak resident size (Linux)."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith(f"{field}:")]
    return 1024 * int(line.split()[1])
