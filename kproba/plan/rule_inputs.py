"""The inputs of the rules of a step: artifacts of the jobs that a job reads."""

from abc import ABC, abstractmethod
from typing import Any

from kproba import artifacts
from kproba.methods.method import Method
from kproba.methods.terms import SALIENCY
from kproba.plan.chain import Chain
from kproba.plan.datasets import Datasets
from kproba.plan.jobs import Bank, Job, Received, ReceivedBank, Training
from kproba.plan.owners import Place
from kproba.plan.run import Run
from kproba.plan.saliency import PlannedSaliency

# A rule's input: no file, one, or several.
Files = str | list[str]


class RuleInputs(ABC):
    """The inputs of the rules by run and step; the base of `kproba.plan.plan.Plan`.

    Attributes:
        chain: Builds the jobs of a run.
        datasets: The datasets of the plan.
        saliency: Their saliency maps.
    """

    chain: Chain
    datasets: Datasets
    saliency: PlannedSaliency

    @abstractmethod
    def path(self, job: Job | None, run: Run, pattern: str) -> Any:
        """Path of an artifact of a job; nothing without a job."""

    @abstractmethod
    def owner(self, job: Job, run: Run) -> Place:
        """The place of a job's artifacts."""

    @abstractmethod
    def weights_file(self) -> str | None:
        """File of backbone weights that a rule downloads; None if there is none."""

    def training_inputs(self, run: Run, step: int) -> dict[str, Files]:
        """Inputs of the training rules besides settings.json."""
        job = self.chain.training(run, step)
        groups = self.datasets.groups(run.dataset, run.task, step)
        weights = self.weights_file() if job.previous is None else None
        chain = [self.owner(split, run).path(artifacts.SPLIT) for split in job.chain]
        maps: list[str] = []
        if SALIENCY in Method.from_dict(job.settings["method"]).needs:
            maps = self.saliency.tables(run.dataset, groups)
        return {
            "split": self.path(job.split, run, artifacts.SPLIT),
            "chain": chain,
            "saliency": maps,
            "previous": self.path(job.previous, run, artifacts.MODEL),
            "pseudo_labels": self.path(job.labels, run, artifacts.LABELS),
            **self._bank_inputs(job.bank, job.previous, run),
            "statistics": self.path(job.statistics, run, artifacts.STATISTICS),
            "memory": self.path(job.memory, run, artifacts.MEMORY),
            "memory_labels": self.path(job.memory, run, artifacts.MEMORY_LABELS),
            "weights": weights or [],
            "validation": self.datasets.indices(run.dataset, groups),
        }

    def bank_inputs(self, run: Run, step: int) -> dict[str, Files]:
        """Inputs of `build_prototypes`."""
        job = self.chain.bank(run, step)
        network = self.path(job.features, run, artifacts.MODEL)
        if job.untrained:
            network = self.path(job.model, run, artifacts.SETTINGS)
        weights = self.weights_file() if job.untrained else None
        return {
            "model": self.path(job.model, run, artifacts.MODEL),
            "split": self.path(job.split, run, artifacts.SPLIT),
            "pseudo_labels": self.path(job.labels, run, artifacts.LABELS),
            "previous": self.path(job.previous, run, artifacts.BANK),
            "network": [] if job.untrained else network,
            "untrained": network if job.untrained else [],
            "weights": weights or [],
        }

    def statistics_inputs(self, run: Run, step: int) -> dict[str, Files]:
        """Inputs of `measure_features`."""
        job = self.chain.statistics(run, step)
        return {
            "model": self.path(job.network, run, artifacts.MODEL),
            "split": self.path(job.split, run, artifacts.SPLIT),
            "teacher": self.path(job.teacher, run, artifacts.MODEL),
            "previous": self.path(job.previous, run, artifacts.STATISTICS),
        }

    def label_inputs(self, run: Run, step: int) -> dict[str, Files]:
        """Inputs of `export_pseudo_labels`."""
        job = self.chain.labels(run, step)
        return {
            "model": self.path(job.network, run, artifacts.MODEL),
            **self._bank_inputs(job.bank, job.network, run),
            "split": self.path(job.split, run, artifacts.SPLIT),
        }

    def memory_inputs(self, run: Run, step: int) -> dict[str, Files]:
        """Inputs of `update_memory`."""
        job = self.chain.memory(run, step)
        return {
            "split": self.path(job.split, run, artifacts.SPLIT),
            "model": self.path(job.model, run, artifacts.MODEL),
            "previous": self.path(job.previous, run, artifacts.MEMORY),
            "previous_labels": self.path(job.previous, run, artifacts.MEMORY_LABELS),
        }

    def test_inputs(self, run: Run, step: int) -> dict[str, Files]:
        """Inputs of `evaluate`."""
        job = self.chain.test(run, step)
        groups = self.datasets.groups(run.dataset, run.task, step)
        return {
            "model": self.path(job.network, run, artifacts.MODEL),
            **self._bank_inputs(job.bank, job.network, run),
            "indices": self.datasets.indices(run.dataset, groups),
        }

    def _bank_inputs(
        self,
        bank: Bank | ReceivedBank | None,
        network: Training | Received | None,
        run: Run,
    ) -> dict[str, Files]:
        """A bank that is combined with a network, and the network of its features."""
        features = None
        if bank is not None and network is not None:
            features = bank.feature_network(network)
        return {
            "bank": self.path(bank, run, artifacts.BANK),
            "feature_network": self.path(features, run, artifacts.MODEL),
        }
