"""TODO data.tasks."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence

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
