"""`benchmarks.prediction`: its counts against counts by hand, and the command."""

import csv
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_banks import bank_of, decision_by, images_of, network_of
from test_inference import step  # noqa: F401  # a fixture
from test_segmenter import trained  # noqa: F401  # a fixture
from torch import nn

from benchmarks import prediction
from benchmarks.case import Case
from kproba.bank.predictor import FusedPredictor, NetworkPredictor
from kproba.network.network import SegmentationNetwork
from kproba.predict.segmenter import load
from kproba.runtime.files import read_json, write_json

# With even sides, a convolution of stride 2 computes a row and a column too many, which
# the count includes.
SIZE = (65, 49)
CELLS = 5 * 4  # at stride 16
STEPS = (2, 1)
CLASSES = 4
MAPS = {"lda": "identity", "klda": "rff", "kappa": "rff", "ridge": "relu"}
DIMENSION = 64  # of `bank_of`, and two maps of random Fourier features


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def network() -> SegmentationNetwork:
    return network_of(3, steps=STEPS)


@pytest.fixture(scope="module")
def first() -> SegmentationNetwork:
    """The network of step 0; no stage is that of `network`."""
    found = network_of(4, steps=STEPS[:1])
    with torch.no_grad():
        next(found.parameters()).add_(0.01)  # ImageNet's weights are those of both
    return found


def predictor_of(
    network: SegmentationNetwork,
    first: SegmentationNetwork,
    rule: str,
    **changes: Any,
) -> FusedPredictor:
    bank = bank_of(first, images_of(*SIZE), MAPS.get(rule, "identity"), CLASSES)
    return FusedPredictor(network, bank, decision_by(rule, **changes), first)


@torch.inference_mode()
def convolutions_by_hand(network: SegmentationNetwork) -> int:
    """Multiply-adds of all convolutions for one image: outputs times kernel values."""
    total = 0

    def add(module: nn.Conv2d, _: Any, output: torch.Tensor) -> None:
        nonlocal total
        height, width = module.kernel_size
        kernel = height * width * module.in_channels // module.groups
        total += output.numel() * kernel

    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    hooks = [each.register_forward_hook(add) for each in convolutions]
    network(images_of(*SIZE)[:1])
    for hook in hooks:
        hook.remove()
    assert total
    return total


def test_one_convolution_is_counted_as_by_hand():
    """8 outputs of 3 × 3 kernels on 2 channels, at 5 × 7 places."""

    class OneConvolution(nn.Module):
        channels = 8

        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(3, 8, 3, padding=1)

    class Predictor:
        network = OneConvolution()

        def predict_labels(self, images: torch.Tensor, sizes: None) -> Iterator[Any]:
            scores = self.network.convolution(images.float())
            yield (slice(None),), scores.argmax(dim=1)

    assert prediction.count_multiply_adds(Predictor(), 5, 7) == 5 * 7 * 8 * 3 * 9


def test_multiply_adds_of_a_network_are_those_of_its_convolutions(network):
    found = prediction.count_multiply_adds(NetworkPredictor(network), *SIZE)
    assert found == convolutions_by_hand(network)


