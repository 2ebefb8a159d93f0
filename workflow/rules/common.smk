"""Shared by the rules: the plan, the machine, and functions that query the plan."""

import json
import re
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

from kproba.extensions import find_origins
from kproba.methods.builtin import base_methods
from kproba.network.backbones import BACKBONES
from kproba import artifacts
from kproba.plan.errors import ConfigError
from kproba.plan.plan import Plan, Run
from kproba.plan.results import list_files
from kproba.plan.schema import check
from kproba.results.measures import MEASURES

# Commands are found beside Snakemake too, when its environment is not activated.
shell.prefix(f'PATH="$PATH:{Path(sys.executable).parent}"; ')

SCHEMA = workflow.source_path("../schemas/config.schema.yaml")

try:
    plan = Plan(check(config, SCHEMA))
except ConfigError as error:
    raise WorkflowError(str(error)) from None


wildcard_constraints:
    dataset=r"[^/]+",
    task=r"[^/]+",
    setting=r"overlap|disjoint|sequential",
    method=r"[^/]+",
    seed=r"\d+",
    step=r"\d+",
    archive=r"[^/]+\.(?:tar(?:\.\w+)?|tgz|zip)",
    backbone="|".join(
        re.escape(name) for name, entry in BACKBONES.items() if not entry.packaged
    ),


# --- The machine ---------------------------------------------------------------------
# Settings that determine a result are params or in settings.json. What the machine
# offers is threads and resources: a change there never makes a step run again.


def job_resources(compute):
    """Resources of a job: those that Snakemake counts, and all options as JSON."""
    resources = {"gpu": compute.gpus, "nodes": compute.nodes}
    if compute.nodes > 1:
        # For the SLURM plugin: one task per node, and the job starts them itself.
        tasks = {"mpi": "srun", "tasks": compute.nodes, "tasks_per_gpu": 0}
        resources |= tasks
        if compute.gpus:
            per_node = compute.gpus // compute.nodes
            resources["slurm_extra"] = f"--gpus-per-node={per_node}"
    return {**resources, "compute": compute.to_json()}


job_threads = plan.compute.cores_per_node
training_resources = job_resources(plan.compute)
# A job that only runs a network forward, on one node: bank, pseudo labels, evaluation.
inference_resources = job_resources(plan.compute.on_one_node())


# --- Names in a path -----------------------------------------------------------------


def parse_run(wildcards):
    return Run(
        wildcards.dataset,
        wildcards.task,
        wildcards.setting,
        wildcards.method,
        int(wildcards.seed),
    )


def groups_so_far(wildcards):
    groups = plan.datasets.groups(
        wildcards.dataset, wildcards.task, int(wildcards.step)
    )
    return [list(group) for group in groups]


def all_groups(wildcards):
    groups = plan.datasets.groups(wildcards.dataset, wildcards.task)
    return [list(group) for group in groups]


# --- Data ----------------------------------------------------------------------------


def made_dataset(wildcards):
    """The folder of a dataset that a rule draws or unpacks."""
    return plan.datasets.made_folders(wildcards.dataset)


def state_of_dataset(wildcards):
    return plan.datasets.digest_files(wildcards.dataset)


def digits_settings(wildcards):
    return plan.datasets.drawing_settings(wildcards.dataset)


def index_settings(wildcards):
    return plan.datasets.index_settings(wildcards.dataset)


def class_count(wildcards):
    return plan.datasets.class_count(wildcards.dataset)


def label_names(wildcards):
    return plan.datasets.label_names(wildcards.dataset)


def archives_of_dataset(wildcards):
    return [
        artifacts.fill(artifacts.ARCHIVE, wildcards, archive=archive.name)
        for archive in plan.datasets.archives(wildcards.dataset)
    ]


def checksums(wildcards):
    return [archive.checksum for archive in plan.datasets.archives(wildcards.dataset)]


def find_archive(wildcards):
    archives = plan.datasets.archives(wildcards.dataset)
    return next(entry for entry in archives if entry.name == wildcards.archive)


def mirrors(wildcards):
    return " ".join(find_archive(wildcards).mirrors)


def checksum(wildcards):
    return find_archive(wildcards).checksum


def indices_of_step(wildcards):
    """Index of the dataset and of the additions that are available at a step."""
    return plan.datasets.indices(wildcards.dataset, groups_so_far(wildcards))


def indices_of_task(wildcards):
    return plan.datasets.indices(wildcards.dataset, all_groups(wildcards))


# --- Jobs of a step: inputs and settings, as the plan says ---------------------------


def step_settings(wildcards):
    return plan.settings(parse_run(wildcards), int(wildcards.step))


def training_inputs(wildcards):
    return plan.training_inputs(parse_run(wildcards), int(wildcards.step))


def bank_inputs(wildcards):
    return plan.bank_inputs(parse_run(wildcards), int(wildcards.step))


def bank_job(wildcards):
    job = plan.chain.bank(parse_run(wildcards), int(wildcards.step))
    return json.dumps(job.settings)


def label_inputs(wildcards):
    return plan.label_inputs(parse_run(wildcards), int(wildcards.step))


def label_job(wildcards):
    job = plan.chain.labels(parse_run(wildcards), int(wildcards.step))
    return json.dumps(job.settings)


def test_inputs(wildcards):
    return plan.test_inputs(parse_run(wildcards), int(wildcards.step))


def test_job(wildcards):
    run, step = parse_run(wildcards), int(wildcards.step)
    names = {"run": {**vars(run), "step": step}}
    return json.dumps({**names, **plan.chain.test(run, step).settings})


# --- Summary, figures and report -----------------------------------------------------

all_results = plan.results(plan.runs)
measure_extensions = find_origins(("measure", name) for name in MEASURES)


def results_of_experiment(wildcards):
    names = (wildcards.dataset, wildcards.task, wildcards.setting)
    return [result for result in all_results if result.experiment == names]


def all_rows(wildcards):
    return [result.to_dict() for result in all_results]


def rows_of_experiment(wildcards):
    return [result.to_dict() for result in results_of_experiment(wildcards)]


def experiment_files(*kinds):
    """Input function: files of some kinds of the steps of an experiment."""

    def files(wildcards):
        return list_files(results_of_experiment(wildcards), *kinds)

    return files


def report_files(wildcards):
    """What the page shows beside tables and figures."""
    kinds = ("confusion", "examples", "usage", "labels", "split")
    indices = {
        path
        for run in plan.experiments()
        for path in plan.datasets.indices(
            run.dataset, plan.datasets.groups(run.dataset, run.task)
        )
    }
    return list_files(all_results, *kinds) + sorted(indices)


def experiments_of_report(wildcards):
    return [plan.describe_experiment(run) for run in plan.experiments()]


def class_lists(wildcards):
    return [artifacts.fill(artifacts.CLASSES, vars(run)) for run in plan.experiments()]


def figures_of_experiments(wildcards):
    return [
        artifacts.fill(artifacts.FIGURE, vars(run), figure=name)
        for run in plan.experiments()
        for name in artifacts.FIGURE_NAMES
    ]
