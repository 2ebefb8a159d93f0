"""Runs share a file exactly if everything that it is made from is equal.

The plan derives sharing from frozen jobs. Here it is derived once more, without them:
from the rules' inputs and parameters as Snakemake has them, followed to the images.
"""

import hashlib
import itertools
import json
import random
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from job_dump import CONFIG, SHIPPED, planned_jobs, write_class_lists

from kproba import artifacts
from kproba.plan.plan import Plan
from kproba.plan.run import Run
from kproba.plan.schema import check

ROOT = Path(__file__).parents[1]
SCHEMA = ROOT / "workflow" / "schemas" / "config.schema.yaml"
# Names tell whose an artifact is, not what it is made from.
NAMES = ("run", "rows", "experiments")
MADE = (
    "train_base",
    "train_joint",
    "train_step",
    "build_prototypes",
    "export_pseudo_labels",
)
RULES = (*MADE, "evaluate", "make_split")


# --- from Snakemake's jobs -----------------------------------------------------------


def _without_names(value: Any) -> Any:
    if isinstance(value, dict):
        items = value.items()
        return {key: _without_names(item) for key, item in items if key not in NAMES}
    if isinstance(value, list | tuple):
        return [_without_names(item) for item in value]
    return value


def _parameters(job: Any) -> Any:
    """A job's parameters without names; those that are JSON as values."""
    parameters = {}
    for name, value in job.params._allitems():
        encoded = isinstance(value, str) and value.startswith("{")
        parameters[name] = _without_names(json.loads(value) if encoded else value)
    # make_split reads the setting from its path; the last two choose alike.
    if str(job.rule) == "make_split":
        parameters["selection"] = job.wildcards.setting == "overlap"
    return parameters


def _signatures(jobs: list[Any]) -> dict[str, str]:
    """What every file is made from, as a digest: rule, parameters and, in turn, inputs.

    Two files of one dataset with equal digests could be one file.
    """
    maker = {str(path): job for job in jobs for path in job.output}
    digests: dict[str, str] = {}

    def digest(path: str) -> str:
        if path in digests:
            return digests[path]
        job = maker.get(path)
        if job is None:
            return path  # a file of the user's
        rule = re.sub("train_(base|joint)", "train_step", str(job.rule))
        inputs = sorted(
            (name or "", digest(str(file)))
            for name, item in job.input._allitems()
            for file in ([item] if isinstance(item, str) else item)
        )
        dataset = getattr(job.wildcards, "dataset", "")
        number = [str(file) for file in job.output].index(path)
        content = [rule, dataset, number, _parameters(job), inputs]
        text = json.dumps(content, sort_keys=True, default=str)
        digests[path] = hashlib.sha256(text.encode()).hexdigest()
        return digests[path]

    for path in maker:
        digest(path)
    return digests


def _paths_by_digest(jobs: list[Any]) -> dict[str, set[str]]:
    """Files of the shared rules by what they are made from."""
    digests = _signatures(jobs)
    paths = defaultdict(set)
    for job in jobs:
        if str(job.rule) in RULES:
            for path in map(str, job.output):
                paths[digests[path]].add(path)
    return paths


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("sharing")
    write_class_lists(path)
    return path


def _all_settings(files: list[Path], folder: Path) -> Path:
    """A configuration with all three settings in every experiment."""
    config: dict[str, Any] = {}
    for file in files:
        config |= yaml.safe_load(file.read_text(encoding="utf-8"))
    for experiment in config["experiments"]:
        experiment["setting"] = ["overlap", "disjoint", "sequential"]
        experiment["seeds"] = experiment["seeds"][:1] if "seeds" in experiment else [0]
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


@pytest.mark.workflow
@pytest.mark.parametrize("name", SHIPPED)
def test_files_that_could_be_one_are_one(name, folder, monkeypatch):
    """In every shipped configuration, in the three settings at once."""
    monkeypatch.chdir(folder)
    jobs = planned_jobs([_all_settings(SHIPPED[name], folder)], folder)
    paths = _paths_by_digest(jobs)
    assert len(paths) > 20
    assert {tuple(sorted(same)) for same in paths.values() if len(same) > 1} == set()


