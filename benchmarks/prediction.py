"""What the prediction of evaluated steps costs: numbers, multiply-adds and seconds.

    python -m benchmarks.prediction STEP_FOLDER .. --images FOLDER [--csv FILE]

Every step (its folder with predictor.json, or an archive of `kproba pack`) is a row of
the table. So methods can be compared at equal inference.

- Networks: how many networks run. A bank whose evidence has the weight 0 needs one
  network, and so does a bank that decides alone.
- Numbers of the networks: parameters and buffers of the networks that run, with folded
  batch norms. Stages that two networks share are computed and counted once.
- Numbers of the bank: what the prediction reads of it, after its equations are solved.
  The file also holds the statistics that later steps need; they are counted apart.
- Multiply-adds: those of convolutions and matrix products for one image, as they run.
  Interpolation, activations and softmax are not counted.
- Seconds per image: of the labels, from an image in memory, one image at a time. The
  steps run in turn in one process, and every figure is a median over the rounds. The
  ratio to the first step is the median of the ratios of each round.
"""

import argparse
import csv
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.case import Case
from benchmarks.measuring import REPEATS, THREADS
from kproba.bank.bank import PrototypeBank
from kproba.bank.decision import Decision
from kproba.bank.description import StepDescription, read_description
from kproba.bank.predictor import FusedPredictor, NetworkPredictor
from kproba.network.network import SegmentationNetwork
from kproba.predict.inputs import find_inputs
from kproba.predict.segmentation import read_picture
from kproba.predict.segmenter import Segmenter, load
from kproba.predict.steps import opened_step
from kproba.results.evaluation import predicted_labels
from kproba.runtime.files import atomic_path
from kproba.runtime.tensors import read_shapes

IMAGES = 20  # pictures of the folder, evenly spaced in the order of their names
Predictor = NetworkPredictor | FusedPredictor
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """The costs of one step.

    Attributes:
        step: Dataset, task, method, seed and step.
        prediction: "network", or the rule that combines network and bank.
        networks: Number of networks that run.
        network_numbers: Parameters and buffers of these networks.
        bank_numbers: Numbers of the bank that the prediction reads.
        bank_stored: Numbers in the file of the bank.
        multiply_adds: Of one image of `height` × `width` pixels.
        height: Pixels.
        width: Pixels.
        seconds: Median seconds per image.
        ratio: Of these seconds to those of the first step.
        images: Number of images whose seconds are measured.
        device: Such as "cpu".
        threads: Threads of the CPU.
    """

    step: str
    prediction: str
    networks: int
    network_numbers: int
    bank_numbers: int
    bank_stored: int
    multiply_adds: int
    height: int
    width: int
    seconds: float
    ratio: float
    images: int
    device: str
    threads: int


# --- counts --------------------------------------------------------------------------


def running_networks(predictor: Predictor) -> list[SegmentationNetwork]:
    """The networks that a prediction runs, one or two."""
    if isinstance(predictor, NetworkPredictor):
        return [predictor.network]
    combination = predictor.combination
    other = combination.feature_network
    if other is None or not combination.decision.reads_evidence:
        return [predictor.running]
    return [predictor.running, other]


def count_network_numbers(predictor: Predictor) -> int:
    """Parameters and buffers of the networks that run; shared stages count once."""
    first, *others = running_networks(predictor)
    total = _count_numbers(first)
    for other in others:
        assert isinstance(predictor, FusedPredictor)
        shared = other.backbone.stages()[: predictor.combination.shared_stages]
        total += _count_numbers(other) - sum(map(_count_numbers, shared))
    return total


def _count_numbers(module: torch.nn.Module) -> int:
    """Floating-point parameters and buffers; counters of batch norms are none."""
    tensors = [*module.parameters(), *module.buffers()]
    return sum(each.numel() for each in tensors if each.is_floating_point())


def count_bank_numbers(predictor: Predictor) -> int:
    """Numbers of the bank that the prediction reads, after its equations are solved.

    For a posterior these are the mean and standard deviation of the features, the maps,
    and one weight per feature and class with one constant per class. κ reads the
    prototypes instead, and the factor of the covariance for Mahalanobis distances. The
    image prior reads the class shares.
    """
    if isinstance(predictor, NetworkPredictor):
        return 0
    bank, decision = predictor.combination.bank, predictor.combination.decision
    prior = bank.classes if decision.image_prior else 0
    if decision.by_networks or not decision.reads_evidence:
        return prior
    return prior + _count_evidence_numbers(bank, decision)


