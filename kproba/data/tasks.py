"""Tasks: which classes each step introduces."""

import hashlib
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence

Groups = tuple[tuple[int, ...], ...]


# A task `A-B`, and the name of its order of the classes.
TASK = re.compile(r"(\d+)-(\d+)(?:_([a-z]+|r\d+))?")


def without_order(task: str) -> str:
    """The task in the dataset's order: "15-1" for "15-1_b" and "15-1_r7".

    Other names stay as they are.
    """
    match = TASK.fullmatch(task)
    return task if match is None else f"{match[1]}-{match[2]}"


def parse_task(
    task: str, class_count: int, orders: Mapping[str, Sequence[int]] | None = None
) -> Groups:
    """Class groups of a task `A-B` (A classes, then B per step) or `offline`.

    Args:
        task: Name such as "15-1", "15-1_b" for another class order, "15-1_r7" for a
            random one, or "offline" for all classes in one step.
        class_count: Number of classes of the dataset, background not counted.
        orders: Published class orders of the dataset by their letter, as raw labels.

    Returns:
        One tuple of raw labels per step, in the dataset's order or the named order.

    Raises:
        ValueError: The name has another form, or the classes cannot be divided this
            way.
    """
    if task == "offline":
        return (tuple(range(1, class_count + 1)),)
    match = TASK.fullmatch(task)
    if match is None:
        raise ValueError(
            f"Expected a task such as '15-1' (15 classes, then 1 per step), 'offline' "
            f"or a name from `tasks`, but got '{task}'."
        )
    order: Sequence[int] = range(1, class_count + 1)
    if match[3] and match[3][1:].isdigit():
        order = random_order(class_count, int(match[3][1:]))
    elif match[3]:
        if match[3] not in (orders or {}):
            known = ", ".join(["r1, r2, .. for random orders", *(orders or {})])
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
    """The labels 1..class_count in an order that depends only on the seed."""

    def sort_key(label: int) -> bytes:
        return hashlib.sha256(f"{seed} {label}".encode()).digest()

    return sorted(range(1, class_count + 1), key=sort_key)


def canonical_task(classes: Sequence[int]) -> str:
    """Name of the one-step task that trains `classes` at once.

    The name depends only on the classes and their order, so that all tasks and methods
    with the same first step share one model of step 0. It is "15" for the classes
    1..15, and otherwise the count and a digest of the order, such as "15x3fa9c1".
    """
    if tuple(classes) == tuple(range(1, len(classes) + 1)):
        return str(len(classes))
    digest = hashlib.sha256(json.dumps(list(classes)).encode()).hexdigest()
    return f"{len(classes)}x{digest[:6]}"


def all_classes(groups: Groups) -> tuple[int, ...]:
    """Raw labels of all groups, in the dataset's order."""
    return tuple(sorted(label for group in groups for label in group))


def partition_task(classes: Sequence[int], divided: Sequence[int]) -> str:
    """Name of the one-step task of step 0 in the setting "partitioned".

    Which images belong to step 0 depends there on the set of all classes of the task,
    not on their order. The name is "15of20" for the classes 1..15 of 1..20.

    Args:
        classes: Raw labels of step 0.
        divided: Raw labels of all steps.
    """
    return f"{canonical_task(classes)}of{canonical_task(sorted(divided))}"


def partition_label(
    name: str, present: frozenset[int], classes: Collection[int]
) -> int | None:
    """The class to which the setting "partitioned" gives an image.

    Of the classes that the image shows, it is the one with the smallest SHA-256 of the
    text "id label". So every image belongs to exactly one step, and which one depends
    neither on the order of the classes nor on the other images. The setting is that of
    arXiv 2405.09858, which draws its partition in another way.

    Args:
        name: Id of the image.
        present: Raw labels in the image, with or without 0 and 255.
        classes: Raw labels of all classes of the task.

    Returns:
        A raw label; None if the image shows no class of the task.
    """

    def sort_key(label: int) -> bytes:
        return hashlib.sha256(f"{name} {label}".encode()).digest()

    return min(present.intersection(classes), key=sort_key, default=None)


def resolve_groups(
    listed: Sequence[Sequence[int | str]],
    labels: Mapping[str, int],
    *,
    where: str,
    suggest: Callable[[str], str] = lambda _: "",
) -> Groups:
    """Turn class groups by number or name into groups by number.

    Args:
        listed: Classes of each step, as raw labels or names.
        labels: Raw label of each class by its name, without the background.
        where: Where the groups were configured, for messages.
        suggest: Returns an addition to the message about an unknown class.

    Raises:
        ValueError: A class is unknown, is the background, or appears twice.
    """
    groups: list[tuple[int, ...]] = []
    steps: dict[int, int] = {}
    known = set(labels.values())
    for step, group in enumerate(listed):
        numbers = []
        for entry in group:
            label = labels.get(entry, -1) if isinstance(entry, str) else entry
            if label not in known:
                raise ValueError(
                    f"{where}: expected classes of the dataset (numbers 1 to "
                    f"{len(labels)} or names such as "
                    f"{', '.join(list(labels)[:4])}), but got {entry!r} in step "
                    f"{step}{suggest(str(entry))}."
                )
            if label in steps:
                raise ValueError(
                    f"{where}: expected every class in one step only, but {entry!r} is "
                    f"in step {steps[label]} and in step {step}. Remove it from one of "
                    f"them."
                )
            steps[label] = step
            numbers.append(label)
        groups.append(tuple(numbers))
    return tuple(groups)
