"""python -m benchmarks.gpu: the same kind of ratios, on one GPU.

Steps of ADE20K 100-5 with ResNet-101 and crops of 513 pixels, noise for pictures and
untrained networks (time does not depend on what they know). Each figure is the median
of `REPEATS` rounds with the sides in turn; the device is waited for around every
measurement. Lines are printed as they come, as Markdown.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import nn

from benchmarks.inputs import CROP, images_of, photographs, targets_of
from benchmarks.measuring import REPEATS, ROOT
from kproba.bank.bank import PrototypeBank
from kproba.bank.build import FeatureBatch, build_bank, draw_sample
from kproba.bank.fusion import Combination
from kproba.bank.predictor import FusedPredictor
from kproba.bank.settings import BankSettings
from kproba.bank.teacher import BankTeacher
from kproba.data.augmentation import Augmentation
from kproba.data.loaders import Batch, TrainingImages, TrainingStream, training_loader
from kproba.methods.terms import STAGES
from kproba.network.network import SegmentationNetwork, add_branch
from kproba.plan.chain import Run
from kproba.plan.plan import Plan
from kproba.plan.schema import check
from kproba.results.evaluation import EvaluationSettings, evaluate
from kproba.runtime.compute import Compute
from kproba.runtime.distributed import Process
from kproba.training.checkpoint import Progress, StopFlag
from kproba.training.iteration import Learner, Tally
from kproba.training.networks import Networks, parallelise
from kproba.training.optimizer import autocast_type, build_optimizer
from kproba.training.settings import StepSettings
from kproba.training.targets import global_counts, prepare

BATCH, OLD, NEW = 8, 100, 5
DEVICE = "cuda:0"
METHODS = ("finetune", "lwf", "mib", "plop", "ssul", "barm", "kproba")


def waited(work: Callable[[], object]) -> float:
    """Seconds until the device has done a piece of work."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def in_turn(sides: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median seconds of every side."""
    for side in sides.values():
        side()
        side()
    rounds = [{n: waited(side) for n, side in sides.items()} for _ in range(REPEATS)]
    return {name: statistics.median(r[name] for r in rounds) for name in sides}


def line(*cells: object) -> None:
    """A row of a table, at once."""
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def table(*heads: str) -> None:
    """The head of a table."""
    print()
    line(*heads)
    line(*("---" for _ in heads))


class Step:
    """One iteration of step 1 of a method, as `kproba.jobs.train` does it."""

    def __init__(
        self, plan: Plan, method: str, precision: str, *, compiled: bool = False
    ):
        run = Run("ade20k", "100-5", "overlap", method, 0)
        settings, planned = plan.settings(run, 1), plan.methods[method]
        # Untrained networks and noise would diverge at the published rates.
        parts = ("backbone", "aspp", "branch", "old_branches")
        optimisation = {
            **settings["optimisation"],
            "learning_rate": dict.fromkeys(parts, 1e-8),
            "precision": precision,
        }
        settings = {**settings, "optimisation": optimisation}
        if planned.method.bank_teaches:  # as from step 2 on
            settings["decision"] = planned.decision
        self.settings = StepSettings.from_dict(settings)
        self.process = Process(device=DEVICE)
        base = Run("ade20k", "100", "overlap", planned.method.base, 0)
        first = StepSettings.from_dict(plan.settings(base, 0))
        declared = self.settings.method
        teacher = _network(first)
        student = add_branch(
            *(teacher, NEW),
            seed=0,
            start_from_background=declared.start_from_background,
        )
        student.keep_stages = teacher.keep_stages = STAGES in declared.needs
        self.teacher, self.student = (_to_device(n) for n in (teacher, student))
        self.student.requires_grad_(True)
        self.student.set_training_mode(batch_norm=False)
        if declared.trains != "all":
            self.student.train_only(declared.trains)
        self.precision = autocast_type(precision, DEVICE)
        bank_teacher = None
        if self.settings.decision is not None:
            bank = some_bank(self.teacher, identity=True)
            features = _to_device(_network(first))
            combination = Combination(bank, self.settings.decision, features)
            bank_teacher = BankTeacher(self.teacher, combination)
        networks = Networks(
            self.student, self.teacher if declared.distils else None, bank_teacher
        )
        compute = Compute(compile=compiled)
        self.learner = Learner(
            network=parallelise(networks, self.settings, compute, self.process),
            networks=networks,
            optimizer=build_optimizer(self.student, self.settings.optimisation),
            scaler=torch.amp.GradScaler(
                "cuda", enabled=self.precision == torch.float16
            ),
            precision=self.precision,
            settings=self.settings,
            process=self.process,
        )
        targets = targets_of(BATCH, CROP, 1 + OLD + NEW)
        keys = torch.arange(BATCH)
        ids = [str(number) for number in range(BATCH)]
        self.batch = Batch(images_of(BATCH, CROP).pin_memory(), targets, ids, keys)
        self.tally = Tally(Progress())

    def __call__(self) -> None:
        """Targets, forward passes, losses, backward pass, optimiser."""
        prepared = [prepare(self.batch, self.student, self.settings)]
        counts, *_ = global_counts(prepared, StopFlag(), False, self.process)
        self.learner.iterate(prepared, counts, self.tally)

    def passes(self) -> None:
        """The passes through the networks that it cannot do without."""
        self.student.zero_grad(set_to_none=True)
        images = self.batch.images.to(DEVICE, non_blocking=True)
        self.student.dropout.keys = self.batch.keys
        mixed = self.precision != torch.float32
        with torch.autocast("cuda", self.precision, enabled=mixed):
            outputs = self.student(images)
            with torch.no_grad():
                self.teacher(images)
        torch.stack([z.float().sum() for z in outputs.logits]).sum().backward()