def _count_evidence_numbers(bank: PrototypeBank, decision: Decision) -> int:
    total = bank.centre.numel() + bank.spread.numel()
    for phi, mean in zip(bank.maps, bank.means, strict=True):
        kept = getattr(phi, "__dict__", {}).values()
        total += sum(each.numel() for each in kept if isinstance(each, torch.Tensor))
        total += mean.numel()
        if not decision.by_distance:
            total += bank.classes
        elif decision.metric == "mahalanobis":
            total += mean.shape[1] ** 2
    return total


def count_stored_numbers(description: StepDescription) -> int:
    """Numbers in the file of the bank; 0 without a bank."""
    if description.bank is None:
        return 0
    shapes = read_shapes(description.bank).values()
    return int(sum(np.prod(shape, dtype=np.int64) for shape in shapes))


def _flops_in_place(_: Shape, left: Shape, right: Shape, **__: Shape) -> int:
    """Operations of `addmm_`, which PyTorch's table does not list."""
    return 2 * left[0] * left[1] * right[1]


@torch.inference_mode()
def count_multiply_adds(predictor: Predictor, height: int, width: int) -> int:
    """Multiply-adds of convolutions and matrix products for the labels of one image.

    Args:
        predictor: On any device.
        height: Of the image, in pixels.
        width: Of the image, in pixels.
    """
    device = next(predictor.network.parameters()).device
    generator = torch.Generator().manual_seed(0)
    size = (1, 3, height, width)
    images = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)
    label(predictor, images.to(device))  # the bank solves its equations only once
    in_place = {torch.ops.aten.addmm_: _flops_in_place}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        label(predictor, images.to(device))
    return counter.get_total_flops() // 2


def label(predictor: Predictor, images: torch.Tensor) -> None:
    """Compute the labels of images (B, 3, H, W) uint8, as the evaluation does."""
    channels = range(predictor.network.channels)
    for _, labels in predicted_labels(predictor, images, channels):
        assert labels.dtype == torch.int64


# --- seconds -------------------------------------------------------------------------


def measure_rounds(
    case: Case, segmenters: Sequence[Segmenter], pictures: Sequence[Image.Image]
) -> np.ndarray:
    """Seconds per image, (rounds, steps) float64; the steps run in turn.

    Args:
        case: Device and number of rounds.
        segmenters: The steps, on this device.
        pictures: RGB images. Each step scales them as it scales those of its dataset.
    """

    def work(segmenter: Segmenter, images: list[torch.Tensor]) -> None:
        with torch.inference_mode():
            for image in images:
                label(segmenter.predictor, image)

    sides = [
        (segmenter, [_as_seen(segmenter, picture) for picture in pictures])
        for segmenter in segmenters
    ]
    for segmenter, images in sides:  # the first pass is slower
        work(segmenter, images[:2])
    rounds = []
    for _ in range(case.repeats):
        row = [case.seconds(partial(work, *side)) for side in sides]
        rounds.append(np.array(row) / len(pictures))
    return np.stack(rounds)


def _as_seen(segmenter: Segmenter, picture: Image.Image) -> torch.Tensor:
    """A picture at the size that the network sees, (1, 3, h, w) uint8 on its device."""
    scaled = picture.resize(segmenter.used_size(*picture.size))
    pixels = torch.from_numpy(np.array(scaled)).permute(2, 0, 1)
    return pixels[None].contiguous().to(segmenter.device)


# --- the table -----------------------------------------------------------------------


def measure(
    case: Case,
    steps: Sequence[str],
    pictures: Sequence[Image.Image],
    size: tuple[int, int],
) -> list[Row]:
    """The rows of all steps, in their order.

    Args:
        case: Device and number of rounds.
        steps: Folders of evaluated steps, or packed archives.
        pictures: RGB images whose seconds are measured.
        size: Height and width in pixels of the image whose multiply-adds are counted.
    """
    segmenters, facts = [], []
    for step in steps:
        with opened_step(step) as opened:
            description = read_description(opened)
            facts.append((_name(description), count_stored_numbers(description)))
        segmenters.append(load(step, case.device))
    rounds = measure_rounds(case, segmenters, pictures)
    ratios = np.median(rounds / rounds[:, :1], axis=0)
    return [
        Row(
            step=name,
            prediction=_prediction(segmenter.predictor),
            networks=len(running_networks(segmenter.predictor)),
            network_numbers=count_network_numbers(segmenter.predictor),
            bank_numbers=count_bank_numbers(segmenter.predictor),
            bank_stored=stored,
            multiply_adds=count_multiply_adds(segmenter.predictor, *size),
            height=size[0],
            width=size[1],
            seconds=statistics.median(rounds[:, number]),
            ratio=float(ratios[number]),
            images=len(pictures),
            device=case.device,
            threads=torch.get_num_threads(),
        )
        for number, (segmenter, (name, stored)) in enumerate(
            zip(segmenters, facts, strict=True)
        )
    ]


