"""Warnings about a whole dataset, which do not prevent its use."""

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from kproba.data.inspection import ImageRecord
from kproba.data.kinds.kind import DatasetKind
from kproba.data.kinds.pairs import SUBSETS, Pair, Problem

SMALLEST_VIEW = 1 / 20  # share of a picture that a crop should show
ROOMY = 3  # recommended long side, in crops


def find_equal_images(records: Sequence[ImageRecord]) -> Iterator[Problem]:
    """Warnings about images that are the same file under two names."""
    first: dict[str, Pair] = {}
    for record in records:
        other = first.setdefault(record.image_digest, record.pair)
        if other is not record.pair:
            leaks = other.subset != record.pair.subset
            kind = "same image in train and val" if leaks else "same image twice"
            text = f"has the same content as {other.image}"
            yield Problem(kind, str(record.pair.image), text)


def compare_with_published(
    kind: DatasetKind, folder: str, images: Mapping[str, int], digest: str
) -> Iterator[Problem]:
    """Warnings if a public dataset is incomplete or has unusual masks."""
    complete = kind.published_images or images
    published = kind.published_labels or digest
    if images != complete:
        counts = ", ".join(f"{images[name]} {name}" for name in images)
        usual = ", ".join(f"{complete[name]} {name}" for name in complete)
        text = f"has {counts} images, but the published dataset has {usual}"
        yield Problem("incomplete dataset", folder, text)
    elif published != digest:
        text = f"labels_sha256 is {digest}, but the usual copies have {published}"
        yield Problem("unusual masks", folder, text)


def classes_without_images(
    records: Sequence[ImageRecord], classes: Sequence[int]
) -> dict[str, list[int]]:
    """For each subset, the raw labels of the classes that no image shows."""
    shown: dict[str, set[int]] = {subset: set() for subset in SUBSETS}
    for record in records:
        shown[record.pair.subset] |= set(record.labels)
    return {
        subset: [label for label in classes if label not in found]
        for subset, found in shown.items()
    }


def describe_absent(
    folder: str, absent: Mapping[str, Sequence[int]], names: Mapping[int, str]
) -> Iterator[Problem]:
    """Warnings about classes that no training or no validation image shows."""
    texts = {
        "train": "is in no training image, so it cannot be learned",
        "val": "is in no validation image; its IoU counts as 0",
    }
    for subset, text in texts.items():
        for label in absent[subset]:
            name = f"class '{names[label]}'" if label in names else "the class"
            kind = "class without images"
            yield Problem(kind, folder, f"{name} (label {label}) {text}")


def find_shift(
    folder: str, images_of_label: Mapping[int, int], class_count: int
) -> Iterator[Problem]:
    """Warnings about labels that may be shifted by one, or without background."""
    if not images_of_label:
        return
    if not images_of_label.get(0):
        text = (
            "label 0 occurs in no mask, so the IoU of the background would count as 0. "
            "Set evaluation.policy to mib. If 1 is the background in these masks, the "
            "labels are shifted by one: correct the masks, or map their values with "
            "`labels` (kind folder)"
        )
        yield Problem("no background", folder, text)
    others = range(class_count)
    if (
        class_count > 1
        and not images_of_label.get(class_count)
        and all(images_of_label.get(label) for label in others)
    ):
        text = (
            f"label {class_count}, the last class, occurs in no mask, but all other "
            f"labels do. If 0 is the first class in these masks and not the "
            f"background, the labels are shifted by one. Correct the masks, or map "
            f"their values with `labels: {{0: .., 1: ..}}` (kind folder)"
        )
        yield Problem("shifted labels", folder, text)


def find_small_crop(
    folder: str, records: Sequence[ImageRecord], crop_size: int | None
) -> Iterator[Problem]:
    """A warning if a training crop covers only a small part of most pictures."""
    if not crop_size or not records:
        return
    pixels = statistics.median(record.used[0] * record.used[1] for record in records)
    share = crop_size**2 / pixels
    if share < SMALLEST_VIEW:
        [(size, _)] = Counter(record.used for record in records).most_common(1)
        text = (
            f"a training crop of {crop_size}x{crop_size} pixels covers only "
            f"{100 * share:.2g} % of the median picture (the most frequent size is "
            f"{size[0]}x{size[1]}). Scale the pictures down with the dataset key "
            f"`long_side`, such as `long_side: {ROOMY * crop_size}`, or increase "
            f"augmentation.crop_size"
        )
        yield Problem("small crop", folder, text)
