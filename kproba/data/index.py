"""The index of a dataset: reads every image and mask once, and lists all problems.

index.csv has one row per image:

- `id`, and `dataset`, the name of the dataset or addition in the configuration;
- `image` and `mask`, relative to the folder of the dataset, which may move;
- `width` and `height`, at which the picture is used: upright, scaled to `long_side`;
- `subset`, and `classes`, the raw labels in the mask, such as "0 3 255";
- `image_sha256` and `mask_sha256`, the first 16 digits of the digests of the files;
- `label_offset`, where the masks need one (`classes` has the labels with it);
- `mask_made`, where masks were converted: 1 for a mask in the folder masks/ beside the
  index, to which `mask` is then relative.

integrity.json lists problems and warnings, files.json the files that were read.
"""

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from kproba.data import index_warnings
from kproba.data.inspection import DIGITS, ImageRecord, Reading, read_all
from kproba.data.kinds import KINDS
from kproba.data.kinds.kind import DatasetKind, relative_name
from kproba.data.kinds.pairs import (
    LONGEST_ID,
    SUBSETS,
    VAL_SHARE,
    Pair,
    Problem,
    is_usable,
    printable,
)
from kproba.data.pictures import UnreadableError, read_file
from kproba.data.selection import hold_out
from kproba.runtime.files import atomic_directory, atomic_path, write_json
from kproba.runtime.progress import Stage

log = logging.getLogger("kproba")

LISTED = 20  # problems in an error message


@dataclass(frozen=True)
class IndexSettings:
    """Everything that determines an index, except for the files of the dataset.

    Attributes:
        kind: Kind of dataset, a key of `kproba.data.kinds.KINDS`.
        folder: Folder of the dataset.
        class_count: Largest label besides 255.
        dataset: Name of the dataset or addition. Without a name the index has absolute
            paths.
        val_share: Share of the images that is held out for validation, if a folder
            dataset has no validation images.
        on_error: "stop" at any problem, or "skip" the images that have one.
        options: Keys of the dataset in the configuration that its kind reads.
        long_side: Longer side of pictures that are longer; None for their own size.
        state: Digest of the files, for files.json.
        names: Names of the classes 1, 2, .., for messages. Empty: the names of the kind
            are used.
        classes: Raw labels that the images should show; None for all.
        crop_size: Side of the crops in training, for a warning.
        selection: Share of the training images that takes the place of the validation
            images (`kproba.data.selection`); 0 for none.
    """

    kind: str
    folder: str | Path
    class_count: int
    dataset: str = ""
    val_share: float = VAL_SHARE
    on_error: Literal["stop", "skip"] = "stop"
    options: Mapping[str, Any] = field(default_factory=dict)
    long_side: int | None = None
    state: str = ""
    names: Sequence[str] = ()
    classes: Sequence[int] | None = None
    crop_size: int | None = None
    selection: float = 0.0


def index_dataset(
    index: str | Path,
    report: str | Path,
    *,
    files: str | Path | None = None,
    masks: str | Path | None = None,
    workers: int = 2,
    **settings: Any,
) -> None:
    """Check a dataset and write its index and integrity report.

    Args:
        index: Output CSV, index.csv.
        report: Output JSON, integrity.json. If the check fails, problems.csv beside it
            lists every problem instead.
        files: Output JSON; None for files.json beside the index. It has the `state` of
            the settings, and size, time and digest of every file of the dataset.
        masks: Output folder for masks that are converted; None for masks/ beside the
            index. It is always made.
        workers: Number of processes.
        **settings: The fields of `IndexSettings`.

    Raises:
        MissingDatasetError: The dataset is not there.
        ValueError: There are problems; the message lists the first 20 and the total. Or
            there are no images for training or validation.
    """
    chosen = IndexSettings(**settings)
    kind = KINDS[chosen.kind].with_settings(chosen.options)
    folder, beside = Path(chosen.folder), Path(index).parent
    masks = beside / "masks" if masks is None else Path(masks)
    problems_file = Path(report).with_name("problems.csv")
    problems_file.unlink(missing_ok=True)
    with atomic_directory(masks) as made:
        reading = Reading(
            class_count=chosen.class_count,
            label_offset=kind.label_offset,
            form=kind.mask_form(folder),
            long_side=chosen.long_side,
            masks=made,
        )
        records, problems = _read(kind, chosen, reading, workers)
        _refuse(chosen, records, problems, problems_file)
        content = _make_report(kind, chosen, records, problems)
        warnings = [Problem(**entry) for entry in content["warnings"]]
        # Log problems of the whole dataset first: there may be many of single files.
        warnings.sort(key=lambda warning: warning.path != str(folder))
        for adjective, entries in (("skipped", problems), ("unusual", warnings)):
            if entries:
                log.warning("%d %s, all in %s:", len(entries), adjective, report)
            for entry in entries[:LISTED]:
                log.warning("  %s", entry)
    write_json(
        beside / "files.json" if files is None else files,
        {"state": chosen.state, "files": _list_files(kind, folder, records)},
    )
    write_json(report, content)
    with atomic_path(index) as temporary:
        _make_table(records, chosen, masks).to_csv(temporary, index=False)
    log.info("%s", {**content["images"], "problems": len(problems)})


