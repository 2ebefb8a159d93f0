"""Pictures of several sizes in one batch: what is beyond them reaches nothing."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from small_banks import CLASSES, bank_of, decision_by, images_of, network_of
from small_networks import ARCHITECTURE, randomise_norms
from test_inference import BANK, LABELS, TEST, files_of_test, outputs_of_labels
from test_large_jobs import step_of  # noqa: F401

from kproba.bank.decision import Decision
from kproba.bank.predictor import FusedPredictor, NetworkPredictor
from kproba.bank.views import views
from kproba.data import canvases, tiles
from kproba.data.canvases import ALIGNED, Size, choose_canvases, pad, places
from kproba.data.loaders import Batch
from kproba.data.splits import read_index
from kproba.data.whole_images import equal_sizes, whole_image_loader
from kproba.jobs.batches import image_batches
from kproba.jobs.step_bank import BankFiles, build_step_bank
from kproba.jobs.step_labels import LabelInputs, label_step
from kproba.jobs.step_test import test_step as run_test
from kproba.network import SegmentationNetwork
from kproba.network.backbones import BACKBONES
from kproba.network.canvas import Canvas
from kproba.network.folding import fold_all
from kproba.network.network import Outputs
from kproba.runtime.compute import Compute
from kproba.runtime.distributed import Process

ALONE = Process()
RAW = np.arange(256, dtype=np.uint8)
SIDES = [(64, 96), (63, 95), (49, 66), (34, 81), (1, 96), (64, 7)]
CANVAS = Size(64, 96)
# Of the largest value. ResNets of random weights make more of rounding.
TOLERANCE = {"efficientnet_lite0": 5e-5, "resnet50": 1e-3}


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sizes of pictures are many already."""
    monkeypatch.setattr(canvases, "FEW", 1)


# --- the network ----------------------------------------------------------------------


def network_with(backbone: str, **changes: Any) -> SegmentationNetwork:
    """Batch norms make something else of zeros."""
    architecture = replace(ARCHITECTURE, backbone=backbone, **changes)
    network = SegmentationNetwork(architecture, [2, 1], seed=1)
    randomise_norms(network)
    network.keep_stages = True
    return network.eval().requires_grad_(False)