@pytest.mark.workflow
def test_ablation_shares_what_is_equal(folder, monkeypatch):
    """Losses matter to no bank of step 0's features, labels to no sequential step."""
    monkeypatch.chdir(folder)
    path = CONFIG / "comparisons" / "ablation.yaml"
    jobs = planned_jobs([path], folder)
    banks = [job for job in jobs if str(job.rule) == "build_prototypes"]
    # 23 for the tests, one of them because a bank that also decides on the foreground
    # holds all cells, and one that only labels step 2 (the method `reference`).
    assert sum(job.wildcards.step == "1" for job in banks) == 24

    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    config["experiments"][0]["setting"] = "sequential"
    sequential = folder / "sequential.yaml"
    sequential.write_text(yaml.safe_dump(config), encoding="utf-8")
    jobs = planned_jobs([sequential], folder)
    trained = [job for job in jobs if str(job.rule) == "train_step"]
    assert sum(job.wildcards.step == "1" for job in trained) == 8
    assert sum(job.wildcards.step == "2" for job in trained) == 9


# --- from the inputs that the plan gives the rules -----------------------------------


class Recursion:
    """What an artifact of a run is made from, by the inputs of the rules alone.

    It follows the paths in the rules' inputs and reads the settings of the run that a
    path names. It knows nothing of jobs and owners.
    """

    def __init__(self, plan: Plan):
        self.plan = plan
        self.places = dict(self._places())
        self.seen: dict[str, Any] = {}

    def _places(self) -> Iterator[tuple[str, tuple[str, Run, int]]]:
        patterns = {
            "model": artifacts.MODEL,
            "bank": artifacts.BANK,
            "labels": artifacts.LABELS,
            "test": artifacts.EVALUATION,
            "split": artifacts.SPLIT,
            "settings": artifacts.SETTINGS,
        }
        datasets = self.plan.datasets
        for dataset in {run.dataset for run in self.plan.runs}:
            for task, setting, method in itertools.product(
                datasets.tasks(dataset),
                ("overlap", "disjoint", "sequential"),
                self.plan.methods,
            ):
                run = Run(dataset, task, setting, method, 0)
                for step in range(len(datasets.groups(dataset, task))):
                    for kind, pattern in patterns.items():
                        path = artifacts.fill(pattern, vars(run), step=step)
                        yield path, (kind, run, step)

    def made_from(self, path: str) -> Any:
        """Settings and inputs of a file, all the way down, without names."""
        if path not in self.seen:
            place = self.places.get(path)
            content = [path] if place is None else self._content(*place)
            text = json.dumps(content, sort_keys=True, default=str)
            self.seen[path] = hashlib.sha256(text.encode()).hexdigest()
        return self.seen[path]

    def _content(self, kind: str, run: Run, step: int) -> Any:
        plan, chain = self.plan, self.plan.chain
        if kind == "split":
            groups = plan.datasets.groups(run.dataset, run.task, step)
            indices = plan.datasets.indices(run.dataset, groups)
            return [kind, indices, groups, run.setting == "overlap"]
        settings: Any
        inputs: dict[str, Any]
        if kind in ("model", "settings"):
            settings = _without_names(plan.settings(run, step))
            inputs = plan.training_inputs(run, step) if kind == "model" else {}
        elif kind == "bank":
            settings = chain.bank(run, step).settings
            inputs = plan.bank_inputs(run, step)
        elif kind == "labels":
            settings = chain.labels(run, step).settings
            inputs = plan.label_inputs(run, step)
        else:
            settings = chain.test(run, step).settings
            inputs = plan.test_inputs(run, step)
        files = {
            name: [self.made_from(p) for p in ([f] if isinstance(f, str) else f)]
            for name, f in inputs.items()
        }
        return [kind, run.dataset, settings, files]


LABEL_RULES = ("lda", "klda", "kappa", "confidence", "argmax", "agree", "entropy")
CHANGES: list[tuple[str, Any]] = [
    ("teacher", "network"),
    ("teacher", "fused"),
    ("use_pseudo_labels", False),
    ("trains", "heads"),
    ("cross_entropy", "bce"),
    *(("prediction", name) for name in ("network", "fused", "lda", "klda", "kappa")),
    *(("losses", {name: weight}) for name in ("gkd", "bfd") for weight in (0.5, 2)),
    *(("bank", {"network": name}) for name in ("base", "after", "before")),
    ("bank", {"momentum": 0.5}),
    ("bank", {"dimension": 32}),
    ("bank", {"feature": "both"}),
    *(("pseudo_labels", {"rule": name}) for name in LABEL_RULES),
    ("decision", {"posterior_weight": 1}),
    ("decision", {"metric": "mahalanobis"}),
    ("decision", {"foreground": "both", "foreground_bias": 0.5}),
    ("increment", {"epochs": 3}),
]


