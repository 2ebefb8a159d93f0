"""Pictures of any size in bank, pseudo labels, test and validation while training.

The bounds are small here, so that small pictures are large ones.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from label_inputs import Teacher, bank_of, labeller_of, rule
from PIL import Image
from safetensors.torch import load_file
from small_predictions import Columns
from test_inference import BANK, LABELS, TEST, files_of_test, outputs_of_labels

import kproba
from kproba.bank import large
from kproba.bank.build import FeatureBatch, draw_sample
from kproba.bank.predictor import NetworkPredictor
from kproba.bank.settings import BankSettings
from kproba.data import tiles
from kproba.data.augmentation import Augmentation, augment
from kproba.data.labels import LabelMap
from kproba.data.loaders import Batch
from kproba.data.splits import read_index
from kproba.data.tiles import cuts
from kproba.data.whole_images import equal_sizes
from kproba.jobs.batches import cut_batch
from kproba.jobs.step_bank import BankFiles, build_step_bank
from kproba.jobs.step_labels import LabelInputs, label_step
from kproba.jobs.step_test import test_step as run_test
from kproba.methods.entropy import entropy_thresholds
from kproba.network.architecture import Architecture
from kproba.network.files import load_model, save_model
from kproba.network.logits import compose_logits
from kproba.network.network import Outputs, SegmentationNetwork
from kproba.results import evaluation
from kproba.results.evaluation import EvaluationSettings, centre_crop, evaluate
from kproba.runtime.compute import Compute
from kproba.runtime.distributed import Process
from kproba.runtime.files import read_json
from kproba.runtime.job import job_process
from kproba.training import monitor
from kproba.training.monitor import Monitor

ALONE = Process()
CLASSES = 3  # of the model: background, cat, dog


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles of 64 pixels."""
    monkeypatch.setattr(tiles, "TILE", 64)


def noise_labels(height: int, width: int, values=(0, 1, 2), seed: int = 0):
    random = np.random.default_rng(seed)
    return random.choice(values, (height, width)).astype(np.uint8)


@pytest.fixture
def step_of(folder_dataset, index_of, tmp_path):
    """Writer of a step with one picture per size (width, height) and subset."""

    def write(*sizes: tuple[int, int]) -> Path:
        random = np.random.default_rng(0)

        def masks(prefix: str) -> dict[str, np.ndarray]:
            return {
                f"{prefix}{k}": random.choice(
                    [0, 1, 2, 3, 255], (height, width)
                ).astype(np.uint8)
                for k, (width, height) in enumerate(sizes)
            }

        folder = folder_dataset({"train": masks("t"), "val": masks("v")})
        index = read_index(index_of(folder)[0])
        index.to_csv(tmp_path / "index.csv", index=False)
        train = index[index["subset"] == "train"]
        train.to_csv(tmp_path / "split.csv", index=False)
        architecture = Architecture("efficientnet_lite0", 16, (1, 2), 16, 0.1, 0.01)
        network = SegmentationNetwork(architecture, [2], weights="imagenet", seed=3)
        labels = [{"label": label} for label in range(CLASSES)]
        save_model(network, tmp_path / "model.safetensors", about={"classes": labels})
        return tmp_path

    return write


def run_bank(step: Path, out: Path) -> dict[str, torch.Tensor]:
    files = BankFiles(
        step / "model.safetensors", step / "split.csv", out / "b.safetensors"
    )
    build_step_bank(files, BANK, Compute(batch_size=2), ALONE)
    return load_file(files.bank)


# --- tiles and batches ---------------------------------------------------------------


@pytest.mark.parametrize("tile", [32, 48, 64, 1024])
@pytest.mark.parametrize(
    "size", [(1, 1), (1, 5000), (5000, 1), (64, 64), (65, 130), (200, 31), (1025, 1500)]
)
def test_cuts_cover_a_picture_once(size, tile):
    times = torch.zeros(size)
    for rows, columns in cuts(*size, tile):
        assert times[rows, columns].numel() > 0
        assert max(times[rows, columns].shape) <= tile
        times[rows, columns] += 1
        if not tile % tiles.ALIGNED:
            assert rows.start % 32 == columns.start % 32 == 0
    assert (times == 1).all()


def test_a_picture_of_one_tile_is_not_cut():
    batch = Batch(torch.ones(2, 3, 64, 9), torch.ones(2, 64, 9), ["a", "b"], None)
    [part] = cut_batch(batch)
    assert part.images.shape == batch.images.shape
    assert part.ids == batch.ids


