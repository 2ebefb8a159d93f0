"""The parts of a dataset: the dataset itself, and its additions."""

from pathlib import Path
from typing import Any

from kproba.data.download import Archive
from kproba.data.kinds import DatasetKind
from kproba.data.kinds.labelling import without_names
from kproba.data.kinds.pairs import VAL_SHARE
from kproba.plan.selection import SHARE, files_name

Config = dict[str, Any]
# Keys of a dataset for finding and reading its masks.
OPTIONS = ("labels", "labelmap", "mask_suffix", "masks")


def part_names(datasets: Config, dataset: str) -> list[str]:
    """The names of a dataset and of its additions."""
    additions = datasets[dataset].get("additions", [])
    return [dataset, *(f"{dataset}+{number + 1}" for number in range(len(additions)))]


def with_additions(datasets: Config) -> Config:
    """The settings of all datasets, and of their additions as separate datasets.

    A dataset for a selection is there a second time, by the name of its files, because
    the rules that draw or unpack it know it by that name.
    """
    parts = {}
    for name, settings in datasets.items():
        parts[name] = dict(settings)
        if settings["kind"] == "packed":  # its pictures, if there are any
            parts[name]["path"] = settings["validation"] or ""
        elif "path" in settings:
            parts[name]["path"] = str(Path(settings["path"]).expanduser())
        additions = part_names(datasets, name)[1:]
        for part, entry in zip(additions, settings.get("additions", []), strict=True):
            parts[part] = {
                "kind": "folder",
                "path": str(Path(entry["path"]).expanduser()),
                "epochs": entry["epochs"],
                "on_error": settings.get("on_error", "stop"),
                "val_share": entry["val_share"] or settings.get("val_share", VAL_SHARE),
                "long_side": settings.get("long_side"),
                SHARE: settings.get(SHARE, 0),
                **{
                    key: entry.get(key) for key in ("labels", "labelmap", "mask_suffix")
                },
            }
    return {files_name(name, entry): entry for name, entry in parts.items()} | parts


def reading_options(kind: DatasetKind, settings: Config, folder: str) -> Config:
    """The settings of a part for finding and reading its masks, as far as they are set.

    Args:
        kind: Kind of the part.
        settings: Its settings.
        folder: Its folder.
    """
    options = {key: settings[key] for key in OPTIONS if settings.get(key)}
    if "labels" in options:  # another spelling of a name changes no label
        options["labels"] = without_names(options["labels"])
    if settings.get("classes") and kind.find_more(Path(folder)):
        options["classes"] = settings["classes"]  # colours have names
    return options


def archives_of(kind: DatasetKind, settings: Config) -> list[Archive]:
    """The archives of a dataset, with the mirrors and checksums of its settings."""
    archives = []
    for name, archive in kind.archives.items():
        mirrors = settings["mirrors"][name] or archive.mirrors
        checksum = settings["checksums"][name] or archive.checksum
        archives.append(Archive(archive.name, tuple(mirrors), checksum))
    return archives
