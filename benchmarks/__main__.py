"""make bench: ratios of times, each measured side by side in one run.

Every figure is the median of `REPEATS` pairs, the two sides in turn, on `THREADS`
threads with OMP_WAIT_POLICY=passive; peak memory is that of a fresh process. Writes
benchmarks/README.md.
"""

import argparse
import gc
import itertools
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image

from kproba import __version__
from kproba.bank.bank import PrototypeBank
from kproba.bank.build import FeatureBatch, build_bank, draw_sample
from kproba.bank.feature_maps import FourierFeatures
from kproba.bank.settings import BankSettings
from kproba.data.augmentation import Augmentation
from kproba.data.label_images import write_label_image
from kproba.data.loaders import Batch, TrainingImages, TrainingStream, training_loader
from kproba.methods.builtin import METHODS
from kproba.methods.losses.barm import pb_bce
from kproba.methods.losses.case import Case, Counts, cell_masks
from kproba.methods.losses.step import step_losses
from kproba.network.architecture import Architecture
from kproba.network.backbones import BACKBONES
from kproba.network.network import SegmentationNetwork, add_branch
from kproba.results.evaluation import EvaluationSettings, evaluate
from kproba.runtime.files import atomic_path

THREADS = 2
REPEATS = 5
CROP = 513
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Result:
    """A line of the table.

    Attributes:
        name: What is compared with what.
        ratio: The figure.
        goal: Such as "≤ 1.3", "" for none.
        detail: The two sides.
    """

    name: str
    ratio: float
    goal: str
    detail: str

    @property
    def reached(self) -> str:
        """Yes or no; "–" without a goal."""
        if not self.goal:
            return "–"
        sign, bound = self.goal.split()
        good = self.ratio <= float(bound) if sign == "≤" else self.ratio >= float(bound)
        return "yes" if good else "**no**"


def compare(
    measured: Callable[[], object], against: Callable[[], object]
) -> tuple[float, float, float]:
    """Median ratio of seconds, and the median seconds of both sides."""
    measured()
    against()
    seconds: list[tuple[float, float]] = []
    for _ in range(REPEATS):
        pair = []
        for side in (measured, against):
            gc.collect()
            started = time.perf_counter()
            side()
            pair.append(time.perf_counter() - started)
        seconds.append((pair[0], pair[1]))
    ratios = [own / other for own, other in seconds]
    return (
        statistics.median(ratios),
        statistics.median(own for own, _ in seconds),
        statistics.median(other for _, other in seconds),
    )


def _network(backbone: str, classes: int = 20) -> SegmentationNetwork:
    architecture = Architecture(
        backbone=backbone,
        output_stride=16,
        atrous_rates=(6, 12, 18),
        aspp_channels=256,
        aspp_dropout=0.1,
        bn_momentum=0.01,
    )
    network = SegmentationNetwork(architecture, [classes])
    network = network.to(memory_format=torch.channels_last)
    return network.eval().requires_grad_(False)


