"""Groups "start-up" and "demo": whole commands, as Snakemake runs them."""

import re
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

from benchmarks.measuring import ROOT, Result, seconds_of_command

IMPORTED = ("kproba.plan.plan", "kproba.data.index", "kproba.jobs.train")
SNAKEMAKE = (sys.executable, "-m", "snakemake", "--cores", "2")
DEMO = ("--configfile", "config/config.yaml", "--directory")


def start_up() -> list[Result]:
    """What a rule costs before it works."""
    python = sys.executable
    imports = [
        Result(
            f"seconds to import {name}",
            seconds_of_command(python, "-c", f"import {name}"),
        )
        for name in IMPORTED
    ]
    with tempfile.TemporaryDirectory() as empty:
        dry_run = seconds_of_command(
            *SNAKEMAKE, *("--dry-run", "--quiet", "all"), *DEMO, empty
        )
    launched = seconds_of_command(
        *(python, "-m", "kproba.runtime.launch", "kproba.jobs.train", "--help")
    )
    return [
        *imports,
        Result("seconds until a launched job parses its arguments", launched),
        Result("seconds of a dry run of the demo", dry_run, "", "34 jobs"),
    ]


def demo() -> list[Result]:
    """The whole demo's time, and what its jobs take of it, rule by rule."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        words = [*SNAKEMAKE, *DEMO, folder]
        subprocess.run(words, check=True, capture_output=True, cwd=ROOT)
        whole = time.perf_counter() - started
        [log] = (Path(folder) / ".snakemake" / "log").glob("*.log")
        seconds = seconds_of_rules(log.read_text())
    total = sum(seconds.values())
    shares = ", ".join(
        f"`{rule}` {spent:.0f}"
        for rule, spent in sorted(seconds.items(), key=lambda item: -item[1])
        if spent >= 1
    )
    return [
        Result("seconds of the demo on 2 cores, one run", whole),
        Result("seconds of its jobs, which run side by side", total, "", shares),
    ]


def seconds_of_rules(log: str) -> dict[str, float]:
    """Seconds between start and end of the jobs in Snakemake's log, by rule."""
    clock = 0.0
    started: dict[str, float] = {}
    seconds: dict[str, float] = {}
    for line in log.splitlines():
        if stamp := re.fullmatch(r"\[(\w{3} \w{3} +\d+ [\d:]+ \d{4})\]", line):
            clock = datetime.strptime(stamp[1], "%a %b %d %H:%M:%S %Y").timestamp()
        elif job := re.match(r"Job (\d+): |    jobid: (\d+)", line):
            started.setdefault(job[1] or job[2], clock)
        elif done := re.match(r"Finished jobid: (\d+) \(Rule: (\w+)\)", line):
            spent = clock - started.get(done[1], clock)
            seconds[done[2]] = seconds.get(done[2], 0.0) + spent
    return seconds
