"""Costs of the jobs of a step, from the files that they left."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from kproba.plan.results import StepResult
from kproba.results.record import read_usage_record
from kproba.runtime.tables import read_table

# Kinds of jobs that make a step: the keys of `StepResult.times`.
TRAINING = "training"
KINDS = (TRAINING, "pseudo labels", "bank")
# The same, of methods alone that have a memory or draw features of old classes.
OLD_IMAGES, FEATURES = "old images", "features"
RARE = (OLD_IMAGES, FEATURES)

MIB = 2**20


def read_seconds(
    result: StepResult, usage: Mapping[str, Any] | None = None
) -> dict[str, float]:
    """Seconds of a step's jobs by kind, of those that were measured.

    Snakemake knows the last attempt of a training; usage.json knows all of them.

    Args:
        result: The step.
        usage: Content of usage.json; None reads it.
    """
    seconds = {
        kind: _read_times(path, "s")
        for kind, path in result.times.items()
        if Path(path).is_file()
    }
    if TRAINING in seconds:
        usage = read_usage(result) if usage is None else usage
        trained = usage.get("seconds", 0.0)
        seconds[TRAINING] = max(seconds[TRAINING], trained)
    return seconds


def read_usage(result: StepResult) -> dict[str, Any]:
    """Content of a training's usage.json; empty where the file is missing."""
    return read_usage_record(result.usage) if Path(result.usage).is_file() else {}


def read_costs(result: StepResult) -> dict[str, float]:
    """Cost of a step by heading; NaN for what it does not have or was not measured."""
    usage = read_usage(result)
    peak = usage.get("peak_memory_bytes")
    return {
        **dict.fromkeys(KINDS, math.nan),
        **read_seconds(result, usage),
        "images/s": usage.get("images_per_second", math.nan),
        "memory": _process_memory(result) if peak is None else peak / MIB,
        "model": _file_size(result.model),
        "bank size": _file_size(result.bank),
    }


def _read_times(path: str | Path, column: str) -> float:
    """A number of Snakemake's measurements of a job; NaN if it measured none.

    Of a job that was repeated, seconds add up and the largest memory counts.
    """
    cells = read_table(path, {column: str}, separator="\t")[column]
    values = pd.to_numeric(cells, errors="coerce")
    return float(values.sum() if column == "s" else values.max())


def _process_memory(result: StepResult) -> float:
    """Memory of the largest process of the training in MiB, as Snakemake measured."""
    path = Path(result.times.get(TRAINING, ""))
    if not path.is_file():
        return math.nan
    return _read_times(path, "max_rss")


def _file_size(path: str | None) -> float:
    """MiB on disk; NaN if there is no file, or it was removed since."""
    if path is None or not Path(path).is_file():
        return math.nan
    return Path(path).stat().st_size / MIB


def duration(seconds: float) -> str:
    """Seconds as a person reads them: "38 s", "2.5 min", "26 min", "3 h 05 min"."""
    if math.isnan(seconds):
        return "–"
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    if seconds < 600 - 3:
        return f"{seconds / 60:.1f} min"
    if round(seconds / 60) < 60:
        return f"{seconds / 60:.0f} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min"


def size(mebibytes: float) -> str:
    """Bytes as a person reads them: "87 kB", "4.5 MB", "18 MB", "1.1 GB".

    Args:
        mebibytes: In MiB; the text has decimal units, as the file manager shows.
    """
    if math.isnan(mebibytes):
        return "–"
    number = mebibytes * MIB
    units = ["GB", "MB", "kB", "B"]
    while number >= 999.5 and len(units) > 1:
        number, _ = number / 1000, units.pop()
    unit = units[-1]
    return f"{number:.1f} {unit}" if number < 9.95 else f"{number:.0f} {unit}"
