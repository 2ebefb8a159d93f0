"""The memory of old images: which images, which labels, and nothing that came later."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from memory_steps import (
    GROUPS,
    ORDER,
    STEP_OF,
    labels_in,
    masks_of,
    memory_files,
    save_record,
    write_dataset,
    write_memories,
)
from PIL import Image

from kproba.data.augmentation import keyed_generator
from kproba.data.labels import IGNORE, UNSURE
from kproba.data.memory import (
    add_known,
    check_memory,
    choose_images,
    read_memory,
    read_memory_record,
)
from kproba.data.splits import parse_classes, read_index
from kproba.jobs.step_memory import MemoryFiles, update_memory
from kproba.runtime.compute import Compute
from kproba.runtime.distributed import Process
from kproba.runtime.records import ArtifactError

SETTINGS = ("overlap", "disjoint", "sequential", "partitioned")


# --- the choice ----------------------------------------------------------------------


def plain_choice(known: dict[str, set[int]], count: int, seed: int, step: int):
    """The rule of DKD-M in the words of its description, without any shortcut."""
    rng = keyed_generator("memory", seed, step)
    left = list(np.array(sorted(known))[rng.permutation(len(known))])
    classes = sorted({label for labels in known.values() for label in labels})
    classes = [classes[place] for place in rng.permutation(len(classes))]
    chosen: list[str] = []
    found = True
    while found:
        found = False
        for label in classes:
            for name in left:
                if label in known[name] and len(chosen) < count:
                    chosen.append(name)
                    left.remove(name)
                    found = True
                    break
    return sorted(chosen)


def candidates(count: int, classes: int, seed: int) -> dict[str, set[int]]:
    random = np.random.default_rng(seed)
    return {
        f"i{number}": set(random.choice(classes, random.integers(1, 4)).tolist())
        for number in range(count)
    }


@pytest.mark.parametrize(("images", "count"), [(60, 20), (60, 7), (30, 30), (30, 99)])
@pytest.mark.parametrize("step", [0, 3])
def test_the_choice_is_that_of_the_plain_rule(images, count, step):
    for seed in range(5):
        known = candidates(images, 9, seed)
        chosen = choose_images(known, count, seed=seed, step=step)
        assert chosen == plain_choice(known, count, seed, step)
        assert len(chosen) == min(count, images)


def test_classes_take_turns():
    """One class is in every image, the other in three of a hundred."""
    known = {f"i{n}": {1, 2} if n in (5, 50, 77) else {1} for n in range(100)}
    chosen = choose_images(known, 6, seed=0, step=1)
    assert {"i5", "i50", "i77"} <= set(chosen)


def test_the_choice_depends_on_seed_and_step_but_not_on_the_order():
    known = candidates(60, 9, 0)
    turned = dict(reversed(known.items()))
    first = choose_images(known, 10, seed=0, step=1)
    assert choose_images(turned, 10, seed=0, step=1) == first
    assert choose_images(known, 10, seed=1, step=1) != first
    assert choose_images(known, 10, seed=0, step=2) != first


def test_an_image_without_a_known_class_is_not_chosen():
    assert choose_images({"a": {1}, "b": set()}, 5, seed=0, step=0) == ["a"]


# --- honesty -------------------------------------------------------------------------


def introduced(labels) -> set[int]:
    """The steps of some labels; 0 and 255 are of no step."""
    return {STEP_OF[label] for label in labels if label not in (0, IGNORE)}


@pytest.mark.parametrize("setting", SETTINGS)
def test_no_memory_holds_a_label_that_came_after_the_image(
    tmp_path, monkeypatch, setting
):
    data = write_dataset(tmp_path, setting)
    out = write_memories(data, tmp_path / "m", monkeypatch, setting=setting)
    masks, later = masks_of(data), 0
    for step in range(3):
        table = read_memory(out / f"memory{step}.csv")
        images = labels_in(out / f"memory{step}")
        assert sorted(images) == list(table["id"])
        for row in table.itertuples():
            values = set(np.unique(images[row.id]).tolist())
            labels = {v if v == IGNORE else ORDER[v] for v in values}
            shown = parse_classes(row.classes)
            known = parse_classes(row.known)
            assert labels == shown == known | (shown & {0, IGNORE})
            assert row.seen_in_step <= step
            assert all(s <= row.seen_in_step for s in introduced(labels))
            split = read_index(data / f"step{row.seen_in_step}.csv")
            assert row.id in set(split["id"])
            later += any(
                s > row.seen_in_step for s in introduced(np.unique(masks[row.id]))
            )
        record = read_memory_record(out / f"memory{step}.csv")
        assert record["leaks"] is False
        assert record["labels"] == list(ORDER[: 1 + sum(map(len, GROUPS[: step + 1]))])
        assert record["images"] == len(table)
    if setting in ("overlap", "partitioned"):
        assert later > 3, "the masks show nothing that could leak"


def test_true_labels_leak_and_say_so(tmp_path, monkeypatch, caplog):
    data = write_dataset(tmp_path)
    out = write_memories(data, tmp_path / "m", monkeypatch, rule="true_labels")
    masks, leaked = masks_of(data), 0
    for step in range(3):
        table = read_memory(out / f"memory{step}.csv")
        shown = [label for group in GROUPS[: step + 2] for label in group]
        for row in table.itertuples():
            image = labels_in(out / f"memory{step}")[row.id]
            expected = np.zeros_like(image)
            for label in shown:
                expected[masks[row.id] == label] = ORDER.index(label)
            expected[masks[row.id] == IGNORE] = IGNORE
            np.testing.assert_array_equal(image, expected)
            assert parse_classes(row.known) == set(np.unique(masks[row.id])) & set(
                shown
            )
            leaked += any(
                s > row.seen_in_step for s in introduced(parse_classes(row.known))
            )
        assert read_memory_record(out / f"memory{step}.csv")["leaks"] is True
    assert leaked > 3
    assert caplog.text.count("leaks: its rule 'true_labels'") == 3


# --- labels --------------------------------------------------------------------------


def expected_target(data, name, step, before):
    """The labels of an image of a split, pixel by pixel."""
    mask = masks_of(data)[name]
    picture = np.array(Image.open(data / f"{name}.png"))
    target = np.zeros_like(mask)
    for place in np.ndindex(*mask.shape):
        label, (index, sure, _) = int(mask[place]), picture[place]
        if label == IGNORE:
            target[place] = IGNORE
        elif label and STEP_OF[label] == step:
            target[place] = ORDER.index(label)
        elif before is not None and before[place] not in (0, IGNORE):
            target[place] = before[place]
        elif label and STEP_OF[label] < step and sure == 255:
            target[place] = index
    return target


@pytest.mark.parametrize("images", [8, 25])
def test_labels_are_given_remembered_or_recognised(tmp_path, monkeypatch, images):
    data = write_dataset(tmp_path)
    out = write_memories(data, tmp_path / "m", monkeypatch, images=images)
    before: dict[str, np.ndarray] = {}
    kinds = {"new": 0, "again": 0, "kept": 0}
    for step in range(3):
        split = list(read_index(data / f"step{step}.csv")["id"])
        table = read_memory(out / f"memory{step}.csv").set_index("id")
        found = labels_in(out / f"memory{step}")
        held = {name: set() for name in {*split, *before}}
        for name in held:
            if name in split:
                target = expected_target(data, name, step, before.get(name))
                kind = "again" if name in before else "new"
            else:
                target, kind = before[name], "kept"
            held[name] = {
                ORDER[value] for value in np.unique(target) if value not in (0, IGNORE)
            }
            if name in found:
                np.testing.assert_array_equal(found[name], target)
                assert (table["seen_in_step"][name] == step) == (kind != "kept")
                kinds[kind] += step > 0
        assert sorted(found) == plain_choice(held, images, 3, step)
        before = found
    assert all(kinds.values()), kinds


def test_an_image_that_comes_again_keeps_what_its_network_would_miss(
    tmp_path, monkeypatch
):
    """Old labels of an earlier step stay where the network of this step is unsure."""
    data = write_dataset(tmp_path)
    out = write_memories(data, tmp_path / "m", monkeypatch, images=40, steps=(0, 1))
    first, second = (labels_in(out / f"memory{step}") for step in (0, 1))
    both = first.keys() & set(read_index(data / "step1.csv")["id"])
    assert len(both) > 3
    for name in both:
        old = (first[name] != 0) & (first[name] != IGNORE)
        np.testing.assert_array_equal(second[name][old], first[name][old])


def test_true_old_labels_of_sequential_need_no_network(tmp_path, monkeypatch):
    data = write_dataset(tmp_path, "sequential")
    out = write_memories(data, tmp_path / "m", monkeypatch, setting="sequential")
    masks = masks_of(data)
    table = read_memory(out / "memory2.csv")
    assert "threshold" not in read_memory_record(out / "memory2.csv")
    for row in table.itertuples():
        seen = [la for group in GROUPS[: row.seen_in_step + 1] for la in group]
        image = labels_in(out / "memory2")[row.id]
        for label in seen:
            assert (image[masks[row.id] == label] == ORDER.index(label)).all()


def test_completing_a_target():
    target = np.array([[0, 0, UNSURE, 3, IGNORE, UNSURE]], np.uint8)
    memory = np.array([[2, IGNORE, 1, 2, 1, 0]], np.uint8)
    assert add_known(target, memory).tolist() == [[2, 0, 1, 3, IGNORE, UNSURE]]


# --- files ---------------------------------------------------------------------------


def test_a_memory_is_a_table_like_a_split(tmp_path, monkeypatch):
    data = write_dataset(tmp_path)
    out = write_memories(data, tmp_path / "m", monkeypatch, steps=(0, 1))
    split, memory = read_index(data / "step0.csv"), read_index(out / "memory1.csv")
    assert set(split) < set(memory)
    old = read_memory(out / "memory1.csv")
    old = old[old["seen_in_step"] == 0]
    assert not old.empty
    both = split.merge(old, on="id", suffixes=("", "_old"))
    for column in ("image", "mask", "width", "height"):
        assert (both[column] == both[f"{column}_old"]).all()


def test_a_second_run_writes_the_same_bytes(tmp_path, monkeypatch):
    data = write_dataset(tmp_path)
    one, other = (
        write_memories(data, tmp_path / name, monkeypatch) for name in ("a", "b")
    )
    files = [path for path in sorted(one.rglob("*")) if path.is_file()]
    assert len([path for path in files if path.suffix == ".png"]) == 3 * 8
    for path in files:
        assert path.read_bytes() == (other / path.relative_to(one)).read_bytes(), path


def test_a_model_of_another_step_is_refused(tmp_path, monkeypatch):
    data = write_dataset(tmp_path)
    out = write_memories(data, tmp_path / "m", monkeypatch, steps=(0,))
    files = memory_files(data, out, 1)
    wrong = save_record(out / "wrong.safetensors", 0)
    job = {"images": 4, "rule": "known", "groups": [[4, 2], [1]], "sequential": False}
    with pytest.raises(ArtifactError, match=r"wrong\.safetensors to be the model"):
        update_memory(
            MemoryFiles(**{**vars(files), "model": wrong}),
            {**job, "seed": 0, "threshold": 0.5},
            Compute(),
            Process(),
        )
    assert not files.table.exists() and not files.labels.exists()


def test_a_memory_of_another_step_or_task_is_refused(tmp_path, monkeypatch):
    data = write_dataset(tmp_path)
    out = write_memories(data, tmp_path / "m", monkeypatch, steps=(0, 1))
    check_memory(out / "memory1.csv", step=1, seen=ORDER[1:])
    for wrong in ({"step": 0, "seen": ORDER[1:]}, {"step": 1, "seen": (4, 1, 2, 5)}):
        with pytest.raises(ArtifactError, match=r"memory1\.csv to be the memory after"):
            check_memory(out / "memory1.csv", **wrong)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows.drop(columns="known"), "known is missing"),
        (lambda rows: rows.assign(seen_in_step="x"), "numbers in the columns"),
        (lambda rows: rows.assign(known="1 cat"), "numbers in the columns"),
    ],
)
def test_a_damaged_table_is_refused(tmp_path, monkeypatch, change, words):
    data = write_dataset(tmp_path)
    out = write_memories(data, tmp_path / "m", monkeypatch, steps=(0,))
    path: Path = out / "memory0.csv"
    change(pd.read_csv(path)).to_csv(path, index=False)
    with pytest.raises(ArtifactError, match=words):
        read_memory(path)


def test_a_damaged_record_is_refused(tmp_path, monkeypatch):
    data = write_dataset(tmp_path)
    out = write_memories(data, tmp_path / "m", monkeypatch, steps=(0,))
    content = json.loads((out / "memory0.json").read_text())
    (out / "memory0.json").write_text(json.dumps({**content, "rule": "any"}))
    with pytest.raises(ArtifactError, match=r"memory0\.json"):
        read_memory_record(out / "memory0.csv")
