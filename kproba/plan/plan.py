"""From config.yaml to the settings of every job.

`check` validates a configuration against the schema, fills in the defaults and checks
what a schema cannot say (tasks, class counts, batch arithmetic). `Plan` answers the
questions of the rules: which runs there are, and which settings determine each job.
Nothing here imports torch: the rules ask at the start of every Snakemake call.
"""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from kproba.data.download import Archive
from kproba.data.kinds import KINDS
from kproba.data.kinds.pairs import VAL_SHARE
from kproba.data.tasks import Groups, canonical_task, parse_task, resolve_groups
from kproba.methods.builtin import BASES, METHODS, base_of
from kproba.methods.method import FIRST_GUIDED, Method
from kproba.methods.rules import RULES, RULES_WITH_BANK
from kproba.methods.terms import OF_BRANCHES, OF_SOFTMAX, LossWeights
from kproba.plan.schema import Config, ConfigError, _merged, _suggestion

# Of DeepLabV3, by output stride; meant for feature maps of about 33 x 33 cells.
ATROUS_RATES = {16: [6, 12, 18], 8: [12, 24, 36]}


# Keys of an own method that replace a field of `Method`; the others are laid over one.
SWITCHES = {field.name for field in fields(Method)} - {
    "joint",
    "losses",
    "pseudo_labels",
}


@dataclass(frozen=True, order=True)
class Run:
    """One chain of steps."""

    dataset: str
    task: str
    setting: str
    method: str
    seed: int


