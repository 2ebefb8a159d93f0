rule summarise:
    input:
        evaluations=all_evaluations,
        times=all_times,
        qualities=all_qualities,
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
        pseudo_labels=report(
            "results/pseudo_labels.csv",
            caption="../report/pseudo_labels.rst",
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
        qualities=qualities_of_experiment,
        examples=examples_of_experiment,
        metrics=metrics_of_experiment,
        indices=indices_of_task,
    output:
        miou=report(
            "results/{dataset}/{task}-{setting}/figures/miou.png",
            caption="../report/miou.rst",
            category="Figures",
        ),
        training=report(
            "results/{dataset}/{task}-{setting}/figures/training.png",
            caption="../report/training.rst",
            category="Figures",
        ),
        classes=report(
            "results/{dataset}/{task}-{setting}/figures/classes.png",
            caption="../report/class_steps.rst",
            category="Figures",
        ),
        pseudo_labels=report(
            "results/{dataset}/{task}-{setting}/figures/pseudo_labels.png",
            caption="../report/pseudo_label_steps.rst",
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
        pseudo_labels="results/pseudo_labels.csv",
        figures=figures_of_experiments,
        shown=files_of_report,
        class_lists=class_lists,
        banks=last_banks,
    output:
        page=report(
            "results/report.html",
            caption="../report/page.rst",
            category="Results",
        ),
    log:
        "results/report.log",
    localrule: True
    conda:
        "../../envs/kproba.yaml"
    params:
        rows=all_rows,
        experiments=experiments_of_report,
    message:
        "Writing the report"
    script:
        "../scripts/write_report.py"
