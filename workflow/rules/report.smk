def rows_of(runs):
    """One row of the summary per run and step: where its result and its times are."""
    rows = []
    for run in runs:
        for step in plan.steps(run):
            rows.append(
                {
                    "dataset": run.dataset,
                    "task": run.task,
                    "setting": run.setting,
                    "method": run.method,
                    "seed": run.seed,
                    "step": step,
                    "evaluation": evaluation_file(run, step),
                    "times": time_files(run, step),
                }
            )
    return rows


def time_files(run, step):
    """Snakemake's benchmarks of the jobs that made a step's model."""
    model = model_file(run, step)
    files = [model.replace("model.safetensors", "train.benchmark.tsv")]
    if step > 0 and plan.uses_pseudo_labels(run.method, run.setting):
        files.append(f"{folder(run, step)}/pseudo_labels.benchmark.tsv")
        if plan.reads_bank(run.method):
            bank = bank_file(run, step - 1)
            files.append(
                bank.replace("prototypes.safetensors", "prototypes.benchmark.tsv")
            )
    return files


def runs_of_experiment(wildcards):
    wanted = (wildcards.dataset, wildcards.task, wildcards.setting)
    return [run for run in plan.runs if (run.dataset, run.task, run.setting) == wanted]


def all_rows(wildcards):
    return rows_of(plan.runs)


def rows_of_experiment(wildcards):
    return rows_of(runs_of_experiment(wildcards))


def all_evaluations(wildcards):
    return sorted({row["evaluation"] for row in all_rows(wildcards)})


def all_times(wildcards):
    return sorted({path for row in all_rows(wildcards) for path in row["times"]})


def evaluations_of_experiment(wildcards):
    return sorted({row["evaluation"] for row in rows_of_experiment(wildcards)})


def examples_of_experiment(wildcards):
    files = evaluations_of_experiment(wildcards)
    return [path.replace("evaluation.json", "examples") for path in files]


def pseudo_labels_of_experiment(wildcards):
    return [
        f"{folder(run, step)}/pseudo_labels.csv"
        for run in runs_of_experiment(wildcards)
        for step in plan.steps(run)
        if step > 0 and plan.uses_pseudo_labels(run.method, run.setting)
    ]


def last_banks(wildcards):
    """The bank after the last step: an artifact that the next step would start from."""
    return [
        bank_file(run, plan.steps(run)[-1])
        for run in plan.runs
        if plan.uses_pseudo_labels(run.method, run.setting)
        and plan.reads_bank(run.method)
    ]


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
        for name in ("miou", "classes", "examples")
    ]


rule summarise:
    input:
        evaluations=all_evaluations,
        times=all_times,
    output:
        summary=report(
            "results/summary.csv",
            caption="../report/summary.rst",
            category="Results",
        ),
        classes=report(
            "results/classes.csv",
            caption="../report/classes.rst",
            category="Results",
        ),
    log:
        "results/summary.log",
    localrule: True
    conda:
        "../../envs/kproba.yaml"
    params:
        rows=all_rows,
    message:
        "Collecting the results of all runs"
    script:
        "../scripts/summarise.py"


rule draw_figures:
    input:
        evaluations=evaluations_of_experiment,
        examples=examples_of_experiment,
        index="results/data/{dataset}/index.csv",
    output:
        miou=report(
            "results/{dataset}/{task}-{setting}/figures/miou.png",
            caption="../report/miou.rst",
            category="Figures",
        ),
        classes=report(
            "results/{dataset}/{task}-{setting}/figures/classes.png",
            caption="../report/class_steps.rst",
            category="Figures",
        ),
        examples=report(
            "results/{dataset}/{task}-{setting}/figures/examples.png",
            caption="../report/examples.rst",
            category="Figures",
        ),
    log:
        "results/{dataset}/{task}-{setting}/figures/figures.log",
    localrule: True
    conda:
        "../../envs/kproba.yaml"
    params:
        rows=rows_of_experiment,
        groups=all_groups,
    message:
        "Drawing the figures of {wildcards.dataset} {wildcards.task} {wildcards.setting}"
    script:
        "../scripts/draw_figures.py"


rule write_report:
    input:
        summary="results/summary.csv",
        classes="results/classes.csv",
        figures=figures_of_experiments,
        class_lists=class_lists,
        banks=last_banks,
    output:
        page="results/report.html",
    log:
        "results/report.log",
    localrule: True
    conda:
        "../../envs/kproba.yaml"
    message:
        "Writing the report"
    script:
        "../scripts/write_report.py"