class Plan:
    """The runs of a checked configuration and the settings of their jobs.

    Args:
        config: What `check` returned.

    Raises:
        ConfigError: A dataset, task or method does not exist, classes cannot be
            divided, or a batch cannot be split.
    """

    def __init__(self, config: Config):
        self.config = config
        for settings in config["datasets"].values():
            if "path" in settings:
                settings["path"] = str(Path(settings["path"]).expanduser())
        self._datasets = _with_additions(config["datasets"])
        self._names: dict[str, list[str]] = {}
        self._counts: dict[str, int] = {}  # classes up to and with a part
        self._added: dict[str, tuple[int, ...]] = {}  # raw labels of an addition
        used = {experiment["dataset"] for experiment in config["experiments"]}
        for name in config["datasets"]:
            if name in used:
                self._names[name] = self._class_names(name)
        self._groups: dict[tuple[str, str], Groups] = {}
        self._recipes = self._methods()
        self._homes: dict[tuple[str, str, int], str] = {}
        self.runs: list[Run] = []
        for number, experiment in enumerate(config["experiments"]):
            self._add(f"experiments.{number}", experiment)
        self._check_banks()
        self._check_batches()
        self._check_weights()

    # What there is

    def groups(self, dataset: str, task: str, step: int | None = None) -> Groups:
        """Class groups of a task, up to and including `step`."""
        if (dataset, task) not in self._groups:
            raise ConfigError(
                f"Expected a task of dataset '{dataset}' in this configuration, but "
                f"got '{task}'. Add it to an entry of `experiments`."
            )
        groups = self._groups[dataset, task]
        return groups if step is None else groups[: step + 1]

    def steps(self, run: Run) -> range:
        """Steps whose model is tested; `joint` has the last one only."""
        count = len(self.groups(run.dataset, run.task))
        return (
            range(count - 1, count) if self.recipe(run.method).joint else range(count)
        )

    def names(self, dataset: str, groups: Groups) -> list[str]:
        """Class names in output order, "background" first."""
        labels = [label for group in groups for label in group]
        return ["background", *(self._names[dataset][label - 1] for label in labels)]

    def class_count(self, part: str) -> int:
        """Classes of a dataset without its additions, or up to and with an addition.

        Background is not counted.
        """
        return self._counts[part]

    def parts(self, dataset: str, groups: Iterable[Iterable[int]]) -> list[str]:
        """A dataset and those of its additions whose classes `groups` hold.

        An addition is a dataset of its own to the rules that index it, "pets+1" the
        first of "pets". Steps before its own never see it.
        """
        seen = {label for group in groups for label in group}
        parts = _parts(self.config["datasets"], dataset)
        return [
            part for part in parts if part == dataset or seen >= set(self._added[part])
        ]

    def label_names(self, dataset: str) -> dict[int, str]:
        """Name of every raw label of a dataset, background not counted."""
        return dict(enumerate(self._names[dataset], start=1))

    # Where the images are

    def folder(self, dataset: str) -> str:
        """Folder of a dataset; below results/ if it is drawn or downloaded."""
        settings = self._datasets[dataset]
        if settings["kind"] == "digits":
            return f"results/data/{dataset}/scenes"
        if self._downloads(dataset):
            return f"results/data/{dataset}/unpacked"
        folder: str = settings["path"]
        return folder

    def _downloads(self, dataset: str) -> bool:
        settings = self._datasets[dataset]
        if not settings.get("download", False):
            return False
        return not KINDS[settings["kind"]].is_there(settings["path"])

    def made_folders(self, dataset: str) -> list[str]:
        """The folder of a dataset if a rule makes it, else nothing."""
        kind = self._datasets[dataset]["kind"]
        made = kind == "digits" or self._downloads(dataset)
        return [self.folder(dataset)] if made else []

    def state_of_files(self, dataset: str) -> str:
        """Changes when files change that no rule makes."""
        if self.made_folders(dataset):
            return ""
        settings = self._datasets[dataset]
        return KINDS[settings["kind"]].digest_files(settings["path"])

    def archives(self, dataset: str) -> list[Archive]:
        """What `download: true` fetches; empty for kinds that nobody publishes."""
        settings = self._datasets[dataset]
        archives = []
        for name, archive in KINDS[settings["kind"]].archives.items():
            mirrors = settings["mirrors"][name] or archive.mirrors
            checksum = settings["checksums"][name] or archive.checksum
            archives.append(Archive(archive.name, tuple(mirrors), checksum))
        return archives

    def index_settings(self, dataset: str) -> Config:
        """All that determines the index of a dataset, besides its files."""
        settings = self._datasets[dataset]
        return {
            "kind": settings["kind"],
            "folder": self.folder(dataset),
            "on_error": settings.get("on_error", "stop"),
            "val_share": settings.get("val_share", VAL_SHARE),
        }

    # Where step 0 and `joint` live: shared by all tasks and methods that start so

    def base_task(self, dataset: str, task: str) -> str:
        """The one-step task of a task's first group."""
        return canonical_task(self.groups(dataset, task)[0])

    def joint_task(self, dataset: str, task: str) -> str:
        """The one-step task of all classes of a task, in the dataset's order."""
        return canonical_task(_all_classes(self.groups(dataset, task)))

    def weights_file(self) -> str | None:
        """File of the backbone's weights; None if they come with a package or none."""
        model = self.config["model"]
        if model["weights"] == "none":
            return None
        if model["weights"] != "imagenet":
            return model["weights"]
        if model["backbone"] == "efficientnet_lite0":
            return None
        return f"results/weights/{model['backbone']}.safetensors"

    # What determines a job

    def recipe(self, method: str) -> Method:
        """The description of a method, or of a training of step 0."""
        if method in BASES:
            return BASES[method]
        if method not in self._recipes:
            raise ConfigError(
                f"Expected a method of {', '.join(self._recipes)}, but got '{method}'."
            )
        return self._recipes[method]

    def base_name(self, method: str) -> str:
        """The name under which a method's step 0 is trained, for all that share it."""
        return base_of(self.recipe(method))

    def uses_pseudo_labels(self, method: str, setting: str) -> bool:
        """Whether increments train on exported labels ("sequential" knows them all)."""
        recipe = self.recipe(method)
        return recipe.use_pseudo_labels and not recipe.joint and setting != "sequential"

    def section(self, name: str, method: str) -> Config:
        """A section of the configuration with the changes of a method."""
        own = self.config["methods"].get(method, {})
        builtin = self.recipe(own.get("based_on", method))
        section = self.config[name]
        if name == "pseudo_labels":
            section = _merged(section, builtin.pseudo_labels)
        return _merged(section, own.get(name, {}))

    def reads_bank(self, method: str) -> bool:
        """Whether the method's pseudo-label rule reads the bank."""
        return self._label_rule(method) in RULES_WITH_BANK

    def fuses(self, method: str) -> bool:
        """Whether the method's test asks network and bank together."""
        return self.recipe(method).prediction != "network"

    def guided(self, method: str, step: int) -> bool:
        """Whether a step is taught by network and bank together."""
        return self.recipe(method).guided and step >= FIRST_GUIDED

    def bank(self, method: str) -> Config:
        """`BankSettings` of a method: `lda` wants no map, κ by distance no scatter."""
        settings = self.section("bank", method)
        del settings["network"]  # told by an input of the rule
        settings |= self._kind_of_bank(method, self._bank_rule(method))
        if settings["map"] == "identity":  # what a map would read must change nothing
            settings |= {"maps": 1, "dimension": 2, "gamma": 1.0}
        return settings

    def _kind_of_bank(self, method: str, rule: str) -> Config:
        """What a rule needs: `lda` wants no map, κ by distance no scatter."""
        by_distance = self.section("pseudo_labels", method)["metric"] == "euclidean"
        return {
            "map": "identity" if rule == "lda" else "rff",
            "scatter": not (rule == "kappa" and by_distance),
        }

    def _bank_rule(self, method: str) -> str:
        """The rule whose evidence the method's bank has to give."""
        named = self.recipe(method).prediction
        if named not in ("network", "fused"):
            return named
        rule = self._label_rule(method)
        if rule not in RULES_WITH_BANK:
            return "lda"
        return "klda" if rule == "agree" else rule

    def _label_rule(self, method: str) -> str:
        rule: str = self.section("pseudo_labels", method)["rule"]
        return rule

    def pseudo_label_rule(self, method: str) -> Config:
        """`PseudoLabelSettings` of a method; numbers that its rule does not read: 0."""
        return _what_is_read(self.section("pseudo_labels", method))

    def prediction_rule(self, method: str) -> Config:
        """By which rule network and bank predict, as `pseudo_label_rule`."""
        settings = self.section("pseudo_labels", method)
        every_pixel = {"rule": self._bank_rule(method), "score_threshold": 0.0}
        return _what_is_read(settings | every_pixel)

    def bank_network(self, method: str) -> str:
        """Whose features the prototypes are of.

        "base": the network after step 0, at every step; "after": the step's own;
        "before": the step's own before its training.
        """
        network: str = self.section("bank", method)["network"]
        return network

    # Where what several methods would make alike is made, once

    def model_home(self, method: str, step: int) -> str:
        """The method in whose folder the model of an increment is: see `_home`."""
        return self._home(method, self._model_key, step)

    def bank_home(self, method: str, step: int) -> str:
        """The method in whose folder the bank of a step is: see `_home`."""
        return self._home(method, self._bank_key, step)

    def label_home(self, method: str, step: int) -> str:
        """The method in whose folder the pseudo labels of a step are: see `_home`."""
        return self._home(method, self._label_key, step)

    def fused_home(self, method: str) -> str:
        """The method in whose folder the fused test of step 0 is: see `_home`."""
        return self._home(method, self._fused_key, 0)

    def _home(self, method: str, key: Callable[[str, int], Any], step: int) -> str:
        """The first method that would make the same: built-in ones, then as they stand.

        The loss terms of a method, say, matter neither to the bank of step 0 nor to the
        pseudo labels of step 1, and how it predicts to no training before a bank
        teaches. Methods count whether an experiment names them or not, or its files
        would have to move.
        """
        step = min(step, FIRST_GUIDED + 1)  # of what is shared, later ones are alike
        asked = key.__name__, method, step
        if asked not in self._homes:
            own, names = key(method, step), (*self._recipes, method)
            self._homes[asked] = next(name for name in names if key(name, step) == own)
        return self._homes[asked]

    def _bank_key(self, method: str, step: int) -> Any:
        network, bank = self.bank_network(method), self.bank(method)
        if step == 0:
            del bank["momentum"]  # of later steps
            return self.base_name(method), bank, network == "before"
        return bank, network, self._model_key(method, step)

    def _label_key(self, method: str, step: int) -> Any:
        if step > 1:
            return self._model_key(method, step - 1)
        bank = self._bank_key(method, 0) if self.reads_bank(method) else None
        uses = self.recipe(method).use_pseudo_labels
        rule = self.pseudo_label_rule(method)
        return uses, self.base_name(method), bank, rule

    def _model_key(self, method: str, step: int) -> Any:
        labels: Any = None
        if self.recipe(method).use_pseudo_labels and step == 1:
            labels = self._label_key(method, 1)
        elif self.recipe(method).use_pseudo_labels:
            reads = self.reads_bank(method)
            bank = (self.bank(method), self.bank_network(method)) if reads else None
            labels = self.pseudo_label_rule(method), bank
        guide: Any = None
        if self.guided(method, step):
            network, rule = self.bank_network(method), self.prediction_rule(method)
            guide = self.bank(method), network, rule
        recipe = self._recipe_of_step(method, step).to_dict()
        return recipe, self.section("increment", method), labels, guide

    def _fused_key(self, method: str, step: int) -> Any:
        if not self.fuses(method):
            return method
        return self._bank_key(method, step), self.prediction_rule(method)

    def _recipe_of_step(self, method: str, step: int) -> Method:
        teacher: Any = "fused" if self.guided(method, step) else "network"
        return replace(self.recipe(method), teacher=teacher)

    def step_settings(self, run: Run, step: int) -> Config:
        """Content of settings.json: all that determines the training of a step."""
        config, base = self.config, run.method in BASES
        groups = self.groups(run.dataset, run.task, step)
        model = config["model"]
        optimisation = config["base"] if base else self.section("increment", run.method)
        part = self.parts(run.dataset, groups)[-1]
        own = self._datasets[part].get("epochs")
        if own and not base and set(groups[-1]) == set(self._added.get(part, ())):
            optimisation = {**optimisation, "epochs": own}
        rates = optimisation["learning_rate"]
        labelled = self.uses_pseudo_labels(run.method, run.setting)
        recipe = self._recipe_of_step(run.method, step)
        recipe = replace(recipe, use_pseudo_labels=labelled)
        return {
            **asdict(run),
            "step": step,
            "groups": [list(group) for group in groups],
            "class_names": self.names(run.dataset, groups),
            "architecture": {
                "backbone": model["backbone"],
                "output_stride": model["output_stride"],
                "atrous_rates": model["atrous_rates"]
                or ATROUS_RATES[model["output_stride"]],
                "aspp_channels": model["aspp_channels"],
                "aspp_dropout": model["aspp_dropout"],
                "bn_momentum": model["bn_momentum"],
                "frozen_stages": model["frozen_stages"],
                "softmax": recipe.softmax,
            }
            if base
            else None,
            "weights": model["weights"] if base else None,
            "augmentation": config["augmentation"],
            "optimisation": {
                **{k: v for k, v in optimisation.items() if k != "learning_rate"},
                **rates,
            },
            "recipe": recipe.to_dict(),
            "guide": self.prediction_rule(run.method) if recipe.guided else None,
        }

    # Checks

    def _class_names(self, dataset: str) -> list[str]:
        """Names of a dataset's classes, those of its additions last."""
        known: list[str] = []
        for part in _parts(self.config["datasets"], dataset):
            settings = self._datasets[part]
            path = settings.get("path")
            try:
                names = KINDS[settings["kind"]].class_names(
                    path and Path(path), settings.get("classes")
                )
            except (ValueError, OSError) as error:
                raise ConfigError(f"datasets.{dataset}: {error}") from error
            if names[: len(known)] != known or len(names) == len(known):
                raise ConfigError(
                    f"datasets.{dataset}.additions: expected {path}/classes.txt to "
                    f"name the {len(known)} classes known so far, in their order after "
                    f"'background', and then at least one new class, but got "
                    f"{', '.join(names)}. Known: {', '.join(known)}. (More pictures of "
                    f"known classes belong into the dataset's own folder.)"
                )
            if known:
                self._added[part] = tuple(range(len(known) + 1, len(names) + 1))
            known, self._counts[part] = names, len(names)
        return known

    def _methods(self) -> dict[str, Method]:
        recipes = dict(METHODS)
        for name, changes in self.config["methods"].items():
            where, based_on = f"methods.{name}", changes["based_on"]
            if name in METHODS:
                raise ConfigError(
                    f"{where}: the name of a built-in method. Choose another name."
                )
            if based_on not in METHODS:
                raise ConfigError(
                    f"{where}.based_on: expected one of {', '.join(METHODS)}, but got "
                    f"'{based_on}'{_suggestion(based_on, METHODS)}."
                )
            recipe = METHODS[based_on]
            weights = {**asdict(recipe.losses), **changes.get("losses", {})}
            switches = {key: changes[key] for key in SWITCHES if key in changes}
            recipe = replace(recipe, losses=LossWeights(**weights), **switches)
            self._check_terms(where, recipe)
            if switches.get("teacher") == "fused" and not recipe.guided:
                raise ConfigError(
                    f"{where}.teacher: expected 'network' without a weight for gkd, "
                    f"which alone is guided, but got 'fused'. Set losses.gkd, or leave "
                    f"the teacher out."
                )
            recipes[name] = recipe
        return recipes

    def _check_terms(self, where: str, recipe: Method) -> None:
        """Refuse terms that the network of a method has no outputs for."""
        foreign = OF_BRANCHES if recipe.softmax else OF_SOFTMAX
        wrong = [name for name in foreign if getattr(recipe.losses, name)]
        if wrong:
            raise ConfigError(
                f"{where}.losses: expected {', '.join(wrong)} to be 0 with the "
                f"cross-entropy '{recipe.cross_entropy}', whose network has "
                f"{'no branches' if recipe.softmax else 'no softmax'}. Set them to 0, "
                f"or change cross_entropy."
            )
        if recipe.joint and recipe.prediction != "network":
            raise ConfigError(
                f"{where}.prediction: expected 'network' for a method based on joint, "
                f"which has no bank, but got '{recipe.prediction}'. Remove it."
            )
        if recipe.scale_by_certainty and recipe.cross_entropy != "ce":
            raise ConfigError(
                f"{where}.scale_by_certainty: expected the cross-entropy 'ce', which "
                f"alone is scaled, but got '{recipe.cross_entropy}'. Set it to false."
            )

    def _check_banks(self) -> None:
        """Refuse pseudo labels and a prediction that want different banks."""
        for method in dict.fromkeys(run.method for run in self.runs):
            rule, predicts = self._label_rule(method), self._bank_rule(method)
            other = self.fuses(method) or self.recipe(method).guided
            if not self.reads_bank(method) or not other:
                continue
            wanted = [self._kind_of_bank(method, name) for name in (rule, predicts)]
            if wanted[0] != wanted[1]:
                raise ConfigError(
                    f"methods.{method}.prediction: expected a rule that reads the same "
                    f"bank as pseudo_labels.rule '{rule}', but got '{predicts}'. Set "
                    f"it to 'fused', or change pseudo_labels.rule."
                )

    def _add(self, where: str, experiment: Config) -> None:
        dataset = experiment["dataset"]
        if dataset not in self.config["datasets"]:
            known = self.config["datasets"]
            raise ConfigError(
                f"{where}.dataset: expected one of {', '.join(known)}, but got "
                f"'{dataset}'{_suggestion(dataset, known)}. Add it to `datasets`."
            )
        for method in experiment["methods"]:
            if method not in self._recipes:
                raise ConfigError(
                    f"{where}.methods: expected one of {', '.join(self._recipes)}, but "
                    f"got '{method}'{_suggestion(method, self._recipes)}."
                )
        parts = _parts(self.config["datasets"], dataset)
        for task in experiment["task"]:
            groups = self._parse(where, dataset, task)
            groups += tuple(self._added[part] for part in parts[1:])
            self._groups[dataset, task] = groups
            for one_step in (groups[0], _all_classes(groups)):
                self._groups[dataset, canonical_task(one_step)] = (tuple(one_step),)
        chains = itertools.product(
            *(experiment[key] for key in ("task", "setting", "seeds", "methods"))
        )
        for task, setting, seed, method in chains:
            run = Run(dataset, task, setting, method, seed)
            if run not in self.runs:
                self.runs.append(run)

    def _parse(self, where: str, dataset: str, task: str) -> Groups:
        if task in self.config["tasks"]:
            own = self._names[dataset][: self.class_count(dataset)]
            labels = {name: label for label, name in enumerate(own, start=1)}
            try:
                return resolve_groups(
                    self.config["tasks"][task],
                    labels,
                    where=f"tasks.{task}",
                    suggest=lambda word: _suggestion(word, labels),
                )
            except ValueError as error:
                raise ConfigError(str(error)) from error
        try:
            kind = self.config["datasets"][dataset]["kind"]
            return parse_task(
                task, self.class_count(dataset), KINDS[kind].class_orders()
            )
        except ValueError as error:
            hint = _suggestion(task, self.config["tasks"])
            raise ConfigError(f"{where}.task: {error}{hint}") from error

    def _check_weights(self) -> None:
        named = self.config["model"]["weights"]
        if named not in ("imagenet", "none") and not Path(named).is_file():
            raise ConfigError(
                f"model.weights: expected 'imagenet', 'none' or an existing file, but "
                f"{Path(named).absolute()} does not exist."
            )

    def _check_batches(self) -> None:
        compute = self.config["compute"]
        kind = "gpus" if compute["gpus"] else "processes"
        processes, nodes = compute[kind], compute["nodes"]
        if processes % nodes:
            raise ConfigError(
                f"compute.{kind}: expected a multiple of compute.nodes = {nodes}, so "
                f"that the nodes share them evenly, but got {processes}."
            )
        split = processes * compute["accumulation"]
        sections = {"base": self.config["base"]}
        for method in dict.fromkeys(run.method for run in self.runs):
            sections[f"increment (of {method})"] = self.section("increment", method)
        for where, section in sections.items():
            batch = section["batch_size"]
            if batch % split:
                raise ConfigError(
                    f"{where}.batch_size: expected a multiple of {processes} "
                    f"process(es) x {compute['accumulation']} micro-batch(es) = "
                    f"{split}, but got {batch}. Change batch_size, or compute.gpus, "
                    f"compute.processes or compute.accumulation."
                )
        # Batch norm is synchronised over processes, but not over micro-batches.
        if self.config["base"]["batch_size"] == compute["accumulation"]:
            raise ConfigError(
                f"base.batch_size: expected at least 2 images per micro-batch, because "
                f"batch norm learns at step 0, but {self.config['base']['batch_size']} "
                f"over {compute['accumulation']} leaves 1. Raise base.batch_size or "
                f"lower compute.accumulation."
            )

    def cores_per_node(self) -> int:
        """CPU cores of a job on each node.

        Loader processes work while a GPU does; on the CPU they share the cores.
        """
        compute = self.config["compute"]
        if compute["gpus"]:
            per_process = max(compute["threads"], compute["workers"])
            return compute["gpus"] // compute["nodes"] * per_process
        return compute["processes"] // compute["nodes"] * compute["threads"]


