"""The page of `benchmarks.scale`: rows of the table, and where they were measured.

A measurement of some groups replaces their rows on the page and keeps all others.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

HEAD = """\
# Scale

This page shows how time and memory grow with the number of images, classes, steps \
and trainings, for users with large datasets and for developers. `python -m \
benchmarks.scale` measures the table again (`benchmarks/scale.py` explains how).

- Times and memory are listed in the order of the sizes.
- The exponent is the slope of log(time), or log(memory), over log(size) in the upper \
half of the sizes. 1 means linear growth.

| measured | sizes | CPU seconds | exponent | MiB | exponent |
|---|---|---|---|---|---|
"""

REMARKS = """
Time is CPU time. By the clock it took twice as long where other programs used the two \
cores too.

What is measured, and what limits it:

- Invented images are not decoded. Decoding is linear. The second line measures it on \
JPEGs of 96 pixels with masks.
- Masks hold bytes, so a dataset has at most 253 classes. `make_split` reads labels \
from the index alone and accepts more.
- The stages with torch are measured on one thread, with the features and the head of \
EfficientNet-Lite0, on made-up features and labels. Five of the classes are those of \
the step that is trained.
- In a dry run of 1,000 trainings, about nine tenths of the time are Snakemake's own: \
wildcards, parameters and messages of 4,000 jobs. It grows less than linearly here, \
because Snakemake needs a second to start.

What grows faster than linearly, and why:

- Everything with a class per step. A step lists all classes so far, so a run of T \
steps has T²/2 rows in classes.csv, cells in the figures and lists of classes in the \
plan. Per row all of it is linear, except for the forgetting of a class, which uses \
all earlier steps (T³/6 numbers, below a second for 100 steps).
- Pairing, and reading an index: exponents of 1.05 to 1.15. Without the garbage \
collector of Python they are 0.04 lower. No loop there visits a row twice. The rest \
was not investigated.

What grows with the number of classes:

- Scores of all classes at the size of the images are the largest tensors: memory and \
time are about linear in classes times pixels. `likeliest_classes` gives the same \
labels strip by strip, so evaluation and pseudo labels need a fraction of it.
- The losses of `kproba` do not grow: PB-BCE brings only the background and the new \
classes to the size of the images.
- The bank has the mean of every class, and one scatter for all. So its statistics \
grow slowly, until there are many classes compared with features.
- The confusion matrix has classes² entries of 8 bytes: 8 MB for 1,000 classes.

What breaks at 1,000 classes: everything that stores labels. Masks, targets and pseudo \
labels have one byte per pixel, and 254 and 255 are no classes. The configuration is \
refused before any job ("Expected at most 253 classes, because a mask value is one \
byte"). So are the tables of labels, pseudo labels and PB-BCE, if they are called from \
Python ("Expected at most 253 classes, because masks and targets have one byte per \
pixel"), and a model.json that names more than 255. The rows above with 1,000 classes \
work: bank, posterior, scores, likeliest classes, head and counts.

A million images need 2.5 GiB for `prepare_dataset` and 1.7 GiB wherever their index \
is read: tables are parsed line by line into text, so that a damaged table is noticed.
"""

Key = tuple[str, str]  # the work in words, and what its sizes count


def key_of(row: str) -> Key:
    """What identifies a row of the table: its work and unit."""
    what, sizes = row.split(" | ")[:2]
    return what.removeprefix("| "), re.sub(r"^[\d,]+( / [\d,]+)* ", "", sizes)


def read_rows(text: str) -> dict[Key, str]:
    """The rows of the table in the text of a page."""
    lines = text[text.find("|---") :].splitlines()[1:]
    rows = [line for line in lines if line.startswith("| ")]
    return {key_of(row): row for row in rows}


def read_machines(text: str, groups: Sequence[str]) -> dict[str, str]:
    """What the page says of the machine and versions of each group, as JSON.

    Args:
        text: The page.
        groups: All groups. A line that names none is of all that others do not name.
    """
    machines: dict[str, str] = {}
    others = ""
    for line in re.findall(r"^`(\{.*\})`$", text, re.MULTILINE):
        content = json.loads(line)
        named = content.pop("groups", None)
        if named is None:
            others = json.dumps(content)
        else:
            machines |= dict.fromkeys(named, json.dumps(content))
    return {group: machines.get(group, others) for group in groups}


def render(
    order: Sequence[tuple[str, Key]],
    rows: Mapping[Key, str],
    machines: Mapping[str, str],
) -> str:
    """The whole page.

    Args:
        order: Group and key of every row, in the order of the table.
        rows: The measured rows.
        machines: By group, versions and cores as JSON.
    """
    shown = [(group, rows[key]) for group, key in order if key in rows]
    by_machine: dict[str, list[str]] = {}
    for group in dict.fromkeys(group for group, _ in shown):
        by_machine.setdefault(machines[group], []).append(group)
    about = [
        json.dumps({"groups": groups, **json.loads(machine)})
        for machine, groups in by_machine.items()
    ]
    lines = "\n\n".join(f"`{line}`" for line in about)
    return HEAD + "\n".join(row for _, row in shown) + f"\n\n{lines}\n{REMARKS}"


def write_page(
    path: Path,
    order: Sequence[tuple[str, Key]],
    measured: Mapping[str, Sequence[str]],
    machine: Mapping[str, object],
) -> None:
    """Put the rows of some groups on the page, in place of their earlier ones.

    Args:
        path: The page; it may be missing.
        order: Group and key of every row, in the order of the table.
        measured: Rows by group.
        machine: Versions and cores of this measurement.
    """
    from kproba.runtime.files import atomic_path

    text = path.read_text(encoding="utf-8") if path.exists() else ""
    machines = read_machines(text, [group for group, _ in order])
    rows = read_rows(text) if text else {}
    for group, lines in measured.items():
        machines[group] = json.dumps(machine)
        rows |= {key_of(line): line for line in lines}
    with atomic_path(path) as temporary:
        temporary.write_text(render(order, rows, machines), encoding="utf-8")
