"""Trainings on a GPU: iterations, gain of each optimisation, and a profile."""

import gc
from collections.abc import Callable
from functools import partial

import torch

from benchmarks.case import Case, line, say, table
from benchmarks.profiles import Row, counts, is_copy, memory_gib, profiled, short
from benchmarks.steps import METHODS, Step
from kproba.runtime.compute import Compute

GOAL = (
    "Goal with bfloat16: 0.035 s for an iteration, and at most 1.08 times the forward "
    "and backward pass of the student and the forward pass of the teacher."
)
PROFILED = 3  # iterations
TOP = 15  # kernels


def tuned(case: Case) -> None:
    """Let cuDNN try out its kernels, as a training does."""
    torch.backends.cudnn.benchmark = case.kind == "cuda"


def free(case: Case) -> None:
    """Free the memory of earlier measurements."""
    gc.collect()
    if case.kind == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def iterations(case: Case) -> None:
    """Iterations with every precision, compared with the passes alone."""
    tuned(case)
    size = f"{case.batch} × {case.crop}², {case.backbone}"
    say(GOAL)
    heads = ("s", "images/s", "to the passes", "GiB", "TFLOP/s", "kernels", "launches")
    table(f"iteration of `barm`, {size}", *heads)
    flops = None
    precisions = ["float32", "float16", "bfloat16"]
    if case.kind == "cpu":
        precisions.remove("float16")  # a CPU has no kernels for it
    for precision in precisions:
        free(case)
        step = Step(case, "barm", precision)
        step()
        peak = memory_gib(case)
        seconds = case.in_turn({"step": step, "passes": step.passes})
        own, bare = seconds["step"], seconds["passes"]
        flops = flops or step.flops()
        found = counts(profiled(step, case), case)
        line(
            precision,
            f"{own:.4f}",
            f"{case.batch / own:.1f}",
            f"{own / bare:.2f}",
            peak,
            f"{flops / own / 1e12:.3g}",
            *found,
        )
        del step
    _explain(case, flops or 0)


def _explain(case: Case, flops: int) -> None:
    say(f"An iteration needs {flops / 1e12:.3g} TFLOP in convolutions and products.")
    if case.kind == "cpu":
        say("On a CPU, the table lists ATen operators instead of kernels.")


def gains(case: Case) -> None:
    """Gains of folding and sharing, of recorded graphs and of compiled kernels."""
    tuned(case)
    if case.small:
        torch.compiler.set_stance("force_eager")  # compiling takes minutes on a CPU
    step = partial(Step, case, "barm", "bfloat16")
    builds: dict[str, Callable[[], Step]] = {
        "plain networks": partial(step, folded=False),
        "folded, first stages shared": step,
        "and `compute.cuda_graphs`": partial(step, compute=Compute(cuda_graphs=True)),
        "or `compute.compile`": partial(step, compute=Compute(compile=True)),
    }
    steps, first = {}, {}
    say(GOAL)
    for name, build in builds.items():
        free(case)
        try:
            steps[name] = build()
            first[name] = case.seconds(steps[name])
        except Exception as error:  # the other sides are measured all the same
            steps.pop(name, None)
            say(f"**{name} failed**: {type(error).__name__}: {error}")
    bare = {f"{name}: passes": each.passes for name, each in steps.items()}
    seconds = case.in_turn({**steps, **bare})
    heads = ("s", "gain", "to its passes", "kernels", "launches", "first iteration, s")
    table("iteration of `barm`, bfloat16", *heads)
    slowest = seconds[next(iter(steps))]
    for name, each in steps.items():
        own = seconds[name]
        line(
            name,
            f"{own:.4f}",
            f"{slowest / own:.2f}",
            f"{own / seconds[f'{name}: passes']:.2f}",
            *counts(profiled(each, case), case),
            f"{first[name]:.1f}",
        )
    torch.compiler.set_stance("default")


def where_time_goes(case: Case) -> None:
    """Kernels of iterations in bfloat16: convolutions, products and the rest."""
    tuned(case)
    step = Step(case, "barm", "bfloat16")
    for _ in range(1 if case.small else 5):
        step()
    seconds = sum(case.seconds(step) for _ in range(PROFILED)) / PROFILED

    def some() -> None:
        for _ in range(PROFILED):
            step()

    gpu = case.kind == "cuda"
    rows = [r for r in profiled(some, case) if r.kernel or not gpu]
    total = sum(map(_own, rows))
    busy = total / PROFILED
    products = sum(_own(row) for row in rows if row.product)
    copies = sum(_own(row) for row in rows if is_copy(row.name))
    what = "Kernels" if gpu else "Operators"
    say(
        f"An iteration takes {seconds:.4f} s. {what} take {busy:.4f} s of it under the "
        f"profiler: {products / total:.0%} convolutions and matrix products, "
        f"{copies / total:.0%} copies and fills, "
        f"{(total - products - copies) / total:.0%} the rest."
    )
    table(f"{what.lower()}, longest first", "ms", "share", "calls", "product")
    for row in sorted(rows, key=_own, reverse=True)[:TOP]:
        line(
            short(row.name),
            f"{1000 * _own(row) / PROFILED:.2f}",
            f"{_own(row) / total:.1%}",
            f"{row.calls / PROFILED:.0f}",
            "yes" if row.product else "no",
        )


def _own(row: Row) -> float:
    """Seconds of a kernel on the GPU, or of an operator on the CPU."""
    return row.gpu if row.kernel else row.cpu


def methods(case: Case) -> None:
    """All methods in turn, bfloat16."""
    tuned(case)
    steps = {method: Step(case, method, "bfloat16") for method in METHODS}
    seconds = case.in_turn(dict(steps))
    table("method, bfloat16", "s", "to `finetune`")
    for method, own in seconds.items():
        line(f"`{method}`", f"{own:.4f}", f"{own / seconds['finetune']:.2f}")