@pytest.mark.parametrize(
    ("size", "batch_size", "lengths"),
    [
        ((512, 512), 8, [8, 8, 1]),  # as without a bound
        ((512, 375), 17, [17]),
        ((1024, 1024), 8, [4, 4, 4, 4, 1]),
        ((1025, 1024), 8, [3] * 5 + [2]),
        ((4000, 3000), 8, [1] * 17),
        ((20000, 6700), 8, [1] * 17),
        ((1, 1), 8, [8, 8, 1]),
        ((100_000, 1), 8, [8, 8, 1]),
        ((0, 0), 8, [8, 8, 1]),  # a table of an earlier version
    ],
)
def test_batches_are_bounded_by_pixels(size, batch_size, lengths):
    rows = pd.DataFrame({"width": [size[0]] * 17, "height": size[1]})
    batches = equal_sizes(rows, batch_size)
    assert list(map(len, batches)) == lengths
    assert sorted(number for batch in batches for number in batch) == list(range(17))


# --- bank ----------------------------------------------------------------------------


def drawn_of_tiles(lengths: tuple[int, ...], most: int, key: int) -> torch.Tensor:
    """Numbers of the cells that are drawn of an image whose tiles have `lengths`."""
    settings = BankSettings(
        feature="block", map="identity", scatter=True, ridge=0, calibration_cells=most
    )
    numbers = torch.arange(sum(lengths), dtype=torch.float32)
    batches = [
        FeatureBatch(
            part.view(1, 1, 1, -1),
            torch.zeros(1, 1, len(part), dtype=torch.uint8),
            [key],
        )
        for part in numbers.split(list(lengths))
    ]
    cells = draw_sample(batches, settings, images=1, seed=0).cells
    return cells[:, 0].long()


@pytest.mark.parametrize("lengths", [(130,), (60, 70), (5, 1, 90, 34), (100, 10, 20)])
def test_every_cell_of_an_image_in_tiles_has_the_same_chance(lengths):
    most, times = 65, torch.zeros(sum(lengths))
    for key in range(400):
        drawn = drawn_of_tiles(lengths, most, key)
        assert len(drawn) == len(drawn.unique()) == most
        times[drawn] += 1
    # A binomial count of 400 draws at one half has a standard deviation of 10.
    assert abs(times - 200).max() < 45
    for part in times.split(list(lengths)):
        assert abs(float(part.mean()) - 200) < 45 / len(part) ** 0.5


def test_few_cells_are_all_drawn_and_the_draw_repeats():
    assert drawn_of_tiles((20, 30), 65, 0).sort().values.tolist() == list(range(50))
    one, other = (drawn_of_tiles((60, 70), 65, 3) for _ in range(2))
    assert torch.equal(one, other)


@pytest.mark.parametrize(
    "sizes", [[(160, 96), (48, 64)], [(64, 208), (16, 16), (176, 128)]]
)
def test_a_bank_counts_every_cell_of_tiles_once(step_of, monkeypatch, tmp_path, sizes):
    step = step_of(*sizes)
    whole = run_bank(step, tmp_path / "whole")
    monkeypatch.setattr(tiles, "TILE", 64)
    monkeypatch.setattr(tiles, "MOST_BATCH_PIXELS", 4 * 64**2)
    cut = run_bank(step, tmp_path / "cut")
    assert cut["count"].sum() > 0
    assert torch.equal(cut["count"], whole["count"])
    for key in ("means.0", "centre"):  # features near a cut differ, others do not
        assert not torch.equal(cut[key], whole[key])
        assert torch.nn.functional.cosine_similarity(
            cut[key].flatten(), whole[key].flatten(), dim=0
        ) > (0.8 if key == "centre" else 0.5)