def products_by_hand(rule: str, width: int) -> int:
    """Of the bank for one image: features to map to scores."""
    if rule == "lda":
        return CELLS * width * CLASSES
    if rule == "ridge":
        return CELLS * (width * DIMENSION + DIMENSION * CLASSES)
    # Two maps, whose features share their frequency in pairs.
    return 2 * CELLS * (width * DIMENSION // 2 + DIMENSION * CLASSES)


@pytest.mark.parametrize("rule", MAPS)
def test_multiply_adds_with_a_bank_are_those_of_two_networks_and_its_products(
    network, first, rule
):
    found = prediction.count_multiply_adds(predictor_of(network, first, rule), *SIZE)
    both = convolutions_by_hand(network) + convolutions_by_hand(first)
    assert found == both + products_by_hand(rule, first.backbone.channels)


@pytest.mark.parametrize("rule", ["step0", "step0_mean"])
def test_two_networks_cost_two_networks(network, first, rule):
    predictor = predictor_of(network, first, rule)
    found = prediction.count_multiply_adds(predictor, *SIZE)
    assert found == convolutions_by_hand(network) + convolutions_by_hand(first)
    assert prediction.count_bank_numbers(predictor) == 0
    with_prior = predictor_of(network, first, rule, image_prior=1)
    assert prediction.count_bank_numbers(with_prior) == CLASSES


def test_a_network_that_does_not_run_costs_nothing(network, first):
    alone = {"foreground": "both", "probability_weight": 0.0}
    by_bank = predictor_of(network, first, "lda", **alone)
    products = products_by_hand("lda", first.backbone.channels)
    found = prediction.count_multiply_adds(by_bank, *SIZE)
    assert found == convolutions_by_hand(first) + products
    assert prediction.count_network_numbers(by_bank) == numbers_by_hand(first)
    by_network = predictor_of(network, first, "lda", posterior_weight=0.0)
    found = prediction.count_multiply_adds(by_network, *SIZE)
    assert found == convolutions_by_hand(network)
    assert prediction.count_network_numbers(by_network) == numbers_by_hand(network)
    assert prediction.count_bank_numbers(by_network) == 0


def numbers_by_hand(network: SegmentationNetwork) -> int:
    """All values of the state, without counters, and the six of the pixels."""
    state = network.state_dict().items()
    kept = [each for key, each in state if not key.endswith("num_batches_tracked")]
    return sum(math.prod(each.shape) for each in kept) + 6


def test_numbers_of_networks(network, first):
    alone = NetworkPredictor(network)
    assert prediction.count_network_numbers(alone) == numbers_by_hand(network)
    both = predictor_of(network, first, "lda")
    expected = numbers_by_hand(network) + numbers_by_hand(first)
    assert prediction.count_network_numbers(both) == expected


def test_shared_stages_count_once(network):
    """The backbones are equal, and both networks read it."""
    twin = network_of(3, steps=STEPS[:1])
    twin.backbone.load_state_dict(network.backbone.state_dict())
    predictor = predictor_of(network, twin, "lda")
    shared = sum(
        each.numel()
        for key, each in twin.backbone.state_dict().items()
        if not key.endswith("num_batches_tracked")
    )
    expected = numbers_by_hand(network) + numbers_by_hand(twin) - shared
    assert prediction.count_network_numbers(predictor) == expected


@pytest.mark.parametrize(
    ("rule", "changes", "expected"),
    [
        ("lda", {}, lambda d: 2 * d + d * CLASSES + CLASSES),
        ("ridge", {}, lambda d: 2 * d + d * 64 + 64 * CLASSES + CLASSES),
        ("klda", {}, lambda d: 2 * d + 2 * (d * 32 + 32 + 64 * CLASSES + CLASSES)),
        ("kappa", {}, lambda d: 2 * d + 2 * (d * 32 + 32 + 64 * CLASSES)),
        (
            "kappa",
            {"metric": "mahalanobis", "image_prior": 1},
            lambda d: 2 * d + 2 * (d * 32 + 32 + 64 * CLASSES + 64**2) + CLASSES,
        ),
    ],
)
def test_numbers_of_banks(network, first, rule, changes, expected):
    predictor = predictor_of(network, first, rule, **changes)
    found = prediction.count_bank_numbers(predictor)
    assert found == expected(first.backbone.channels)


# The command


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, size in enumerate([(40, 30), (48, 64), (33, 47)]):
        Image.new("RGB", size, (number, 90, 200)).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def steps(trained: Path, tmp_path: Path) -> list[Path]:  # noqa: F811
    """The same step by its network alone, and by network and bank."""
    about = read_json(trained / "predictor.json")
    alone = tmp_path / "alone" / "predictor.json"
    alone.parent.mkdir()
    about |= {"bank": None, "decision": None, "network": "../model.safetensors"}
    del about["digests"]
    write_json(alone, about)
    return [alone.parent, trained]


def test_the_command_prints_a_table_and_writes_a_csv(steps, pictures, tmp_path, capsys):
    file = tmp_path / "costs.csv"
    prediction.main(
        [
            *map(str, steps),
            *("--images", str(pictures), "--csv", str(file)),
            *("--count", "2", "--repeats", "2", "--threads", "1"),
        ]
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].count("|") == len(prediction.HEADS) + 1
    assert [line.count("|") for line in lines[1:4]] == [lines[0].count("|")] * 3
    assert "30 × 40 pixels; seconds of 2 images on cpu, 1 threads" in lines[-1]
    with file.open() as opened:
        one, two = csv.DictReader(opened)
    assert (one["prediction"], two["prediction"]) == ("network", "klda, image prior")
    assert one["networks"] == two["networks"] == "1"  # step 0 has only one
    assert one["network_numbers"] == two["network_numbers"] != "0"
    assert one["bank_numbers"] == one["bank_stored"] == "0"
    bank = load(steps[1]).predictor.combination.bank
    stored = [bank.centre, bank.spread, bank.count, bank.share]
    stored += [*bank.means, *bank.scatter]
    assert int(two["bank_stored"]) == sum(each.numel() for each in stored)
    assert int(two["multiply_adds"]) > int(one["multiply_adds"]) > 0
    assert float(one["seconds"]) > 0 and float(one["ratio"]) == 1


def test_a_folder_without_pictures_is_refused(steps, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(FileNotFoundError, match=r"pictures in .*empty, but found none"):
        prediction.main([str(steps[0]), "--images", str(empty)])


def test_steps_run_in_turn(steps, monkeypatch):
    """Round by round, each on every picture, after a warm-up."""
    segmenters = [load(each) for each in steps]
    order: list[int] = []

    def note(predictor: object, images: torch.Tensor) -> None:
        order.append([s.predictor for s in segmenters].index(predictor))
        assert images.shape == (1, 3, 30, 40)

    monkeypatch.setattr(prediction, "label", note)
    picture = Image.fromarray(np.zeros((30, 40, 3), dtype=np.uint8))
    case = Case("cpu", repeats=2)
    rounds = prediction.measure_rounds(case, segmenters, [picture] * 3)
    assert rounds.shape == (2, 2) and (rounds > 0).all()
    assert order == [0, 0, 1, 1, *([0] * 3 + [1] * 3) * 2]
