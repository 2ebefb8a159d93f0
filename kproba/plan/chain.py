"""The chain of a run: the jobs of each step, built from the jobs before them."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from kproba.extensions import find_origins
from kproba.methods.method import PRETRAINED, Method
from kproba.plan.cached_job import cached_job
from kproba.plan.datasets import Datasets
from kproba.plan.errors import ConfigError, suggestion
from kproba.plan.jobs import (
    Bank,
    Job,
    Labels,
    Memory,
    Received,
    ReceivedBank,
    Split,
    Statistics,
    Test,
    Training,
)
from kproba.plan.methods import PlannedMethod
from kproba.plan.received import (
    check_packed,
    received_bank,
    received_features,
    received_network,
)
from kproba.plan.run import Run
from kproba.plan.step_settings import (
    bank_settings,
    length_of_step,
    memory_settings,
    recognises_old,
    statistics_settings,
    training_settings,
)

Config = dict[str, Any]


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
        own_bank = method.test_reads_bank or not method.method.joint
        if own_bank and can_build:
            yield self.bank(run, step)
        if step > 0 and method.uses_labels(run.setting):
            yield self.labels(run, step)
        if method.replays:
            yield self.statistics(run, step)
        if method.has_memory:
            yield self.memory(run, step)

    @cached_job
    def split(self, run: Run, step: int) -> Split:
        """The images of a step."""
        groups = self._groups(run, step)
        selection, classes = run.setting, tuple[int, ...]()
        if run.setting == "sequential":
            selection = "disjoint"
        elif run.setting == "partitioned":
            classes = self._datasets.divided_classes(run.dataset, run.task, step)
            if set(classes) <= set(groups[-1]):  # no other step could have an image
                selection, classes = "overlap", ()
        return Split(
            parts=tuple(self._datasets.parts(run.dataset, groups)),
            groups=groups,
            selection=selection,
            classes=classes,
        )

    @cached_job
    def training(self, run: Run, step: int) -> Training | Received:
        """The training of a step; for `joint`, the single training on everything.

        For a packed step, it is the network in the archive.
        """
        planned = self._method(run)
        if packed := self._datasets.packed(run.dataset):
            check_packed(packed, planned)
            if step <= packed.step:
                return received_network(packed, step)
        if self._is_joint(run):
            return self._joint_training(run, planned)
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
                optimisation=self._increment(run, step, planned),
                decision=planned.decision if corrected else None,
                memory=planned.memory if planned.has_memory else None,
            ),
            split=self.split(run, step),
            previous=self.training(run, step - 1),
            labels=self.labels(run, step) if labels else None,
            bank=self.bank(run, step - 1) if corrected else None,
            statistics=self.statistics(run, step - 1) if planned.replays else None,
            memory=self.memory(run, step - 1) if planned.has_memory else None,
        )

    @cached_job
    def statistics(self, run: Run, step: int) -> Statistics:
        """The statistics of the features of all classes after a step."""
        later = step > 0
        return Statistics(
            settings=statistics_settings(
                self._config,
                self._group_lists(run, step),
                setting=run.setting,
                seed=run.seed,
            ),
            network=self.training(run, step),
            split=self.split(run, step),
            teacher=self.training(run, step - 1) if later else None,
            previous=self.statistics(run, step - 1) if later else None,
        )

    @cached_job
    def memory(self, run: Run, step: int) -> Memory:
        """The old images after a step; none of them came later."""
        planned = self._method(run)
        if not planned.has_memory:
            raise ConfigError(
                f"Expected a method with a memory of old images, but '{run.method}' "
                f"has none. Set memory.images for a method that learns step by step."
            )
        groups, last = self._group_lists(run, step), len(self._groups(run, None)) - 1
        shown = self._group_lists(run, min(step + 1, last))
        settings = memory_settings(
            groups, shown, planned, setting=run.setting, seed=run.seed
        )
        recognises = recognises_old(planned, groups, run.setting)
        return Memory(
            settings=settings,
            split=self.split(run, step),
            model=self.training(run, step) if recognises else None,
            previous=self.memory(run, step - 1) if step > 0 else None,
        )

    @cached_job
    def bank(self, run: Run, step: int) -> Bank | ReceivedBank:
        """The bank after a step."""
        planned = self._method(run)
        packed = self._datasets.packed(run.dataset)
        if packed and step <= packed.step:
            return received_bank(packed, step, planned)
        if self._is_joint(run):
            return self._joint_bank(run, planned)
        uses_previous = planned.bank_network == "before"
        labels = step > 0 and planned.uses_labels(run.setting)
        return Bank(
            settings=self._bank_settings(run, step, planned),
            model=self._bank_model(run, step, planned),
            split=self.split(run, step),
            labels=self.labels(run, step) if labels else None,
            previous=self.bank(run, step - 1) if step > 0 else None,
            features=self.training(run, step - 1) if uses_previous and step else None,
            untrained=uses_previous and step == 0,
        )

    @cached_job
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

    @cached_job
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
        """The method of a run, with the weights for its dataset and task.

        Raises:
            ConfigError: There is none of its name.
        """
        if run.method not in self._methods:
            raise ConfigError(
                f"Expected a method of {', '.join(self._methods)}, but got "
                f"'{run.method}'{suggestion(run.method, self._methods)}."
            )
        planned = self._methods[run.method]
        kind = self._datasets.kind(run.dataset).name
        return replace(planned, method=planned.method.for_run(kind, run.task))

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

    def _is_joint(self, run: Run) -> bool:
        """Whether a run is one training on everything, and no training of step 0."""
        method = self._method(run).method
        return method.joint and run.method != method.base

    def _joint_run(self, run: Run) -> Run:
        """The one-step run that trains all classes of a task at once."""
        task = self._datasets.joint_task(run.dataset, run.task)
        base = self._method(run).method.base
        return Run(run.dataset, task, "overlap", base, run.seed)

    def _joint_training(self, run: Run, planned: PlannedMethod) -> Training | Received:
        """The training on all images with all labels.

        It has as many iterations as the steps of the run together. With `training:
        base`, or if there is one step, it is the step 0 of all classes.
        """
        one_step, steps = self._joint_run(run), range(len(self._groups(run, None)))
        if self._config["joint"]["training"] == "base" or len(steps) == 1:
            return self.training(one_step, 0)
        base = self._config["base"]
        sections = [base, *(self._increment(run, t, planned) for t in steps[1:])]
        chain = [length_of_step(section) for section in sections]
        settings = self._training_settings(
            one_step,
            0,
            method=self._method(one_step).method,
            optimisation={**base, "iterations": None, "chain": chain},
        )
        splits = tuple(self.split(run, step) for step in steps)
        return Training(settings, self.split(one_step, 0), chain=splits)

    def _joint_bank(self, run: Run, planned: PlannedMethod) -> Bank:
        """The bank of all classes, from all images with all labels, in one step."""
        if not planned.test_reads_bank:
            raise ConfigError(
                f"Expected a method with a prototype bank, but got '{run.method}', "
                f"which predicts with the network alone. Define a method based on it "
                f"with `prediction: fused`."
            )
        one_step = self._joint_run(run)
        training = self._joint_training(run, planned)
        assert isinstance(training, Training)  # packed steps have no joint training
        return Bank(
            settings=self._bank_settings(one_step, 0, planned),
            model=self._bank_model(one_step, 0, planned)
            if planned.bank_network == PRETRAINED
            else training,
            split=self.split(one_step, 0),
            untrained=planned.bank_network == "before",
        )

    def _increment(self, run: Run, step: int, planned: PlannedMethod) -> Config:
        """Settings of `Optimisation` for a later step.

        If it trains nothing, no key of `increment` counts. A change of `base` makes
        another network of step 0 anyway.
        """
        if planned.method.trains_nothing:
            return {**self._config["base"], "iterations": 0}
        epochs = self._datasets.epochs(run.dataset, self._groups(run, step))
        if epochs is None:
            return planned.increment
        return {**planned.increment, "epochs": epochs, "iterations": None}

    def _base_training(self, run: Run, method: Method) -> Training:
        """The training of step 0, which depends only on the head of the method."""
        base = self._method(replace(run, method=method.base)).method
        optimisation = self._config["base"]
        if base.trains_nothing:
            optimisation = {**optimisation, "iterations": 0}
        settings = self._training_settings(
            run, 0, method=base, optimisation=optimisation
        )
        return Training(settings, self.split(run, 0))

    def _bank_model(
        self, run: Run, step: int, planned: PlannedMethod
    ) -> Training | Received:
        """The training whose model the bank of a step belongs to."""
        if planned.bank_network == PRETRAINED:
            if packed := self._datasets.packed(run.dataset):
                return received_features(packed)
            return self.training(replace(run, method=PRETRAINED), 0)
        return self.training(run, 0 if planned.bank_network == "base" else step)

    def _bank_settings(self, run: Run, step: int, planned: PlannedMethod) -> Config:
        groups = self._group_lists(run, step)
        return bank_settings(groups, planned, setting=run.setting, seed=run.seed)

    def _training_settings(
        self,
        run: Run,
        step: int,
        method: Method,
        optimisation: Config,
        **more: Config | None,
    ) -> Config:
        return training_settings(
            self._config,
            self._group_lists(run, step),
            method,
            optimisation,
            setting=run.setting,
            seed=run.seed,
            more=more,
        )
