"""What the rules share: the plan, wildcards, and which file a step starts from."""

import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

from kproba.config import ConfigError, Plan, Run, check

# Commands are found beside Snakemake too, when its environment is not activated.
shell.prefix(f'PATH="$PATH:{Path(sys.executable).parent}"; ')

SCHEMA = Path(workflow.basedir) / "workflow" / "schemas" / "config.schema.yaml"

try:
    plan = Plan(check(config, SCHEMA))
except ConfigError as error:
    raise WorkflowError(str(error)) from None

compute = plan.config["compute"]

# A job that only runs a network forward: bank, export, evaluation.
inference_threads = compute["threads"]
inference_resources = {
    "gpu": min(1, compute["gpus"]),
    "cpu_threads": compute["threads"],
    "batch_size": compute["batch_size"],
    "workers": compute["workers"],
}


wildcard_constraints:
    dataset=r"[^/]+",
    task=r"[^/]+",
    setting=r"overlap|disjoint|sequential",
    method=r"[^/]+",
    seed=r"\d+",
    step=r"\d+",


def run_of(wildcards):
    return Run(
        wildcards.dataset,
        wildcards.task,
        wildcards.setting,
        wildcards.method,
        int(wildcards.seed),
    )


def folder(run, step):
    """Folder of a step's artifacts."""
    return (
        f"results/{run.dataset}/{run.task}-{run.setting}/{run.method}"
        f"/seed{run.seed}/step{step}"
    )


def base_run(run, method="base"):
    """The run that holds step 0: shared by all tasks that start with its classes."""
    setting = "disjoint" if run.setting == "sequential" else run.setting
    task = plan.base_task(run.dataset, run.task)
    return Run(run.dataset, task, setting, method, run.seed)


def joint_run(run):
    """The run that trains all classes of a task at once."""
    task = plan.joint_task(run.dataset, run.task)
    return Run(run.dataset, task, "overlap", "base", run.seed)


def model_file(run, step):
    """Model of a step; step 0 and `joint` are shared between tasks and methods."""
    if plan.recipe(run.method).joint and run.method != "base":
        return f"{folder(joint_run(run), 0)}/model.safetensors"
    if step == 0:
        return f"{folder(base_run(run), 0)}/model.safetensors"
    return f"{folder(run, step)}/model.safetensors"


def bank_file(run, step):
    """Bank of a step; that of step 0 is shared between the tasks of a method."""
    home = base_run(run, run.method) if step == 0 else run
    return f"{folder(home, step)}/prototypes.safetensors"


def evaluation_file(run, step):
    """Result of a step; step 0 is tested once for all that share it."""
    home = base_run(run) if step == 0 and run.method != "joint" else run
    return f"{folder(home, step)}/evaluation.json"


def model_of_step(wildcards):
    return model_file(run_of(wildcards), int(wildcards.step))


def previous_model(wildcards):
    return model_file(run_of(wildcards), int(wildcards.step) - 1)


def groups_so_far(wildcards):
    groups = plan.groups(wildcards.dataset, wildcards.task, int(wildcards.step))
    return [list(group) for group in groups]


def names_so_far(wildcards):
    groups = plan.groups(wildcards.dataset, wildcards.task, int(wildcards.step))
    return plan.names(wildcards.dataset, groups)
