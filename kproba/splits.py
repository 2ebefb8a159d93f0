"""Tasks, class orders and image lists: which classes and images belong to a step.

A *raw* label is the value in the mask file (0 background, 1..N classes, 255 ignored).
An *output index* is the channel of the network: 0 background, then the classes in the
order in which the task introduces them. See docs/protocol.md.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from kproba.artifacts import atomic_path

IGNORE = 255
UNSURE = 254  # in targets: background or old, but the pseudo labels do not say which
SETTINGS = ("overlap", "disjoint", "sequential")

Groups = tuple[tuple[int, ...], ...]


def parse_task(
    task: str, class_count: int, orders: Mapping[str, Sequence[int]] | None = None
) -> Groups:
    """Class groups of a task named `A-B` (A classes, then B per step) or `offline`.

    Args:
        task: Such as "15-1", "15-1_b" for another class order, "15-1_r7" for a random
            one, or "offline" for all classes in one step.
        class_count: Number of classes of the dataset, background not counted.
        orders: Published class orders of the dataset by their letter, raw labels.

    Returns:
        One tuple of raw labels per step, in the dataset's own order or the one named.

    Raises:
        ValueError: The name has another form, or the classes cannot be divided so.
    """
    if task == "offline":
        return (tuple(range(1, class_count + 1)),)
    match = re.fullmatch(r"(\d+)-(\d+)(?:_([a-z]+|r\d+))?", task)
    if match is None:
        raise ValueError(
            f"Expected a task like '15-1' (15 classes, then 1 per step), 'offline' or "
            f"the name of an entry of `tasks`, but got '{task}'."
        )
    order: Sequence[int] = range(1, class_count + 1)
    if match[3] and match[3][1:].isdigit():
        order = random_order(class_count, int(match[3][1:]))
    elif match[3]:
        if match[3] not in (orders or {}):
            known = ", ".join(["r1, r2, .. for random ones", *(orders or {})])
            raise ValueError(
                f"Expected task '{task}' to end in a class order of the dataset "
                f"({known}), but got '{match[3]}'. List the groups under `tasks`."
            )
        order = (orders or {})[match[3]]
    first, later = int(match[1]), int(match[2])
    if first < 1 or later < 1 or first > class_count or (class_count - first) % later:
        raise ValueError(
            f"Expected task '{task}' to divide the dataset's {class_count} classes "
            f"into {first} and then {later} per step, but {class_count} - {first} = "
            f"{class_count - first} is not a multiple of {later}. Choose another task "
            f"or list the groups under `tasks`."
        )
    starts = range(first, class_count, later)
    return (tuple(order[:first]), *(tuple(order[i : i + later]) for i in starts))


def random_order(class_count: int, seed: int) -> list[int]:
    """Raw labels in an order of their own for every seed, the same everywhere."""

    def place(label: int) -> bytes:
        return hashlib.sha256(f"{seed} {label}".encode()).digest()

    return sorted(range(1, class_count + 1), key=place)


def canonical_task(classes: Sequence[int]) -> str:
    """Name of the one-step task that trains `classes` at once.

    It depends on nothing but the classes and their order, so that every task and method
    with the same first step finds the same step-0 model: "15" for the classes 1..15,
    else the count and a digest of the order, such as "15x3fa9c1".
    """
    if tuple(classes) == tuple(range(1, len(classes) + 1)):
        return str(len(classes))
    digest = hashlib.sha256(json.dumps(list(classes)).encode()).hexdigest()
    return f"{len(classes)}x{digest[:6]}"


@dataclass(frozen=True)
class LabelMap:
    """Raw labels to output indices at the last step of `groups`.

    Attributes:
        groups: Raw labels of the steps 0..t.
        setting: "overlap", "disjoint" or "sequential".
    """

    groups: Groups
    setting: str = "overlap"

    @property
    def seen(self) -> tuple[int, ...]:
        """Raw labels of S_t without background, in output order (index 1, 2, ..)."""
        return tuple(label for group in self.groups for label in group)

    @property
    def channels(self) -> int:
        """|S_t|, background included."""
        return 1 + len(self.seen)

    @property
    def first_new(self) -> int:
        """Output index of the first class of C_t; C_t is `first_new`..`channels`-1."""
        return self.channels - len(self.groups[-1])

    def training_table(self) -> np.ndarray:
        """Look-up table (256,) uint8, raw label to training target.

        Classes of C_t get their output index, 255 stays 255, everything else (old,
        future and background) is 0; under "sequential" old classes keep their index.
        """
        table = np.zeros(256, np.uint8)
        named = self.groups if self.setting == "sequential" else self.groups[-1:]
        labels = [label for group in named for label in group]
        table[labels] = self.channels - len(labels) + np.arange(len(labels))
        table[IGNORE] = IGNORE
        return table

    def evaluation_table(
        self, *, unseen: int = IGNORE, background: int = 0
    ) -> np.ndarray:
        """Look-up table (256,) uint8, raw label to ground truth: all seen classes.

        Args:
            unseen: Target of labels that are not seen yet (255: ignored).
            background: Target of raw label 0 (255: ignored).
        """
        table = np.full(256, unseen, np.uint8)
        table[list(self.seen)] = 1 + np.arange(len(self.seen))
        table[0] = background
        table[IGNORE] = IGNORE
        return table


def in_step(
    present: frozenset[int], seen: frozenset[int], new: frozenset[int], setting: str
) -> bool:
    """Whether an image belongs to a step.

    Args:
        present: Raw labels in the image; 0 and 255 may be among them.
        seen: Classes of S_t.
        new: Classes of C_t.
        setting: "overlap": at least one class of C_t is present. "disjoint" and
            "sequential": besides, no class that is not seen yet.
    """
    classes = present - {0, IGNORE}
    return bool(classes & new) and (setting == "overlap" or classes <= seen)


def parse_classes(cell: object) -> frozenset[int]:
    """The set of raw labels in a `classes` cell of index.csv, such as "0 3 255"."""
    return frozenset(int(label) for label in str(cell).split())


def read_index(path: str | Path) -> pd.DataFrame:
    """Read index.csv; ids and class lists stay text, whatever they look like."""
    return pd.read_csv(
        path,
        dtype={"id": str, "image": str, "mask": str, "subset": str, "classes": str},
        keep_default_na=False,
    )


def read_indices(paths: Sequence[str | Path]) -> list[pd.DataFrame]:
    """Read the index of a dataset and those of its additions.

    Raises:
        ValueError: An id is in two of them.
    """
    indices = [read_index(path) for path in paths]
    home: dict[str, str] = {}
    for path, index in zip(map(str, paths), indices, strict=True):
        twice = [name for name in index["id"] if name in home]
        if twice:
            raise ValueError(
                f"Expected other names in an addition than in the dataset, but "
                f"{len(twice)} of {path}, such as '{twice[0]}', are in "
                f"{home[twice[0]]} too. Rename these images and their masks."
            )
        home |= dict.fromkeys(index["id"], path)
    return indices


def select_images(
    index: pd.DataFrame, groups: Groups, setting: str, subset: str = "train"
) -> pd.DataFrame:
    """Rows of `index` that belong to the last step of `groups`, sorted by id.

    Raises:
        ValueError: No image holds a class of the step.
    """
    label_map = LabelMap(groups, setting)
    seen, new = frozenset(label_map.seen), frozenset(groups[-1])
    rows = index[index["subset"] == subset]
    keep = [
        in_step(parse_classes(cell), seen, new, setting) for cell in rows["classes"]
    ]
    chosen = rows[keep].sort_values("id", ignore_index=True)
    if chosen.empty:
        raise ValueError(
            f"Expected at least one {subset} image with a class of {sorted(new)} for "
            f"step {len(groups) - 1} ({setting}), but found none. Check the class "
            f"groups of the task and the masks, or choose the 'overlap' setting."
        )
    return chosen


def evenly_spaced(rows: pd.DataFrame, count: int) -> pd.DataFrame:
    """At most `count` rows, evenly spaced in the order of their ids."""
    rows = rows.sort_values("id", ignore_index=True)
    places = np.linspace(0, len(rows) - 1, min(count, len(rows))).round()
    return rows.iloc[places.astype(int)].reset_index(drop=True)


def write_split(
    indices: Sequence[str | Path], split: str | Path, *, groups: Groups, setting: str
) -> None:
    """Write the image list of the last step of `groups` as CSV.

    Args:
        indices: index.csv of the dataset and of the additions that have come so far.
        split: Output.
        groups: Raw labels of the classes of the steps 0..t.
        setting: "overlap", "disjoint" or "sequential".
    """
    index = pd.concat(read_indices(indices), ignore_index=True)
    chosen = select_images(index, groups, setting)
    with atomic_path(split) as temporary:
        chosen.to_csv(temporary, index=False)


def write_classes(
    path: str | Path, *, groups: Groups, names: Mapping[int, str], setting: str
) -> None:
    """Write classes.json: output index, raw label, name and step of every class."""
    classes = [{"index": 0, "label": 0, "name": "background", "step": 0}]
    for step, group in enumerate(groups):
        for label in group:
            classes.append(
                {
                    "index": len(classes),
                    "label": label,
                    "name": names[label],
                    "step": step,
                }
            )
    content = {"setting": setting, "steps": len(groups), "classes": classes}
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def resolve_groups(
    listed: Sequence[Sequence[int | str]],
    labels: Mapping[str, int],
    *,
    where: str,
    suggest: Callable[[str], str] = lambda _: "",
) -> Groups:
    """Class groups by number or name to groups by number.

    Raises:
        ValueError: A class is unknown, is the background, or stands in two groups.
    """
    groups: list[tuple[int, ...]] = []
    used: dict[int, int] = {}
    for step, group in enumerate(listed):
        numbers = []
        for entry in group:
            label = labels.get(entry, -1) if isinstance(entry, str) else entry
            if label not in labels.values():
                raise ValueError(
                    f"{where}: expected classes of the dataset (numbers 1 to "
                    f"{len(labels)} or names such as "
                    f"{', '.join(list(labels)[:4])}), but got {entry!r} in step "
                    f"{step}{suggest(str(entry))}."
                )
            if label in used:
                raise ValueError(
                    f"{where}: expected every class in one step, but {entry!r} is in "
                    f"step {used[label]} and in step {step}. Remove one of them."
                )
            used[label] = step
            numbers.append(label)
        groups.append(tuple(numbers))
    return tuple(groups)
