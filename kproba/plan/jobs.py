"""The jobs of the workflow as frozen values, with everything that determines them.

A job holds its settings and the jobs whose artifacts it reads. Equal jobs write equal
artifacts, so they are run once: methods, tasks and settings share exactly the equal
jobs. The names of a run do not belong to a job.

Options that affect only speed, and paths of files, are left out.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

SEED = "seed"  # the key of the seed in settings
Settings = Mapping[str, Any]
Classes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, eq=False, repr=False)
class Job:
    """A job; two jobs are equal if their settings and all their inputs are equal."""

    @cached_property
    def shape(self) -> str:
        """SHA-256 over the kind of job, its settings and the shapes of its inputs.

        The seed is left out: the jobs of two seeds have the same shapes.
        """
        content = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Job):
                value = value.shape
            elif field.name == "chain":
                value = [job.shape for job in value]
            elif field.name == "settings":
                value = {key: item for key, item in value.items() if key != SEED}
            content[field.name] = value
        text = json.dumps([type(self).__name__, content], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def seeds(self) -> frozenset[int]:
        """The seeds of the job and its inputs; the jobs of a run have at most one."""
        values = [getattr(self, field.name) for field in fields(self)]
        inputs = [value.seeds for value in values if isinstance(value, Job)]
        settings = getattr(self, "settings", {})
        own = [settings[SEED]] if SEED in settings else []
        return frozenset(own).union(*inputs)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over shape and seeds."""
        text = json.dumps([self.shape, sorted(self.seeds)])
        return hashlib.sha256(text.encode()).hexdigest()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.digest[:12]})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Job) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)


@dataclass(frozen=True, eq=False, repr=False)
class Split(Job):
    """The images of a step.

    Attributes:
        parts: The dataset and its additions so far, whose index is read.
        groups: Raw labels of the classes of the steps 0..t.
        selection: "overlap"; "disjoint": without images of future classes; or
            "partitioned": the images that belong to this step alone.
        classes: For "partitioned": the classes among which images are divided.
    """

    parts: tuple[str, ...]
    groups: Classes
    selection: str
    classes: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False, repr=False)
class Training(Job):
    """The training of a step; `previous` is None at step 0.

    Attributes:
        settings: Content of settings.json, without the names of the run.
        split: Its images.
        previous: The training of step t-1.
        labels: The targets it trains on; None: the raw labels.
        bank: The bank of step t-1, where it corrects the teacher.
        statistics: Those of step t-1, if a loss term draws features from them.
        chain: The images of the steps 0..T, if the training has as many iterations as
            all of them together.
        memory: The old images after step t-1; None without.
    """

    settings: Settings
    split: Split
    previous: "Training | Received | None" = None
    labels: "Labels | None" = None
    bank: "Bank | ReceivedBank | None" = None
    statistics: "Statistics | None" = None
    chain: tuple[Split, ...] = ()
    memory: "Memory | None" = None


@dataclass(frozen=True, eq=False, repr=False)
class Memory(Job):
    """The old images after a step, from which the next step may take some.

    Attributes:
        settings: The rule and its numbers, classes and seed.
        split: The images of the step.
        model: The training of the step, if its network recognises older classes.
        previous: The memory after step t-1; None at step 0.
    """

    settings: Settings
    split: Split
    model: "Training | Received | None" = None
    previous: "Memory | None" = None


@dataclass(frozen=True, eq=False, repr=False)
class Bank(Job):
    """The prototype bank after a step.

    Attributes:
        settings: Its settings.
        model: The training whose model the bank belongs to.
        split: The images of the step.
        labels: Their targets; None: the raw labels.
        previous: The bank of step t-1.
        features: The training whose network gives the features, if not `model`.
        untrained: The features are of the network of `model` before its training.
    """

    settings: Settings
    model: "Training | Received"
    split: Split
    labels: "Labels | None" = None
    previous: "Bank | ReceivedBank | None" = None
    features: "Training | Received | None" = None
    untrained: bool = False

    def feature_network(
        self, network: "Training | Received"
    ) -> "Training | Received | None":
        """The training of the network with the bank's features, if it is another one.

        Args:
            network: The training of the network that is combined with the bank.

        Returns:
            None if the bank reads the features of `network` itself.
        """
        return None if self.model == network else self.model


@dataclass(frozen=True, eq=False, repr=False)
class Statistics(Job):
    """The statistics of the features of all classes after a step.

    Attributes:
        settings: Its settings.
        network: The training of the step.
        split: The images of the step.
        teacher: The training of step t-1; None at step 0.
        previous: The statistics of step t-1; None at step 0.
    """

    settings: Settings
    network: "Training | Received"
    split: Split
    teacher: "Training | Received | None" = None
    previous: "Statistics | None" = None


@dataclass(frozen=True, eq=False, repr=False)
class Received(Job):
    """A network of a step that was packed elsewhere, in place of its training.

    Attributes:
        sha256: Digest of what the step's archive holds.
        network: "step", the step's own, or "step0".
    """

    sha256: str
    network: str


@dataclass(frozen=True, eq=False, repr=False)
class ReceivedBank(Job):
    """The bank of a step that was packed elsewhere.

    Attributes:
        sha256: Digest of what the step's archive holds.
        model: The network that the bank belongs to.
    """

    sha256: str
    model: Received

    def feature_network(self, network: "Training | Received") -> Received | None:
        """As `Bank.feature_network`."""
        return None if self.model == network else self.model


@dataclass(frozen=True, eq=False, repr=False)
class Labels(Job):
    """The training targets of a step, with recovered old classes.

    Attributes:
        settings: The rule and its numbers, classes and names.
        network: The training of step t-1.
        bank: The bank of step t-1, if the rule reads it.
        split: The images of the step.
    """

    settings: Settings
    network: Training | Received
    split: Split
    bank: Bank | ReceivedBank | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Test(Job):
    """The evaluation after a step.

    Attributes:
        settings: Evaluation, classes and names, and how network and bank are combined.
        network: The training of the network that is evaluated.
        parts: The dataset and its additions so far, whose index is read.
        bank: The bank of the step, if it is combined with the network.
    """

    __test__ = False  # not for pytest

    settings: Settings
    network: Training
    parts: tuple[str, ...]
    bank: Bank | None = None
