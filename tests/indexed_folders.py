"""The index of a folder, for tests of what datasets may hold."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from kproba.data.folders import Folders
from kproba.data.index import index_dataset
from kproba.data.splits import read_index


def index(folder: Path, **settings: Any) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Index by id and report of a folder; its paths are those of files."""
    out = folder.parent / "out"
    settings = {"kind": "folder", "class_count": 3, "dataset": "pets", **settings}
    index_dataset(out / "index.csv", out / "report.json", folder=folder, **settings)
    folders = {"pets": Folders(str(folder), str(out / "masks"))}
    table = read_index(out / "index.csv", folders).set_index("id")
    return table, json.loads((out / "report.json").read_text())


def kinds_of(report: dict[str, Any]) -> set[str]:
    """Kinds of the warnings, without those that tests with few pictures always get."""
    return set(report["warnings_by_kind"]) - {"class without images", "empty mask"}


def exif_of(orientation: int) -> Image.Exif:
    """EXIF data with an orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif
