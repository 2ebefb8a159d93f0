"""What the rules share: the plan, wildcards, and which file a step starts from."""

import json
import sys
from dataclasses import replace
from pathlib import Path

from snakemake.exceptions import WorkflowError

from kproba.plan.schema import ConfigError, check
from kproba.plan.plan import Plan, Run
from kproba.methods.builtin import BASES

# Commands are found beside Snakemake too, when its environment is not activated.
shell.prefix(f'PATH="$PATH:{Path(sys.executable).parent}"; ')

SCHEMA = Path(workflow.basedir) / "workflow" / "schemas" / "config.schema.yaml"

try:
    plan = Plan(check(config, SCHEMA))
except ConfigError as error:
    raise WorkflowError(str(error)) from None

compute = plan.config["compute"]

# Settings that determine a result are params or in settings.json. What the machine
# offers is threads and resources: a change there never makes a step run again.
nodes = compute["nodes"]
job_threads = plan.cores_per_node()
job_resources = {
    "device": compute["device"],
    "cpu_threads": compute["threads"],
    "workers": compute["workers"],
    "deterministic": "--deterministic" if compute["deterministic"] else "",
}
training_resources = {
    **job_resources,
    "gpu": compute["gpus"],
    "processes": compute["processes"],
    "nodes": nodes,
    "accumulation": compute["accumulation"],
    "state_minutes": str(compute["state_minutes"]),
    "cache_gib": str(compute["cache_gib"]),
    "looks": compute["looks"],
    "look_images": compute["look_images"],
    "compile": "--compile" if compute["compile"] else "",
}
if nodes > 1:
    # For the SLURM plugin: one task per node, and the job starts them itself.
    training_resources |= {"mpi": "srun", "tasks": nodes, "tasks_per_gpu": 0}
    if compute["gpus"]:
        training_resources["slurm_extra"] = (
            f"--gpus-per-node={compute['gpus'] // nodes}"
        )