# --- test ----------------------------------------------------------------------------


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "network"])
@pytest.mark.parametrize("most_values", [2**28, 3 * 80 * 80], ids=["kept", "in parts"])
def test_evaluation_and_prediction_give_the_same_labels(
    step_of, monkeypatch, tmp_path, small_tiles, fused, most_values
):
    monkeypatch.setattr(large, "MOST_VALUES", most_values)
    monkeypatch.setattr("kproba.predict.segmenter.MOST_VALUES", most_values)
    monkeypatch.setattr(large, "SAMPLE", 500)
    step, out = step_of((150, 100), (64, 64), (200, 40)), tmp_path / "out"
    run_bank(step, out)
    files = files_of_test(step, out, bank=out / "b.safetensors" if fused else None)
    decision = {**TEST["decision"], "image_prior": 2} if fused else None
    settings = {**TEST["settings"], "examples": 3}
    job = {**TEST, "decision": decision, "settings": settings}
    run_test(files, job, Compute(batch_size=2), ALONE)
    segmenter = kproba.load(out / "predictor.json")
    rows = read_index(step / "index.csv")
    rows = rows[rows["subset"] == "val"]
    counted = np.zeros((CLASSES, CLASSES), np.int64)
    for row in rows.itertuples():
        found = segmenter.predict(row.image, tile=64)
        with Image.open(out / "examples" / f"{row.id}.png") as example:
            np.testing.assert_array_equal(found.indices, np.array(example))
        truth = np.array(Image.open(row.mask))
        known = truth < CLASSES
        np.add.at(counted, (truth[known], found.indices[known]), 1)
    confusion = pd.read_csv(files.confusion, index_col=0).to_numpy()
    np.testing.assert_array_equal(confusion, counted)


class Recorder(Columns):
    """Has an image prior, and counts the largest tensor that is fitted."""

    has_image_prior = True
    most, samples = 0, 0

    def predict_labels(self, images, sizes=None):
        """Labels of whole images."""
        assert sizes is None
        yield (slice(None),), self.fit(self.log_scores(images)).argmax(dim=1)

    def fit(self, log_s, sample=None):
        """Notes sizes."""
        self.most = max(self.most, log_s.numel())
        self.samples += sample is not None
        return log_s


@pytest.mark.parametrize("size", [(300, 200), (1, 5000), (5000, 1), (65, 64)])
@pytest.mark.parametrize("most_values", [2**28, 2 * 64 * 64])
def test_scores_of_a_large_picture_are_never_held(
    monkeypatch, small_tiles, size, most_values
):
    monkeypatch.setattr(large, "MOST_VALUES", most_values)
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (1, 3, *size), generator=random).byte()
    truth = torch.randint(0, 2, (1, *size), generator=random).byte()
    batch = Batch(images, truth, ["a"], torch.zeros(1))
    recorder = Recorder()
    settings = EvaluationSettings("ssul", False, None)
    found = evaluate(recorder, [batch], settings, channel_order=[0, 1])
    predicted = Columns().log_scores(images).argmax(dim=1)
    np.testing.assert_array_equal(
        found, evaluation.confusion_matrix(truth, predicted, 2)
    )
    assert recorder.samples
    assert max(max(shape[2:]) for shape in recorder.shapes) <= 64
    if most_values < 2**20:
        assert recorder.most <= most_values < 2 * images[0, 0].numel()
    else:  # what fits is computed once
        pixels = sum(shape[2] * shape[3] for shape in recorder.shapes)
        assert pixels < 2.5 * images[0, 0].numel()


@pytest.mark.parametrize("size", [(64, 64), (40, 64), (1, 1)])
def test_pictures_without_a_longer_side_are_seen_as_a_whole(small_tiles, size):
    images = torch.zeros(2, 3, *size, dtype=torch.uint8)
    batch = Batch(images, images[:, 0], ["a", "b"], torch.zeros(2))
    recorder = Recorder()
    settings = EvaluationSettings("ssul", False, None)
    evaluate(recorder, [batch], settings, channel_order=[0, 1])
    assert recorder.shapes == [images.shape] and not recorder.samples


@pytest.mark.parametrize("labels", [True, False], ids=["labels", "image"])
@pytest.mark.parametrize("side", [16, 33])
@pytest.mark.parametrize("size", [(20, 1001), (1000, 21), (7, 900), (60, 2500)])
def test_a_crop_of_a_thin_picture_scales_its_middle_alone(
    monkeypatch, size, side, labels
):
    random = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 256, (1, 1, 8, 400), generator=random)
    coarse = coarse if size[0] < size[1] else coarse.transpose(2, 3)
    image = torch.nn.functional.interpolate(coarse.float(), size).byte()
    expected = centre_crop(image, side, labels=labels)
    monkeypatch.setattr(evaluation, "MOST_SCALED", 0)
    found = centre_crop(image, side, labels=labels)
    assert found.shape == expected.shape == (1, 1, side, side)
    apart = (found.int() - expected.int()).abs().float()
    # The whole is scaled by a rounded factor: some pixels lie elsewhere by a part.
    assert (apart > 0).float().mean() < 0.2 if labels else apart.mean() < 8


