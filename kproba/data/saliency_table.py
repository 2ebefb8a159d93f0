"""The table of a dataset's saliency maps, saliency.csv, and how a training reads it.

It has one row per training image:

- `id` and `dataset`, as in index.csv;
- `saliency`, the map, relative to the folder of the dataset;
- `saliency_sha256`, the first 16 digits of the digest of the file;
- `saliency_turned`, the EXIF orientation by which the map is turned, 1 for none.

It is a file of its own, so that maps change only the trainings that read them.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from joblib import Parallel, delayed

from kproba.data.folders import Folders
from kproba.data.inspection import DIGITS, SIDEWAYS, UPRIGHT
from kproba.data.kinds.kind import relative_name
from kproba.data.kinds.pairs import Problem
from kproba.data.label_images import WrongModeError
from kproba.data.masks import decode_map
from kproba.data.pictures import (
    UnreadableError,
    open_image,
    orientation,
    read_file,
    unreadable_on_error,
    upright_size,
)
from kproba.data.saliency import ALTERNATIVE, SaliencyFolders, describe_missing
from kproba.data.splits import REMEDY, join_paths, read_index
from kproba.runtime.files import atomic_path, write_json
from kproba.runtime.tables import read_table

log = logging.getLogger("kproba")

LISTED = 20  # problems in an error message
COLUMNS: dict[str, type] = {
    **{"id": str, "dataset": str, "saliency": str, "saliency_sha256": str},
    "saliency_turned": int,
}


class MapRecord(NamedTuple):
    """The facts about a map: digest of the file, and how it is turned (EXIF)."""

    sha256: str
    turned: int


def list_saliency(
    index: str | Path,
    table: str | Path,
    files: str | Path,
    *,
    dataset: str,
    folder: str | Path,
    folders: SaliencyFolders,
    state: str = "",
    workers: int = 1,
) -> None:
    """Check the maps of all training images of a dataset, and write their table.

    Args:
        index: index.csv of the dataset or addition.
        table: Output CSV, saliency.csv.
        files: Output JSON with the `state`, and size, time and digest of every map.
        dataset: Its name in the configuration; "": the index has absolute paths, and
            so has the table.
        folder: Folder of the dataset.
        folders: Folders of the maps.
        state: Digest of the maps, for `files`.
        workers: Number of processes.

    Raises:
        ValueError: A map is missing, or cannot be used; the message lists the first of
            them.
    """
    rows = read_index(index, {dataset: Folders(str(folder), "")})
    rows = rows[rows["subset"] == "train"]
    images = [Path(image) for image in rows["image"]]
    found, problems = folders.find(images)
    if missing := [image for image in images if found[image] is None]:
        raise ValueError(describe_missing(dataset, missing, folders.folder))
    maps = [path for path in found.values() if path is not None]
    results = Parallel(min(workers, len(maps)) or 1)(
        delayed(check_map)(image, path)
        for image, path in zip(images, maps, strict=True)
    )
    problems += [result for result in results if isinstance(result, Problem)]
    if problems:
        raise ValueError(_describe(dataset, sorted(problems)))
    root = Path(folder)
    names = [relative_name(path, root) if dataset else str(path) for path in maps]
    written = pd.DataFrame(
        {
            "id": rows["id"].tolist(),
            "dataset": dataset,
            "saliency": names,
            "saliency_sha256": [record.sha256[:DIGITS] for record in results],
            "saliency_turned": [record.turned for record in results],
        },
        columns=list(COLUMNS),
    )
    listed = _list_files(folders, folder, dict(zip(maps, results, strict=True)))
    write_json(files, {"state": state, "files": listed})
    with atomic_path(table) as temporary:
        written.to_csv(temporary, index=False)
    log.info("%d saliency maps of %s", len(written), dataset)


def check_map(image: Path, path: Path) -> MapRecord | Problem:
    """The facts about the map of a picture, or the problem that prevents its use."""
    try:
        size, how = _size_of(image)
    except UnreadableError as error:
        return Problem("unreadable image", str(image), str(error))
    try:
        content = read_file(path)
        values = decode_map(content)
    except WrongModeError as error:
        return Problem("no saliency map", str(path), str(error))
    except UnreadableError as error:
        return Problem("unreadable map", str(path), str(error))
    shown = (values.shape[1], values.shape[0])
    sideways = how in SIDEWAYS and shown == size[::-1]
    if shown != size and not sideways:
        text = (
            f"{shown[0]}x{shown[1]} pixels, but {image} has {size[0]}x{size[1]}; "
            f"compute the map at the size of the picture"
        )
        return Problem("size mismatch", str(path), text)
    digest = hashlib.sha256(content).hexdigest()
    return MapRecord(digest, how if shown != size else UPRIGHT)


def _size_of(path: Path) -> tuple[tuple[int, int], int]:
    """Upright width and height of a picture, and its EXIF orientation."""
    image = open_image(read_file(path))
    with unreadable_on_error():
        size, how = upright_size(image), orientation(image)
        if image.format == "TIFF" and how != UPRIGHT:  # Pillow turns it when it reads
            image.load()
            size = image.size
    return size, how


def _describe(dataset: str, problems: Sequence[Problem]) -> str:
    lines = "".join(f"\n  {problem}" for problem in problems[:LISTED])
    more = len(problems) - LISTED
    lines += f"\n  and {more} more" if more > 0 else ""
    return (
        f"Expected saliency maps of the dataset '{dataset}' that can be used, but "
        f"found {len(problems)} problem(s):{lines}\nReplace these files, {ALTERNATIVE}."
    )


def _list_files(
    folders: SaliencyFolders, folder: str | Path, records: Mapping[Path, MapRecord]
) -> dict[str, list[Any]]:
    """Size, time and digest of every map by its relative name."""
    entries: dict[str, list[Any]] = {}
    for name, path in sorted(folders.list_files(folder).items()):
        try:
            status = path.stat()
            record = records.get(path)
            digest = record.sha256 if record else _digest(path)
        except (OSError, ValueError):
            continue  # such as a link to a missing file, which counts as changed
        entries[name] = [status.st_size, status.st_mtime_ns, digest[:DIGITS]]
    return entries


def _digest(path: Path) -> str:
    return hashlib.sha256(read_file(path)).hexdigest()


def with_saliency(
    split: pd.DataFrame, tables: Sequence[str | Path], folders: Mapping[str, Folders]
) -> pd.DataFrame:
    """Return a split with the columns of the saliency maps of its images.

    Args:
        split: As `kproba.data.splits.read_index` returns it.
        tables: saliency.csv of the dataset and of its additions.
        folders: Folders of the pictures, by dataset or addition.

    Raises:
        ValueError: An image has no map.
        ArtifactError: A table cannot be read.
    """
    parts = [read_table(path, COLUMNS, remedy=REMEDY) for path in tables]
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    missing = sorted(set(split["id"]) - set(table.get("id", ())))
    if missing:
        raise ValueError(
            f"Expected a saliency map for every image of the split, but "
            f"{len(missing)} are missing in the tables, such as {missing[0]}. Name "
            f"saliency.csv of every dataset with --saliency."
        )
    where = [
        folders[name].images if name in folders else "" for name in table["dataset"]
    ]
    table["saliency"] = join_paths(where, table["saliency"])
    return split.merge(table.drop(columns="dataset"), on="id", how="left")
