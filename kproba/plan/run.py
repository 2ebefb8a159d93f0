"""The names of a run."""

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Run:
    """One run, that is, a chain of steps, with its names in the paths.

    Attributes:
        dataset, task, setting, method, seed: As in the configuration. For a shared step
            0, the task has one step and the method is the name of that training.
    """

    dataset: str
    task: str
    setting: str
    method: str
    seed: int