def random_config(seed: int) -> dict[str, Any] | None:
    """A configuration with custom methods and settings; None if it is refused."""
    choose = random.Random(seed)
    methods: dict[str, Any] = {}
    for number in range(choose.randint(2, 5)):
        method: dict[str, Any] = {
            "based_on": choose.choice(
                ["kproba", "barm", "mib", "plop", "finetune", "joint", "joint_softmax"]
            )
        }
        for key, value in choose.sample(CHANGES, choose.randint(0, 3)):
            method[key] = value
        methods[f"own{number}"] = method
    tasks = {
        "grow": [[1, 2, 3, 4, 5, 6], [7, 8]],
        "same": [[1, 2, 3, 4, 5, 6], [7], [8]],
        "turned": [[6, 5, 4, 3, 2, 1]],
    }
    names = ["6-2", "grow", "same", "5-5", "offline", "6-2_r1", "turned"]
    builtin = ["kproba", "barm", "mib", "joint", "ssul_light", "finetune"]
    config = {
        "datasets": {"tiny": {"kind": "digits"}},
        "tasks": tasks,
        "methods": methods,
        "experiments": [
            {
                "dataset": "tiny",
                "task": choose.sample(names, 3),
                "setting": choose.sample(["overlap", "disjoint", "sequential"], 2),
                "methods": [*methods, *choose.sample(builtin, 2)],
            }
        ],
        "pseudo_labels": {"rule": choose.choice(LABEL_RULES)},
        "joint": {"training": choose.choice(["chain", "base"])},
    }
    try:
        checked = check(config, SCHEMA)
        Plan(checked)
    except ValueError:  # parts that do not fit together
        return None
    return checked


def test_random_configurations_share_exactly_what_is_equal():
    """Whatever custom methods, tasks and settings: over some hundred of them."""
    checked = [config for seed in range(260) if (config := random_config(seed))]
    assert len(checked) >= 100
    shared = 0
    for config in checked:
        plan = Plan(config)
        recursion = Recursion(plan)
        made: dict[Any, set[str]] = defaultdict(set)  # paths by what they are made from
        asked: dict[str, set[Any]] = defaultdict(set)
        for run in plan.runs:
            for step in plan.steps(run):
                result = plan.result(run, step)
                files = [result.evaluation, result.model, result.bank, result.labels]
                files.append(result.split)
                for path in filter(None, files):
                    # What the run itself would make there, had it no one to share with.
                    kind = recursion.places[path][0]
                    own = _made_by(recursion, kind, run, step)
                    made[own].add(path)
                    asked[path].add(own)
        assert all(len(paths) == 1 for paths in made.values()), made
        assert all(len(contents) == 1 for contents in asked.values()), asked
        shared += len(plan.results(plan.runs)) - len(
            {result.evaluation for result in plan.results(plan.runs)}
        )
    assert shared > 100  # or the test would prove little


def _made_by(recursion: Recursion, kind: str, run: Run, step: int) -> Any:
    content = recursion._content(kind, run, step)
    return hashlib.sha256(
        json.dumps(content, sort_keys=True, default=str).encode()
    ).hexdigest()


def test_a_task_shares_the_steps_that_begin_alike():
    tasks = {"short": [[1, 2], [3]], "long": [[1, 2], [3], [4]]}
    experiments = [
        {"dataset": "tiny", "task": ["short", "long"], "methods": ["kproba"]}
    ]
    config = {
        "datasets": {"tiny": {"kind": "digits"}},
        "tasks": tasks,
        "experiments": experiments,
    }
    plan = Plan(check(config, SCHEMA))
    short, long = ([plan.result(run, step) for step in (0, 1)] for run in plan.runs)
    for one, other in zip(short, long, strict=True):
        assert (one.evaluation, one.model) == (other.evaluation, other.model)
    assert "/short-overlap/" in short[1].model


def test_labels_of_later_steps_are_of_their_own_bank():
    """A model of step 1 may be shared although the banks that label step 2 differ."""
    config = {
        "datasets": {"tiny": {"kind": "digits"}},
        "methods": {"after": {"based_on": "kproba", "bank": {"network": "after"}}},
        "experiments": [
            {"dataset": "tiny", "task": "6-2", "methods": ["kproba", "after"]}
        ],
        "bank": {"network": "base"},
        "pseudo_labels": {"rule": "klda"},
    }
    plan = Plan(check(config, SCHEMA))
    kproba, after = ([plan.result(run, step) for step in (1, 2)] for run in plan.runs)
    assert kproba[0].model == after[0].model
    assert kproba[0].bank != after[0].bank
    assert kproba[1].labels != after[1].labels
