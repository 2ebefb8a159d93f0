"""Results that came from elsewhere stay done.

Snakemake makes a file again that is older than what it was made from. `cp -a` and
`rsync -a` keep the times. `git clone` and a plain `cp -r` do not: all files are new, in
the order of the copy, which says nothing.
"""

import contextlib
import os
import time
from pathlib import Path

TOLERANCE = 2.0  # seconds between the times of a file that a copy made


def settle_times(results: str | Path, records: str | Path) -> bool:
    """Give all results one time if they were copied here without their times.

    Args:
        results: Folder of the results.
        records: Folder of Snakemake's records. Where it has any, the results were made
            or used here, and their times count.

    Returns:
        Whether times were changed.
    """
    results, records = Path(results), Path(records)
    if not results.is_dir() or _has_entries(records):
        return False
    paths = [
        Path(folder, name) for folder, _, names in os.walk(results) for name in names
    ]
    statuses = [path.lstat() for path in paths]
    if not statuses:
        return False
    arrived = min(status.st_ctime for status in statuses)
    if min(status.st_mtime for status in statuses) < arrived - TOLERANCE:
        return False  # the copy kept the times
    now = time.time()
    folders = [Path(folder) for folder, _, _ in os.walk(results, topdown=False)]
    for path in (*paths, *folders):
        with contextlib.suppress(OSError):  # not ours: then Snakemake decides
            os.utime(path, (now, now), follow_symlinks=False)
    return True


def _has_entries(folder: Path) -> bool:
    return folder.is_dir() and next(folder.iterdir(), None) is not None