def _read(
    kind: DatasetKind, settings: IndexSettings, reading: Reading, workers: int
) -> tuple[list[ImageRecord], list[Problem]]:
    """The records of the images that can be used, and all problems, both sorted."""
    pairs, problems = kind.find_pairs(Path(settings.folder), settings.val_share)
    pairs, unusable = _check_ids(hold_out(pairs, settings.selection))
    problems = [*problems, *unusable]
    records: list[ImageRecord] = []
    results = read_all(pairs, reading, workers)
    for result in Stage(results, "checking", len(pairs)):
        if isinstance(result, ImageRecord):
            records.append(result)
        else:
            problems.append(result)
    records.sort(key=lambda record: (record.pair.subset, record.pair.id))
    return records, sorted(problems)


def _check_ids(pairs: Sequence[Pair]) -> tuple[list[Pair], list[Problem]]:
    """Pairs with unique ids that can be file names, and the problems of other pairs."""
    counts = Counter(pair.id for pair in pairs)
    kept, problems = [], []
    for pair in pairs:
        if counts[pair.id] > 1:
            text = f"another image has the id '{pair.id}'"
            problems.append(Problem("duplicate id", str(pair.image), text))
        elif (
            pair.id in ("", ".", "..")
            or "/" in pair.id
            or not is_usable(pair.id)
            or len(os.fsencode(pair.id)) > LONGEST_ID
        ):
            text = (
                f"the id '{pair.id}' cannot be used as a file name (at most "
                f"{LONGEST_ID} bytes of printable UTF-8 without '/')"
            )
            problems.append(Problem("unusable name", str(pair.image), text))
        else:
            kept.append(pair)
    return kept, problems


def _refuse(
    settings: IndexSettings,
    records: Sequence[ImageRecord],
    problems: Sequence[Problem],
    problems_file: Path,
) -> None:
    """Raise a ValueError if the dataset cannot be used.

    There are problems and `on_error` is "stop", or a subset has no images.
    """
    stop = settings.on_error == "stop"
    subsets = Counter(record.pair.subset for record in records)
    needed = ("val",) if KINDS[settings.kind].validation_only else SUBSETS
    empty = [subset for subset in needed if not subsets[subset]]
    if problems and (stop or empty):
        with atomic_path(problems_file) as temporary:
            pd.DataFrame(problems).to_csv(temporary, index=False)
    if problems and stop:
        raise ValueError(
            f"Expected a dataset without problems in {settings.folder}, but found "
            f"{len(problems)} problem(s):{_list(problems, problems_file)}\nCorrect or "
            f"remove these files and run again. To continue without them, set "
            f"`on_error: skip` for the dataset."
        )
    if empty:
        besides = f" besides the {len(problems)} skipped" if problems else ""
        raise ValueError(
            f"Expected {empty[0]} images in {settings.folder}, but there are "
            f"none{besides}. Add some. {_shares(settings)}"
            f"{_list(problems, problems_file)}"
        )


def _shares(settings: IndexSettings) -> str:
    """Which key decides how many training and validation images there are."""
    if settings.selection:
        return (
            f"(The key `selection` holds out a share of {settings.selection:g} of the "
            f"training images in place of the validation images.)"
        )
    return (
        f"(In a folder dataset without val folders, a hash of the file name holds out "
        f"a share of {settings.val_share:g} for validation. The key `val_share` sets "
        f"this share.)"
    )


def _list(problems: Sequence[Problem], file: Path) -> str:
    """The first problems, one a line, and the file with all of them."""
    lines = "".join(f"\n  {problem}" for problem in problems[:LISTED])
    more = len(problems) - LISTED
    return lines + (f"\n  and {more} more, all in {file}" if more > 0 else "")


