"""A decorator for methods that build jobs."""

from functools import wraps
from typing import Any

from kproba.plan.run import Run


def cached_job(build: Any) -> Any:
    """Decorate a method, so that it builds the job of a run and step only once."""

    @wraps(build)
    def job(self: Any, run: Run, step: int) -> Any:
        key = build.__name__, run, step
        if key not in self._jobs:
            self._check_step(run, step)
            self._jobs[key] = build(self, run, step)
        return self._jobs[key]

    return job
