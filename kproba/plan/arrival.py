"""Copied results are not computed again.

Snakemake runs a job again if its output is older than its inputs. `cp -a` and `rsync
-a` keep the times. `git clone` and a plain `cp -r` do not: all files are new, in the
order of the copy.
"""

import contextlib
import json
import os
import time
from pathlib import Path

TOLERANCE = 2.0  # seconds between the times of a file that a copy made


def settle_times(results: str | Path, records: str | Path) -> bool:
    """Give all results the same time if they were copied without their times.

    Args:
        results: Folder of the results.
        records: Folder of Snakemake's records; it may be missing, or copied too. If a
            result still has its recorded time, all times are kept.

    Returns:
        Whether times were changed.
    """
    results, records = Path(results), Path(records)
    if not results.is_dir():
        return False
    recorded = _recorded_times(records)
    paths, statuses = [], []
    for folder, _, names in os.walk(results):  # first the latest results, above
        for name in names:
            try:
                status = Path(folder, name).lstat()
            except OSError:  # another Snakemake removed it
                continue
            if round(status.st_mtime, 3) in recorded:
                return False
            paths.append(Path(folder, name))
            statuses.append(status)
    if len({status.st_mtime for status in statuses}) < 2:
        return False  # nothing to settle
    arrived = min(status.st_ctime for status in statuses)
    if min(status.st_mtime for status in statuses) < arrived - TOLERANCE:
        return False  # the copy kept the times
    now = time.time()
    folders = [Path(here) for here, _, _ in os.walk(results, topdown=False)]
    for path in (*paths, *folders):
        with contextlib.suppress(OSError):  # another user's: Snakemake decides
            os.utime(path, (now, now), follow_symlinks=False)
    return True


def _recorded_times(records: Path) -> set[float]:
    """The times of results, as recorded by Snakemake."""
    recorded = set()
    for path in records.rglob("*") if records.is_dir() else ():
        try:
            recorded.add(round(float(json.loads(path.read_bytes())["endtime"]), 3))
        except (OSError, ValueError, TypeError, KeyError, OverflowError):
            continue  # a folder, or an unusable record
    return recorded