def _name(description: StepDescription) -> str:
    about = description.about
    run = f"{about['dataset']} {about['task']}-{about['setting']} {about['method']}"
    return f"{run}, seed {about['seed']}, step {about['step']}"


def _prediction(predictor: Predictor) -> str:
    """The rule, and what is special about its weights."""
    if isinstance(predictor, NetworkPredictor):
        return "network"
    decision = predictor.combination.decision
    words = [decision.rule]
    if decision.bank_alone:
        words.append("bank alone")
    elif not decision.reads_evidence:
        words = ["network"]
    elif decision.foreground == "both":
        words.append("foreground by both")
    if decision.image_prior:
        words.append("image prior")
    return ", ".join(words)


HEADS = {
    "step": "step",
    "prediction": "prediction",
    "networks": "networks",
    "network_numbers": "numbers of the networks, 10⁶",
    "bank_numbers": "of the bank, 10⁶",
    "bank_stored": "in its file, 10⁶",
    "multiply_adds": "multiply-adds, 10⁹",
    "seconds": "seconds per image",
    "ratio": "to the first",
}


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown, with a line about what was measured."""
    lines = [f"| {' | '.join(HEADS.values())} |", "|---" * len(HEADS) + "|"]
    for row in rows:
        cells = (
            row.step,
            row.prediction,
            str(row.networks),
            *(f"{n / 1e6:.3f}" for n in (row.network_numbers, row.bank_numbers)),
            f"{row.bank_stored / 1e6:.3f}",
            f"{row.multiply_adds / 1e9:.3f}",
            f"{row.seconds:.4f}",
            f"{row.ratio:.2f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    first = rows[0]
    about = (
        f"Multiply-adds of an image of {first.height} × {first.width} pixels; seconds "
        f"of {first.images} images on {first.device}, {first.threads} threads."
    )
    return "\n".join([*lines, "", about])


def write_csv(rows: Sequence[Row], path: str | Path) -> None:
    """Write all fields of the rows, whole or not at all."""
    with (
        atomic_path(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        writer.writeheader()
        writer.writerows(map(asdict, rows))


def read_pictures(folder: str, count: int) -> list[Image.Image]:
    """Some pictures of a folder, RGB, evenly spaced in the order of their names.

    Raises:
        FileNotFoundError: It has none.
    """
    found = sorted(each.path for each in find_inputs([folder], lambda _: ()).files)
    if not found:
        raise FileNotFoundError(
            f"Expected pictures in {folder}, but found none. Name another folder with "
            f"--images."
        )
    places = np.linspace(0, len(found) - 1, min(count, len(found))).round().astype(int)
    return [read_picture(found[place]) for place in places]


def _size(text: str) -> tuple[int, int]:
    height, width = map(int, text.lower().split("x"))
    if min(height, width) < 1:
        raise ValueError(text)
    return height, width


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the table and write the CSV."""
    parser = argparse.ArgumentParser(prog="benchmarks.prediction", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("steps", nargs="+", metavar="STEP_FOLDER")
    parser.add_argument("--images", required=True, metavar="FOLDER")
    parser.add_argument("--csv", metavar="FILE")
    parser.add_argument("--count", type=int, default=IMAGES, help="pictures measured")
    size_help = "of the image whose multiply-adds are counted; default: first picture"
    parser.add_argument("--size", type=_size, metavar="HEIGHTxWIDTH", help=size_help)
    parser.add_argument("--repeats", type=int, default=REPEATS, help="rounds")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=THREADS)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    pictures = read_pictures(options.images, options.count)
    size = options.size or (pictures[0].height, pictures[0].width)
    case = Case(options.device, repeats=options.repeats)
    rows = measure(case, options.steps, pictures, size)
    print(table(rows), flush=True)
    if options.csv:
        write_csv(rows, options.csv)


if __name__ == "__main__":
    main()
