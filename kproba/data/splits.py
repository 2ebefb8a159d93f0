"""Splits: the images and classes of each step.

A *raw* label is the value in the mask file (0 background, 1..N classes, 255 ignored).
An *output index* is the channel of the network: 0 background, then the classes in the
order in which the task introduces them. See docs/protocol.md.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kproba.data.folders import Folders
from kproba.data.labels import IGNORE, LabelMap
from kproba.data.tasks import Groups, partition_label
from kproba.runtime.files import atomic_path
from kproba.runtime.tables import read_table

SETTINGS = ("overlap", "disjoint", "sequential", "partitioned")

# Columns of an index and of a split, with their types, and those that may be absent,
# with their defaults.
COLUMNS: dict[str, type] = {
    **{"id": str, "image": str, "mask": str, "width": int, "height": int},
    **{"subset": str, "classes": str},
}
OPTIONAL: dict[str, Any] = {
    **{"dataset": "", "image_sha256": "", "mask_sha256": ""},
    **{"label_offset": 0, "mask_made": 0},
}
REMEDY = "Delete the file and run snakemake again, which writes it again."


def in_step(
    present: frozenset[int], seen: frozenset[int], new: frozenset[int], setting: str
) -> bool:
    """Whether an image belongs to the training images of a step.

    Args:
        present: Raw labels in the image, with or without 0 and 255.
        seen: Raw labels of S_t, the classes of the steps 0..t.
        new: Raw labels of C_t, the classes of step t.
        setting: "overlap": at least one class of C_t is present. "disjoint" and
            "sequential": in addition, no class of a later step is present.
    """
    classes = present - {0, IGNORE}
    return bool(classes & new) and (setting == "overlap" or classes <= seen)


def parse_classes(cell: object) -> frozenset[int]:
    """The set of raw labels in a `classes` cell of index.csv, such as "0 3 255"."""
    return frozenset(int(label) for label in str(cell).split())


def read_index(
    path: str | Path, folders: Mapping[str, Folders] | None = None
) -> pd.DataFrame:
    """Read index.csv or a split of it.

    Ids and class lists are text, even if they look like numbers. Columns that a table
    does not need to have (`OPTIONAL`) get their default.

    Args:
        path: The table.
        folders: Folders of the pictures, by dataset or addition. With this
            argument, the columns `image` and `mask` become paths; otherwise they stay
            relative to these folders.

    Raises:
        ValueError: The table cannot be read, lacks a column, has a wrong number, or is
            of a dataset without folder.
    """
    kinds = {name: type(default) for name, default in OPTIONAL.items()}
    table = read_table(path, COLUMNS, optional=kinds, remedy=REMEDY)
    for name, default in OPTIONAL.items():
        if name not in table:
            table[name] = default
    return table if folders is None else _locate(table, folders, path)


def _locate(
    table: pd.DataFrame, folders: Mapping[str, Folders], path: str | Path
) -> pd.DataFrame:
    """The table with paths of pictures and masks."""
    datasets: list[str] = table["dataset"].tolist()
    named = dict.fromkeys(name for name in datasets if name)
    if unknown := [name for name in named if name not in folders]:
        raise ValueError(
            f"Expected pictures of {', '.join(folders) or 'no dataset'} in {path}, "
            f"but it names the dataset '{unknown[0]}'. {REMEDY}"
        )
    nowhere = Folders("", "")  # of an earlier version, with absolute paths
    where = {"": nowhere, **{name: folders[name] for name in named}}
    made = [bool(number) for number in table["mask_made"]]
    of_images = [where[name].images for name in datasets]
    of_masks = [
        where[name].masks if is_made else where[name].images
        for name, is_made in zip(datasets, made, strict=True)
    ]
    return table.assign(
        image=join_paths(of_images, table["image"]),
        mask=join_paths(of_masks, table["mask"]),
    )


def join_paths(folders: Iterable[str], names: Iterable[str]) -> list[str]:
    """Join folders and names; faster than `str(Path(folder) / name)`.

    Args:
        folders: A folder for each name; "" leaves its name as it is.
        names: Paths in the folders.
    """
    prefixes: dict[str, str] = {"": ""}
    paths = []
    for folder, name in zip(folders, names, strict=True):
        if folder not in prefixes:
            prefixes[folder] = str(Path(folder) / "x")[:-1]
        plain = name and name[0] != "/" and name[-1] not in "/."
        if not folder or (plain and "//" not in name and "./" not in name):
            paths.append(prefixes[folder] + name)
        else:
            paths.append(str(Path(folder) / name))
    return paths


def read_indices(
    paths: Sequence[str | Path], folders: Mapping[str, Folders] | None = None
) -> list[pd.DataFrame]:
    """Read the index of a dataset and those of its additions.

    Args:
        paths: The tables.
        folders: As for `read_index`.

    Raises:
        ValueError: As `read_index`, or two of them have the same id.
    """
    indices = [read_index(path, folders) for path in paths]
    path_of_id: dict[str, str] = {}
    for path, index in zip(map(str, paths), indices, strict=True):
        twice = [name for name in index["id"] if name in path_of_id]
        if twice:
            raise ValueError(
                f"Expected new file names for the images of an addition, but "
                f"{len(twice)} name(s) in {path}, such as '{twice[0]}', are also in "
                f"{path_of_id[twice[0]]}. Rename these images and their masks."
            )
        path_of_id |= dict.fromkeys(index["id"], path)
    return indices


def select_images(
    index: pd.DataFrame,
    groups: Groups,
    setting: str,
    subset: str = "train",
    classes: Collection[int] | None = None,
) -> pd.DataFrame:
    """Rows of `index` that belong to the last step of `groups`, sorted by id.

    Args:
        index: Table as `read_index` returns it.
        groups: Raw labels of the classes of the steps 0..t.
        setting: One of `SETTINGS`.
        subset: "train" or "val".
        classes: For "partitioned": raw labels of all classes of the task.

    Raises:
        ValueError: No image holds a class of the step, or the setting is "partitioned"
            and `classes` is missing.
    """
    label_map = LabelMap(groups, setting)
    seen, new = frozenset(label_map.seen), frozenset(groups[-1])
    rows = index[index["subset"] == subset]
    present = [parse_classes(cell) for cell in rows["classes"]]
    if setting == "partitioned":
        if classes is None:
            raise ValueError(
                "Expected the classes of all steps for the setting 'partitioned', but "
                "got none. Pass `classes`."
            )
        owners = zip(rows["id"], present, strict=True)
        keep = [
            partition_label(name, labels, classes) in new for name, labels in owners
        ]
    else:
        keep = [in_step(labels, seen, new, setting) for labels in present]
    chosen = rows[keep].sort_values("id", ignore_index=True)
    if chosen.empty:
        raise ValueError(
            f"Expected at least one {subset} image with a new class (label "
            f"{', '.join(map(str, sorted(new)))}) for step {len(groups) - 1} "
            f"({setting}), but found none. Check the class groups of the task and the "
            f"masks, or choose the 'overlap' setting."
        )
    return chosen


def evenly_spaced(rows: pd.DataFrame, count: int) -> pd.DataFrame:
    """At most `count` rows, evenly spaced in the order of their ids."""
    rows = rows.sort_values("id", ignore_index=True)
    places = np.linspace(0, len(rows) - 1, min(count, len(rows))).round()
    return rows.iloc[places.astype(int)].reset_index(drop=True)


def write_split(
    indices: Sequence[str | Path],
    split: str | Path,
    *,
    groups: Groups,
    setting: str,
    classes: Collection[int] | None = None,
) -> None:
    """Write the image list of the last step of `groups` as CSV.

    Args:
        indices: index.csv of the dataset and of its additions up to step t.
        split: Output CSV.
        groups: Raw labels of the classes of the steps 0..t.
        setting: One of `SETTINGS`.
        classes: As for `select_images`.

    Raises:
        ValueError: Two indices have the same id, or no image holds a class of the step.
    """
    index = pd.concat(read_indices(indices), ignore_index=True)
    write_rows(select_images(index, groups, setting, classes=classes), split)


def write_rows(rows: pd.DataFrame, path: str | Path) -> None:
    """Write rows of an index as CSV, without optional columns that nobody needs."""
    for name, default in OPTIONAL.items():
        if name in rows and (rows[name] == default).all():
            rows = rows.drop(columns=name)
    with atomic_path(path) as temporary:
        rows.to_csv(temporary, index=False)


def write_classes(
    path: str | Path, *, groups: Groups, names: Mapping[int, str], setting: str
) -> None:
    """Write classes.json: output index, raw label, name and step of every class.

    Args:
        path: Output JSON.
        groups: Raw labels of the classes of all steps.
        names: Name of each class by raw label.
        setting: One of `SETTINGS`.
    """
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
