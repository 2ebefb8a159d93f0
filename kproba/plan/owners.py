"""Owners of artifacts: the first run, in a fixed order, that needs the job."""

from dataclasses import dataclass, replace

from kproba import artifacts
from kproba.data.splits import SETTINGS
from kproba.methods.builtin import base_methods
from kproba.plan.chain import Chain
from kproba.plan.datasets import Datasets
from kproba.plan.errors import ConfigError
from kproba.plan.jobs import Job
from kproba.plan.methods import PlannedMethod
from kproba.plan.received import can_go_on
from kproba.plan.run import Run


@dataclass(frozen=True)
class Place:
    """The place of an artifact: a step of a run.

    Attributes:
        run: The run.
        step: Its step.
    """

    run: Run
    step: int

    def path(self, pattern: str) -> str:
        """Path of one of its artifacts, by a pattern of `kproba.artifacts`."""
        return artifacts.fill(pattern, vars(self.run), step=self.step)


class Owners:
    """The places of all jobs of a plan.

    The order is fixed: one-step tasks by their canonical name, then tasks in the order
    of the experiments; within a task the settings in the order of `SETTINGS`; within
    these the trainings of step 0, built-in methods, custom methods. All settings and
    methods count, even if no experiment uses them. So artifacts do not move when an
    experiment is added, unless a task with the same first steps is put in front of
    another.

    Seeds do not matter: jobs of two seeds differ in the seed alone. So the owners of a
    dataset are found for one seed and hold for all of them.

    Args:
        datasets: The datasets of the plan, with all its tasks.
        methods: Its methods, and those of step 0, by name.
        chain: Builds the jobs.
    """

    def __init__(
        self, datasets: Datasets, methods: dict[str, PlannedMethod], chain: Chain
    ):
        self._datasets, self._methods, self._chain = datasets, methods, chain
        self._bases = base_methods().keys()
        # By dataset, and whether the setting "partitioned" counts; then by shape.
        self._places: dict[tuple[str, bool], dict[str, Place]] = {}

    def place(self, job: Job, run: Run) -> Place:
        """The place of a job's artifacts.

        Args:
            job: A job of `run`.
            run: Any run that needs it.

        Raises:
            ConfigError: The plan does not have this job.
        """
        places = self._places_of(run)
        place = places.get(job.shape)
        if place is None or not job.seeds <= {run.seed}:
            raise ConfigError(
                f"Expected a job of the plan for {run}, but got {job}. Let Chain.jobs "
                f"yield every job of a step."
            )
        if place.run.seed == run.seed:
            return place
        return Place(replace(place.run, seed=run.seed), place.step)

    def _places_of(self, run: Run) -> dict[str, Place]:
        """The places of all jobs of a dataset, by shape.

        Jobs of the setting "partitioned" that no other setting has belong to nobody
        else, so the plans of other settings need not build them.
        """
        partitioned = run.setting == "partitioned"
        key = run.dataset, partitioned
        if key not in self._places:
            places = self._places[key] = dict[str, Place]()
            for task in self._datasets.tasks(run.dataset):
                for setting in SETTINGS:
                    if partitioned or setting != "partitioned":
                        self._add(replace(run, task=task, setting=setting), places)
        return self._places[key]

    def _add(self, run: Run, places: dict[str, Place]) -> None:
        """Give the methods the jobs of a task and setting that have no owner yet."""
        count = len(self._datasets.groups(run.dataset, run.task))
        packed = self._datasets.packed(run.dataset)
        for name, method in self._methods.items():
            if count > 1 and name in self._bases:
                continue  # a training of one step
            if packed and not can_go_on(packed, method):
                continue
            owner = replace(run, method=name)
            for step in range(count):
                for job in self._chain.jobs(owner, step):
                    places.setdefault(job.shape, Place(owner, step))