@pytest.mark.parametrize("size", [(1, 1), (1, 100_000), (100_000, 1), (5, 3000)])
def test_a_crop_of_any_picture_is_small(size):
    images = torch.full((1, 3, *size), 7, dtype=torch.uint8)
    for labels in (True, False):
        cropped = centre_crop(images, 64, labels=labels)
        assert cropped.shape == (1, 3, 64, 64) and (cropped == 7).all()


# --- pseudo labels -------------------------------------------------------------------


def answered(images: torch.Tensor) -> Outputs:
    """Outputs that follow from each pixel alone."""
    pixel = images.float() / 255
    logits = 6 * torch.stack([pixel[:, 0] - 0.3, pixel[:, 1] - 0.5, pixel[:, 2]], 1) - 3
    return Outputs(10 * pixel[:, :1], [12 * pixel[:, 1:2]], [logits])


LABEL_MAP = LabelMap(((1, 2), (3,)))
TEACHER = Teacher(answered)
RULE_CASES = [
    rule("confidence", threshold=0.5),
    rule("argmax"),
    rule("entropy_median"),
    rule("agree"),
    *(rule(name, score_threshold=0.4) for name in ("lda", "klda", "kappa")),
    *(rule(name, image_prior=3) for name in ("lda", "klda", "kappa")),
]


def rule_id(settings) -> str:
    return f"{settings.rule} with {settings.decision.image_prior} iterations"


def labels_by(settings, images, hidden):
    with_bank = settings.rule not in ("confidence", "argmax", "entropy_median")
    labeller = labeller_of(TEACHER, settings, bank_of() if with_bank else None)
    if settings.rule == "entropy_median":
        raw = torch.where(hidden, 0, 3).byte()
        batch = Batch(images, raw, ["a"], torch.zeros(1))
        thresholds = entropy_thresholds(TEACHER, [batch], LABEL_MAP)
        labeller = replace(labeller, thresholds=thresholds)
    return labeller.label(images, hidden)


@pytest.mark.parametrize("settings", RULE_CASES, ids=rule_id)
@pytest.mark.parametrize("most_values", [2**28, 6 * 70 * 70], ids=["kept", "in parts"])
def test_rules_label_large_pictures_as_small_ones(monkeypatch, settings, most_values):
    """A network that sees one pixel at a time says the same in every tile."""
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (1, 3, 150, 200), generator=random).byte()
    hidden = torch.rand(1, 150, 200, generator=random) < 0.5
    expected = labels_by(settings, images, hidden)
    monkeypatch.setattr(tiles, "TILE", 64)
    monkeypatch.setattr(large, "MOST_VALUES", most_values)
    found = labels_by(settings, images, hidden)
    assert found.shape == expected.shape and found.dtype == torch.uint8
    assert (found == expected).float().mean() > 0.999
    assert len(expected.unique()) > 1
    # A sample of the pixels gives nearly the same prior.
    monkeypatch.setattr(large, "SAMPLE", 900)
    sampled = labels_by(settings, images, hidden)
    assert (sampled == expected).float().mean() > 0.95


@pytest.mark.parametrize("count", [0, 1, 40])
def test_few_hidden_pixels_that_no_sample_meets(monkeypatch, count):
    settings = rule("klda", image_prior=3)
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (1, 3, 150, 200), generator=random).byte()
    hidden = torch.zeros(1, 150, 200, dtype=torch.bool)
    hidden[0, 0, :count] = True
    expected = labels_by(settings, images, torch.ones_like(hidden))
    monkeypatch.setattr(tiles, "TILE", 64)
    monkeypatch.setattr(large, "SAMPLE", 900)
    found = labels_by(settings, images, hidden)
    assert (found == expected).float().mean() > 0.95


# --- validation while training -------------------------------------------------------


class Shapes(SegmentationNetwork):
    """Notes the sizes of what it sees."""

    def forward(self, images):
        """As ever."""
        self.shapes.append(tuple(images.shape[-2:]))
        return super().forward(images)


class NoCurves:
    """Takes pictures and numbers."""

    def picture(self, name, picture, iteration):
        """Nothing."""

    def add_validation(self, result):
        """Nothing."""


