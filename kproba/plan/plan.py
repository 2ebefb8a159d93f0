"""The plan: the runs of a configuration, their jobs, and the owners of artifacts.

It gives the rules the inputs and settings of a job, by the names in the job's path.
`Chain` builds the jobs of a run. If several runs would write equal artifacts, the first
run owns them (`Plan.owner`): they are written once, in its folder.
"""

import itertools
from pathlib import Path
from typing import Any

from kproba import artifacts
from kproba.data.labels import check_room_for_unknown
from kproba.data.task_check import TaskSteps, describe_empty, empty_steps
from kproba.methods.builtin import base_methods
from kproba.network.backbones import BACKBONES
from kproba.plan.chain import Chain
from kproba.plan.checks import check_batches, check_model, check_shares
from kproba.plan.dataset_state import training_classes
from kproba.plan.datasets import Datasets, Locate
from kproba.plan.errors import ConfigError, suggestion
from kproba.plan.jobs import Bank, Job, Labels, Received, ReceivedBank, Test
from kproba.plan.methods import PlannedMethod, plan_methods
from kproba.plan.owners import Owners, Place
from kproba.plan.results import StepResult
from kproba.plan.rule_inputs import Files, RuleInputs
from kproba.plan.run import Run
from kproba.plan.saliency import PlannedSaliency
from kproba.plan.step_settings import PUBLISHED
from kproba.runtime.compute import Compute

Config = dict[str, Any]
# Paths of the files of a packed step.
_RECEIVED = {
    artifacts.MODEL: artifacts.RECEIVED_MODEL,
    artifacts.BANK: artifacts.RECEIVED_BANK,
}


