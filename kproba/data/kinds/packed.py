"""The kind `packed`: a step that was trained elsewhere, without its pictures.

The dataset continues from an archive of `kproba pack`, or from the folder of a step.
New classes come with its additions. Pictures of the old classes are optional: a folder
of them, `validation`, is used only for evaluation.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kproba.data.files import is_folder
from kproba.data.kinds.kind import DatasetKind, missing_dataset
from kproba.data.kinds.pairs import Pair, Problem, pair_by_name
from kproba.data.kinds.settings import LONG_SIDE, ON_ERROR, SHARE, path_setting

LAYOUT = "images/val/ and masks/val/, or images/ and masks/"


def find_pairs(folder: Path, val_share: float) -> tuple[list[Pair], list[Problem]]:
    """Pairs of the validation folder; all are validation images.

    Raises:
        MissingDatasetError: A folder is not there.
    """
    folders = find_folders(folder)
    if not folders:
        raise missing_dataset(folder, "validation pictures", LAYOUT, {})
    pairs, problems = pair_by_name(folders[0], folders[1], "val")
    return [replace(pair, subset="val") for pair in pairs], problems


def find_folders(folder: Path) -> list[Path]:
    """The folders of images and masks; empty if one is missing."""
    for part in ("val", ""):
        folders = [folder / what / part for what in ("images", "masks")]
        if all(map(is_folder, folders)):
            return folders
    return []


def class_names(folder: Path | None, listed: Sequence[str] | None) -> list[str]:
    """Raise an error, because the plan reads the names from the archive."""
    raise ValueError(
        "Expected the class names of a packed step from its archive. Read them with "
        "kproba.predict.packed.read_packed."
    )


PACKED = DatasetKind(
    name="packed",
    title="a packed step",
    layout=LAYOUT,
    find_pairs=find_pairs,
    find_folders=find_folders,
    class_names=class_names,
    required=("path", "additions"),
    validation_only=True,
    settings={
        "path": path_setting(
            "Archive that `kproba pack` wrote, or the folder of a step. The next step "
            "starts from it."
        ),
        "validation": {
            "description": (
                "Folder with images/ and masks/ of the classes of that step. They are "
                "used for the evaluation only. null means that there are none."
            ),
            "type": ["string", "null"],
            "minLength": 1,
            "default": None,
        },
        "val_share": SHARE,
        "long_side": LONG_SIDE,
        "on_error": ON_ERROR,
    },
)
