"""Code that all rules share: the plan, the compute resources, and input functions."""

import hashlib
import json
import os
import re
import shlex
import sys
from functools import cache
from pathlib import Path

from snakemake.exceptions import WorkflowError

from kproba.extensions import find_origins
from kproba.methods.builtin import base_methods
from kproba.methods.method import PRETRAINED
from kproba.network.backbones import BACKBONES
from kproba import artifacts
from kproba.data.splits import SETTINGS
from kproba.plan.arrival import settle_times
from kproba.plan.config_files import name_of_files
from kproba.plan.errors import ConfigError
from kproba.plan.listing import shorten_log
from kproba.plan.plan import Plan, Run
from kproba.plan.results import LazyResults, by_experiment, list_files
from kproba.plan.schema import check
from kproba.plan.targets import check_targets
from kproba.project import package_source
from kproba.results.measures import MEASURES


def without_wildcards(path):
    """Return a path with escaped braces, so that they are not wildcards."""
    return path.replace("{", "{{").replace("}", "}}")


# How a rule starts a program. It is found beside Snakemake too, when the environment is
# not activated. The path is quoted for the shell.
beside = shlex.quote(str(Path(sys.executable).parent))
LAUNCH = without_wildcards(f'PATH="$PATH":{beside}; exec kproba-launch')
COMMAND = without_wildcards(f'PATH="$PATH":{beside}; PYTHONUTF8=1 exec kproba')

# A module statement may have a prefix. Snakemake puts it before the paths of inputs and
# outputs. Paths that a job gets as text need the same prefix.
locate = workflow.modifier.path_modifier.replace_prefix

rules_folder = workflow.current_basedir.get_path_or_uri(secret_free=True)


def file_of_workflow(path):
    """Return the path of a file in the folder of this one."""
    if "{" not in rules_folder and "}" not in rules_folder:
        return path
    return without_wildcards(os.path.normpath(os.path.join(rules_folder, path)))


def script_file(name):
    return file_of_workflow(f"../scripts/{name}")


ENVIRONMENT = file_of_workflow("../../envs/kproba.yaml")

# The script that installs the package into this environment needs its location.
os.environ.setdefault("KPROBA_SOURCE", package_source())

SCHEMA = workflow.source_path("../schemas/config.schema.yaml")

try:
    plan = Plan(check(config, SCHEMA), locate)
    plan.datasets.check_folders()
    if not is_module:
        check_targets(plan, sys.argv[1:])
    # A job that Snakemake starts in another process, as on a cluster, reads this file
    # too: it needs no more of the plan than its own inputs.
    all_results = LazyResults(lambda: plan.results(plan.runs))
    if workflow.is_main_process:
        plan.check_images()
        len(all_results)  # finds errors before any job runs
except ConfigError as error:
    raise WorkflowError(str(error)) from None


# Another workflow that uses this one configures its log and its files itself.
if not is_module:
    shorten_log(dry_run=workflow.output_settings.dryrun)
    if workflow.is_main_process:
        settle_times(artifacts.RESULTS, ".snakemake/metadata")


# The methods that are trained on everything at once, as a pattern; "(?!)" matches nothing.
joint_methods = "|".join(map(re.escape, plan.joint_methods())) or "(?!)"


wildcard_constraints:
    dataset=r"[^/]+",
    task=r"[^/]+",
    setting="|".join(SETTINGS),
    method=r"[^/]+",
    seed=r"\d+",
    step=r"\d+",
    archive=r"[^/]+\.(?:tar(?:\.\w+)?|tgz|zip)",
    backbone="|".join(
        re.escape(name) for name, entry in BACKBONES.items() if not entry.packaged
    ),


# --- Compute resources ---------------------------------------------------------------
# Settings that determine a result are params or in settings.json. Options of the machine
# are threads and resources, so a change of them never runs a step again.


def job_resources(compute):
    """Resources of a job: counts for Snakemake, and all compute options as JSON."""
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
# Bank, pseudo labels and evaluation run a network forward, on one node.
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


def divided_classes(wildcards):
    """Return the classes among which "partitioned" divides images; else None."""
    if wildcards.setting != "partitioned":
        return None
    names = wildcards.dataset, wildcards.task, int(wildcards.step)
    return list(plan.datasets.divided_classes(*names))


