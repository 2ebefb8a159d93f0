"""python -m benchmarks.gpu: steps, banks and evaluations on one GPU, in ten minutes.

Most figures are the median of several rounds, in which the sides run in turn. Every
measurement waits for the device. Lines are printed at once, as Markdown. Every part
runs in a separate process with a time limit. If a part fails or takes too long, the
next part runs, and the exit status is 1.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence

import torch

from benchmarks.case import SMALL, Case, say
from benchmarks.gpu_inference import inference, loading
from benchmarks.gpu_sizes import sizes
from benchmarks.gpu_training import gains, iterations, methods, where_time_goes
from benchmarks.measuring import ROOT

# Most seconds of each part, the most important first.
SECONDS = {
    "iterations": 90,
    "gains": 180,
    "sizes": 270,
    "inference": 60,
    "profile": 45,
    "methods": 90,
    "loading": 40,
}
TOTAL = 590  # seconds of all parts


def jobs_of(case: Case, workers: int) -> dict[str, Callable[[], None]]:
    """The function of each part."""
    return {
        "iterations": lambda: iterations(case),
        "gains": lambda: gains(case),
        "sizes": lambda: sizes(case),
        "inference": lambda: inference(case),
        "profile": lambda: where_time_goes(case),
        "methods": lambda: methods(case),
        "loading": lambda: loading(case, workers),
    }


def run_here(job: Callable[[], None], part: str) -> bool:
    """Run a part in this process; print a message if it fails."""
    try:
        job()
    except Exception as error:  # any error, because the other parts should run
        traceback.print_exc()
        say(f"**{part} failed**: {type(error).__name__}: {str(error)[:500]}")
        return False
    return True


def run_apart(part: str, seconds: float, workers: int) -> bool:
    """Run a part in a separate process with a time limit."""
    words = [sys.executable, "-m", "benchmarks.gpu", part, "--here"]
    process = subprocess.Popen(
        [*words, f"--workers={workers}"], cwd=ROOT, start_new_session=True
    )
    try:
        return process.wait(timeout=seconds) == 0
    except subprocess.TimeoutExpired:
        say(f"**{part} was stopped** after {seconds:.0f} s")
        return False
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # and its child processes
            process.wait()


def main(argv: Sequence[str] | None = None) -> None:
    """Measure on the first GPU, or try out all parts on the CPU."""
    parser = argparse.ArgumentParser(prog="benchmarks.gpu", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*SECONDS, []])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--small", action="store_true", help="tiny sizes, to try out the code on a CPU"
    )
    parser.add_argument(
        "--here", action="store_true", help="run all parts in one process"
    )
    parser.add_argument(
        "--workers", type=int, default=12, help="worker processes of the loader"
    )
    options = parser.parse_args(argv)
    if options.small != (options.device == "cpu"):
        parser.error("use --small and --device cpu together")
    case, started = SMALL if options.small else Case(), time.monotonic()
    here = options.small or options.here
    if not here:  # an end by a signal must end the process of a part, too
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    if not options.here:
        name = "the CPU" if options.small else torch.cuda.get_device_name(0)
        print(f"{name}, PyTorch {torch.__version__}", flush=True)
    jobs, done = jobs_of(case, options.workers), True
    for part in options.parts or list(SECONDS):
        if here:
            done &= run_here(jobs[part], part)
            continue
        left = min(SECONDS[part], TOTAL - (time.monotonic() - started))
        done &= run_apart(part, left, options.workers)
    if not done:
        sys.exit(1)


if __name__ == "__main__":
    main()