def pictures() -> list[torch.Tensor]:
    """One of each size, (3, h, w) uint8."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randint(0, 256, (3, *side), dtype=torch.uint8, generator=generator)
        for side in SIDES
    ]


def maps_of(outputs: Outputs) -> list[torch.Tensor]:
    return [outputs.backbone, *outputs.blocks, *outputs.logits, *outputs.stages]


def differences(found: Outputs, alone: Outputs) -> list[float]:
    """Of every map, the largest as a share of the largest value."""
    pairs = list(zip(maps_of(found), maps_of(alone), strict=True))
    assert all(own.shape == other.shape for own, other in pairs)
    return [float((a - b).abs().max() / b.abs().max()) for a, b in pairs]


@pytest.mark.parametrize("folded", [True, False], ids=["folded", "plain"])
@pytest.mark.parametrize("head", ["branches", "softmax"])
@pytest.mark.parametrize("stride", [8, 16])
@pytest.mark.parametrize("backbone", TOLERANCE)
def test_features_of_a_picture_are_those_without_a_canvas(
    backbone: str, stride: int, head: str, folded: bool
) -> None:
    network = network_with(backbone, output_stride=stride, head=head)
    network = fold_all(network) if folded else network
    anchor = BACKBONES[backbone].anchor
    assert anchor is not None
    images = pictures()
    alone = [network(image[None]) for image in images]
    together = torch.stack([pad(image, CANVAS, anchor, 0) for image in images])
    canvas = Canvas(together.shape, SIDES, anchor, torch.device("cpu"))
    hooks = sum(len(m._forward_pre_hooks) for m in network.modules())
    with canvas.masked(network):
        outputs = network(together)
    unmasked = network(together)
    apart = []
    for number, expected in enumerate(alone):
        found = differences(canvas.crop(outputs, number), expected)
        assert max(found) < TOLERANCE[backbone]
        apart.append(max(differences(canvas.crop(unmasked, number), expected)))
    # The first fills its canvas, the others do not.
    assert min(apart[1:]) > 0.02
    # Another anchor than the layers have gives features of other cells.
    assert hooks == sum(len(m._forward_pre_hooks) for m in network.modules()) == 0
    other = "start" if anchor == "end" else "end"
    wrong = Canvas(together.shape, SIDES, other, torch.device("cpu"))
    moved = torch.stack([pad(image, CANVAS, other, 0) for image in images])
    with wrong.masked(network):
        outputs = network(moved)
    assert max(differences(wrong.crop(outputs, 1), alone[1])) > 0.02


def test_views_of_a_canvas_are_those_of_its_pictures() -> None:
    network = network_with("efficientnet_lite0")
    images = pictures()
    together = torch.stack([pad(image, CANVAS, "end", 0) for image in images])
    for sizes in (SIDES, SIDES[::-1]):
        batch = together if sizes is SIDES else together.flip(0)
        found = list(views(network, batch, sizes))
        assert [view.size for view in found] == sizes
        ordered = images if sizes is SIDES else images[::-1]
        for view, image in zip(found, ordered, strict=True):
            number, rows, columns = view.place
            assert torch.equal(batch[number, :, rows, columns][0], image)
            assert max(differences(view.outputs, network(image[None]))) < 5e-5
    labels = dict.fromkeys(range(len(SIDES)))
    for place, of_picture in NetworkPredictor(network).predict_labels(together, SIDES):
        labels[place[0].start] = of_picture[0]
    for image, label in zip(images, labels.values(), strict=True):
        assert label is not None and label.shape == image.shape[1:]
        assert (network.predict(image[None])[0] != label).double().mean() < 1e-3


def test_a_backbone_of_unknown_padding_gets_no_canvas() -> None:
    network = network_with("efficientnet_lite0")
    network.backbone.anchor = None
    with pytest.raises(ValueError, match=r"no `anchor`"):
        list(views(network, torch.zeros(1, 3, 32, 32).byte(), [(30, 31)]))
    assert len(list(views(network, torch.zeros(1, 3, 32, 32).byte()))) == 1


# --- the canvases ---------------------------------------------------------------------

VOC = [(height, 500) for height in range(281, 431, 2)]
VOC += [(500, width) for width in range(281, 431, 2)]


def test_voc_has_few_canvases_that_are_hardly_larger() -> None:
    assert len(set(VOC)) == 150
    often = VOC + [(375, 500)] * 700 + [(333, 500)] * 300 + [(500, 375)] * 300
    chosen = choose_canvases(often, 1024)
    for size, canvas in zip(often, chosen, strict=True):
        assert canvas is not None
        assert canvas.height >= size[0] and canvas.width >= size[1]
        assert canvas.height % ALIGNED == canvas.width % ALIGNED == 0
    assert 1 < len(set(chosen)) <= 16
    padded = sum(canvas.height * canvas.width for canvas in chosen if canvas)
    assert padded <= 1.25 * sum(height * width for height, width in often)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([], []),
        ([(40, 50)] * 3, [None] * 3),
        ([(375, 500)], [None]),
        ([(40, 50), (41, 50)], [(64, 64), (64, 64)]),
        ([(40, 50), (41, 50), (130, 50)], [(64, 64), (64, 64), None]),
        # The larger one is cut into tiles; its size does not matter to the others.
        ([(1000, 1024), (1000, 1025), (999, 1024)], [(1024, 1024), None, (1024, 1024)]),
        ([(1, 1025), (1, 1026)], [None, None]),
        ([(1, 1), (1, 2)], [(32, 32), (32, 32)]),
        # Small pictures have more canvases, which are a smaller part of them then.
        ([(60, 250), (70, 250), (60, 249)], [(64, 256), None, (64, 256)]),
    ],
)
@pytest.mark.usefixtures("many")
def test_a_picture_has_a_canvas_where_it_needs_one(
    sizes: list[tuple[int, int]], expected: list[tuple[int, int] | None]
) -> None:
    assert choose_canvases(sizes, tiles.TILE) == expected
    assert tiles.TILE == 1024  # so canvases are no larger


@pytest.mark.parametrize(("count", "padded"), [(1, False), (16, False), (17, True)])
def test_few_sizes_are_worth_no_padding(count: int, padded: bool) -> None:
    sizes = [(400, 400 + k) for k in range(count)] * 3
    found = choose_canvases(sizes, tiles.TILE)
    assert found == [(416, 416) if padded else None] * len(sizes)


@pytest.mark.parametrize("anchor", ["start", "end"])
def test_a_padded_picture_is_found_at_its_place(anchor: Any) -> None:
    images = pictures()
    batch = torch.stack([pad(image, CANVAS, anchor, 7) for image in images])
    for image, (number, rows, columns) in zip(
        images, places(CANVAS, SIDES, anchor), strict=True
    ):
        assert torch.equal(batch[number, :, rows, columns][0], image)
        batch[number, :, rows, columns] = 7
    assert (batch == 7).all()


@pytest.mark.parametrize("batch_size", [1, 4, 50])
@pytest.mark.parametrize("large", [True, False])
def test_batches_hold_every_picture_once(batch_size: int, large: bool) -> None:
    sizes = VOC + [(1024, 1000 + k) for k in range(20)] * large + [(900, 900)] * 3
    rows = pd.DataFrame(sizes, columns=["height", "width"])
    chosen = choose_canvases(sizes, tiles.TILE)
    batches = equal_sizes(rows, batch_size, chosen)
    assert sorted(n for batch in batches for n in batch) == list(range(len(sizes)))
    for batch in batches:
        [stacked] = {chosen[n] or Size(*sizes[n]) for n in batch}
        assert len({chosen[n] is None for n in batch}) == 1
        pixels = len(batch) * stacked.height * stacked.width
        assert len(batch) == 1 or pixels <= tiles.MOST_BATCH_PIXELS
        assert len(batch) <= batch_size
    if batch_size == 50:
        assert len(batches) < len(equal_sizes(rows, batch_size))


# --- the jobs -------------------------------------------------------------------------

# Width and height of pictures: most share a canvas, one has its own size, two have one.
MIXED = [
    *((100, 75), (99, 75), (75, 100), (64, 128), (101, 67), (33, 90), (127, 127)),
    *((200, 130), (100, 75), (1, 40)),
]


@pytest.fixture
def step(step_of: Callable[..., Path]) -> Path:  # noqa: F811
    """A step of pictures of several sizes."""
    return step_of(*MIXED)


def force(monkeypatch: pytest.MonkeyPatch, anchor: str | None) -> list[Batch]:
    """Use canvases on the CPU, or none; the batches that are made from now on."""
    made: list[Batch] = []

    def load(*arguments: Any, **options: Any) -> Any:
        assert options["anchor"] is None  # on a CPU
        loader = whole_image_loader(*arguments, **{**options, "anchor": anchor})
        collate = loader.collate_fn

        def remember(samples: Any) -> Batch:
            batch: Batch = collate(samples)
            made.append(batch)
            return batch

        loader.collate_fn = remember
        return loader

    monkeypatch.setattr("kproba.jobs.batches.whole_image_loader", load)
    return made


def read_mask(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


@pytest.mark.usefixtures("many")
@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("workers", [0, 1])
def test_every_picture_is_seen_once_in_its_own_size(
    step: Path, processes: int, workers: int
) -> None:
    rows = read_index(step / "split.csv")
    seen = []
    for rank in range(processes):
        process = Process(rank=rank, world_size=processes)
        loader = whole_image_loader(
            rows, RAW, batch_size=3, workers=workers, process=process, anchor="end"
        )
        for batch in loader:
            assert len({image.shape for image in batch.images}) == 1
            if batch.sizes is not None:
                assert not any(side % ALIGNED for side in batch.images.shape[-2:])
            for name, key, place in zip(
                batch.ids, batch.keys.tolist(), batch.places, strict=True
            ):
                row = rows[rows["id"] == name].iloc[0]
                assert key == row.name
                number, *extent = place
                image = batch.images[number.start, :, *extent]
                target = batch.targets[place][0]
                expected = read_mask(row["image"]).transpose(2, 0, 1)
                np.testing.assert_array_equal(image, expected)
                np.testing.assert_array_equal(target, read_mask(row["mask"]))
                beyond = batch.targets[number.start].clone()
                beyond[tuple(extent)] = 255
                assert (beyond == 255).all()
                seen.append(name)
    assert sorted(seen) == sorted(rows["id"])


def bank_job(map_: str) -> dict[str, Any]:
    settings = dict(BANK["settings"])
    if map_ == "identity":
        settings |= {"map": map_}
        for key in ("dimension", "maps", "gamma"):
            settings.pop(key)
    return {**BANK, "settings": settings}


def run_jobs(step: Path, out: Path, rule: str, bank_of_plain: Path) -> None:
    """Bank of step 0; pseudo labels of step 1 and test of step 0 with one bank."""
    out.mkdir()
    compute, bank = Compute(batch_size=4), None
    model, split = step / "model.safetensors", step / "split.csv"
    decision = None
    if rule in ("lda", "klda"):
        bank = out / "prototypes.safetensors"
        decision = Decision(rule, image_prior=2).to_dict()
        map_ = "identity" if rule == "lda" else "rff"
        build_step_bank(BankFiles(model, split, bank), bank_job(map_), compute, ALONE)
        bank = bank_of_plain
    labels = {**LABELS, "settings": {"rule": rule, "decision": decision}}
    inputs = LabelInputs(model, split, bank)
    label_step(inputs, outputs_of_labels(out), labels, compute, ALONE)
    test = {**TEST, "decision": decision}
    run_test(files_of_test(step, out, bank=bank), test, compute, ALONE)


@pytest.mark.usefixtures("many")
@pytest.mark.parametrize("rule", ["lda", "klda", "entropy", "argmax"])
def test_jobs_have_the_results_of_pictures_without_a_canvas(
    step: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: str
) -> None:
    """But for rounding: where two classes tie, a pixel may get the other one."""
    folders = {name: tmp_path / name for name in ("plain", "canvas")}
    force(monkeypatch, None)
    bank = folders["plain"] / "prototypes.safetensors"
    run_jobs(step, folders["plain"], rule, bank)
    made = force(monkeypatch, "end")
    run_jobs(step, folders["canvas"], rule, bank)
    on_canvas = [batch for batch in made if batch.sizes is not None]
    assert max(len(set(batch.sizes or ())) for batch in on_canvas) >= 3
    assert any(batch.sizes is None for batch in made)

    if rule in ("lda", "klda"):
        one, other = (load_file(f / "prototypes.safetensors") for f in folders.values())
        assert one.keys() == other.keys()
        for key in ("count", "share"):
            assert torch.equal(one[key], other[key]) and one[key].sum() > 0
        for key, tensor in one.items():
            scale = float(tensor.abs().max())
            torch.testing.assert_close(
                other[key], tensor, rtol=0, atol=1e-4 * scale, msg=key
            )
    for folder in ("labels", "examples"):
        names = sorted(path.name for path in (folders["plain"] / folder).iterdir())
        pairs = [
            tuple(read_mask(f / folder / name) for f in folders.values())
            for name in names
        ]
        assert all(own.shape == other.shape for own, other in pairs)
        moved = sum(int((own != other).sum()) for own, other in pairs)
        assert moved <= 1e-4 * sum(own.size for own, _ in pairs)
        assert len(np.unique(np.concatenate([own.ravel() for own, _ in pairs]))) >= 2
    tables = [pd.read_csv(f / "labels.csv") for f in folders.values()]
    assert list(tables[0]["id"]) == list(tables[1]["id"])
    for column in ("pixels", "background"):
        assert tables[0][column].equals(tables[1][column])
    # Nothing beyond a picture is counted.
    one, other = (pd.read_csv(f / "labels_quality.csv") for f in folders.values())
    assert one["pixels"].equals(other["pixels"]) and one["pixels"].sum() > 0
    assert (one["labelled"] - other["labelled"]).abs().max() <= 2
    rows = read_index(step / "split.csv").set_index("id")
    for row in tables[1].itertuples():
        assert row.pixels == rows.loc[row.id, "width"] * rows.loc[row.id, "height"]
    counts = [
        pd.read_csv(f / "confusion.csv", index_col=0).to_numpy()
        for f in folders.values()
    ]
    assert counts[0].sum() == counts[1].sum() > 20_000
    assert (counts[0].sum(axis=1) == counts[1].sum(axis=1)).all()
    assert np.abs(counts[0] - counts[1]).sum() / 2 <= 1e-4 * counts[0].sum()
    assert (counts[0] > 0).sum() > 3


@pytest.mark.usefixtures("many")
@pytest.mark.parametrize(("device", "sizes"), [("cpu", False), ("cuda:0", True)])
def test_canvases_are_used_on_a_gpu_alone(step: Path, device: str, sizes: bool) -> None:
    rows = read_index(step / "split.csv")
    process = Process(device=device)
    stage = image_batches(rows, RAW, Compute(batch_size=4), process, "test", "end")
    batches = list(stage)
    assert any(batch.sizes is not None for batch in batches) == sizes
    assert sorted(n for batch in batches for n in batch.ids) == sorted(rows["id"])
    without = image_batches(rows, RAW, Compute(batch_size=4), process, "test")
    assert all(batch.sizes is None for batch in without)
    assert len(list(without)) > len(batches) or not sizes


def test_networks_of_a_test_are_masked_both() -> None:
    """The one that decides, and the one whose features the bank reads."""
    network = network_of(3)
    other = copy.deepcopy(network)
    with torch.no_grad():
        for stage in other.backbone.stages()[2:]:
            next(stage.parameters()).mul_(1.2)
    bank = bank_of(other, images_of(64, 96), "identity")
    predictor = FusedPredictor(network, bank, decision_by("lda"), other)
    assert predictor.combination.shared_stages == 2
    images = pictures()
    together = torch.stack([pad(image, CANVAS, "end", 0) for image in images])
    found = dict(enumerate(predictor.predict_labels(together, SIDES)))
    moved = pixels = 0
    for number, image in enumerate(images):
        place, labels = found[number]
        ((_, expected),) = predictor.predict_labels(image[None])
        assert place[0] == slice(number, number + 1)
        assert labels.shape == expected.shape and labels.max() < CLASSES
        moved += int((labels != expected).sum())
        pixels += labels.numel()
    assert moved <= 1e-3 * pixels