# A job that only runs a network forward, on one node: bank, pseudo labels, evaluation.
inference_resources = {
    **job_resources,
    "nodes": 1,
    "gpu": compute["gpus"] // nodes,
    "processes": max(1, compute["processes"] // nodes),
    "batch_size": compute["batch_size"],
}


wildcard_constraints:
    dataset=r"[^/]+",
    task=r"[^/]+",
    setting=r"overlap|disjoint|sequential",
    method=r"[^/]+",
    seed=r"\d+",
    step=r"\d+",
    archive=r"[^/]+\.(tar|zip)",
    backbone=r"resnet50|resnet101",


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
    chain = f"results/{run.dataset}/{run.task}-{run.setting}/{run.method}"
    return f"{chain}/seed{run.seed}/step{step}"


def base_run(run, method=None):
    """The run that holds step 0: shared by all tasks that start with its classes."""
    setting = "disjoint" if run.setting == "sequential" else run.setting
    task = plan.base_task(run.dataset, run.task)
    method = method or plan.base_name(run.method)
    return Run(run.dataset, task, setting, method, run.seed)


def joint_run(run):
    """The run that trains all classes of a task at once."""
    task = plan.joint_task(run.dataset, run.task)
    return Run(run.dataset, task, "overlap", plan.base_name(run.method), run.seed)


def model_file(run, step):
    """Model of a step, shared between methods that are trained alike.

    Step 0 and `joint` are shared between tasks too.
    """
    if plan.recipe(run.method).joint and run.method not in BASES:
        return f"{folder(joint_run(run), 0)}/model.safetensors"
    if step == 0:
        return f"{folder(base_run(run), 0)}/model.safetensors"
    home = replace(run, method=plan.model_home(run.method, step))
    return f"{folder(home, step)}/model.safetensors"


def bank_file(run, step):
    """Bank of a step, shared between methods like it; of step 0 between tasks too."""
    method = plan.bank_home(run.method, step)
    home = base_run(run, method) if step == 0 else replace(run, method=method)
    return f"{folder(home, step)}/prototypes.safetensors"


def label_file(run, step, name="pseudo_labels"):
    """Pseudo labels of a step, shared between methods like it."""
    method = plan.label_home(run.method, int(step))
    return f"{folder(replace(run, method=method), step)}/{name}"


def evaluation_file(run, step):
    """Result of a step; step 0 is tested once for all that share it."""
    home = run
    if step == 0 and not plan.recipe(run.method).joint:
        fused = plan.fuses(run.method)
        home = base_run(run, plan.fused_home(run.method) if fused else None)
    return f"{folder(home, step)}/evaluation.json"


def model_of_step(wildcards):
    return model_file(run_of(wildcards), int(wildcards.step))


def previous_model(wildcards):
    return model_file(run_of(wildcards), int(wildcards.step) - 1)


def groups_so_far(wildcards):
    groups = plan.groups(wildcards.dataset, wildcards.task, int(wildcards.step))
    return [list(group) for group in groups]


def classes_so_far(wildcards):
    """Raw labels of the classes of the steps 0..t, and the names of S_t."""
    groups = groups_so_far(wildcards)
    return {"groups": groups, "names": plan.names(wildcards.dataset, groups)}


# --- Data ----------------------------------------------------------------------------


def made_dataset(wildcards):
    """The folder of a dataset that a rule draws or unpacks."""
    return plan.made_folders(wildcards.dataset)


def state_of_dataset(wildcards):
    return plan.state_of_files(wildcards.dataset)


def digits_settings(wildcards):
    settings = plan.config["datasets"][wildcards.dataset]
    others = ("kind", "additions")
    return {key: value for key, value in settings.items() if key not in others}


def index_settings(wildcards):
    return plan.index_settings(wildcards.dataset)


def archives_of_dataset(wildcards):
    folder = f"results/data/{wildcards.dataset}/archives"
    archives = plan.archives(wildcards.dataset)
    return [f"{folder}/{archive.name}" for archive in archives]


def checksums(wildcards):
    return [archive.checksum for archive in plan.archives(wildcards.dataset)]


def archive_of(wildcards):
    archives = plan.archives(wildcards.dataset)
    return next(entry for entry in archives if entry.name == wildcards.archive)


def mirrors(wildcards):
    return " ".join(archive_of(wildcards).mirrors)


def checksum(wildcards):
    return archive_of(wildcards).checksum


def indices(of, step=None):
    """Of the dataset and of the additions that have come by a step, or by the last.

    `of`: wildcards, or a run.
    """
    groups = plan.groups(of.dataset, of.task, step)
    parts = plan.parts(of.dataset, groups)
    return [f"results/data/{part}/index.csv" for part in parts]


def indices_of_base(wildcards):
    return indices(wildcards, 0)


def indices_of_step(wildcards):
    return indices(wildcards, int(wildcards.step))


def indices_of_task(wildcards):
    return indices(wildcards)


def class_count(wildcards):
    return plan.class_count(wildcards.dataset)


def all_groups(wildcards):
    return [list(group) for group in plan.groups(wildcards.dataset, wildcards.task)]


def label_names(wildcards):
    return plan.label_names(wildcards.dataset)


# --- Training ------------------------------------------------------------------------


def step_settings(wildcards):
    return plan.step_settings(run_of(wildcards), int(wildcards.step))


def weights_file(wildcards):
    """Backbone weights that step 0 reads from a file, if it does."""
    return plan.weights_file() or []


def pseudo_labels_of_step(wildcards):
    if not plan.uses_pseudo_labels(wildcards.method, wildcards.setting):
        return []
    return label_file(run_of(wildcards), wildcards.step)


def bank_of_teacher(wildcards):
    """Bank of the previous step, where it teaches the next one too."""
    guided = plan.guided(wildcards.method, int(wildcards.step))
    return previous_bank(wildcards) if guided else []


def source_of_teacher(wildcards):
    if not plan.guided(wildcards.method, int(wildcards.step)):
        return []
    return source_of_bank(wildcards, int(wildcards.step) - 1)


# --- Prototype banks -----------------------------------------------------------------


def previous_bank(wildcards):
    if wildcards.step == "0":
        return []
    return bank_file(run_of(wildcards), int(wildcards.step) - 1)


def model_of_bank(wildcards):
    """The model that a bank belongs to: of step 0, or of its own step."""
    base = plan.bank_network(wildcards.method) == "base"
    return model_file(run_of(wildcards), 0 if base else int(wildcards.step))


def source_of_bank(wildcards, step):
    """The model of a bank's features where it is not the model of the step."""
    if plan.bank_network(wildcards.method) != "base" or step == 0:
        return []
    return model_file(run_of(wildcards), 0)


def network_of_bank(wildcards):
    """Another network than the step's own, if the bank is of one; at step 0 its plan."""
    if plan.bank_network(wildcards.method) != "before":
        return []
    if wildcards.step == "0":
        model = model_of_step(wildcards)
        return model.replace("model.safetensors", "settings.json")
    return previous_model(wildcards)


def weights_of_bank(wildcards):
    """Backbone weights of an untrained network."""
    before = plan.bank_network(wildcards.method) == "before"
    return weights_file(wildcards) if before and wildcards.step == "0" else []


def pseudo_labels_after_step_0(wildcards):
    return [] if wildcards.step == "0" else pseudo_labels_of_step(wildcards)


def bank_job(wildcards):
    base = plan.bank_network(wildcards.method) == "base"
    return json.dumps(
        {
            "settings": plan.bank(wildcards.method),
            **classes_so_far(wildcards),
            "setting": wildcards.setting,
            "seed": int(wildcards.seed),
            "keep_temperature": base and wildcards.step != "0",
        }
    )


# --- Pseudo labels -------------------------------------------------------------------


def bank_of_previous_step(wildcards):
    if not plan.reads_bank(wildcards.method):
        return []
    return bank_file(run_of(wildcards), int(wildcards.step) - 1)


def source_of_previous_bank(wildcards):
    if not plan.reads_bank(wildcards.method):
        return []
    return source_of_bank(wildcards, int(wildcards.step) - 1)


def pseudo_label_job(wildcards):
    return json.dumps(
        {
            "settings": plan.pseudo_label_rule(wildcards.method),
            **classes_so_far(wildcards),
            "setting": wildcards.setting,
        }
    )


# --- Evaluation ----------------------------------------------------------------------


def bank_of_test(wildcards):
    """Bank of the step, if network and bank predict together."""
    if not plan.fuses(wildcards.method):
        return []
    return bank_file(run_of(wildcards), int(wildcards.step))


def source_of_test(wildcards):
    """The model of that bank's features, if it is another."""
    if not plan.fuses(wildcards.method):
        return []
    return source_of_bank(wildcards, int(wildcards.step))


def evaluation_job(wildcards):
    fused = plan.fuses(wildcards.method)
    return json.dumps(
        {
            "rule": plan.prediction_rule(wildcards.method) if fused else None,
            "settings": plan.config["evaluation"],
            **classes_so_far(wildcards),
            "about": {**vars(run_of(wildcards)), "step": int(wildcards.step)},
        }
    )


# --- Summary, figures and report -----------------------------------------------------


def rows_of(runs):
    """One row of the summary per run and step: where its result and its times are."""
    return [row_of(run, step) for run in runs for step in plan.steps(run)]


def row_of(run, step):
    evaluation, model = evaluation_file(run, step), model_file(run, step)
    labelled = step > 0 and plan.uses_pseudo_labels(run.method, run.setting)
    split = f"results/splits/{run.dataset}/{run.task}-{run.setting}/step{step}.csv"
    return {
        **vars(run),
        "step": step,
        "evaluation": evaluation,
        "confusion": evaluation.replace("evaluation.json", "confusion.csv"),
        "examples": evaluation.replace("evaluation.json", "examples"),
        "model": model,
        "metrics": model.replace("model.safetensors", "metrics.csv"),
        "usage": model.replace("model.safetensors", "usage.json"),
        "times": time_files(run, step),
        "quality": quality_file(run, step),
        "labels": label_file(run, step) if labelled else "",
        "split": split if labelled else "",
        "bank": bank_file(run, step) if plan.fuses(run.method) else "",
    }


def quality_file(run, step):
    """How good a step's pseudo labels are; "" where it has none."""
    if step == 0 or not plan.uses_pseudo_labels(run.method, run.setting):
        return ""
    return label_file(run, step, "pseudo_label_quality.csv")


def time_files(run, step):
    """Snakemake's benchmarks of the jobs that made what predicts after a step."""
    model = model_file(run, step)
    files = [model.replace("model.safetensors", "train.benchmark.tsv")]
    labelled = step > 0 and plan.uses_pseudo_labels(run.method, run.setting)
    if labelled:
        files.append(label_file(run, step, "pseudo_labels.benchmark.tsv"))
    banks = []
    if plan.fuses(run.method):  # the step's own bank is a part of its model
        banks = [bank_file(run, step)]
    elif plan.guided(run.method, step) or (labelled and plan.reads_bank(run.method)):
        banks = [bank_file(run, step - 1)]
    benchmark = "prototypes.benchmark.tsv"
    return files + [bank.replace("prototypes.safetensors", benchmark) for bank in banks]


def runs_of_experiment(wildcards):
    wanted = (wildcards.dataset, wildcards.task, wildcards.setting)
    return [run for run in plan.runs if (run.dataset, run.task, run.setting) == wanted]


def all_rows(wildcards):
    return rows_of(plan.runs)


def rows_of_experiment(wildcards):
    return rows_of(runs_of_experiment(wildcards))


def all_evaluations(wildcards):
    return of_rows("evaluation", all_rows(wildcards))


def all_times(wildcards):
    return sorted({path for row in all_rows(wildcards) for path in row["times"]})


def all_qualities(wildcards):
    return of_rows("quality", all_rows(wildcards))


def qualities_of_experiment(wildcards):
    return of_rows("quality", rows_of_experiment(wildcards))


def evaluations_of_experiment(wildcards):
    return of_rows("evaluation", rows_of_experiment(wildcards))


def of_rows(name, rows):
    """All files of one kind that rows name."""
    return sorted({row[name] for row in rows} - {""})


def examples_of_experiment(wildcards):
    return of_rows("examples", rows_of_experiment(wildcards))


def metrics_of_experiment(wildcards):
    return of_rows("metrics", rows_of_experiment(wildcards))


def files_of_report(wildcards):
    """What the page shows beside tables and figures."""
    rows = all_rows(wildcards)
    kinds = ("confusion", "examples", "usage", "labels", "split")
    found = [path for kind in kinds for path in of_rows(kind, rows)]
    return found + sorted({path for run in experiments() for path in indices(run)})


def experiments_of_report(wildcards):
    return [
        {
            "dataset": run.dataset,
            "kind": plan.config["datasets"][run.dataset]["kind"],
            "task": run.task,
            "setting": run.setting,
            "groups": plan.groups(run.dataset, run.task),
            "names": plan.names(run.dataset, plan.groups(run.dataset, run.task)),
            "indices": indices(run),
        }
        for run in experiments()
    ]


def last_banks(wildcards):
    """The bank after the last step: an artifact that the next step would start from."""

    def wanted(run):
        method = run.method
        labels = plan.uses_pseudo_labels(method, run.setting)
        return (
            plan.fuses(method)
            or plan.recipe(method).guided
            or (labels and plan.reads_bank(method))
        )

    return [bank_file(run, plan.steps(run)[-1]) for run in plan.runs if wanted(run)]


def class_lists(wildcards):
    return [
        f"results/splits/{run.dataset}/{run.task}-{run.setting}/classes.json"
        for run in experiments()
    ]


def experiments():
    """One run of each experiment, whatever its methods and seeds."""
    return list(
        {(run.dataset, run.task, run.setting): run for run in plan.runs}.values()
    )


def figures_of_experiments(wildcards):
    return [
        f"results/{run.dataset}/{run.task}-{run.setting}/figures/{name}.png"
        for run in experiments()
        for name in ("miou", "training", "classes", "pseudo_labels", "examples")
    ]