def split_settings(wildcards):
    """Return everything that determines a split besides the indices."""
    classes = divided_classes(wildcards)
    groups = groups_so_far(wildcards)
    return groups if classes is None else {"groups": groups, "classes": classes}


def all_groups(wildcards):
    groups = plan.datasets.groups(wildcards.dataset, wildcards.task)
    return [list(group) for group in groups]


# --- Arguments of a job --------------------------------------------------------------
# A job gets tables as a resource, in JSON. They may be long, and Snakemake prints a
# parameter whenever it changes. So only their digest is a parameter: the job runs again
# when they change. Names for display and paths of files have no digest.


def as_json(values):
    """Wrap a function of wildcards, so that it returns its result as JSON."""
    return lambda wildcards: json.dumps(values(wildcards))


def digest(values):
    """Wrap a function of wildcards, so that it returns a digest of its result."""

    def short(wildcards):
        text = json.dumps(values(wildcards), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    return short


# --- Data ----------------------------------------------------------------------------


def made_dataset(wildcards):
    """Input function: the folder of a dataset that a rule draws or unpacks."""
    return plan.datasets.made_folders(wildcards.dataset)


def state_of_dataset(wildcards):
    return plan.datasets.state_of_files(wildcards.dataset)


def saliency_settings(wildcards):
    """Return the folders of the saliency maps of a dataset or addition."""
    return plan.saliency.settings(wildcards.dataset)


def state_of_saliency(wildcards):
    return plan.saliency.state(wildcards.dataset)


def dataset_kind(wildcards):
    return plan.datasets.kind(wildcards.dataset).name


def drawing_settings(wildcards):
    return plan.datasets.drawing_settings(wildcards.dataset)


def index_settings(wildcards):
    return plan.datasets.index_settings(wildcards.dataset)


def index_context(wildcards):
    """Return what the index job needs for messages and warnings."""
    return plan.index_context(wildcards.dataset)


def class_count(wildcards):
    return plan.datasets.class_count(wildcards.dataset)


def image_folders(wildcards):
    """Return the folders of the pictures of a dataset and its additions."""
    return plan.datasets.folders(wildcards.dataset)


def all_image_folders(wildcards):
    datasets = {run.dataset for run in plan.runs}
    return {
        part: folders
        for dataset in sorted(datasets)
        for part, folders in plan.datasets.folders(dataset).items()
    }


def class_list(wildcards):
    groups = all_groups(wildcards)
    names = plan.datasets.label_names(wildcards.dataset)
    listed = {label: names[label] for group in groups for label in group}
    return {"groups": groups, "names": listed}


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


def packed_step(wildcards):
    """Return the archive of a packed step, or the predictor.json of its folder."""
    return plan.datasets.packed_file(wildcards.dataset)


def packed_digest(wildcards):
    return plan.datasets.packed(wildcards.dataset).digest


def indices_of_step(wildcards):
    """Input function: the indices of the dataset and its additions at a step."""
    return plan.datasets.indices(wildcards.dataset, groups_so_far(wildcards))


def indices_of_task(wildcards):
    return plan.datasets.indices(wildcards.dataset, all_groups(wildcards))


# --- Jobs of a step: inputs and settings from the plan -------------------------------


def step_settings(wildcards):
    return plan.settings(parse_run(wildcards), int(wildcards.step))


def training_inputs(wildcards):
    return plan.training_inputs(parse_run(wildcards), int(wildcards.step))


def own_weights(wildcards):
    """Return the quoted argument for the weights file of a user, or an empty text."""
    weights = plan.own_weights()
    return f"--weights={shlex.quote(weights)}" if weights else ""


def bank_inputs(wildcards):
    return plan.bank_inputs(parse_run(wildcards), int(wildcards.step))


def bank_job(wildcards):
    job = plan.chain.bank(parse_run(wildcards), int(wildcards.step))
    return dict(job.settings)


def statistics_inputs(wildcards):
    return plan.statistics_inputs(parse_run(wildcards), int(wildcards.step))


def statistics_job(wildcards):
    job = plan.chain.statistics(parse_run(wildcards), int(wildcards.step))
    return dict(job.settings)


def label_inputs(wildcards):
    return plan.label_inputs(parse_run(wildcards), int(wildcards.step))


def label_job(wildcards):
    job = plan.chain.labels(parse_run(wildcards), int(wildcards.step))
    return dict(job.settings)


def memory_inputs(wildcards):
    return plan.memory_inputs(parse_run(wildcards), int(wildcards.step))


def memory_job(wildcards):
    job = plan.chain.memory(parse_run(wildcards), int(wildcards.step))
    return dict(job.settings)


def shown_names(wildcards):
    """Return the names of the classes so far; they do not change a result."""
    groups = groups_so_far(wildcards)
    return plan.datasets.names(wildcards.dataset, groups)


def trained_names(wildcards):
    return plan.trained_names(parse_run(wildcards), int(wildcards.step))


def test_inputs(wildcards):
    return plan.test_inputs(parse_run(wildcards), int(wildcards.step))


def test_job(wildcards):
    return plan.test_settings(parse_run(wildcards), int(wildcards.step))


# --- Summary, figures and report -----------------------------------------------------

# Each configuration in a folder has its own report.
if is_module:
    default_name = workflow.modifier.namespace
else:
    default_name = name_of_files(workflow.configfiles)
configuration = config.get("report") or default_name


def of_configuration(pattern):
    """Fill the name of this configuration into a pattern."""
    return artifacts.fill(pattern, {"configuration": configuration})


# With held-out images, a run is for a choice, so its table is part of the results.
choice_files = [of_configuration(artifacts.CHOICE)] if config.get("selection") else []


# Heading of the figures of an experiment in the report of Snakemake
EXPERIMENT_NAME = "{dataset} {task} {setting}"

measure_extensions = find_origins(("measure", name) for name in MEASURES)


@cache
def results_by_experiment():
    return by_experiment(all_results)


def results_of_experiment(wildcards):
    names = (wildcards.dataset, wildcards.task, wildcards.setting)
    return results_by_experiment().get(names, [])


@cache
def all_rows():
    return [result.to_dict(locate) for result in all_results]


def rows_of_experiment(wildcards):
    return [result.to_dict(locate) for result in results_of_experiment(wildcards)]


def experiment_files(*kinds):
    """Return an input function: files of these kinds for one experiment."""

    def files(wildcards):
        return list_files(results_of_experiment(wildcards), *kinds)

    return files


def files_of_all(*kinds):
    """Return an input function: files of these kinds for all steps."""
    return lambda wildcards: list_files(all_results, *kinds)


def for_next_step(wildcards):
    """Input function: banks, statistics and memories, from which a next step starts."""
    return plan.for_next_step()


def card_files(wildcards):
    """Input function: the model cards of all steps."""
    folders = list_files(all_results, "folder")
    return [artifacts.CARD.replace(artifacts.STEP, folder) for folder in folders]


def report_files(wildcards):
    """Input function: further files that the report page shows."""
    kinds = ("confusion", "examples", "usage", "labels", "split")
    found = set()
    for run in plan.experiments():
        groups = plan.datasets.groups(run.dataset, run.task)
        found |= {*plan.datasets.indices(run.dataset, groups)}
        found |= {*plan.datasets.checks(run.dataset, groups)}
    return list_files(all_results, *kinds) + sorted(found)


def summary_table(wildcards):
    return {"rows": all_rows(), "extensions": measure_extensions}


def figure_table(wildcards):
    return {
        "rows": rows_of_experiment(wildcards),
        "extensions": measure_extensions,
        "groups": all_groups(wildcards),
    }


def report_table(wildcards):
    experiments = [plan.describe_experiment(run) for run in plan.experiments()]
    return {**summary_table(wildcards), "experiments": experiments}


def class_lists(wildcards):
    return [artifacts.fill(artifacts.CLASSES, vars(run)) for run in plan.experiments()]


def figures_of_experiments(wildcards):
    return [
        artifacts.fill(artifacts.FIGURE, vars(run), figure=name)
        for run in plan.experiments()
        for name in artifacts.FIGURE_NAMES
    ]
