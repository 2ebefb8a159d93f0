"""The datasets of a configuration: folders, class names, tasks and additions."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from kproba import artifacts
from kproba.data.download import Archive
from kproba.data.kinds import KINDS, DatasetKind
from kproba.data.kinds.pairs import VAL_SHARE
from kproba.data.tasks import (
    Groups,
    all_classes,
    canonical_task,
    partition_task,
)
from kproba.extensions import find_origins
from kproba.plan.dataset_state import (
    recorded_state,
    state_of_files,
)
from kproba.plan.errors import ConfigError
from kproba.plan.named_tasks import named_groups
from kproba.plan.packed_steps import groups_of_packed, packed_names, read_packed_step
from kproba.plan.parts import (
    archives_of,
    part_names,
    reading_options,
    with_additions,
)
from kproba.plan.selection import SHARE, files_name
from kproba.predict.packed import PackedStep

Config = dict[str, Any]
Locate = Callable[[str], str]


class Datasets:
    """Datasets with their additions, and the class groups of the planned tasks.

    The rules that index an addition treat it as a separate dataset: "pets+1" is the
    first addition of "pets". Earlier steps never use it. A *part* is a dataset or an
    addition.

    Args:
        config: A checked configuration.
        locate: Returns the path of a file of `kproba.artifacts`; see `Plan`.

    Raises:
        ConfigError: Class names are missing or wrong.
    """

    def __init__(self, config: Config, locate: Locate = str):
        self._config = config
        self._locate = locate
        self._parts = with_additions(config["datasets"])
        self._part_names = {
            name: part_names(config["datasets"], name) for name in config["datasets"]
        }
        self._names: dict[str, list[str]] = {}
        self._counts: dict[str, int] = {}  # classes up to and including a part
        self._added: dict[str, tuple[int, ...]] = {}  # raw labels of an addition
        self._groups: dict[tuple[str, str], Groups] = {}
        # Of a task, the classes among which the setting "partitioned" divides images.
        self._divided: dict[tuple[str, str], tuple[int, ...]] = {}
        self._packed: dict[str, PackedStep] = {}
        self._states: dict[str, str] = {}  # of the files of a part
        planned = {experiment["dataset"] for experiment in config["experiments"]}
        for name in config["datasets"]:
            if name in planned:
                if config["datasets"][name]["kind"] == "packed":
                    self._packed[name] = read_packed_step(
                        name, config["datasets"][name]
                    )
                    self._use_size_of_packed(name)
                self._names[name] = self._read_names(name)

    def kind(self, part: str) -> DatasetKind:
        """The kind of a dataset or addition, with its settings applied."""
        settings = self._parts[part]
        return KINDS[settings["kind"]].with_settings(settings)

    def _use_size_of_packed(self, dataset: str) -> None:
        """By default, scale new pictures like those of the packed step."""
        for part in self._part_names[dataset]:
            if self._parts[part]["long_side"] is None:
                self._parts[part]["long_side"] = self._packed[dataset].long_side

    def packed(self, dataset: str) -> PackedStep | None:
        """The packed step that a dataset continues from; None if there is none."""
        return self._packed.get(dataset)

    def packed_file(self, dataset: str) -> str:
        """The archive of a packed step, or the predictor.json of its folder.

        Raises:
            ConfigError: The dataset does not continue from a packed step.
        """
        packed = self.packed(dataset)
        if packed is None:
            raise ConfigError(
                f"Expected a dataset of the kind 'packed', but '{dataset}' has another "
                f"kind."
            )
        path = packed.path
        return str(path / "predictor.json" if path.is_dir() else path)

    def settings(self, part: str) -> Config:
        """The settings of a dataset or addition."""
        return dict(self._parts[part])

    # Classes

    def class_count(self, part: str) -> int:
        """Number of classes of a dataset, or of all parts up to an addition.

        The background and, for a dataset, its additions are not counted.
        """
        return self._counts[part]

    def names(self, dataset: str, groups: Groups) -> list[str]:
        """Class names in output order, "background" first."""
        labels = [label for group in groups for label in group]
        return ["background", *(self._names[dataset][label - 1] for label in labels)]

    def label_names(self, dataset: str) -> dict[int, str]:
        """Name of every raw label of a dataset, without the background's."""
        return dict(enumerate(self._names[dataset], start=1))

    def part_names(self, part: str) -> list[str]:
        """Names of the raw labels 1, 2, .. that a dataset or addition may show."""
        return self._names[self.dataset_of(part)][: self._counts[part]]

    def labels_of_part(self, part: str) -> list[int]:
        """Raw labels that a part should show: new ones for an addition, else all."""
        return list(self._added.get(part, range(1, self._counts[part] + 1)))

    def dataset_of(self, part: str) -> str:
        """The dataset that a part belongs to."""
        return next(name for name, parts in self._part_names.items() if part in parts)

    # Tasks

    def add_task(self, where: str, dataset: str, task: str) -> None:
        """Register a task, and the one-step tasks that share work with it.

        These tasks are its step 0, and the joint trainings of the task and of step 0.

        Raises:
            ConfigError: The classes cannot be divided so; the message starts with
                `where`.
        """
        packed = self.packed(dataset)
        if packed is not None:
            groups = groups_of_packed(where, packed, task)
        else:
            groups = named_groups(
                where,
                task,
                self._config["tasks"],
                self._names[dataset][: self.class_count(dataset)],
                self.kind(dataset).class_orders(),
            )
        additions = self._part_names[dataset][1:]
        own = self._divided[dataset, task] = all_classes(groups)
        groups += tuple(self._added[part] for part in additions)
        self._groups[dataset, task] = groups
        if packed is not None:
            return
        for one_step in (groups[0], all_classes(groups), all_classes(groups[:1])):
            self._groups[dataset, canonical_task(one_step)] = (tuple(one_step),)
        if set(own) != set(groups[0]):
            partition = partition_task(groups[0], own)
            self._groups[dataset, partition] = groups[:1]
            self._divided[dataset, partition] = own

    def groups(self, dataset: str, task: str, step: int | None = None) -> Groups:
        """Class groups of a task, up to and including `step`.

        Raises:
            ConfigError: The configuration has no such task.
        """
        if (dataset, task) not in self._groups:
            raise ConfigError(
                f"Expected a task of dataset '{dataset}' in this configuration, but "
                f"got '{task}'. Add it to an entry of `experiments`."
            )
        groups = self._groups[dataset, task]
        return groups if step is None else groups[: step + 1]

    def divided_classes(self, dataset: str, task: str, step: int) -> tuple[int, ...]:
        """The classes among which "partitioned" divides the images of a step.

        These are all classes of the dataset in the task. For the step of an addition
        they are its new classes, because its images were not there before.
        """
        group = self._groups[dataset, task][step]
        classes = self._divided.get((dataset, task), group)
        return classes if set(group) <= set(classes) else group

    def tasks(self, dataset: str) -> list[str]:
        """The known tasks of a dataset, in the order in which they own artifacts.

        Canonical tasks of one step come first. Of these the ones in the dataset's order
        come before all others, because they are the joint trainings of the others.
        """

        def rank(task: str) -> int:
            groups = self._groups[dataset, task]
            one_step = partition_task(groups[0], self._divided.get((dataset, task), ()))
            if len(groups) > 1 or task not in (canonical_task(groups[0]), one_step):
                return 2
            return 0 if groups[0] == all_classes(groups) else 1

        return sorted(
            (task for name, task in self._groups if name == dataset), key=rank
        )

    def steps_of_part(self, part: str, task: str) -> list[int]:
        """The steps of a task whose new classes occur only in this part."""
        dataset = self.dataset_of(part)
        if self.kind(part).validation_only:
            return []  # nothing is trained on its pictures
        groups = self._groups[dataset, task]
        own = set(self._added.get(part, range(1, self._counts[dataset] + 1)))
        return [step for step, group in enumerate(groups) if set(group) <= own]

    def joint_task(self, dataset: str, task: str) -> str:
        """The one-step task of all classes of a task, in the dataset's order."""
        return canonical_task(all_classes(self.groups(dataset, task)))

    # Images

    def parts(self, dataset: str, groups: Iterable[Iterable[int]]) -> list[str]:
        """A dataset and its additions with classes in `groups`."""
        parts = self._part_names[dataset]
        # A packed step may have no pictures of its own.
        own = parts[:1] if self._parts[dataset].get("path", True) else []
        if len(parts) == 1:
            return own
        seen = {label for group in groups for label in group}
        return own + [part for part in parts[1:] if seen >= set(self._added[part])]

    def indices(self, dataset: str, groups: Groups) -> list[str]:
        """index.csv of every part that is available at the last step of `groups`."""
        parts = self.parts(dataset, groups)
        return [artifacts.fill(artifacts.INDEX, {"dataset": part}) for part in parts]

    def checks(self, dataset: str, groups: Groups) -> list[str]:
        """integrity.json of every part that is available at the last step."""
        parts = self.parts(dataset, groups)
        return [artifacts.fill(artifacts.INTEGRITY, {"dataset": p}) for p in parts]

    def epochs(self, dataset: str, groups: Groups) -> float | None:
        """Epochs of the last step of `groups`, if an addition sets them; else None."""
        part = self.parts(dataset, groups)[-1]
        if set(groups[-1]) != set(self._added.get(part, ())):
            return None
        epochs: float | None = self._parts[part].get("epochs")
        return epochs

    def folder(self, part: str) -> str:
        """Folder of a dataset's files; below results/ if a rule writes them."""
        for made in self.made_folders(part):
            return self._locate(made)
        folder: str = self._parts[part]["path"]
        return folder

    def selection(self, part: str) -> float:
        """Share of the training images that are held out for a selection, or 0."""
        share: float = self._parts[part].get(SHARE, 0)
        return share

    def long_side(self, part: str) -> int | None:
        """Longer side to which large pictures are scaled down; None for no scaling."""
        side: int | None = self._parts[part].get("long_side")
        return side

    def made_folders(self, part: str) -> list[str]:
        """The folder of a dataset, as an input, if a rule makes it; else nothing."""
        name = {"dataset": files_name(part, self._parts[part])}
        if self.kind(part).drawn:
            return [artifacts.fill(artifacts.SCENES, name)]
        if self._downloads(part):
            return [artifacts.fill(artifacts.UNPACKED, name)]
        return []

    def folders(self, dataset: str) -> dict[str, tuple[str, str]]:
        """The folders of a dataset's and its additions' pictures and converted masks.

        No job depends on these paths, because a moved dataset is the same dataset.
        """
        masks = {
            part: artifacts.fill(artifacts.MADE_MASKS, {"dataset": part})
            for part in self._part_names[dataset]
        }
        return {p: (self.folder(p), self._locate(path)) for p, path in masks.items()}

    def state_of_files(self, part: str) -> str:
        """A text that changes with the files of a dataset, if no rule writes them.

        The files are checked only once, because there may be millions.
        """
        if self.made_folders(part):
            return ""
        if part not in self._states:
            recorded = artifacts.fill(artifacts.FILES, {"dataset": part})
            self._states[part] = state_of_files(
                self.kind(part), self._parts[part]["path"], self._locate(recorded)
            )
        return self._states[part]

    def planned_parts(self) -> list[str]:
        """The datasets of the experiments and their additions."""
        parts = [part for name in self._names for part in self._part_names[name]]
        return [part for part in parts if self._parts[part].get("path", True)]

    def check_folders(self) -> None:
        """Refuse datasets that are missing in the configured folder.

        Raises:
            ConfigError: A dataset or addition is missing, and no rule writes it.
        """
        for part in self.planned_parts():
            kind, path = self.kind(part), self._parts[part].get("path")
            if self.made_folders(part) or path is None or kind.is_there(path):
                continue
            try:
                kind.find_pairs(Path(path), VAL_SHARE)  # names what is missing
            except (OSError, ValueError) as error:
                raise ConfigError(f"datasets.{part}: {error}") from error

    def listed_by_index(
        self, part: str, read: Callable[[str], dict[str, str] | None]
    ) -> dict[str, str] | None:
        """What `read` finds in the index of a part, by id of the training image.

        None if there is no index, or if it will be written again.
        """
        values = {"dataset": part}
        state = recorded_state(self._locate(artifacts.fill(artifacts.FILES, values)))
        if state is None or state != self.state_of_files(part):
            return None
        return read(self._locate(artifacts.fill(artifacts.INDEX, values)))

    def archives(self, part: str) -> list[Archive]:
        """The archives that `download: true` downloads; empty for unpublished kinds."""
        return archives_of(self.kind(part), self._parts[part])

    def drawing_settings(self, part: str) -> Config:
        """Settings of a dataset that a rule draws."""
        others = ("kind", "additions", SHARE)
        settings = self._parts[part].items()  # without switches that are off
        return {k: v for k, v in settings if k not in others and v is not False}

    def index_settings(self, part: str) -> Config:
        """Everything that determines the index of a dataset, except for its files."""
        settings = self._parts[part]
        origins = find_origins([("dataset kind", settings["kind"])])
        options = reading_options(self.kind(part), settings, self.folder(part))
        return {
            "kind": settings["kind"],
            "dataset": part,
            **({"options": options} if options else {}),
            "long_side": settings.get("long_side"),
            "on_error": settings.get("on_error", "stop"),
            "val_share": settings.get("val_share", VAL_SHARE),
            **({"selection": self.selection(part)} if self.selection(part) else {}),
            **({"extensions": origins} if origins else {}),
        }

    def _downloads(self, part: str) -> bool:
        settings = self._parts[part]
        wanted = settings.get("download", False)
        return wanted and not self.kind(part).is_there(settings["path"])

    def _read_names(self, dataset: str) -> list[str]:
        """Names of a dataset's classes, those of its additions last."""
        known: list[str] = []
        for part in self._part_names[dataset]:
            settings = self._parts[part]
            path = settings.get("path")
            try:
                names = packed_names(self.packed(part)) or self.kind(part).class_names(
                    Path(path) if path else None, settings.get("classes")
                )
            except (ValueError, OSError) as error:
                raise ConfigError(f"datasets.{dataset}: {error}") from error
            if names[: len(known)] != known or len(names) == len(known):
                raise ConfigError(
                    f"datasets.{dataset}.additions: expected {path}/classes.txt to "
                    f"name the {len(known)} classes known so far, in their order after "
                    f"'background', and then at least one new class, but got "
                    f"{', '.join(names)}. Known: {', '.join(known)}. (Put more "
                    f"pictures of known classes into the folder of the dataset.)"
                )
            if known:
                self._added[part] = tuple(range(len(known) + 1, len(names) + 1))
            known, self._counts[part] = names, len(names)
        return known