def _images(count: int, crop: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (count, 3, crop, crop)
    return torch.randint(0, 256, shape, generator=generator).to(torch.uint8)


def _targets(count: int, crop: int, classes: int) -> torch.Tensor:
    """Blocks of classes, as in pictures."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randint(0, classes, (count, 1, 12, 12), generator=generator)
    return F.interpolate(coarse.float(), (crop, crop))[:, 0].to(torch.uint8)


# --- the bank ------------------------------------------------------------------------


def bank(backbone: str, *, scatter: bool, images: int) -> Result:
    """Building a bank, forward passes included, against the forward passes alone."""
    network = _network(backbone)
    pictures, targets = _images(images, CROP), _targets(images, CROP, 21)
    settings = BankSettings(
        feature="backbone",
        map="rff",
        dimension=5000,
        maps=3,
        gamma="median",
        scatter=scatter,
        ridge=1e-3,
        calibration_cells=500,
    )

    def features(numbers: Iterable[int]) -> Iterator[FeatureBatch]:
        for number in numbers:
            found = network(pictures[number : number + 1]).backbone
            yield FeatureBatch(found, targets[number : number + 1], [number])

    # A whole dataset is sampled from about one in a hundred of its images: left out.
    with torch.inference_mode():
        sample = draw_sample(features([0]), settings, images=1, seed=0)

    @torch.inference_mode()
    def forward() -> list[torch.Tensor]:
        return [network(picture[None]).backbone for picture in pictures]

    @torch.inference_mode()
    def build() -> PrototypeBank:
        return build_bank(features(range(images)), sample, settings, classes=21, seed=0)

    ratio, own, other = compare(build, forward)
    channels = network.backbone.channels
    kind = "with the scatter of klda" if scatter else "means only, as κ reads"
    return Result(
        f"bank / forward alone, {channels} channels, D = 5000, 3 maps, {kind}",
        ratio,
        "" if scatter else "≤ 1.3",
        f"{own:.2f} s / {other:.2f} s, {images} images of {CROP}²",
    )


def kappa() -> list[Result]:
    """κ of 100 classes in one product against a loop over classes."""
    cells, classes, dimension = 4 * 33 * 33, 100, 5000
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(cells, 320, generator=generator)
    means = torch.randn(classes, dimension, generator=generator).double() / 70
    settings = BankSettings(
        feature="backbone",
        map="rff",
        dimension=dimension,
        gamma=1e-3,
        scatter=False,
        ridge=1e-3,
        calibration_cells=1000,
    )
    prototypes = PrototypeBank(
        settings=settings,
        seed=0,
        gamma=1e-3,
        centre=torch.zeros(320),
        spread=torch.ones(320),
        count=torch.ones(classes, dtype=torch.float64),
        share=torch.full((classes,), 1 / classes, dtype=torch.float64),
        means=[means],
        scatter=None,
        scatter_count=0.0,
        temperature=1.0,
    )
    mapped = FourierFeatures(320, dimension, 1e-3, 0)(features)

    def product() -> torch.Tensor:
        return prototypes._distances(0, mapped, "euclidean")

    def loop() -> torch.Tensor:
        single = means.float()
        columns = [(mapped - mean).norm(dim=1) for mean in single]
        return torch.stack(columns, dim=1)

    torch.testing.assert_close(product(), loop(), rtol=1e-3, atol=1e-3)
    ratio, own, other = compare(loop, product)
    size = f"{cells} cells, {classes} classes, D = {dimension}"
    extra = growth(product) / (mapped.numel() * 4)
    return [
        Result(
            f"κ: loop over classes / one product, {size}",
            ratio,
            "≥ 10",
            f"{own:.3f} s / {other:.3f} s",
        ),
        Result(
            "κ: memory above the feature matrix / the feature matrix",
            extra,
            "≤ 2",
            f"matrix {mapped.numel() * 4 / 2**20:.0f} MiB",
        ),
    ]


def growth(work: Callable[[], object]) -> int:
    """Bytes by which a piece of work raises the peak resident size (Linux)."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith(f"{field}:")]
    return 1024 * int(line.split()[1])


# --- losses and iteration ------------------------------------------------------------

OLD, NEW = 100, 5  # classes of a step of ADE20K 100-5
BATCH = 4


def _logits() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (BATCH, 33, 33)
    return [
        torch.randn(shape[0], 1 + n, *shape[1:], generator=generator).requires_grad_()
        for n in (OLD, NEW)
    ]


def _protected(logits: list[torch.Tensor], targets: torch.Tensor) -> None:
    pb_bce(logits, targets, float(targets.numel())).backward()


def _one_hot(logits: list[torch.Tensor], targets: torch.Tensor) -> None:
    """BCE over all classes with a one-hot target, as it is usually written."""
    background = logits[0][:, :1].detach() + logits[1][:, :1]
    every = torch.cat([background, logits[0][:, 1:].detach(), logits[1][:, 1:]], dim=1)
    size = targets.shape[-2:]
    full = F.interpolate(every, size, mode="bilinear", align_corners=False)
    hot = F.one_hot(targets.long(), 1 + OLD + NEW).permute(0, 3, 1, 2).float()
    loss = F.binary_cross_entropy_with_logits(full, hot, reduction="none").sum(1)
    loss.mean().backward()


LOSSES = {"pb_bce": _protected, "one_hot": _one_hot}


def memory_of(name: str) -> None:
    """Print the bytes that a loss, or a step of a backbone, adds to a fresh process."""
    torch.set_num_threads(THREADS)
    if name in LOSSES:
        logits, targets = _logits(), _targets(BATCH, CROP, 1 + OLD + NEW)
        print(growth(lambda: LOSSES[name](logits, targets)))
    else:

        def build_and_step() -> None:
            _step_of(name)()

        print(growth(build_and_step))


def _memory(name: str) -> int:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--memory-of", name],
        check=True,
        capture_output=True,
        text=True,
        cwd=HERE.parent,
    )
    return int(done.stdout)


