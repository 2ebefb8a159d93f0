"""The chain of a run: the jobs of each step, built from the jobs before them."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, wraps
from pathlib import Path
from typing import Any

from kproba.extensions import find_origins
from kproba.methods.method import Method
from kproba.plan.datasets import Datasets
from kproba.plan.errors import ConfigError, suggestion
from kproba.plan.jobs import (
    Bank,
    Job,
    Labels,
    Received,
    ReceivedBank,
    Split,
    Test,
    Training,
)
from kproba.plan.methods import PlannedMethod
from kproba.plan.received import check_packed, received_bank, received_network

Config = dict[str, Any]

# Dilations of DeepLabV3, by output stride, for feature maps of about 33 x 33 cells.
ATROUS_RATES = {16: [6, 12, 18], 8: [12, 24, 36]}


# Values of `model.weights` that are not file names.
PUBLISHED = ("imagenet", "none")


@cache
def _describe_weights(weights: str) -> str:
    """Describe weights by their content, because a file may be moved."""
    path = Path(weights).expanduser()
    if weights in PUBLISHED or not path.is_file():
        return weights
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


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


def _cached(build: Any) -> Any:
    """Decorate a method, so that it builds the job of a run and step only once."""

    @wraps(build)
    def job(self: "Chain", run: Run, step: int) -> Any:
        key = build.__name__, run, step
        if key not in self._jobs:
            self._check_step(run, step)
            self._jobs[key] = build(self, run, step)
        return self._jobs[key]

    return job


class Chain:
    """Builds the jobs of runs.

    Args:
        config: A checked configuration.
        datasets: Its datasets.
        methods: Its methods, and those of step 0, by name.
    """

    def __init__(
        self, config: Config, datasets: Datasets, methods: dict[str, PlannedMethod]
    ):
        self._config, self._datasets, self._methods = config, datasets, methods
        self._jobs: dict[tuple[str, Run, int], Any] = {}
        self._listed: dict[tuple[str, str, int], list[list[int]]] = {}

    def jobs(self, run: Run, step: int) -> Iterator[Job]:
        """All jobs of a step."""
        if self._is_received(run, step):
            return
        method = self._method(run)
        last = len(self._groups(run, None)) - 1
        yield self.split(run, step)
        if method.method.joint and step < last:
            return
        yield self.training(run, step)
        yield self.test(run, step)
        # A packed step may have no bank.
        can_build = method.reads_bank or not self._datasets.packed(run.dataset)
        if not method.method.joint and can_build:
            yield self.bank(run, step)
        if step > 0 and method.uses_labels(run.setting):
            yield self.labels(run, step)

    @_cached
    def split(self, run: Run, step: int) -> Split:
        """The images of a step."""
        groups = self._groups(run, step)
        return Split(
            parts=tuple(self._datasets.parts(run.dataset, groups)),
            groups=groups,
            selection="overlap" if run.setting == "overlap" else "disjoint",
        )

    @_cached
    def training(self, run: Run, step: int) -> Training | Received:
        """The training of a step; for `joint`, the single training of all classes.

        For a packed step, it is the network in the archive.
        """
        planned = self._method(run)
        if packed := self._datasets.packed(run.dataset):
            check_packed(packed, planned)
            if step <= packed.step:
                return received_network(packed, step)
        if planned.method.joint and run.method != planned.method.base:
            return self.training(self._joint_run(run), 0)
        if step == 0:
            return self._base_training(run, planned.method)
        if run.method == planned.method.base:
            raise ConfigError(
                f"Expected step 0, because '{run.method}' has no other step, but got "
                f"step {step} of task '{run.task}'. Name a method instead."
            )
        corrected = planned.training_reads_bank(step)
        # The network of a step that trains nothing does not depend on labels.
        learns = not planned.method.trains_nothing
        labels = learns and planned.uses_labels(run.setting)
        return Training(
            settings=self._training_settings(
                run,
                step,
                method=planned.method,
                optimisation=planned.increment if learns else self._no_training(),
                decision=planned.decision if corrected else None,
            ),
            split=self.split(run, step),
            previous=self.training(run, step - 1),
            labels=self.labels(run, step) if labels else None,
            bank=self.bank(run, step - 1) if corrected else None,
        )

    @_cached
    def bank(self, run: Run, step: int) -> Bank | ReceivedBank:
        """The bank after a step."""
        planned = self._method(run)
        packed = self._datasets.packed(run.dataset)
        if packed and step <= packed.step:
            return received_bank(packed, step, planned)
        if planned.method.joint and run.method != planned.method.base:
            raise ConfigError(
                f"Expected a method with a prototype bank, but got '{run.method}', "
                f"which trains all classes at once and has no bank."
            )
        step_training = self.training(run, step)
        uses_base = planned.bank_network == "base"
        uses_previous = planned.bank_network == "before"
        settings = dict(planned.bank)
        if step > 0 and planned.bank_momentum is not None:
            settings["momentum"] = planned.bank_momentum
        labels = step > 0 and planned.uses_labels(run.setting)
        return Bank(
            settings={
                "settings": settings,
                "groups": self._group_lists(run, step),
                "sequential": run.setting == "sequential" and step > 0,
                "seed": run.seed,
                # Features of a new network need a new temperature.
                "keep_temperature": uses_base and step > 0,
            },
            model=self.training(run, 0) if uses_base else step_training,
            split=self.split(run, step),
            labels=self.labels(run, step) if labels else None,
            previous=self.bank(run, step - 1) if step > 0 else None,
            features=self.training(run, step - 1) if uses_previous and step else None,
            untrained=uses_previous and step == 0,
        )

    @_cached
    def labels(self, run: Run, step: int) -> Labels:
        """The pseudo labels of a step."""
        planned = self._method(run)
        extensions = find_origins([("label rule", planned.labels["rule"])])
        return Labels(
            settings={
                "settings": planned.labels,
                "groups": self._group_lists(run, step),
                "sequential": run.setting == "sequential",
                **({"extensions": extensions} if extensions else {}),
            },
            network=self.training(run, step - 1),
            split=self.split(run, step),
            bank=self.bank(run, step - 1) if planned.labels_read_bank else None,
        )

    @_cached
    def test(self, run: Run, step: int) -> Test:
        """The evaluation after a step."""
        planned = self._method(run)
        fused, groups = planned.test_reads_bank, self._groups(run, step)
        kind = self._datasets.kind(run.dataset)
        values = {str(label): value for label, value in kind.mask_values().items()}
        more = {
            "label_offset": kind.label_offset,
            "values": values,
            "long_side": self._datasets.long_side(run.dataset),
            "leave_out_absent": self._datasets.packed(run.dataset) is not None,
        }
        return Test(
            settings={
                "decision": planned.decision if fused else None,
                "settings": self._config["evaluation"],
                "groups": self._group_lists(run, step),
                **{key: value for key, value in more.items() if value},
            },
            network=self.training(run, step),
            parts=tuple(self._datasets.parts(run.dataset, groups)),
            bank=self.bank(run, step) if fused else None,
        )

    # Helpers

    def _method(self, run: Run) -> PlannedMethod:
        """The method of a run.

        Raises:
            ConfigError: There is none of its name.
        """
        if run.method not in self._methods:
            raise ConfigError(
                f"Expected a method of {', '.join(self._methods)}, but got "
                f"'{run.method}'{suggestion(run.method, self._methods)}."
            )
        return self._methods[run.method]

    def _is_received(self, run: Run, step: int) -> bool:
        """Whether a step comes from an archive, so that no job here trains it."""
        packed = self._datasets.packed(run.dataset)
        return packed is not None and step <= packed.step

    def _check_step(self, run: Run, step: int) -> None:
        """Refuse a step that the task does not have.

        Raises:
            ConfigError: It has no such step.
        """
        count = len(self._groups(run, None))
        if not 0 <= step < count:
            raise ConfigError(
                f"Expected a step of task '{run.task}' of dataset '{run.dataset}', 0 "
                f"to {count - 1}, but got step {step}."
            )

    def _groups(self, run: Run, step: int | None) -> tuple[tuple[int, ...], ...]:
        return self._datasets.groups(run.dataset, run.task, step)

    def _group_lists(self, run: Run, step: int) -> list[list[int]]:
        """Raw labels of the classes of the steps 0..t; one list for all runs."""
        key = run.dataset, run.task, step
        if key not in self._listed:
            self._listed[key] = [list(group) for group in self._groups(run, step)]
        return self._listed[key]

    def _joint_run(self, run: Run) -> Run:
        """The one-step run that trains all classes of a task at once."""
        task = self._datasets.joint_task(run.dataset, run.task)
        base = self._method(run).method.base
        return Run(run.dataset, task, "overlap", base, run.seed)

    def _base_training(self, run: Run, method: Method) -> Training:
        """The training of step 0, which depends only on the head of the method."""
        settings = self._training_settings(
            run,
            0,
            method=self._methods[method.base].method,
            optimisation=self._config["base"],
            decision=None,
        )
        return Training(settings, self.split(run, 0))

    def _no_training(self) -> Config:
        """The optimisation of a step that trains nothing: no key of `increment`.

        A change of `base` makes another network of step 0 anyway.
        """
        return {**self._config["base"], "iterations": 0}

    def _training_settings(
        self,
        run: Run,
        step: int,
        *,
        method: Method,
        optimisation: Config,
        decision: Config | None,
    ) -> Config:
        """Content of settings.json, without the names of the run."""
        config = self._config
        epochs = self._datasets.epochs(run.dataset, self._groups(run, step))
        if epochs and step > 0 and not method.trains_nothing:
            optimisation = {**optimisation, "epochs": epochs, "iterations": None}
        if optimisation["iterations"] is None:
            optimisation = {k: v for k, v in optimisation.items() if k != "iterations"}
        model = dict(config["model"])
        weights, rates = model.pop("weights"), model.pop("atrous_rates")
        architecture = {
            **model,
            "atrous_rates": rates or ATROUS_RATES[model["output_stride"]],
            "head": method.head,
        }
        terms = [("loss term", name) for name in method.terms]
        parts = [("head", method.head), ("backbone", model["backbone"])]
        extensions = find_origins([*terms, *parts])
        return {
            "seed": run.seed,
            "groups": self._group_lists(run, step),
            "sequential": run.setting == "sequential" and step > 0,
            "architecture": None if step else architecture,
            "weights": None if step else _describe_weights(weights),
            "augmentation": config["augmentation"],
            "optimisation": optimisation,
            "method": method.to_dict(),
            "decision": decision,
            **({"extensions": extensions} if extensions else {}),
        }
