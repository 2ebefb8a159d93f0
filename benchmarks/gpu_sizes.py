"""Pictures of many sizes on a GPU: on canvases, and in batches of equal sizes.

    python -m benchmarks.gpu_sizes canvases bank

measures the works named, in this order, in a process of its own: the first call plans
kernels for every shape of batch, and later ones do not. It prints a line of JSON for
each. `kproba.jobs` runs each of them in a process of its own, too.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from benchmarks.case import SMALL, Case, line, say, table
from benchmarks.inferring import (
    FORWARD,
    KINDS,
    WORKS,
    batches_of,
    distinct_shapes,
    many_sizes,
    works_of,
)
from benchmarks.measuring import ROOT
from benchmarks.profiles import profiled, short
from kproba.data.canvases import Size
from kproba.data.loaders import Batch

CLASSES = 21
GOAL = "Goal on canvases, warm: at most 1.3 times the work on pictures of one size."
SECONDS = 75  # of a process that measures
TOP = 8  # operators of the profile
ONE, CANVASES, OWN = KINDS


class Timed(NamedTuple):
    """One piece of work on one kind of batches.

    Attributes:
        kind: Of `KINDS`.
        work: Of `WORKS`.
        cold: Seconds of the first call.
        warm: Seconds of the second call.
        shapes: Different shapes that the network got.
        first: Whether no other work came before it in its process.
    """

    kind: str
    work: str
    cold: float
    warm: float
    shapes: int
    first: bool


def sizes_of(case: Case, kind: str) -> list[Size]:
    """Many sizes of pictures, or the same number of times one size."""
    if case.small:
        several, one = many_sizes(24, 160, 24), Size(120, 160)
    else:
        several, one = many_sizes(1000), Size(375, 500)
    return [one] * len(several) if kind == ONE else several


def pictures(case: Case, kind: str, count: int | None = None) -> list[Batch]:
    """Pictures of many sizes, or as many of one; the first `count` of them."""
    sizes, batch_size = sizes_of(case, kind)[:count], 4 if case.small else 16
    return batches_of(case, sizes, kind, batch_size=batch_size, classes=CLASSES)


def measure(case: Case, kind: str, works: Sequence[str]) -> Iterator[Timed]:
    """Time pieces of work on one kind of batches."""
    torch.backends.cudnn.benchmark = False  # as in these jobs
    batches = pictures(case, kind)
    every, shapes = works_of(case, batches, CLASSES), distinct_shapes(batches)
    for number, name in enumerate(works):
        cold, warm = (case.seconds(every[name]) for _ in range(2))
        yield Timed(kind, name, cold, warm, shapes, number == 0)


def profile_own_sizes(case: Case) -> None:
    """Profile of the time without canvases, in the first pass of a process."""
    torch.backends.cudnn.benchmark = False
    batches = pictures(case, OWN, 24 if case.small else 150)
    work = works_of(case, batches, CLASSES)[FORWARD]
    rows = profiled(work, case)
    wall = case.seconds(work)
    say(
        f"Forward passes of {sum(len(b.ids) for b in batches)} pictures in batches of "
        f"their own sizes, {distinct_shapes(batches)} shapes, under the profiler. "
        f"Without the profiler and with planned kernels, the same passes take "
        f"{wall:.3f} s. The planning of kernels is CPU time in operators of "
        f"convolutions."
    )
    on_cpu = sorted((r for r in rows if not r.kernel), key=lambda r: -r.cpu)
    on_gpu = sorted((r for r in rows if r.kernel), key=lambda r: -r.gpu)
    for where, found, total in (
        ("CPU", on_cpu, sum(r.cpu for r in on_cpu)),
        ("GPU", on_gpu, sum(r.gpu for r in on_gpu)),
    ):
        if not found:
            continue
        table(f"time on the {where}, {total:.3f} s", "s", "share", "calls")
        for row in found[:TOP]:
            own = row.gpu if row.kernel else row.cpu
            line(short(row.name), f"{own:.3f}", f"{own / total:.0%}", row.calls)


def sizes(case: Case) -> None:
    """Cold and warm, with canvases and without; then a profile of the slow side."""
    say(GOAL)
    many, one = (sum(h * w for h, w in sizes_of(case, kind)) for kind in (OWN, ONE))
    count = len(sizes_of(case, OWN))
    say(
        f"{count} pictures of many sizes have {many / one:.2f} times the pixels of "
        f"{count} of one size. Cold is the first call in a process, which plans the "
        f"kernels. Ratios compare with the forward passes of one size, cold with cold "
        f"and warm with warm. Targets are read, but labels are not written."
    )
    heads = ("cold, s", "ratio", "warm, s", "ratio", "shapes")
    table(f"{count} pictures", *heads)
    plans = [(ONE, (FORWARD,)), *((CANVASES, (work,)) for work in WORKS), (OWN, WORKS)]
    base: Timed | None = None
    failed = []
    for kind, works in plans:
        run = measure if case.small else _in_own_process
        try:
            for timed in run(case, kind, works):
                base = base or timed
                _row(timed, base)
        except Exception as error:  # the others are measured all the same
            text = f"{type(error).__name__}: {str(error)[-500:]}"
            failed.append(f"**{kind}, {', '.join(works)} failed**: {text}")
    for text in failed:
        say(text)
    if case.small:
        profile_own_sizes(case)
    else:
        words = [
            "timeout",
            "--foreground",
            str(SECONDS),
            *_command(case, OWN, "profile"),
        ]
        subprocess.run(words, cwd=ROOT, check=True)


def _row(timed: Timed, base: Timed) -> None:
    cold = f"{timed.cold:.3f}", f"{timed.cold / base.cold:.2f}"
    line(
        f"{timed.kind}: {timed.work}",
        *(cold if timed.first else ("–", "–")),
        f"{timed.warm:.3f}",
        f"{timed.warm / base.warm:.2f}",
        timed.shapes,
    )


def _command(case: Case, kind: str, *works: str) -> list[str]:
    words = [sys.executable, "-m", "benchmarks.gpu_sizes", kind, *works]
    return [*words, "--small"] if case.small else words


def _in_own_process(case: Case, kind: str, works: Sequence[str]) -> Iterator[Timed]:
    """As `measure`, in a separate process; results before the time limit are kept.

    Raises:
        RuntimeError: The process failed, or reached its time limit.
    """
    command = _command(case, kind, *works)
    limited = ["timeout", "--foreground", str(SECONDS), *command]
    with subprocess.Popen(
        limited, cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for text in process.stdout:
            if text.startswith("["):
                yield Timed(*json.loads(text))
    if process.returncode:
        reason = (
            f"not finished after {SECONDS} s" if process.returncode == 124 else "error"
        )
        raise RuntimeError(f"{reason}, exit status {process.returncode}")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure in this process; the parent process reads the output."""
    parser = argparse.ArgumentParser(prog="benchmarks.gpu_sizes")
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("works", nargs="+", choices=[*WORKS, "profile"])
    parser.add_argument("--small", action="store_true", help="a trial on the CPU")
    options = parser.parse_args(argv)
    case = SMALL if options.small else Case()
    if options.works == ["profile"]:
        profile_own_sizes(case)
        return
    for timed in measure(case, options.kind, options.works):
        print(json.dumps(timed), flush=True)


if __name__ == "__main__":
    main()
