"""Groups "start-up" and "demo": whole commands, as Snakemake runs them."""

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from benchmarks.measuring import ROOT, Result, compare, seconds_of_command

IMPORTED = ("kproba.plan.plan", "kproba.data.index")
# The jobs, and the modules that each imports after parsing its arguments.
JOBS = {
    "train": (
        "kproba.training.loop",
        ("kproba.training.monitor", "torch.utils.tensorboard"),
    ),
    "evaluate": ("kproba.jobs.step_test", ()),
    "build_bank": ("kproba.jobs.step_bank", ()),
    "export_labels": ("kproba.jobs.step_labels", ()),
}
BACKBONES = {
    "ResNet": "kproba.network.backbones.resnet",
    "EfficientNet-Lite0": "kproba.network.backbones.efficientnet",
}
IMPORTS = """from kproba.jobs.{} import without_garbage_collection
with without_garbage_collection():
    import {}
import {}
"""
# Ends a process at once: with torch, the usual end takes half a second.
LEAVE = "\nimport os; os._exit(0)"
SNAKEMAKE = (sys.executable, "-m", "snakemake", "--cores", "2")
DEMO = ("--configfile", "config/config.yaml", "--directory")


def start_up() -> list[Result]:
    """The time of a rule before its work starts."""
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
    return [
        *imports,
        *(_parsed(job) for job in JOBS),
        *(_imported(job, backbone) for job in JOBS for backbone in BACKBONES),
        Result("seconds of a dry run of the demo", dry_run, "", "34 jobs"),
    ]


def _parsed(job: str) -> Result:
    """Time until the launcher and the job have parsed the arguments."""
    words = ("-m", "kproba.runtime.launch", f"kproba.jobs.{job}", "--help")
    return _beside_torch(
        f"launched kproba.jobs.{job} has parsed its arguments / import torch",
        words,
        goal="≤ 1.3",
    )


def _imported(job: str, backbone: str) -> Result:
    """Time until a job has parsed its arguments and imported all modules."""
    work, later = JOBS[job]
    code = IMPORTS.format(job, work, ", ".join((BACKBONES[backbone], *later)))
    return _beside_torch(
        f"kproba.jobs.{job} has imported all it needs, {backbone} / import torch",
        ("-c", code + LEAVE),
    )


def _beside_torch(name: str, words: Sequence[str], goal: str = "") -> Result:
    """The time of a Python command over that of `import torch`, in turn."""

    def run(*words: str) -> None:
        subprocess.run([sys.executable, *words], check=True, capture_output=True)

    ratio, own, torch = compare(
        lambda: run(*words), lambda: run("-c", f"import torch{LEAVE}")
    )
    return Result(name, ratio, goal, f"{own:.2f} s / {torch:.2f} s")


def demo() -> list[Result]:
    """The time of the whole demo and of its jobs, by rule."""
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
