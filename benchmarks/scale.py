"""python -m benchmarks.scale: how time and memory grow, in benchmarks/scale.md.

Index, splits, plan, summary, figures and page are measured at several sizes: numbers of
pictures, classes, steps and trainings. So are the stages with torch, by number of
classes (`benchmarks.scale_classes`). Inputs are made up in the form that the workflow
writes (`benchmarks.scale_inputs`). Each measurement has a fresh process, which first
does the smallest size once, so that imports do not count. Memory is the growth of its
peak resident size. Commands are measured whole, less the memory of their imports. Time
is that of the CPU, which does not count waiting for the disk or for other programs.

The exponent is the slope of log(time) over log(size) by least squares, over the sizes
of the upper half: 1 is linear growth, 2 quadratic. Measurements of less than `SHORT`
seconds have none, and memory below `LITTLE` has none.

python -m benchmarks.scale [group ..]    # without groups all; their rows are replaced
python -m benchmarks.scale --page        # only the texts of the page are written again
"""

import argparse
import contextlib
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measuring import HERE, ROOT, growth
from benchmarks.scale_cases import Case, all_cases
from benchmarks.scale_page import write_page

PAGE = HERE / "scale.md"
SHORT = 0.02
LITTLE = 4 * 2**20
IMPORTS = "import snakemake.cli, kproba.plan.plan, kproba.results.measures"


@dataclass(frozen=True)
class Measured:
    """A piece of work at one size.

    Attributes:
        size: What the case counts.
        seconds: Time of the CPU.
        memory: Bytes by which the peak resident size grew.
    """

    size: int
    seconds: float
    memory: int


def measure(case: Case) -> list[Measured]:
    """Measure a case at all its sizes, each in a fresh process."""
    with tempfile.TemporaryDirectory() as above:
        folders = [Path(above) / str(size) for size in case.sizes]
        results = []
        for size, folder in zip(case.sizes, folders, strict=True):
            folder.mkdir()
            _in_process(case, folder, "prepare", size)
            if case.work is None:
                seconds, memory = _run(case.command, folder)
            else:
                words = ("measure", size, case.sizes[0], folders[0])
                seconds, memory = json.loads(_in_process(case, folder, *words))
            results.append(Measured(case.counted(size), seconds, memory))
            print(f"  {results[-1]}", file=sys.stderr, flush=True)
        return results


def _in_process(case: Case, folder: Path, *words: object) -> str:
    """What this module prints in another process that works in a folder.

    Raises:
        RuntimeError: The process fails.
    """
    number = all_cases_by_text().index(_text(case))
    command = [sys.executable, "-m", "benchmarks.scale", "--case", number, *words]
    done = subprocess.run(
        list(map(str, command)),
        check=False,
        capture_output=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr[-3000:]}")
    return done.stdout.splitlines()[-1] if done.stdout else ""


def _text(case: Case) -> tuple[str, str, str]:
    return case.group, case.what, case.unit


def all_cases_by_text() -> list[tuple[str, str, str]]:
    """A text for each case that identifies it, in their order."""
    return list(map(_text, all_cases()))


def _run(command: Sequence[str], folder: Path) -> tuple[float, int]:
    """Seconds and memory of a command, less the memory of its imports."""
    seconds, peak = _usage(command, folder)
    _, imports = _usage((sys.executable, "-c", IMPORTS), folder)
    return seconds, peak - imports


def _usage(command: Sequence[str], folder: Path) -> tuple[float, int]:
    """Seconds, and bytes of the peak resident size, of a command (Linux).

    Raises:
        RuntimeError: The command fails.
    """
    with subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: exit {process.returncode}")
    return usage.ru_utime + usage.ru_stime, 1024 * usage.ru_maxrss


def work_here(case: Case, words: Sequence[str]) -> str:
    """Prepare the input of a case in the working directory, or measure it there.

    Args:
        case: The case.
        words: "prepare" and a size; or "measure", a size, the smallest size and the
            folder with the input of that.

    Returns:
        Seconds and bytes as JSON; nothing after "prepare".
    """
    if words[0] == "prepare":
        case.prepare(int(words[1]))
        return ""
    assert case.work is not None  # a command is measured from outside
    here = Path.cwd()
    with contextlib.chdir(words[3]):
        case.work(int(words[2]))()
    os.chdir(here)
    work = case.work(int(words[1]))
    seconds: list[float] = []

    def timed() -> None:
        started = time.process_time()
        work()
        seconds.append(time.process_time() - started)

    memory = growth(timed)
    return json.dumps([seconds[0], memory])


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Slope of log(value) over log(size) by least squares, in the upper half.

    Args:
        sizes: Sizes in ascending order, at least two.
        values: A positive number for each.
    """
    first = (len(sizes) - 1) // 2
    x = [math.log(size) for size in sizes[first:]]
    y = [math.log(value) for value in values[first:]]
    middle, level = sum(x) / len(x), sum(y) / len(y)
    above = sum((a - middle) * (b - level) for a, b in zip(x, y, strict=True))
    return above / sum((a - middle) ** 2 for a in x)


def row(case: Case, results: Sequence[Measured]) -> str:
    """The line of a case in the table."""
    sizes = [result.size for result in results]
    seconds = [result.seconds for result in results]
    memory = [max(result.memory, 1) for result in results]

    def slope(values: Sequence[float], least: float) -> str:
        first = (len(sizes) - 1) // 2
        if min(values[first:]) < least:
            return "–"
        return f"{exponent(sizes, values):.2f}"

    cells = [
        case.what,
        f"{' / '.join(f'{size:,}' for size in sizes)} {case.unit}",
        " / ".join(f"{value:.3g}" for value in seconds),
        slope(seconds, SHORT),
        " / ".join(f"{value / 2**20:.0f}" for value in memory),
        slope(memory, LITTLE),
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Measure all groups, or those named."""
    parser = argparse.ArgumentParser(prog="benchmarks.scale", description=__doc__)
    groups = list(dict.fromkeys(case.group for case in all_cases()))
    parser.add_argument("groups", nargs="*", help=f"of {', '.join(groups)}")
    parser.add_argument("--case", type=int, help="for its own processes")
    parser.add_argument("--page", action="store_true", help="measure nothing")
    options = parser.parse_args()
    if options.case is not None:
        print(work_here(all_cases()[options.case], options.groups))
        return
    chosen = [] if options.page else options.groups or groups
    if set(chosen) - set(groups):
        parser.error(f"expected groups of {', '.join(groups)}, but got {chosen}")
    rows: dict[str, list[str]] = {}
    for case in all_cases():
        if case.group in chosen:
            rows.setdefault(case.group, []).append(row(case, measure(case)))
            print(rows[case.group][-1], flush=True)
    order = [(case.group, (case.what, case.unit)) for case in all_cases()]
    write_page(PAGE, order, rows, _machine())


def _machine() -> dict[str, object]:
    """Versions and cores of this measurement."""
    import torch

    from kproba import __version__

    return {
        "kproba": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cores": os.cpu_count(),
    }


if __name__ == "__main__":
    main()
