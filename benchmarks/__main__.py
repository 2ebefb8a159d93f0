"""make bench: ratios of times; both sides of a ratio are measured in one run.

Every ratio is the median of `REPEATS` pairs. The two sides run in turn, on `THREADS`
threads with OMP_WAIT_POLICY=passive. Peak memory is measured in a fresh process.
Without arguments, all groups are measured and benchmarks/README.md is written.

How time and memory grow with the number of pictures, classes, steps and trainings is
another table: `python -m benchmarks.scale` writes benchmarks/scale.md.
"""

import argparse
import itertools
from collections.abc import Callable

import torch

from benchmarks import prototypes, testing, training, workflow
from benchmarks.measuring import THREADS, Result
from benchmarks.page import write
from kproba.network.backbones import BACKBONES

GROUPS: dict[str, Callable[[], list[Result]]] = {
    "losses": training.losses,
    "iteration": training.iteration,
    "increments": training.increments,
    "kappa": prototypes.kappa,
    "evaluation": testing.evaluation,
    "two-networks": testing.two_networks_and_bank,
    "sizes": testing.sizes,
    "bank": prototypes.banks,
    "loading": training.loading,
    "memory": training.memory,
    "start-up": workflow.start_up,
    "demo": workflow.demo,
}


def main() -> None:
    """Run all groups, or the named ones."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("groups", nargs="*", choices=[*GROUPS, []])
    parser.add_argument("--memory-of", choices=[*training.LOSSES, *BACKBONES])
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    if options.memory_of:
        training.print_memory_of(options.memory_of)
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
