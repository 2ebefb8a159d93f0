"""Checks the files that a user names on the command line of Snakemake."""

import re
from collections.abc import Iterable

from kproba import artifacts
from kproba.data.splits import SETTINGS
from kproba.plan.errors import ConfigError, suggestion
from kproba.plan.plan import Plan
from kproba.plan.run import Run

_STEP = re.compile(
    re.escape(artifacts.STEP)
    .replace(re.escape("{dataset}"), r"(?P<dataset>[^/]+)")
    .replace(re.escape("{task}"), r"(?P<task>[^/]+)")
    .replace(re.escape("{setting}"), f"(?P<setting>{'|'.join(SETTINGS)})")
    .replace(re.escape("{method}"), r"(?P<method>[^/]+)")
    .replace(re.escape("{seed}"), r"(?P<seed>\d+)")
    .replace(re.escape("{step}"), r"(?P<step>\d+)")
    + "/"
)


def check_targets(plan: Plan, targets: Iterable[str]) -> None:
    """Refuse files of steps that the configuration does not have.

    The rules would make them for any names that fit the patterns of their paths.

    Args:
        plan: The plan of the configuration.
        targets: Words of the command line. Snakemake knows which of them are targets
            only after it has read the rules; others do not look like such files.

    Raises:
        ConfigError: A file is of a dataset, task, method or step that does not exist.
    """
    for target in targets:
        found = _STEP.match(target.removeprefix("./"))
        if not found:
            continue
        names = found.groupdict()
        seed, step = int(names.pop("seed")), int(names.pop("step"))
        try:
            _check_names(plan, Run(**names, seed=seed), step)
        except ConfigError as error:
            raise ConfigError(f"{target}: {error}") from error


def _check_names(plan: Plan, run: Run, step: int) -> None:
    known = list(dict.fromkeys(entry.dataset for entry in plan.runs))
    if run.dataset not in known:
        raise ConfigError(
            f"expected a dataset of {', '.join(known)}, but got "
            f"'{run.dataset}'{suggestion(run.dataset, known)}. Correct the name, or "
            f"name the configuration with --configfile."
        )
    tasks = plan.datasets.tasks(run.dataset)
    if run.task not in tasks:
        raise ConfigError(
            f"expected a task of {', '.join(tasks)}, but got "
            f"'{run.task}'{suggestion(run.task, tasks)}. Correct the name, or add the "
            f"task to `experiments`."
        )
    plan.chain.training(run, step)  # refuses unknown methods and steps
