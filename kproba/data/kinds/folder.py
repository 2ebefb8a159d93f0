"""The kind `folder`: images and masks with equal names, for datasets of users."""

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from kproba.data.files import find_files, is_folder
from kproba.data.kinds.class_names import check_class_names, read_class_names
from kproba.data.kinds.kind import DatasetKind, missing_dataset
from kproba.data.kinds.labelling import (
    LABELMAP,
    form_of_colours,
    form_of_values,
    names_of_colours,
    names_of_values,
    read_labelmap,
    values_of_labels,
)
from kproba.data.kinds.pairs import (
    OTHER_SUFFIXES,
    SUBSETS,
    MissingDatasetError,
    Pair,
    Problem,
    pair_by_name,
    pair_subsets,
)
from kproba.data.kinds.settings import (
    LABELMAP as LABELMAP_SCHEMA,
)
from kproba.data.kinds.settings import (
    LABELS,
    LONG_SIDE,
    MASK_SUFFIX,
    ON_ERROR,
    SALIENCY_FOLDER,
    SHARE,
    path_setting,
)
from kproba.data.masks import MaskForm

LAYOUT = "images/train/ and masks/train/"
# Subfolders with these names show another layout than the supported one.
OTHER_NAMES = ("training", "validation", "valid", "test", "testing", "trainval")

Folders = dict[str, tuple[Path, Path]]


def find_pairs(
    folder: Path, val_share: float, mask_suffix: str = ""
) -> tuple[list[Pair], list[Problem]]:
    """Pairs of images/{train,val}/ and masks/{train,val}/, or of images/ and masks/.

    If there are no val folders, a share of the images is held out.

    Raises:
        MissingDatasetError: A folder is not there.
    """
    subsets = _find_subsets(folder)
    if "val" in subsets:
        return pair_subsets(subsets["train"], subsets["val"], mask_suffix)
    pairs, problems = pair_by_name(*subsets["train"], "train", mask_suffix)
    divided = [
        replace(pair, subset="val") if is_held_out(pair.id, val_share) else pair
        for pair in pairs
    ]
    return divided, problems


def _find_subsets(folder: Path) -> Folders:
    """Folders of images and masks by subset; "train" alone without val folders.

    Raises:
        MissingDatasetError: A folder is not there.
    """
    images, masks = folder / "images", folder / "masks"
    subsets = {part: (images / part, masks / part) for part in SUBSETS}
    missing = {
        part: [path for path in paths if not is_folder(path)]
        for part, paths in subsets.items()
    }
    if not missing["train"] and len(missing["val"]) != 1:
        return {part: paths for part, paths in subsets.items() if not missing[part]}
    if not missing["train"]:
        raise MissingDatasetError(
            f"Expected validation images and masks in {subsets['val'][0]} and "
            f"{subsets['val'][1]}, but one of the two folders is missing: "
            f"{missing['val'][0]}. Create both folders. Without both, a share of the "
            f"training images is held out."
        )
    divided = any(len(paths) < 2 for paths in missing.values())
    if divided or not (is_folder(images) and is_folder(masks)):
        raise missing_dataset(folder, "a dataset", LAYOUT, {})
    for name in OTHER_NAMES:
        for path in (images / name, masks / name):
            if is_folder(path):
                raise MissingDatasetError(
                    f"Expected {LAYOUT}, and optionally images/val/ and masks/val/ for "
                    f"validation, but found {path}. Rename the folders."
                )
    return {"train": (images, masks)}