@pytest.mark.parametrize(
    ("size", "seen"),
    [
        ((150, 100), (43, 64)),
        ((100, 150), (64, 43)),
        ((64, 64), (64, 64)),
        ((64, 30), (30, 64)),
        ((3000, 1), (1, 64)),
        ((1, 1), (1, 1)),
    ],
)
def test_a_validation_check_sees_no_more_than_its_bound(
    step_of, monkeypatch, size, seen
):
    monkeypatch.setattr(monitor, "LONG_SIDE", 64)
    step = step_of(size)
    index = read_index(step / "index.csv").assign(classes="0 1 2")
    watched = Monitor([index], ((1, 2),), images=1, times=1)
    network = load_model(step / "model.safetensors")
    network.__class__, network.shapes = Shapes, []
    assert watched.validate(network, NoCurves(), 1, "cpu") is not None
    assert network.shapes == [seen, seen]  # for the numbers and for the picture


def test_a_check_without_memory_ends_the_checks_alone(step_of, monkeypatch, caplog):
    step = step_of((20, 20))
    index = read_index(step / "index.csv").assign(classes="0 1 2")
    watched = Monitor([index], ((1, 2),), images=1, times=1)

    def fails(*_, **__):
        raise MemoryError("too little")

    monkeypatch.setattr(monitor, "evaluate", fails)
    network = load_model(step / "model.safetensors")
    assert watched.validate(network, NoCurves(), 1, "cpu") is None
    assert watched.failed and "No more validation while training" in caplog.text


# --- tiny and thin pictures ----------------------------------------------------------

ODD_SIZES = [(1, 1), (1, 4000), (20_000, 1), (5, 3000), (3000, 5), (2, 2)]


@pytest.mark.parametrize("size", ODD_SIZES, ids=lambda size: "x".join(map(str, size)))
def test_odd_pictures_pass_every_job(step_of, tmp_path, size):
    step, out = step_of(size, (48, 48)), tmp_path / "out"
    bank = run_bank(step, out)
    assert 5 <= bank["count"].sum() <= 2 * (9 + 20_000 / 16)
    inputs = LabelInputs(
        step / "model.safetensors", step / "split.csv", out / "b.safetensors"
    )
    outputs = outputs_of_labels(out)
    label_step(inputs, outputs, LABELS, Compute(), ALONE)
    with Image.open(outputs.folder / "t0.png") as labels:
        assert labels.size == size
    for crop in (None, 32):
        settings = {**TEST["settings"], "crop": crop}
        files = files_of_test(step, out, bank=out / "b.safetensors")
        run_test(files, {**TEST, "settings": settings}, Compute(), ALONE)
        assert read_json(files.evaluation)["images"] == 2


@pytest.mark.parametrize("scale", [(0.5, 0.5), (2.0, 2.0)], ids=["half", "double"])
@pytest.mark.parametrize("size", [(1, 1), (1, 100_000), (100_000, 1), (5, 3000)])
def test_odd_pictures_are_augmented(size, scale):
    image = torch.full((3, *size), 9, dtype=torch.uint8)
    target = torch.full(size, 2, dtype=torch.uint8)
    settings = Augmentation(32, scale, 0.5, 0.3, 0.3, 0.3)
    for seed in range(3):
        random = np.random.default_rng(seed)
        cut, labels = augment(image, target, settings, random)
        assert cut.shape == (3, 32, 32) and labels.shape == (32, 32)
        assert set(labels.unique().tolist()) == {2, 255}


# --- advice --------------------------------------------------------------------------


def test_a_job_that_asks_for_too_much_memory_says_what_helps(capsys):
    with pytest.raises(SystemExit) as ended, job_process(Compute()):
        torch.empty(2**55, dtype=torch.uint8)
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert "compute.batch_size" in said and "long_side" in said
    assert "Traceback" not in said


def test_a_network_predictor_gives_the_labels_of_its_network(step_of):
    """The monitor tests a network as a predictor, which changes no label."""
    network = load_model(step_of((20, 20)) / "model.safetensors")
    images = torch.randint(0, 256, (2, 3, 40, 50)).byte()
    with torch.inference_mode():
        logits = compose_logits(network(images).logits)
        assert logits.shape[1] == CLASSES
        ((place, labels),) = NetworkPredictor(network).predict_labels(images)
    assert torch.equal(labels.byte(), network.predict(images)[place])
