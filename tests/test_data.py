"""Augmentation, and the order of the training stream."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from kproba.data.augmentation import Augmentation, augment, keyed_generator
from kproba.data.images import read_image
from kproba.data.label_images import write_label_image
from kproba.data.loaders import (
    Item,
    TrainingImages,
    TrainingStream,
    training_loader,
    workers_that_fit,
)
from kproba.data.splits import read_index
from kproba.data.whole_images import whole_image_loader

CLASS_COUNT = 3


def _labels(*values: int, shape: tuple[int, int] = (4, 6)) -> np.ndarray:
    """A mask of `shape` that starts with `values`."""
    mask = np.zeros(shape, np.uint8)
    mask.ravel()[: len(values)] = values
    return mask


# --- augmentation ------------------------------------------------------------------


def _augmentation(crop: int, **changes) -> Augmentation:
    settings = {"crop_size": crop, "scale": (1.0, 1.0), "horizontal_flip": 0.0}
    return Augmentation(**{**settings, **changes})


def _coordinates(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """An image that holds row, column and their sum, and a target of the columns."""
    rows, columns = torch.meshgrid(
        torch.arange(height), torch.arange(width), indexing="ij"
    )
    image = torch.stack([rows, columns, rows + columns]).to(torch.uint8)
    return image, columns.to(torch.uint8)


def _noise(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (3, height, width), dtype=np.uint8)
    target = rng.choice(np.array([0, 7, 20], np.uint8), (height, width))
    return torch.from_numpy(image), torch.from_numpy(target)


FULL = {
    "scale": (0.5, 2.0),
    "horizontal_flip": 0.5,
    "brightness": 0.3,
    "contrast": 0.3,
    "saturation": 0.3,
}


def test_augmentation_is_a_function_of_its_key():
    settings = _augmentation(16, **FULL)

    def draw(key: str) -> tuple[torch.Tensor, torch.Tensor]:
        return augment(*_noise(20, 30), settings, keyed_generator(key))

    first, again, other = draw("a"), draw("a"), draw("b")
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[1], other[1])


@pytest.mark.parametrize("size", [(8, 8), (8, 40), (40, 8), (40, 40), (16, 16)])
def test_crop_has_its_size_and_type_whatever_the_image(size):
    settings = _augmentation(16, **FULL)
    for key in range(4):
        image, target = augment(*_noise(*size), settings, keyed_generator(key))
        assert (image.shape, image.dtype) == ((3, 16, 16), torch.uint8)
        assert (target.shape, target.dtype) == ((16, 16), torch.uint8)


# Grey level and label of the pixels outside the image.
OUTSIDES = {"ignore": (128, 255), "background": (0, 0)}


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize("outside", OUTSIDES)
def test_pixels_outside_the_image_have_one_colour_and_one_label(outside, flip):
    height, width, side = 10, 12, 16
    image, target = (tensor + 1 for tensor in _coordinates(height, width))
    settings = _augmentation(side, horizontal_flip=flip, outside=outside)
    grey, label = OUTSIDES[outside]
    for key in range(20):
        padded, labels = augment(image, target, settings, keyed_generator(key))
        inside = labels != label
        assert int(inside.sum()) == height * width
        assert (padded[:, ~inside] == grey).all()
        # The image is whole, in one piece, and its target moved with it.
        rows, columns = (inside.any(axis).nonzero()[0] for axis in (1, 0))
        window = padded[:, rows[0] : rows[0] + height, columns[0] : columns[0] + width]
        assert torch.equal(window.flip(-1) if flip else window, image)
        assert torch.equal(padded[1][inside], labels[inside])


def test_pixels_outside_the_image_are_ignored_unless_configured():
    assert _augmentation(16).outside == "ignore"
    # settings.json of version 0.2.0 has no such key.
    old = {"crop_size": 16, "scale": [1.0, 1.0], "horizontal_flip": 0.0}
    assert Augmentation.from_dict(old).outside == "ignore"


@pytest.mark.parametrize("size", [(5, 6), (6, 3), (2, 20), (20, 5)])
def test_a_smaller_image_is_everywhere_in_the_crop_equally_often(size):
    """Chi-squared test of the places along each side; 0.999 quantile for 7 places."""
    side, draws = 8, 1400
    image, target = torch.zeros(3, *size, dtype=torch.uint8), torch.zeros(size)
    settings = _augmentation(side)
    starts = []
    for key in range(draws):
        labels = augment(image, target.byte(), settings, keyed_generator(key))[1]
        inside = labels != 255
        starts.append([int(inside.any(axis).nonzero()[0]) for axis in (1, 0)])
    for extent, found in zip(size, np.array(starts).T, strict=True):
        places = max(0, side - extent) + 1
        counts = np.bincount(found, minlength=places)
        assert len(counts) == places
        expected = draws / places
        assert ((counts - expected) ** 2 / expected).sum() < 22.46
    if max(size) < side:  # rows and columns are drawn independently
        assert abs(np.corrcoef(np.array(starts).T)[0, 1]) < 0.1


def test_crop_of_a_larger_image_is_a_window_of_it():
    image, target = _coordinates(20, 30)
    crop, labels = augment(image, target, _augmentation(8), keyed_generator(1))
    top, left = int(crop[0, 0, 0]), int(crop[1, 0, 0])
    window = slice(top, top + 8), slice(left, left + 8)
    assert torch.equal(crop, image[:, *window])
    assert torch.equal(labels, target[*window])


def test_crop_reaches_every_place():
    image, target = _coordinates(5, 6)
    crops = [
        augment(image, target, _augmentation(4), keyed_generator(key))[0]
        for key in range(60)
    ]
    places = {(int(crop[0, 0, 0]), int(crop[1, 0, 0])) for crop in crops}
    assert places == {(top, left) for top in range(2) for left in range(3)}


def test_flip_mirrors_image_and_target_alike():
    sample = _noise(20, 30)
    plain, mirrored = (
        augment(*sample, _augmentation(24, horizontal_flip=flip), keyed_generator(5))
        for flip in (0.0, 1.0)
    )
    assert torch.equal(mirrored[0], plain[0].flip(-1))
    assert torch.equal(mirrored[1], plain[1].flip(-1))
    assert not torch.equal(mirrored[0], plain[0])


def test_flip_happens_as_often_as_configured():
    image, target = _coordinates(4, 4)
    settings = _augmentation(4, horizontal_flip=0.25)
    first_columns = [
        int(augment(image, target, settings, keyed_generator(key))[1][0, 0])
        for key in range(200)
    ]
    assert set(first_columns) == {0, 3}
    assert 30 <= first_columns.count(3) <= 70


def test_scaling_invents_no_label():
    image, target = _noise(20, 20)
    settings = _augmentation(32, scale=(0.5, 2.0), horizontal_flip=0.5)
    seen = set()
    for key in range(20):
        seen |= set(augment(image, target, settings, keyed_generator(key))[1].unique())
    assert {int(label) for label in seen} == {0, 7, 20, 255}


def test_scale_lies_between_its_bounds_and_varies():
    image, target = _coordinates(20, 10)
    settings = _augmentation(48, scale=(0.5, 2.0))
    sizes = set()
    for key in range(40):
        inside = augment(image, target, settings, keyed_generator(key))[1] != 255
        height, width = int(inside.any(1).sum()), int(inside.any(0).sum())
        assert int(inside.sum()) == height * width
        assert abs(height - 2 * width) <= 1  # both sides by the same factor
        sizes.add(height)
    assert min(sizes) in range(10, 15)
    assert max(sizes) in range(36, 41)


@pytest.mark.parametrize("factor", [1 / 3, 0.6, 1.7])
def test_scaled_image_and_target_stay_aligned(factor):
    """The label must be that of the place whose colour the image shows."""
    columns = torch.arange(60, dtype=torch.uint8).expand(12, 60)
    image, target = (4 * columns).expand(3, 12, 60), columns
    settings = _augmentation(100, scale=(factor, factor))
    scaled, labels = augment(image, target, settings, keyed_generator(0))
    inside = labels != 255
    shift = (labels[inside].double() - scaled[0][inside].double() / 4).mean()
    assert abs(float(shift)) < 0.1  # columns of the source


@pytest.mark.parametrize("change", ["brightness", "contrast", "saturation"])
def test_colour_changes_leave_the_target_alone(change):
    sample = _noise(16, 16)
    plain, changed = (
        augment(*sample, _augmentation(16, **amount), keyed_generator(3))
        for amount in ({}, {change: 0.5})
    )
    assert torch.equal(plain[0], sample[0])
    assert not torch.equal(changed[0], plain[0])
    assert torch.equal(changed[1], plain[1])


def test_keyed_generator_is_the_same_in_every_process():
    assert keyed_generator("augment", 0, 3, "a").random() == 0.896331693850482


@pytest.mark.parametrize("key", [("a", 1, 2), ("a", 2, 1), ("a", 12), ("a", "1", 2)])
def test_keyed_generator_tells_keys_apart(key):
    assert keyed_generator(*key).random() != keyed_generator("a", 1, 3).random()
    assert keyed_generator(*key).random() == keyed_generator(*key).random()


# --- the stream --------------------------------------------------------------------


def _stream(images: int = 10, **changes) -> TrainingStream:
    settings = {"epochs": 3, "batch_size": 4, "seed": 0}
    return TrainingStream(images, **{**settings, **changes})


def _global_batches(world_size: int, accumulation: int, **settings) -> list[list[Item]]:
    """Per iteration the items of all ranks and micro-batches."""
    ranks = [
        list(
            _stream(
                rank=rank, world_size=world_size, accumulation=accumulation, **settings
            )
        )
        for rank in range(world_size)
    ]
    sizes = {
        len(micro_batch) for micro_batches in ranks for micro_batch in micro_batches
    }
    assert sizes == {settings["batch_size"] // (world_size * accumulation)}
    iterations = len(ranks[0]) // accumulation
    return [
        [
            item
            for micro_batches in ranks
            for micro_batch in micro_batches[i * accumulation : (i + 1) * accumulation]
            for item in micro_batch
        ]
        for i in range(iterations)
    ]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_processes_and_micro_batches_share_the_global_batch(world_size, accumulation):
    settings = {"images": 37, "epochs": 2, "batch_size": 24}
    whole = list(_stream(**settings))
    assert _global_batches(world_size, accumulation, **settings) == whole
    assert len(whole) == 4  # 74 places in batches of 24, the last one filled up


@pytest.mark.parametrize(("images", "batch_size"), [(10, 4), (12, 4), (7, 7), (5, 3)])
def test_every_epoch_shows_every_image_once(images, batch_size):
    stream = _stream(images, batch_size=batch_size)
    items = [item for batch in stream for item in batch]
    assert {len(batch) for batch in stream} == {batch_size}
    assert images * 3 <= len(items) < images * 3 + batch_size
    for epoch in range(3):
        places = items[epoch * images : (epoch + 1) * images]
        assert {item.epoch for item in places} == {epoch}
        assert sorted(item.image for item in places) == list(range(images))


def _order(epoch: int, **settings) -> list[int]:
    items = [item for batch in _stream(100, **settings) for item in batch]
    return [item.image for item in items if item.epoch == epoch]


def test_order_depends_on_epoch_and_seed_alone():
    assert _order(0) == _order(0, batch_size=10)
    assert _order(0) != _order(1)
    assert _order(0) != _order(0, seed=1)


@pytest.mark.parametrize(
    ("epochs", "iterations"), [(1, 3), (2, 5), (0.5, 2), (0.4, 1), (0.01, 1)]
)
def test_number_of_iterations(epochs, iterations):
    stream = _stream(10, epochs=epochs)
    assert stream.iterations == len(stream) == len(list(stream)) == iterations


@pytest.mark.parametrize("start", [0, 1, 5, 7, 8])
@pytest.mark.parametrize("rank", [0, 1])
def test_resumed_stream_is_the_tail(start, rank):
    settings = {"rank": rank, "world_size": 2, "accumulation": 2}
    whole = list(_stream(10, **settings))
    resumed = _stream(10, start=start, **settings)
    assert list(resumed) == whole[2 * start :]
    assert len(resumed) == len(whole) - 2 * start
    assert resumed.iterations == 8


@pytest.mark.parametrize(
    ("batch_size", "world_size", "accumulation"), [(4, 3, 1), (4, 1, 3), (4, 2, 4)]
)
def test_batch_that_cannot_be_shared_is_refused(batch_size, world_size, accumulation):
    with pytest.raises(ValueError, match=rf"batch_size {batch_size} .*{world_size} x"):
        _stream(batch_size=batch_size, world_size=world_size, accumulation=accumulation)


def test_batch_may_hold_more_than_the_dataset():
    [batch] = _stream(3, epochs=1, batch_size=8)
    assert [item.epoch for item in batch] == [0, 0, 0, 1, 1, 1, 2, 2]
    for epoch in (0, 1):
        images = [item.image for item in batch if item.epoch == epoch]
        assert sorted(images) == [0, 1, 2]


# --- the loaders -------------------------------------------------------------------


@pytest.fixture
def rows(small_folder, index_of) -> pd.DataFrame:
    """The training rows of the small folder."""
    index = read_index(index_of(small_folder)[0])
    return index[index["subset"] == "train"].reset_index(drop=True)


SHIFTED = np.array([*range(100, 255), *range(100), 255], np.uint8)  # any bijection


def _training_images(rows: pd.DataFrame, **changes) -> TrainingImages:
    settings = {"augmentation": _augmentation(8), "seed": 0, "label_table": SHIFTED}
    return TrainingImages(rows, **{**settings, **changes})


def test_loader_workers_do_not_change_the_batches(rows):
    images = _training_images(rows, augmentation=_augmentation(8, **FULL))
    stream = _stream(len(rows), epochs=4, batch_size=3)
    alone, workers = (
        list(training_loader(images, stream, workers=workers)) for workers in (0, 2)
    )
    assert len(alone) == len(workers) == 4
    for one, other in zip(alone, workers, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.targets, other.targets)
        assert one.ids == other.ids
        assert torch.equal(one.keys, other.keys)


def test_batch_names_its_images_and_places(rows):
    stream = _stream(len(rows), epochs=2, batch_size=3)
    for batch, items in zip(
        training_loader(_training_images(rows), stream, workers=0), stream, strict=True
    ):
        assert batch.images.shape == (3, 3, 8, 8)
        assert batch.targets.shape == (3, 8, 8)
        assert batch.ids == [rows["id"][item.image] for item in items]
        keys = [item.epoch * len(rows) + item.image for item in items]
        assert batch.keys.tolist() == keys


def _find(crop: np.ndarray, whole: np.ndarray) -> tuple[slice, slice]:
    """Where a crop (H, W) shows a smaller array, which must be there once."""
    windows = np.lib.stride_tricks.sliding_window_view(crop, whole.shape)
    [[top, left]] = np.argwhere((windows == whole).all((2, 3)))
    height, width = whole.shape
    return slice(top, top + height), slice(left, left + width)


def test_target_is_the_mask_through_the_table(rows):
    images = _training_images(rows)
    number = int(np.flatnonzero(rows["id"] == "a")[0])
    image, target, name, *_ = images[Item(0, number)]
    assert name == "a"
    with Image.open(rows["mask"][number]) as opened:
        mask = np.asarray(opened)
    assert mask[0, :3].tolist() == [3, 2, 0]
    place = _find(target.numpy(), SHIFTED[mask])
    with Image.open(rows["image"][number]) as opened:
        expected = np.asarray(opened).transpose(2, 0, 1)
    np.testing.assert_array_equal(image[:, *place], expected)


def test_epochs_augment_an_image_differently(rows):
    images = _training_images(rows, augmentation=_augmentation(4, **FULL))
    epochs = [images[Item(epoch, 0)][0] for epoch in (0, 1)]
    assert not torch.equal(*epochs)


def test_pseudo_labels_replace_masks_and_are_not_mapped(rows, tmp_path):
    written = {name: _labels(k, 200, 255) for k, name in enumerate(rows["id"])}
    written["007"] = _labels(9, shape=(5, 4))
    for name, labels in written.items():
        write_label_image(tmp_path / f"{name}.png", labels)
    images = _training_images(rows, label_table=None, pseudo_labels=tmp_path)
    for number, name in enumerate(rows["id"]):
        target = images[Item(0, number)][1].numpy()
        place = _find(target, written[name])
        outside = np.ones_like(target, bool)
        outside[place] = False
        assert (target[outside] == 255).all()


def test_images_without_any_target_are_refused(rows):
    with pytest.raises(ValueError, match="label_table or a pseudo_labels"):
        _training_images(rows, label_table=None)


@pytest.fixture
def sized_rows(folder_dataset, index_of) -> pd.DataFrame:
    """Rows of two sizes, in an order that is not that of the ids."""
    wide, tall = (4, 6), (6, 4)
    shapes = {"e": wide, "a": wide, "d": wide, "b": tall, "c": wide}
    masks = {
        name: _labels(number % 4, shape=shape)
        for number, (name, shape) in enumerate(shapes.items())
    }
    folder = folder_dataset({"train": masks, "val": {"v": _labels()}})
    index = read_index(index_of(folder)[0]).set_index("id", drop=False)
    return index.loc[list(shapes)].reset_index(drop=True)


@pytest.mark.parametrize(
    ("batch_size", "batches"),
    [
        (1, [["e"], ["a"], ["d"], ["b"], ["c"]]),
        (2, [["e", "a"], ["d", "c"], ["b"]]),
        (8, [["e", "a", "d", "c"], ["b"]]),
    ],
)
def test_whole_images_come_once_in_batches_of_one_size(sized_rows, batch_size, batches):
    loader = whole_image_loader(sized_rows, SHIFTED, batch_size=batch_size)
    assert [batch.ids for batch in loader] == batches


def test_whole_images_keep_size_pixels_and_mapped_labels(sized_rows):
    batches = list(whole_image_loader(sized_rows, SHIFTED, batch_size=2))
    assert [tuple(batch.images.shape) for batch in batches] == [
        (2, 3, 4, 6),
        (2, 3, 4, 6),
        (1, 3, 6, 4),
    ]
    first_of_row = {
        key: int(target[0, 0])
        for batch in batches
        for key, target in zip(batch.keys.tolist(), batch.targets, strict=True)
    }
    assert first_of_row == {k: SHIFTED[k % 4] for k in range(5)}
    with Image.open(sized_rows["image"][3]) as opened:
        expected = np.asarray(opened).transpose(2, 0, 1)
    np.testing.assert_array_equal(batches[2].images[0], expected)


# --- decoding, memory --------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "P"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_an_image_decodes_as_pillow_decodes_it(tmp_path, mode, kind):
    if (mode, kind) in (("P", "JPEG"), ("CMYK", "PNG")):
        kind = "TIFF"
    noise = np.random.default_rng(0).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((130, 90)).convert(mode)
    path = tmp_path / "image"
    image.save(path, format=kind)
    with Image.open(path) as opened:
        expected = np.asarray(opened.convert("RGB")).transpose(2, 0, 1)
    decoded = read_image(path)
    assert decoded.dtype == torch.uint8
    np.testing.assert_array_equal(decoded, expected)


def test_kept_images_are_the_decoded_ones_as_many_as_fit(rows):
    def images() -> TrainingImages:
        augmentation = Augmentation(16, (0.8, 1.2), 0.5)
        return TrainingImages(
            rows, augmentation=augmentation, seed=0, label_table=SHIFTED
        )

    plain, kept, some = images(), images(), images()
    kept.keep_decoded(1e9, threads=2)
    assert len(kept.kept) == len(rows)
    each = sum(tensor.nbytes for tensor in plain.decode(0))
    some.keep_decoded(2.5 * each, threads=1)
    assert len(some.kept) == 2
    for other in (kept, some):
        for number in range(len(rows)):
            for one, two in zip(
                plain[Item(3, number)][:2], other[Item(3, number)][:2], strict=True
            ):
                assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("free", "wanted", "fitting"), [(64, 4, 2), (10, 4, 0), (1000, 4, 4), (0, 0, 0)]
)
def test_loader_workers_fit_into_shared_memory(
    monkeypatch, caplog, tmp_path, free, wanted, fitting
):
    usage = shutil.disk_usage(tmp_path)._replace(free=free * 2**20)
    monkeypatch.setattr("kproba.data.loaders.SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert workers_that_fit(wanted, 10 * 2**20) == fitting
    messages = [record.message for record in caplog.records]
    assert bool(messages) == (fitting < wanted)
    assert all("--shm-size" in message for message in messages)


@pytest.mark.parametrize(("iterations", "images"), [(1, 3), (7, 3), (40, 100)])
def test_iterations_take_the_place_of_epochs(iterations, images):
    stream = TrainingStream(
        images, epochs=50, batch_size=4, seed=0, iterations=iterations
    )
    assert stream.iterations == len(stream) == iterations
    by_epochs = TrainingStream(images, epochs=50, batch_size=4, seed=0)
    for batch, same in zip(stream, by_epochs, strict=False):
        assert batch == same  # the same images, only fewer or more batches