def _make_table(
    records: Sequence[ImageRecord], settings: IndexSettings, masks: Path
) -> pd.DataFrame:
    """The table of index.csv."""
    folder = Path(settings.folder)

    def name(path: Path) -> str:
        return relative_name(path, folder) if settings.dataset else str(path)

    rows = []
    for record in records:
        row: dict[str, object] = {
            "id": record.pair.id,
            "dataset": settings.dataset,
            "image": name(record.pair.image),
            "mask": name(record.pair.mask),
            "width": record.used[0],
            "height": record.used[1],
            "subset": record.pair.subset,
            "classes": " ".join(map(str, record.labels)),
            "image_sha256": record.image_digest[:DIGITS],
            "mask_sha256": record.mask_digest[:DIGITS],
        }
        if record.label_offset:
            row["label_offset"] = record.label_offset
        if record.made:
            row["mask"] = record.made if settings.dataset else str(masks / record.made)
        rows.append(row)
    table = pd.DataFrame(rows)
    made = [int(record.made is not None) for record in records]
    return table.assign(mask_made=made) if any(made) else table


def _list_files(
    kind: DatasetKind, folder: Path, records: Sequence[ImageRecord]
) -> dict[str, list[Any]]:
    """Size, time and digest of every file of a dataset by its relative name."""
    digests = {record.pair.image: record.image_digest for record in records}
    digests |= {record.pair.mask: record.source_digest for record in records}
    entries: dict[str, list[Any]] = {}
    for name, path in sorted(kind.list_files(folder).items()):
        try:
            status = path.stat()
            digest = digests.get(path) or hashlib.sha256(read_file(path)).hexdigest()
        except (OSError, UnreadableError, ValueError):
            continue  # such as a link to a missing file, which counts as changed
        size, time = status.st_size, status.st_mtime_ns
        entries[printable(name)] = [size, time, digest[:DIGITS]]
    return entries


def _make_report(
    kind: DatasetKind,
    settings: IndexSettings,
    records: Sequence[ImageRecord],
    problems: Sequence[Problem],
) -> dict[str, Any]:
    """The content of integrity.json."""
    folder = str(settings.folder)
    images_of_label: Counter[int] = Counter()
    for record in records:
        images_of_label.update(record.labels.keys())
    digest = labels_digest(records)
    subsets = Counter(record.pair.subset for record in records)
    images = {subset: subsets[subset] for subset in SUBSETS}
    count = settings.class_count
    expected = range(1, count + 1) if settings.classes is None else settings.classes
    absent = index_warnings.classes_without_images(records, expected)
    if kind.validation_only:
        absent["train"] = []
    warnings = [
        *(warning for record in records for warning in record.warnings),
        *kind.find_unread(Path(settings.folder)),
        *index_warnings.find_equal_images(records),
        *(
            ()  # other images on purpose
            if settings.selection
            else index_warnings.compare_with_published(kind, folder, images, digest)
        ),
        *index_warnings.find_shift(folder, images_of_label, count),
        *index_warnings.describe_absent(folder, absent, _names(kind, settings)),
        *index_warnings.find_small_crop(folder, records, settings.crop_size),
    ]
    return {
        "kind": settings.kind,
        "folder": folder,
        "images": images,
        "images_with_label": {
            str(label): images_of_label[label] for label in sorted(images_of_label)
        },
        "classes_without_images": absent,
        "labels_sha256": digest,
        "on_error": settings.on_error,
        **({"selection": settings.selection} if settings.selection else {}),
        "problems_by_kind": dict(Counter(problem.kind for problem in problems)),
        "problems": [asdict(problem) for problem in problems],
        "warnings_by_kind": dict(Counter(warning.kind for warning in warnings)),
        "warnings": [asdict(warning) for warning in sorted(warnings)],
    }


def _names(kind: DatasetKind, settings: IndexSettings) -> dict[int, str]:
    """The name of each class by raw label, as far as names are known."""
    names = settings.names
    if not names:
        try:
            listed = settings.options.get("classes")
            names = kind.class_names(Path(settings.folder), listed)
        except (OSError, ValueError):  # then messages use the numbers
            names = ()
    return dict(enumerate(names, start=1))


def labels_digest(records: Iterable[ImageRecord]) -> str:
    """SHA-256 over ids and labels of all masks, independent of the file format."""
    digest = hashlib.sha256()
    for record in sorted(records, key=lambda record: record.pair.id):
        digest.update(f"{record.pair.id} {record.labels_digest}\n".encode())
    return digest.hexdigest()
