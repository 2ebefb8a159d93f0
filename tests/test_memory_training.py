"""Training on old images: streams, targets, processes, and interruptions."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from gloo_processes import finished_within, in_processes
from memory_steps import write_dataset, write_memories
from safetensors.torch import load_file
from training_runs import SMALL_RATES, STATE, train_with, trained
from training_steps import largest_relative_difference, step_settings

from kproba.data.augmentation import Augmentation
from kproba.data.label_images import read_label_image, write_label_image
from kproba.data.labels import IGNORE, LabelMap
from kproba.data.loaders import TrainingImages
from kproba.data.memory import Memory, add_known, read_memory
from kproba.data.splits import parse_classes, read_index
from kproba.data.stream import Item, OldImages, TrainingStream
from kproba.jobs.step_memory import MemoryFiles, update_memory
from kproba.methods.losses.case import cell_masks
from kproba.runtime.compute import Compute
from kproba.runtime.distributed import Process
from kproba.runtime.records import ArtifactError

# --- streams -------------------------------------------------------------------------


def stream(**changes) -> TrainingStream:
    settings = {"epochs": 3, "batch_size": 8, "seed": 0, "old": OldImages(5, 0.25)}
    return TrainingStream(10, **{**settings, **changes})


@pytest.mark.parametrize(
    ("share", "batch_size", "places"),
    [
        (0.5, 8, 4),
        (0.5, 5, 3),  # a half is rounded up
        (0.3, 8, 2),
        (0.01, 8, 1),  # at least one
        (0.99, 8, 7),  # and one for the step
        (0.5, 2, 1),
    ],
)
def test_old_images_have_their_share_of_every_batch(share, batch_size, places):
    found = stream(batch_size=batch_size, old=OldImages(5, share))
    for items in found:
        assert len(items) == batch_size
        assert sum(item.image >= 10 for item in items) == places
    assert found.iterations == -(-30 // (batch_size - places))


def test_both_streams_show_all_of_their_images_in_every_epoch():
    items = [item for batch in stream() for item in batch]
    for first, count in ((0, 10), (10, 5)):
        own = [item for item in items if first <= item.image < first + count]
        for epoch in range(len(own) // count):
            part = own[epoch * count : (epoch + 1) * count]
            assert {item.epoch for item in part} == {epoch}
            assert sorted(item.image for item in part) == list(
                range(first, first + count)
            )
    orders = [
        [item.image for item in items if item.epoch == 0 and item.image < 10],
        [
            item.image
            for item in TrainingStream(10, epochs=1, batch_size=10, seed=0)
            .__iter__()
            .__next__()
        ],
    ]
    assert orders[0] == orders[1]  # the order of the step is that without old images


def test_order_of_old_images_depends_on_epoch_and_seed():
    def order(epoch: int, **changes) -> list[Item]:
        items = [item for batch in stream(epochs=20, **changes) for item in batch]
        return [
            item.image for item in items if item.image >= 10 and item.epoch == epoch
        ]

    assert order(0) == order(0) != order(1)
    assert order(0) != order(0, seed=1)


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("start", [0, 3])
def test_processes_micro_batches_and_restarts_share_one_stream(
    world_size, accumulation, start
):
    whole = list(stream())[start:]
    parts = [
        list(
            stream(
                rank=rank,
                world_size=world_size,
                accumulation=accumulation,
                start=start,
            )
        )
        for rank in range(world_size)
    ]
    for number, batch in enumerate(whole):
        places = slice(number * accumulation, (number + 1) * accumulation)
        shared = [item for part in parts for micro in part[places] for item in micro]
        assert shared == batch
    assert {len(part) for part in parts} == {len(whole) * accumulation}


def test_a_share_of_a_single_image_is_refused():
    with pytest.raises(ValueError, match="at least 2 for a memory"):
        stream(batch_size=1)


# --- targets -------------------------------------------------------------------------

AS_IT_IS = Augmentation(12, (1.0, 1.0), 0.0)


@pytest.mark.parametrize("pseudo", [False, True])
def test_targets_of_old_images_and_of_those_in_both(tmp_path, monkeypatch, pseudo):
    data = write_dataset(tmp_path)
    out = write_memories(data, tmp_path / "m", monkeypatch, images=15, steps=(0,))
    groups = ((4, 2), (1,))
    split, rows = read_index(data / "step1.csv"), read_memory(out / "memory0.csv")
    table, folder = LabelMap(groups).training_table(), None
    own = {row.id: table[read_label_image(row.mask)] for row in split.itertuples()}
    if pseudo:  # one more class in the background of every image
        folder = tmp_path / "pseudo"
        folder.mkdir()
        for name, target in own.items():
            found = target.copy()
            found[-1][found[-1] == 0] = 1
            own[name] = found
            write_label_image(folder / f"{name}.png", found)
    images = TrainingImages(
        split,
        augmentation=AS_IT_IS,
        seed=0,
        label_table=None if pseudo else table,
        pseudo_labels=folder,
        memory=Memory(rows, out / "memory0"),
    )
    ids = [source.id for source in images.sources]
    assert ids[: len(split)] == list(split["id"])
    assert sorted(ids) == sorted(set(split["id"]) | set(rows["id"]))
    assert images.new == len(split) and images.old == len(ids) - len(split) > 2
    completed = 0
    for number, name in enumerate(ids):
        target = images[Item(0, number)].target.numpy()
        if name not in own:
            expected = read_label_image(out / "memory0" / f"{name}.png")
        else:
            expected = own[name]
            if name in set(rows["id"]):
                known = read_label_image(out / "memory0" / f"{name}.png")
                expected = add_known(expected, known)
                completed += (expected != own[name]).sum()
        np.testing.assert_array_equal(target, expected)
    assert completed > 0


# --- trainings -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def memory(data: Path, base: Path) -> dict[str, Path]:
    """The memory of step 0 of the digits."""
    groups = step_settings(1)["groups"][:1]
    job = {"images": 7, "rule": "known", "groups": groups, "sequential": False}
    files = MemoryFiles(
        split=data / "step0.csv",
        table=data / "memory.csv",
        record=data / "memory.json",
        labels=data / "memory",
    )
    update_memory(files, {**job, "seed": 0}, Compute(), Process())
    return {"memory": files.table, "memory_labels": files.labels}


def settings_with(share: float | None, method: str = "kproba", **more) -> dict:
    memory = {"images": 7, "rule": "known", "share": share}
    return {**step_settings(1, method, **more), "memory": memory}


@pytest.mark.parametrize(
    ("method", "share"), [("kproba", None), ("kproba", 0.5), ("mib", 0.5)]
)
def test_processes_give_the_weights_of_one_process(
    data, base, memory, tmp_path, share, method
):
    if method == "mib":
        base = trained(data, tmp_path / "base", step_settings(0, "mib"))
        base = base / "model.safetensors"
    # Many steps and large rates would turn rounding into larger differences.
    few = {"batch_size": 12, "epochs": 2, "learning_rate": SMALL_RATES}
    settings = settings_with(share, method, **few)
    more = {"base": base, "inputs": memory}
    one = trained(data, tmp_path / "one", settings, **more)
    two = trained(data, tmp_path / "two", settings, **more, processes=2, accumulation=3)
    assert largest_relative_difference(one, two) < 3e-5
    if method == "kproba":
        plain = step_settings(1, method, **few)
        without = trained(data, tmp_path / "without", plain, base=base)
        assert largest_relative_difference(one, without) > 1e-4


@pytest.mark.parametrize("share", [None, 0.5])
def test_a_killed_training_ends_with_the_same_bytes(
    data, base, memory, tmp_path, share
):
    settings = settings_with(share, epochs=20)
    more = {"base": base, "inputs": memory}
    whole = trained(data, tmp_path / "whole", settings, **more)
    out = tmp_path / "killed"
    out.mkdir()
    (out / "settings.json").write_text(json.dumps(settings))
    job = (train_with, data, out, base, Compute(state_minutes=1e-6), memory)
    random, resumed = np.random.default_rng(1), 0
    for attempt, moment in enumerate(random.uniform(0.6, 1.8, size=100)):
        resumed += (out / STATE).exists()
        if finished_within(moment * 1.03**attempt, 1, *job):
            break
    assert resumed >= 2, "the run was not caught in the middle"
    for name in ("model.safetensors", "model.json", "metrics.csv"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name


def test_a_state_of_another_memory_is_not_resumed(data, base, memory, tmp_path, caplog):
    out = tmp_path / "out"
    out.mkdir()
    settings = settings_with(None, epochs=40)
    (out / "settings.json").write_text(json.dumps(settings))
    job = (train_with, data, out, base, Compute(state_minutes=1e-6), memory)
    for moment in np.linspace(2, 10, 20):
        assert not finished_within(moment, 1, *job)
        if (out / STATE).exists():
            break
    changed = tmp_path / "changed"
    changed.mkdir()
    for path in memory["memory_labels"].glob("*.png"):
        labels = read_label_image(path)
        labels[0] = IGNORE
        write_label_image(changed / path.name, labels)
    settings["optimisation"]["epochs"] = 40
    other = {**memory, "memory_labels": changed}
    train_with(Process(), data, out, base, Compute(), other)
    assert "saved with other settings or inputs" in caplog.text


def test_model_json_names_the_memory(data, base, memory, tmp_path):
    out = trained(data, tmp_path / "out", settings_with(0.5), base=base, inputs=memory)
    content = json.loads((out / "model.json").read_text())["settings"]["memory"]
    assert content == {"images": 7, "rule": "known", "share": 0.5}
    assert load_file(out / "model.safetensors")


@pytest.mark.parametrize("named", [True, False])
def test_settings_and_files_of_a_memory_belong_together(
    data, base, memory, tmp_path, named
):
    settings = step_settings(1) if named else settings_with(None)
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="exactly if the settings have the key"):
        train_with(
            Process(), data, tmp_path, base, Compute(), memory if named else None
        )


def test_a_memory_of_another_step_is_not_trained_on(data, base, memory, tmp_path):
    for name in ("memory.csv", "memory.json"):
        (tmp_path / name).write_bytes((data / name).read_bytes())
    record = json.loads((tmp_path / "memory.json").read_text())
    (tmp_path / "memory.json").write_text(json.dumps({**record, "step": 1}))
    (tmp_path / "settings.json").write_text(json.dumps(settings_with(None)))
    inputs = {**memory, "memory": tmp_path / "memory.csv"}
    with pytest.raises(ArtifactError, match="made after step 1"):
        train_with(Process(), data, tmp_path, base, Compute(), inputs)


# --- the job over processes ----------------------------------------------------------


def write_later(
    process: Process, data: Path, model: Path, out: Path, batch_size: int
) -> None:
    """The memory after step 1 of the digits; the threshold lets much through."""
    job = {"images": 9, "rule": "known", "groups": step_settings(1)["groups"]}
    job |= {"sequential": False, "seed": 0, "threshold": 0.3}
    files = MemoryFiles(
        split=data / "step1.csv",
        table=out / "memory.csv",
        record=out / "memory.json",
        labels=out / "memory",
        model=model,
        previous=data / "memory.csv",
        previous_labels=data / "memory",
    )
    update_memory(files, job, Compute(batch_size=batch_size), process)


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_processes_batches_and_kills_do_not_change_the_memory(
    data, alone, memory, tmp_path
):
    model = alone / "model.safetensors"
    write_later(Process(), data, model, tmp_path / "one", 8)
    expected = contents(tmp_path / "one")
    table = read_memory(tmp_path / "one" / "memory.csv")
    assert set(table["seen_in_step"]) == {0, 1}
    new = {7, 8}
    later = table[table["seen_in_step"] == 1]
    assert any(parse_classes(cell) - new for cell in later["known"]), "none recognised"
    for processes, batch_size in ((2, 8), (3, 1)):
        out = tmp_path / f"{processes}"
        in_processes(processes, write_later, data, model, out, batch_size)
        assert contents(out) == expected
    out, moment = tmp_path / "killed", 0.2
    while not finished_within(moment, 2, write_later, data, model, out, 1):
        assert not (out / "memory.csv").exists()
        moment *= 1.4
    assert contents(out) == expected


# --- masks ---------------------------------------------------------------------------


@pytest.mark.parametrize("sequential", [False, True])
def test_old_classes_in_memory_are_background_for_this_step(
    tmp_path, monkeypatch, sequential
):
    """In `sequential` their cells are in neither mask, as in images of the step."""
    setting = "sequential" if sequential else "overlap"
    data = write_dataset(tmp_path, setting)
    out = write_memories(
        data, tmp_path / "m", monkeypatch, setting=setting, images=20, steps=(0,)
    )
    for path in sorted((out / "memory0").glob("*.png")):
        labels = torch.from_numpy(read_label_image(path))[None]
        masks = cell_masks(labels, 3, labels.shape[1:], sequential=sequential)
        old = (labels == 1) | (labels == 2)
        assert old.any() and not masks.new.any()
        assert torch.equal(masks.remaining, labels == 0)
        background = labels == 0 if sequential else (labels == 0) | old
        assert torch.equal(masks.background, background)
