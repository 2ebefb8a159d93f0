"""The memory of old images: a table, its label images, and how images are chosen.

memory.csv has the columns of a split, and `seen_in_step` and `known`. The label images
hold training targets, that is, output indices. They stay right in later steps, because
classes are only appended. Beside the table, memory.json says how it was made.
"""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from kproba.data.augmentation import keyed_generator
from kproba.data.folders import Folders
from kproba.data.labels import IGNORE, UNSURE
from kproba.data.memory_rules import MEMORY_RULES
from kproba.data.splits import parse_classes, read_index
from kproba.runtime import records
from kproba.runtime.records import REMAKE, ArtifactError

SEEN, KNOWN = "seen_in_step", "known"  # columns of memory.csv
RECORD = records.record(
    {
        "step": records.integer(0, 10_000),
        "rule": records.choice(*MEMORY_RULES),
        "leaks": records.flag,
        "images": records.integer(1),
        "labels": records.list_of(records.integer(0, IGNORE), least=2, distinct=True),
        "images_of_label": records.mapping_of(records.integer()),
    },
    {"threshold": records.number(0, 1), "provenance": records.anything},
)


class Memory(NamedTuple):
    """The old images that a step may use.

    Attributes:
        rows: The table, as `read_memory` returns it.
        labels: Folder with one label image per id.
    """

    rows: pd.DataFrame
    labels: Path


def choose_images(
    known: Mapping[str, Collection[int]], count: int, *, seed: int, step: int
) -> list[str]:
    """Choose images so that every class has about the same number of them.

    The candidates and the classes are shuffled. Then the classes take turns: each takes
    its first candidate that holds it, until `count` images are chosen or no candidate
    is left (SSUL-M, and DKD-M after it). The result depends on the arguments alone.

    Args:
        known: By id of a candidate, the raw labels of the classes that it holds.
        count: Number of images to choose.
        seed: Seed of the run.
        step: Step after which images are chosen.

    Returns:
        Ids, sorted.
    """
    rng = keyed_generator("memory", seed, step)
    names = sorted(known)
    candidates = [names[place] for place in rng.permutation(len(names))]
    labels = sorted(set().union(*known.values()))
    order = [labels[place] for place in rng.permutation(len(labels))]
    holding = {
        label: iter([name for name in candidates if label in known[name]])
        for label in order
    }
    chosen: set[str] = set()
    waiting = list(order)
    while waiting and len(chosen) < count:
        for label in tuple(waiting):
            if len(chosen) == count:
                break
            name = next((n for n in holding[label] if n not in chosen), None)
            if name is None:
                waiting.remove(label)
            else:
                chosen.add(name)
    return sorted(chosen)


def add_known(target: np.ndarray, memory: np.ndarray) -> np.ndarray:
    """Complete a target by what the memory knows.

    Args:
        target: (H, W) uint8 in output indices.
        memory: The same of the memory; 0 and 255 say nothing.

    Returns:
        (H, W) uint8: the target, and where it is 0 or unsure, the class in memory.
    """
    unknown = (target == 0) | (target == UNSURE)
    return np.where(unknown & (memory != 0) & (memory != IGNORE), memory, target)


def describe_labels(labels: Iterable[int]) -> str:
    """A cell such as "0 3 255" of sorted labels."""
    return " ".join(str(label) for label in sorted(labels))


def read_memory(
    path: str | Path, folders: Mapping[str, Folders] | None = None
) -> pd.DataFrame:
    """Read memory.csv.

    Args:
        path: The table.
        folders: As for `kproba.data.splits.read_index`.

    Returns:
        A row per image with the columns of a split, `seen_in_step` (int) and `known`
        (raw labels as in the column `classes`, without 0 and 255).

    Raises:
        ArtifactError: It is not such a table. It is a ValueError.
    """
    rows = read_index(path, folders)
    missing = [name for name in (SEEN, KNOWN) if name not in rows]
    if missing:
        raise ArtifactError(
            f"Expected the columns {SEEN} and {KNOWN} in {path}, but "
            f"{', '.join(missing)} is missing. {REMAKE}"
        )
    try:
        seen = [int(cell) for cell in rows[SEEN]]
        for cell in rows[KNOWN]:
            parse_classes(cell)
    except ValueError as error:
        raise ArtifactError(
            f"Expected numbers in the columns {SEEN} and {KNOWN} of {path}, but "
            f"{error}. {REMAKE}"
        ) from error
    return rows.assign(**{SEEN: seen})


def read_memory_record(path: str | Path) -> dict[str, Any]:
    """Read memory.json beside a memory.csv.

    Args:
        path: memory.csv.

    Raises:
        FileNotFoundError, ArtifactError: It is missing or damaged.
    """
    content: dict[str, Any] = records.read_record(
        Path(path).with_suffix(".json"), RECORD
    )
    return content


def check_memory(path: str | Path, *, step: int, seen: Collection[int]) -> None:
    """Refuse a memory of another step or task.

    Args:
        path: memory.csv.
        step: Step after which it must have been made.
        seen: Raw labels of the classes in output order, as many as its images may show.

    Raises:
        ArtifactError: It was made after another step, or for other classes.
    """
    record = read_memory_record(path)
    expected = [0, *seen][: len(record["labels"])]
    if record["step"] != step or record["labels"] != expected:
        raise ArtifactError(
            f"Expected {path} to be the memory after step {step} with labels of "
            f"{', '.join(map(str, [0, *seen]))}, but it was made after step "
            f"{record['step']} with {', '.join(map(str, record['labels']))}. It "
            f"belongs to another step or task. {REMAKE}"
        )