class Plan(RuleInputs):
    """The runs of a checked configuration and the jobs that they need.

    Args:
        config: Result of `kproba.plan.schema.check`; it is not changed.
        locate: Returns the path of a file of `kproba.artifacts`, for paths that a job
            gets as text. If another workflow uses this one as a module with a prefix,
            Snakemake adds the prefix to inputs and outputs, but not to such paths.

    Raises:
        ConfigError: A dataset, task or method does not exist, classes cannot be
            divided, or a batch cannot be split.
    """

    def __init__(self, config: Config, locate: Locate = str):
        self.config = config
        self.locate = locate
        self.datasets = Datasets(config, locate)
        self.saliency = PlannedSaliency(self.datasets, locate)
        self.methods = plan_methods(config)
        self._bases = base_methods().keys()
        self.chain = Chain(config, self.datasets, self.methods)
        self.compute = Compute.from_dict(config["compute"])
        self._owners = Owners(self.datasets, self.methods, self.chain)
        runs: dict[Run, None] = {}  # in order, each once
        for number, experiment in enumerate(config["experiments"]):
            runs |= dict.fromkeys(self._add(f"experiments.{number}", experiment))
        self.runs = list(runs)
        names = dict.fromkeys(run.method for run in self.runs)
        increments = {
            name: self.method(name).increment
            for name in names
            if not self.method(name).method.trains_nothing
        }
        check_batches(config["base"], increments, self.compute)
        check_shares(map(self.method, names))
        check_model(config)
        self._check_classes()

    # Contents

    def method(self, name: str) -> PlannedMethod:
        """A method of the configuration, or a training of step 0.

        Raises:
            ConfigError: There is none.
        """
        if name not in self.methods:
            known = [key for key in self.methods if key not in self._bases]
            raise ConfigError(
                f"Expected a method of {', '.join(known)}, but got '{name}'."
            )
        return self.methods[name]

    def joint_methods(self) -> list[str]:
        """The methods that are trained on everything at once."""
        names = (name for name in self.methods if name not in self._bases)
        return [name for name in names if self.methods[name].method.joint]

    def steps(self, run: Run) -> range:
        """Steps whose model is evaluated; `joint` has only the last one."""
        count = len(self.datasets.groups(run.dataset, run.task))
        if self.method(run.method).method.joint:
            return range(count - 1, count)
        packed = self.datasets.packed(run.dataset)
        return range(packed.step + 1 if packed else 0, count)

    def experiments(self) -> list[Run]:
        """One run for each dataset, task and setting, with any method and seed."""
        runs = {(run.dataset, run.task, run.setting): run for run in self.runs}
        return list(runs.values())

    def weights_file(self) -> str | None:
        """File of backbone weights that a rule downloads; None if there is none."""
        model = self.config["model"]
        if model["weights"] != "imagenet" or BACKBONES[model["backbone"]].packaged:
            return None
        return artifacts.fill(artifacts.WEIGHTS, {"backbone": model["backbone"]})

    def own_weights(self) -> str | None:
        """File of weights that the user names; None if there is none.

        It is not an input of a rule, because Snakemake would interpret braces in its
        path, and the folder of the file does not matter. The settings contain a digest
        of it.
        """
        weights: str = self.config["model"]["weights"]
        return None if weights in PUBLISHED else str(Path(weights).expanduser())

    # Owners of artifacts

    def owner(self, job: Job, run: Run) -> Place:
        """The place of a job's artifacts: the first run that needs the job.

        Args:
            job: A job of `run`.
            run: Any run that needs it.

        Raises:
            ConfigError: The plan does not have this job.
        """
        return self._owners.place(job, run)

    def path(self, job: Job | None, run: Run, pattern: str) -> Files:
        """Path of an artifact of a job; nothing without a job."""
        if job is None:
            return []
        if isinstance(job, Received | ReceivedBank):
            network = getattr(job, "network", "")
            values = {"dataset": run.dataset, "network": network}
            return artifacts.fill(_RECEIVED[pattern], values)
        return self.owner(job, run).path(pattern)

    # Settings and inputs of the rules

    def settings(self, run: Run, step: int) -> Config:
        """Content of settings.json: names of the run and settings of the training."""
        training = self.chain.training(run, step)
        return {"run": {**vars(run), "step": step}, **training.settings}

    def trained_names(self, run: Run, step: int) -> list[str]:
        """Names of the classes of a training, in the order of its outputs."""
        groups = self.chain.training(run, step).settings["groups"]
        return self.datasets.names(run.dataset, groups)

    def test_settings(self, run: Run, step: int) -> Config:
        """Settings of the rule `evaluate`, with the names of run and classes."""
        groups = self.datasets.groups(run.dataset, run.task, step)
        return {
            "run": {**vars(run), "step": step},
            "names": self.datasets.names(run.dataset, groups),
            **self.chain.test(run, step).settings,
        }

    def index_context(self, part: str) -> Config:
        """Further information for the index job of a dataset or addition.

        It does not change the index: names for messages, the crop size, and the tasks
        whose steps need images.
        """
        return {
            "dataset": part,
            "folder": self.datasets.folder(part),
            "names": self.datasets.part_names(part),
            "crop_size": self.config["augmentation"]["crop_size"],
            "classes": self.datasets.labels_of_part(part),
            "tasks": self._tasks_of_part(part),
        }

    def _tasks_of_part(self, part: str) -> list[Config]:
        """The planned tasks, with the steps that only this part has images of."""
        dataset = self.datasets.dataset_of(part)
        tasks = {
            (run.task, run.setting): {
                "task": run.task,
                "setting": run.setting,
                "groups": self.datasets.groups(dataset, run.task),
                "steps": self.datasets.steps_of_part(part, run.task),
            }
            for run in self.runs
            if run.dataset == dataset
        }
        return list(tasks.values())

    def check_images(self) -> None:
        """Refuse steps without training images, and images without saliency maps.

        Raises:
            ConfigError: The index of a dataset, if it is there and up to date, has no
                training image for a step. Or a method reads saliency maps, and some are
                missing.
        """
        for part in self.datasets.planned_parts():
            cells = self.datasets.listed_by_index(part, training_classes)
            if cells is None:
                continue
            tasks = map(TaskSteps.from_dict, self._tasks_of_part(part))
            empty = empty_steps(cells, tasks, self.datasets.part_names(part))
            if empty:
                raise ConfigError(f"datasets.{part}: {describe_empty(empty)}")
        reading = [run for run in self.runs if self._reads_saliency(run)]
        for part in self.datasets.planned_parts():
            dataset = self.datasets.dataset_of(part)
            named = dataset in {run.dataset for run in reading}
            if named and not self.datasets.kind(part).validation_only:
                self.saliency.check(part)

    def _reads_saliency(self, run: Run) -> bool:
        return self.method(run.method).method.reads_saliency

    # Results

    def result(self, run: Run, step: int) -> StepResult:
        """Files with the results and the costs of a step."""
        test = self.chain.test(run, step)
        place = self.owner(test, run)
        model = self.owner(test.network, run)
        labels = self._labels_of(test)
        label_place = self.owner(labels, run) if labels else None
        split = labels and self.owner(labels.split, run)
        bank = test.bank and self.owner(test.bank, run)
        return StepResult(
            **vars(run),
            step=step,
            folder=place.path(artifacts.STEP),
            evaluation=place.path(artifacts.EVALUATION),
            confusion=place.path(artifacts.CONFUSION),
            examples=place.path(artifacts.EXAMPLES),
            model=model.path(artifacts.MODEL),
            metrics=model.path(artifacts.METRICS),
            usage=model.path(artifacts.USAGE),
            times=self._times(test, run),
            bank=bank.path(artifacts.BANK) if bank else None,
            labels=label_place.path(artifacts.LABELS) if label_place else None,
            quality=label_place.path(artifacts.LABEL_QUALITY) if label_place else None,
            split=split.path(artifacts.SPLIT) if split else None,
            settings=model.path(artifacts.SETTINGS),
            images=self.owner(test.network.split, run).path(artifacts.SPLIT),
            joint=self.method(run.method).method.joint,
        )

    @staticmethod
    def _labels_of(test: Test) -> Labels | None:
        """The pseudo labels of a step: of its training or, without one, of its bank."""
        bank = test.bank
        of_bank = bank.labels if isinstance(bank, Bank) else None
        return test.network.labels or of_bank

    def _times(self, test: Test, run: Run) -> dict[str, str]:
        """Snakemake's benchmark files of the jobs behind a step's network and bank."""
        training = test.network
        times = {"training": self.owner(training, run).path(artifacts.TRAINING_TIME)}
        labels = self._labels_of(test)
        if labels:
            place = self.owner(labels, run)
            times["pseudo labels"] = place.path(artifacts.LABELS_TIME)
        if training.memory:
            place = self.owner(training.memory, run)
            times["old images"] = place.path(artifacts.MEMORY_TIME)
        if training.statistics:
            place = self.owner(training.statistics, run)
            times["features"] = place.path(artifacts.STATISTICS_TIME)
        # The bank of the step if it predicts, else the bank that the training used.
        bank = test.bank or training.bank or (training.labels and training.labels.bank)
        if bank:
            times["bank"] = self.owner(bank, run).path(artifacts.BANK_TIME)
        return times

    def results(self, runs: list[Run]) -> list[StepResult]:
        """The results of all steps of some runs."""
        return [self.result(run, step) for run in runs for step in self.steps(run)]

    def describe_experiment(self, run: Run) -> dict[str, Any]:
        """The experiment of a run for the report, as plain values."""
        groups = self.datasets.groups(run.dataset, run.task)
        selection = self.datasets.selection(run.dataset)
        return {
            "dataset": run.dataset,
            "kind": self.datasets.kind(run.dataset).name,
            "task": run.task,
            "setting": run.setting,
            "groups": groups,
            "names": self.datasets.names(run.dataset, groups),
            "indices": self._locate_all(self.datasets.indices(run.dataset, groups)),
            "checks": self._locate_all(self.datasets.checks(run.dataset, groups)),
            **({"selection": selection} if selection else {}),
        }

    def _locate_all(self, paths: list[str]) -> list[str]:
        return [self.locate(path) for path in paths]

    def for_next_step(self) -> list[str]:
        """What a next step would read besides the networks of the last steps.

        Once the images of a step are gone, it cannot be made any more.
        """
        kept = []
        for run in self.runs:
            planned, last = self.method(run.method), self.steps(run)[-1]
            if planned.last_bank_matters(run.setting):
                bank = self.chain.bank(run, last)
                kept.append(self.owner(bank, run).path(artifacts.BANK))
            if planned.replays:
                statistics = self.chain.statistics(run, last)
                kept.append(self.owner(statistics, run).path(artifacts.STATISTICS))
            if planned.has_memory:
                memory = self.chain.memory(run, last)
                kept.append(self.owner(memory, run).path(artifacts.MEMORY))
        return kept

    # Reading the experiments

    def _check_classes(self) -> None:
        """Refuse too many classes for a method with a class for unknown objects.

        Raises:
            ConfigError: The message names the task.
        """
        for run in self.runs:
            if self._reads_saliency(run):
                groups = self.datasets.groups(run.dataset, run.task)
                try:
                    check_room_for_unknown(1 + sum(map(len, groups)))
                except ValueError as error:
                    raise ConfigError(f"Task '{run.task}': {error}") from error

    def _add(self, where: str, experiment: Config) -> list[Run]:
        """Add the runs of an experiment, and register its tasks."""
        dataset = experiment["dataset"]
        if dataset not in self.config["datasets"]:
            known = self.config["datasets"]
            raise ConfigError(
                f"{where}.dataset: expected one of {', '.join(known)}, but got "
                f"'{dataset}'{suggestion(dataset, known)}. Add it to `datasets`."
            )
        named = [name for name in self.methods if name not in self._bases]
        for method in experiment["methods"]:
            if method not in named:
                raise ConfigError(
                    f"{where}.methods: expected one of {', '.join(named)}, but got "
                    f"'{method}'{suggestion(method, named)}."
                )
        for task in experiment["task"]:
            self.datasets.add_task(where, dataset, task)
        chains = itertools.product(
            *(experiment[key] for key in ("task", "setting", "seeds", "methods"))
        )
        return [
            Run(dataset, task, setting, method, seed)
            for task, setting, seed, method in chains
        ]