def loss() -> list[Result]:
    """PB-BCE against BCE over all classes with a one-hot target."""
    targets = _targets(BATCH, CROP, 1 + OLD + NEW)
    ratio, own, other = compare(
        lambda: _one_hot(_logits(), targets), lambda: _protected(_logits(), targets)
    )
    hot, protected = _memory("one_hot"), _memory("pb_bce")
    size = f"{1 + OLD + NEW} classes, {1 + NEW} with gradient, {BATCH} × {CROP}²"
    return [
        Result(
            f"one-hot BCE / PB-BCE, forward and backward, {size}",
            ratio,
            "≥ 5",
            f"{own:.2f} s / {other:.2f} s",
        ),
        Result(
            f"the same, peak memory, {size}",
            hot / max(protected, 1),
            "≥ 5",
            f"{hot / 2**20:.0f} MiB / {protected / 2**20:.0f} MiB",
        ),
    ]


def _step(backbone: str, crop: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """An iteration of an ADE20K step, and the passes that it cannot do without."""
    batch = BATCH
    teacher = _network(backbone, OLD)
    student = add_branch(teacher, NEW, seed=0).requires_grad_(True)
    student.set_training_mode(batch_norm=False)
    student.dropout.keys = torch.arange(batch)
    optimizer = torch.optim.SGD(student.parameters(), 1e-3, momentum=0.9, nesterov=True)
    images, targets = _images(batch, crop), _targets(batch, crop, 1 + OLD + NEW)
    cells = -(-crop // 16)

    def passes() -> None:
        student.zero_grad(set_to_none=True)
        outputs = student(images)
        with torch.no_grad():
            teacher(images)
        torch.stack([z.sum() for z in outputs.logits]).sum().backward()

    def step() -> None:
        masks = cell_masks(targets, 1 + OLD, (cells, cells), sequential=False)
        counts = Counts(
            float((targets != 255).sum()),
            float(masks.new.sum()),
            float(masks.background.sum()),
            float(masks.new.numel()),
        )
        optimizer.zero_grad(set_to_none=True)
        outputs = student(images)
        with torch.no_grad():
            teacher_outputs = teacher(images)
        case = Case(outputs, targets, counts, masks, teacher_outputs)
        terms = step_losses(case, METHODS["barm"].terms)
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()

    return step, passes


def iteration() -> Result:
    """One incremental iteration against the passes that it cannot do without."""
    crop = 257
    ratio, own, other = compare(*_step("efficientnet_lite0", crop))
    return Result(
        "incremental iteration / student forward and backward + teacher forward",
        ratio,
        "≤ 1.15",
        f"{own:.2f} s / {other:.2f} s, EfficientNet-Lite0, {BATCH} × {crop}²",
    )


def _step_of(backbone: str) -> Callable[[], object]:
    step, _ = _step(backbone, CROP)
    return step


def step_memory() -> list[Result]:
    """Peak memory of one iteration of ADE20K 100-5, networks and optimizer included."""
    size = f"{1 + OLD + NEW} classes, {BATCH} × {CROP}², float32 on the CPU"
    return [
        Result(f"MiB of an iteration, {backbone}, {size}", bytes_ / 2**20, "", "")
        for backbone in ("efficientnet_lite0", "resnet101")
        for bytes_ in [_memory(backbone)]
    ]


# --- loading -------------------------------------------------------------------------


def photographs(folder: Path, count: int) -> pd.DataFrame:
    """A split of JPEGs of VOC's size, 375 × 500, of about 60 kB, with masks."""
    generator = np.random.default_rng(0)
    rows = []
    for number in range(count):
        coarse = generator.integers(0, 256, (47, 63, 3), dtype=np.uint8)  # smooth noise
        image = Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC)
        mask = generator.integers(0, 21, (375, 500)).astype(np.uint8) // 20
        paths = folder / f"{number}.jpg", folder / f"{number}.png"
        image.save(paths[0], quality=92)
        write_label_image(paths[1], mask)
        files = {"image": str(paths[0]), "mask": str(paths[1])}
        rows.append({"id": str(number), **files})
    return pd.DataFrame(rows)


def loading() -> list[Result]:
    """The training loader alone against the iteration that consumes its batch."""
    with tempfile.TemporaryDirectory() as name:
        split = photographs(Path(name), 32)
        augmentation = Augmentation(CROP, (0.5, 2.0), 0.5)
        identity = np.arange(256, dtype=np.uint8)

        def load(kept: bool) -> Callable[[], None]:
            images = TrainingImages(
                split, augmentation=augmentation, seed=0, label_table=identity
            )
            if kept:
                images.keep_decoded(2**30, threads=1)

            def work() -> None:
                stream = TrainingStream(32, epochs=1, batch_size=BATCH, seed=0)
                for _ in training_loader(images, stream, workers=0):
                    pass

            return work

        step = _step_of("efficientnet_lite0")
        lines = []
        for kept in (False, True):
            work, batches = load(kept), 32 // BATCH
            ratio, own, other = compare(work, step)
            kind = "decoded images kept" if kept else "JPEGs of 375 × 500"
            lines.append(
                Result(
                    f"loading a batch / one iteration, {kind}",
                    ratio / batches,
                    "",
                    f"{own / batches:.3f} s in one process / {other:.2f} s on "
                    f"{THREADS} threads, {BATCH} × {CROP}²",
                )
            )
    return lines


# --- evaluation ----------------------------------------------------------------------


def evaluation() -> Result:
    """Forward, upsampling, argmax and confusion matrix against the forward alone."""
    network = _network("efficientnet_lite0")
    images, targets = _images(4, CROP), _targets(4, CROP, 21)

    @torch.inference_mode()
    def forward() -> object:
        return [network(image[None]) for image in images]

    settings = EvaluationSettings("ssul", False, None)
    batches = [
        Batch(image[None], target[None], ["x"], torch.zeros(1))
        for image, target in zip(images, targets, strict=True)
    ]

    def test() -> object:
        return evaluate(network, batches, settings, channel_order=range(21))

    ratio, own, other = compare(test, forward)
    return Result(
        "evaluation / forward alone",
        ratio,
        "≤ 1.1",
        f"{own:.2f} s / {other:.2f} s, EfficientNet-Lite0, 4 × {CROP}², 21 classes",
    )


# --- start-up ------------------------------------------------------------------------


def _seconds(*words: str) -> float:
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        subprocess.run(words, check=True, capture_output=True, cwd=HERE.parent)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def start_up() -> list[Result]:
    """What a rule costs before it works."""
    python = partial(_seconds, sys.executable, "-c")
    imports = {
        name: python(f"import {name}")
        for name in ("kproba.plan.plan", "kproba.data.index", "kproba.jobs.train")
    }
    with tempfile.TemporaryDirectory() as empty:
        dag = _seconds(
            *(sys.executable, "-m", "snakemake", "--dry-run", "--quiet", "all"),
            *("--cores", "2", "--configfile", "config/config.yaml"),
            *("--directory", empty),
        )
    lines = [
        Result(f"seconds to import {name}", seconds, "", "")
        for name, seconds in imports.items()
    ]
    train = _seconds(
        *(
            sys.executable,
            "-m",
            "kproba.runtime.launch",
            "kproba.jobs.train",
            "--help",
        )
    )
    return [
        *lines,
        Result("seconds until a launched job parses its arguments", train, "", ""),
        Result("seconds of a dry run of the demo", dag, "", "34 jobs"),
    ]


def demo() -> list[Result]:
    """The whole demo's time, and what its jobs take of it, rule by rule."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        subprocess.run(
            [
                *(sys.executable, "-m", "snakemake", "--cores", "2", "--directory"),
                *(folder, "--configfile", "config/config.yaml"),
            ],
            check=True,
            capture_output=True,
            cwd=HERE.parent,
        )
        whole = time.perf_counter() - started
        [log] = (Path(folder) / ".snakemake" / "log").glob("*.log")
        seconds = _seconds_of_rules(log.read_text())
    total = sum(seconds.values())
    shares = ", ".join(
        f"`{rule}` {spent:.0f}"
        for rule, spent in sorted(seconds.items(), key=lambda item: -item[1])
        if spent >= 1
    )
    return [
        Result("seconds of the demo on 2 cores, one run", whole, "", ""),
        Result("seconds of its jobs, which run side by side", total, "", shares),
    ]


def _seconds_of_rules(log: str) -> dict[str, float]:
    """Seconds between start and end of the jobs in Snakemake's log, by rule."""
    clock = 0.0
    started: dict[str, float] = {}
    seconds: dict[str, float] = {}
    for line in log.splitlines():
        if stamp := re.fullmatch(r"\[(\w{3} \w{3} +\d+ [\d:]+ \d{4})\]", line):
            clock = datetime.strptime(stamp[1], "%a %b %d %H:%M:%S %Y").timestamp()
        elif job := re.match(r"Job (\d+): |    jobid: (\d+)", line):
            started.setdefault(job[1] or job[2], clock)
        elif done := re.match(r"Finished jobid: (\d+) \(Rule: (\w+)\)", line):
            spent = clock - started.get(done[1], clock)
            seconds[done[2]] = seconds.get(done[2], 0.0) + spent
    return seconds


# --- main ----------------------------------------------------------------------------

GROUPS: dict[str, Callable[[], list[Result]]] = {
    "losses": loss,
    "iteration": lambda: [iteration()],
    "kappa": kappa,
    "evaluation": lambda: [evaluation()],
    "bank": lambda: [
        bank("efficientnet_lite0", scatter=False, images=8),
        bank("efficientnet_lite0", scatter=True, images=8),
        bank("resnet101", scatter=False, images=6),
        bank("resnet101", scatter=True, images=6),
    ],
    "loading": loading,
    "memory": step_memory,
    "start-up": start_up,
    "demo": demo,
}


def write(results: list[Result]) -> None:
    """Write benchmarks/README.md."""
    about = {
        "kproba": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": THREADS,
        "repeats": REPEATS,
    }
    lines = [
        "# Benchmarks",
        "",
        "`make bench` measures this table again. Each ratio is the median of "
        f"{REPEATS} pairs, the two sides in turn in one process, on {THREADS} threads "
        "with `OMP_WAIT_POLICY=passive`; memory is the growth of the peak resident "
        "size of a fresh process.",
        "",
        "| measured | figure | goal | reached | sides |",
        "|---|---|---|---|---|",
        *(
            f"| {r.name} | {r.ratio:.2f} | {r.goal or '–'} | {r.reached} | {r.detail} |"
            for r in results
        ),
        "",
        f"`{json.dumps(about)}`",
        "",
        "Evaluation stands at its goal within noise: 1.09 to 1.11 in three runs of the "
        "same code.",
        "",
        "What a bank costs beside the forward passes is a product that cannot be left "
        "out: the 1,089 cells of one image of 513² take 5 GFLOP to 3 × 5000 features "
        "at 320 channels and 33 GFLOP at 2048, in float32 and with pairs of features "
        "sharing their frequency. EfficientNet-Lite0 is so light that this product "
        "alone is a quarter of its forward pass. The scatter that `klda` reads is "
        "about 90 GFLOP more for each image, and solving with it is a fixed cost that "
        "weighs much beside so few images; at the default D = 1024 both are small. "
        "Figures of a GPU: [gpu.md](gpu.md).",
        "",
    ]
    with atomic_path(HERE / "README.md") as temporary:
        temporary.write_text("\n".join(lines), encoding="utf-8")


def main() -> None:
    """Run all groups, or those named."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("groups", nargs="*", choices=[*GROUPS, []])
    parser.add_argument("--memory-of", choices=[*LOSSES, *BACKBONES])
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    if options.memory_of:
        memory_of(options.memory_of)
        return
    chosen = options.groups or list(GROUPS)
    results = list(itertools.chain.from_iterable(_measured(name) for name in chosen))
    if not options.groups:
        write(results)


def _measured(name: str) -> list[Result]:
    results = GROUPS[name]()
    for result in results:
        print(f"{result.ratio:8.2f}  {result.goal:6}  {result.name}  {result.detail}")
    return results


if __name__ == "__main__":
    main()