def _to_device(network: nn.Module) -> Any:
    return network.to(DEVICE, memory_format=torch.channels_last)  # type: ignore[call-overload]


def _network(first: StepSettings) -> SegmentationNetwork:
    """Untrained, of the old classes, with batch norm that keeps numbers small."""
    assert first.architecture is not None
    network = SegmentationNetwork(first.architecture, [OLD], seed=0).to(DEVICE)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    network.set_training_mode(batch_norm=True)
    network.dropout.keys = torch.arange(2)
    with torch.no_grad():
        network(images_of(2, CROP).to(DEVICE))
    return network.eval().requires_grad_(False)


def ade20k() -> Plan:
    """The published settings of ADE20K, step by step of five classes."""
    path = ROOT / "config" / "ade20k.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    config["experiments"] = [
        {"dataset": "ade20k", "task": "100-5", "methods": list(METHODS)}
    ]
    schema = ROOT / "workflow" / "schemas" / "config.schema.yaml"
    return Plan(check(config, schema))


def iterations(plan: Plan) -> None:
    """Mixed precision, and what the loop adds to the passes."""
    size = f"{BATCH} × {CROP}², ResNet-101"
    table(f"iteration of `barm`, {size}", "s", "images/s", "to the passes", "GiB")
    for precision in ("float32", "float16", "bfloat16"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        step = Step(plan, "barm", precision)
        step()
        peak = torch.cuda.max_memory_allocated() / 2**30
        seconds = in_turn({"step": step, "passes": step.passes})
        own = seconds["step"]
        ratio = own / seconds["passes"]
        line(
            precision, f"{own:.3f}", f"{BATCH / own:.1f}", f"{ratio:.2f}", f"{peak:.1f}"
        )
        del step


def methods(plan: Plan) -> None:
    """All methods in turn, bfloat16."""
    steps = {method: Step(plan, method, "bfloat16") for method in METHODS}
    seconds = in_turn(dict(steps))
    table("method, bfloat16", "s", "to `finetune`")
    for method, own in seconds.items():
        line(f"`{method}`", f"{own:.3f}", f"{own / seconds['finetune']:.2f}")


def compiled(plan: Plan) -> None:
    """`compute.compile`, bfloat16."""
    step = Step(plan, "barm", "bfloat16", compiled=True)
    first = waited(step)
    plain = Step(plan, "barm", "bfloat16")
    seconds = in_turn({"compiled": step, "plain": plain})
    table("`compute.compile`, bfloat16", "s", "first iteration, s")
    line("compiled", f"{seconds['compiled']:.3f}", f"{first:.0f}")
    line("not compiled", f"{seconds['plain']:.3f}", "–")


def some_bank(network: SegmentationNetwork, *, identity: bool) -> PrototypeBank:
    """A bank of noise with all old classes."""
    images, targets = images_of(4, CROP), targets_of(4, CROP, 1 + OLD)
    settings = _bank_settings(identity=identity, scatter=True, dimension=1024)

    features = partial(features_of, network, images, targets, 1)
    with torch.inference_mode():
        sample = draw_sample(features([0, 1]), settings, images=2, seed=0)
        bank = build_bank(features([2, 3]), sample, settings, classes=1 + OLD, seed=0)
    return bank.to(DEVICE)


def features_of(
    network: SegmentationNetwork,
    images: torch.Tensor,
    targets: torch.Tensor,
    batch: int,
    starts: Iterable[int],
) -> Iterator[FeatureBatch]:
    """What a bank reads of the batches that start at some images."""
    for k in starts:
        part = slice(k, k + batch)
        found = network(images[part].to(DEVICE)).backbone
        yield FeatureBatch(found, targets[part].to(DEVICE), list(range(k, k + batch)))


def _bank_settings(*, identity: bool, scatter: bool, dimension: int) -> BankSettings:
    return BankSettings(
        feature="backbone",
        map="identity" if identity else "rff",
        dimension=None if identity else dimension,
        maps=1 if identity else 3,
        gamma=None if identity else "median",
        scatter=scatter,
        ridge=0.01,
        calibration_cells=500,
    )


def inference(plan: Plan) -> None:
    """Bank and test against the forward passes alone; whole images, float32."""
    base = Run("ade20k", "100", "overlap", "base", 0)
    first = StepSettings.from_dict(plan.settings(base, 0))
    network, other = (_to_device(_network(first)) for _ in range(2))
    count, batch = 64, 16
    images, targets = images_of(count, CROP), targets_of(count, CROP, 1 + OLD)
    starts = range(0, count, batch)
    features = partial(features_of, network, images, targets, batch)

    @torch.inference_mode()
    def forward() -> None:
        for k in starts:
            network(images[k : k + batch].to(DEVICE))

    batches = [
        Batch(images[k : k + batch], targets[k : k + batch], ["x"], torch.zeros(1))
        for k in starts
    ]
    bank_of = partial(_build, features, starts, batch)
    test_of = partial(_test, batches)
    lda, klda = (some_bank(network, identity=kind) for kind in (True, False))
    sides = {
        "forward passes alone": forward,
        "bank, LDA": bank_of(_bank_settings(identity=True, scatter=True, dimension=2)),
        "bank, 3 × 5000 features, means only": bank_of(
            _bank_settings(identity=False, scatter=False, dimension=5000)
        ),
        "bank, KLDA, 3 × 1024 features": bank_of(
            _bank_settings(identity=False, scatter=True, dimension=1024)
        ),
        "test, the network alone": test_of(network),
        "test, network and LDA, two networks": test_of(
            FusedPredictor(network, lda, feature_network=other)
        ),
        "test, network and KLDA, two networks": test_of(
            FusedPredictor(network, klda, feature_network=other)
        ),
    }
    seconds = in_turn(sides)
    table(f"{count} images of {CROP}², {1 + OLD} classes", "s", "to the passes")
    for name, own in seconds.items():
        line(name, f"{own:.3f}", f"{own / seconds['forward passes alone']:.2f}")


def _build(
    features: Callable[[Iterable[int]], Iterator[FeatureBatch]],
    starts: Iterable[int],
    batch: int,
    settings: BankSettings,
) -> Callable[[], object]:
    """Building a bank of the batches that start at some images."""
    with torch.inference_mode():
        sample = draw_sample(features([0]), settings, images=batch, seed=0)

    @torch.inference_mode()
    def build() -> object:
        return build_bank(features(starts), sample, settings, classes=1 + OLD, seed=0)

    return build


def _test(batches: list[Batch], predictor: Any) -> Callable[[], object]:
    """A test of a predictor on some batches."""
    settings = EvaluationSettings("ssul", False, None)
    order, process = range(1 + OLD), Process(device=DEVICE)

    @torch.inference_mode()
    def test() -> object:
        return evaluate(
            predictor, batches, settings, channel_order=order, process=process
        )

    return test


def loading(workers: int) -> None:
    """The training loader alone."""
    with tempfile.TemporaryDirectory() as name:
        images = TrainingImages(
            photographs(Path(name), 256),
            augmentation=Augmentation(CROP, (0.5, 2.0), 0.5),
            seed=0,
            label_table=np.arange(256, dtype=np.uint8),
        )
        table("loading, JPEGs of 375 × 500", "images/s")
        for count in (workers // 4, workers):
            stream = TrainingStream(256, epochs=4, batch_size=BATCH, seed=0)
            loader = training_loader(images, stream, workers=count)
            numbers = iter(loader)
            next(numbers)
            started, seen = time.perf_counter(), 0
            for batch in numbers:
                seen += len(batch.ids)
            speed = seen / (time.perf_counter() - started)
            line(f"{count} workers", f"{speed:.0f}")


def main() -> None:
    """Measure on the first GPU."""
    parser = argparse.ArgumentParser(prog="benchmarks.gpu")
    names = ["iterations", "methods", "inference", "loading", "compiled"]
    parser.add_argument("parts", nargs="*", default=names, help=", ".join(names))
    parser.add_argument("--workers", type=int, default=12)
    options = parser.parse_args()
    torch.backends.cudnn.benchmark = True  # as in a training
    print(f"{torch.cuda.get_device_name(0)}, PyTorch {torch.__version__}")
    plan = ade20k()
    jobs: dict[str, Callable[[], None]] = {
        "iterations": lambda: iterations(plan),
        "methods": lambda: methods(plan),
        "inference": lambda: inference(plan),
        "loading": lambda: loading(options.workers),
        "compiled": lambda: compiled(plan),
    }
    for part in options.parts:
        jobs[part]()
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