def is_held_out(name: str, share: float) -> bool:
    """Whether an image belongs to the share that is held out for validation.

    This depends only on its name, so that adding or removing images does not move
    others.

    Args:
        name: Id of the image.
        share: Share to hold out, from 0 to 1.
    """
    digest = hashlib.sha256(name.encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def find_folders(folder: Path) -> list[Path]:
    """The folders of the dataset's files; empty if there are no training images."""
    folders = [folder / what / part for part in SUBSETS for what in ("images", "masks")]
    if all(map(is_folder, folders[:2])):
        return [path for path in folders if is_folder(path)]
    try:
        return list(_find_subsets(folder)["train"])
    except MissingDatasetError:
        return []


def find_unread(folder: Path) -> list[Problem]:
    """Warnings about pictures in images/ that are not read."""
    images = folder / "images"
    subsets = _find_subsets(folder)
    read = [paths[0] for paths in subsets.values()]
    warnings = []
    if images not in read:
        places = Counter(
            path.relative_to(images).parts[0] + "/"
            if path.parent != images
            else "images/"
            for path in find_files(images, leave_out=read).files
        )
        for place, count in sorted(places.items()):
            text = (
                f"{count} picture(s) directly in {place} are not used, because only "
                f"train/ and val/ are read. Move them there with their masks, or "
                f"ignore this warning"
            )
            warnings.append(Problem("unread pictures", str(images), text))
    for part in read:
        endings = Counter(
            path.suffix.lower() for path in find_files(part, OTHER_SUFFIXES).files
        )
        if endings:
            listed = ", ".join(f"{count} {end}" for end, count in endings.items())
            text = f"these files are not used: {listed}; save them as PNG or JPEG"
            warnings.append(Problem("unread endings", str(part), text))
    return warnings


def find_saliency(folder: Path) -> list[tuple[Path, Path]]:
    """images/ with saliency/, which may have train/ in it or not."""
    images, maps = folder / "images", folder / "saliency"
    return [(images, maps), (images / "train", maps)]


def class_names(
    folder: Path | None,
    listed: Sequence[str] | None,
    labels: Mapping[str, str] | None = None,
    labelmap: str | None = None,
) -> list[str]:
    """Names of the classes.

    They come from `labels`, else from `listed`, classes.txt or the labelmap.

    Raises:
        MissingDatasetError: There is no such folder.
        ValueError: The names are wrong, or there are none.
    """
    if labels:
        for key, value in (("classes", listed), ("labelmap", labelmap)):
            if value is not None:
                raise ValueError(
                    f"Expected either `labels` or `{key}`, but got both. Remove one."
                )
        return names_of_values(labels)
    if listed is not None:
        return check_class_names(listed, "`classes`", "entry")
    assert folder is not None
    if not is_folder(folder):
        raise missing_dataset(folder, "a dataset", LAYOUT, {})
    path = folder / "classes.txt"
    if os.path.lexists(path):
        return check_class_names(read_class_names(path), str(path))
    colours = _find_labelmap(folder, labelmap)
    if colours is not None:
        return names_of_colours(read_labelmap(colours), str(colours))
    raise ValueError(
        f"Expected the class names in {path}, one per line and 'background' first, but "
        f"there is no such file. Create it, or list the names under the dataset key "
        f"`classes`."
    )


def _find_labelmap(folder: Path, labelmap: str | None) -> Path | None:
    """The labelmap of a dataset: the named file, or labelmap.txt if it exists."""
    if labelmap is not None:
        return folder / Path(labelmap).expanduser()
    path = folder / LABELMAP
    return path if os.path.lexists(path) else None


def mask_form(
    folder: Path,
    listed: Sequence[str] | None = None,
    labels: Mapping[str, str] | None = None,
    labelmap: str | None = None,
) -> MaskForm:
    """The meaning of the mask values, from `labels` or a labelmap.

    Raises:
        ValueError: One of them is wrong.
    """
    if labels:
        return form_of_values(labels)
    path = _find_labelmap(folder, labelmap)
    if path is None:
        return MaskForm()
    names = class_names(folder, listed, None, labelmap)
    return form_of_colours(read_labelmap(path), names, str(path))


def _find_more(
    folder: Path, listed: Sequence[str] | None = None, labelmap: str | None = None
) -> list[Path]:
    """The labelmap and the list of the classes whose colours it has."""
    path, names = _find_labelmap(folder, labelmap), folder / "classes.txt"
    if path is None:
        return []
    return [path] if listed or not os.path.lexists(names) else [path, names]


def configure(kind: DatasetKind, settings: Mapping[str, Any]) -> DatasetKind:
    """Return the kind `folder` with the settings of a dataset applied."""
    labels, labelmap = settings.get("labels"), settings.get("labelmap")
    more: dict[str, Any] = {}
    if labels:
        more["mask_values"] = partial(values_of_labels, labels)
        more["find_more"] = lambda folder: []
    else:
        more["find_more"] = partial(
            _find_more, listed=settings.get("classes"), labelmap=labelmap
        )
    return replace(
        kind,
        find_pairs=partial(find_pairs, mask_suffix=settings.get("mask_suffix") or ""),
        class_names=partial(class_names, labels=labels, labelmap=labelmap),
        mask_form=partial(
            mask_form,
            listed=settings.get("classes"),
            labels=labels,
            labelmap=labelmap,
        ),
        **more,
    )


FOLDER = DatasetKind(
    name="folder",
    title="a dataset",
    layout=LAYOUT,
    find_pairs=find_pairs,
    find_folders=find_folders,
    class_names=class_names,
    mask_form=mask_form,
    find_more=_find_more,
    find_unread=find_unread,
    find_saliency=find_saliency,
    configure=configure,
    required=("path",),
    settings={
        "path": path_setting(
            "Folder with images/ and masks/, each flat or with train/ and val/, and "
            "classes.txt. Without the two val folders, `val_share` of the images is "
            "held out."
        ),
        "classes": {
            "description": (
                "Names of the classes in the order of their values in the masks, "
                "`background` first. null reads classes.txt."
            ),
            "type": ["array", "null"],
            "minItems": 2,
            "items": {"type": "string", "minLength": 1},
            "default": None,
        },
        "labels": LABELS,
        "labelmap": LABELMAP_SCHEMA,
        "mask_suffix": MASK_SUFFIX,
        "saliency_folder": SALIENCY_FOLDER,
        "val_share": SHARE,
        "on_error": ON_ERROR,
        "long_side": LONG_SIDE,
    },
)
