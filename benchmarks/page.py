"""benchmarks/README.md: the table of all results, and what to know about it."""

import json
import platform

import torch

from benchmarks.measuring import HERE, REPEATS, THREADS, Result
from kproba import __version__
from kproba.runtime.files import atomic_path

HEAD = f"""\
# Benchmarks

This page compares the time and memory of parts of the program with what they must \
at least cost, for developers who change these parts. `make bench` measures the table \
again.

- Each figure is a ratio: the median of {REPEATS} pairs. The two sides of a pair run \
in turn in one process, on {THREADS} threads with `OMP_WAIT_POLICY=passive`.
- Memory is the growth of the peak resident size of a fresh process.
- A "test" in the table is an evaluation on validation images.
- Measurements on a GPU are in [gpu.md](gpu.md), and those with large datasets in \
[scale.md](scale.md).
- What the prediction of an evaluated step costs, beside other methods: \
[prediction.md](prediction.md).

| measured | figure | goal | reached | sides |
|---|---|---|---|---|
"""

REMARKS = """
**Ratios of evaluation.** Evaluation, tests with two networks and pseudo labels are \
compared with forward passes. These have become faster: 0.3 to 0.4 s in place of 0.8 s \
for four images of 513² (EfficientNet-Lite0, one thread). So the work after them is a \
larger share now, although it takes less time. In the earlier version, a test with two \
networks took 3.4 times the passes (21 classes), and 4.6 times with ResNet-50 and 101 \
classes. On one thread it now takes 2.2 to 2.4 times the passes, and 2.0 to 2.2 times \
a test with one network.

**Ratios of the bank.** Besides the forward passes, a bank needs one product that \
cannot be avoided. For the 1,089 cells of one image of 513², 3 × 5000 features cost 5 \
GFLOP at 320 channels and 33 GFLOP at 2048, in float32 and with pairs of features that \
share their frequency. EfficientNet-Lite0 is so light that this product alone is a \
quarter of its forward pass. The scatter that `klda` needs costs about 90 GFLOP more \
for each image. Solving with it is a fixed cost, which is large compared with so few \
images. At the default D = 1024 both are small.
"""


def page(results: list[Result]) -> str:
    """The whole text."""
    about = {
        "kproba": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": THREADS,
        "repeats": REPEATS,
    }
    rows = "".join(
        f"| {r.name} | {r.ratio:.2f} | {r.goal or '–'} | {r.reached} | {r.detail} |\n"
        for r in results
    )
    return f"{HEAD}{rows}\n`{json.dumps(about)}`\n{REMARKS}"


def write(results: list[Result]) -> None:
    """Write benchmarks/README.md."""
    with atomic_path(HERE / "README.md") as temporary:
        temporary.write_text(page(results), encoding="utf-8")