def _parts(datasets: Config, dataset: str) -> list[str]:
    """The names of a dataset and of its additions."""
    additions = datasets[dataset].get("additions", [])
    return [dataset, *(f"{dataset}+{number + 1}" for number in range(len(additions)))]


def _with_additions(datasets: Config) -> Config:
    """The settings of all datasets, and of their additions as folders of their own."""
    found = {}
    for name, settings in datasets.items():
        parts = _parts(datasets, name)[1:]
        found[name] = settings
        for part, entry in zip(parts, settings.get("additions", []), strict=True):
            found[part] = {
                "kind": "folder",
                "path": str(Path(entry["path"]).expanduser()),
                "epochs": entry["epochs"],
                "on_error": settings.get("on_error", "stop"),
                "val_share": entry["val_share"] or settings.get("val_share", VAL_SHARE),
            }
    return found


def _what_is_read(settings: Config) -> Config:
    """Settings of pseudo labels, those that the rule does not read without a value."""
    read = {"rule", *RULES[settings["rule"]]}
    if settings["foreground"] == "network":
        read -= {"foreground_bias"}
    unread = {"metric": "euclidean", "foreground": "network", "image_prior": 0}
    return {
        key: value if key in read else unread.get(key, 0.0)
        for key, value in settings.items()
    }


def _all_classes(groups: Groups) -> tuple[int, ...]:
    return tuple(sorted(label for group in groups for label in group))
