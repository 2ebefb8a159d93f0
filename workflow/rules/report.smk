rule summarise:
    input:
        evaluations=list_files(all_results, "evaluation"),
        times=list_files(all_results, "times"),
        qualities=list_files(all_results, "quality"),
    output:
        summary=report(
            artifacts.SUMMARY,
            caption="../report/summary.rst",
            category="Results",
        ),
        classes=report(
            artifacts.CLASS_RESULTS,
            caption="../report/classes.rst",
            category="Results",
        ),
        pseudo_labels=report(
            artifacts.LABEL_RESULTS,
            caption="../report/pseudo_labels.rst",
            category="Results",
        ),
    log:
        artifacts.log_path(artifacts.SUMMARY, "summary"),
    localrule: True
    conda:
        "../../envs/kproba.yaml"
    params:
        rows=all_rows,
        extensions=measure_extensions,
    message:
        "Collecting the results of all runs"
    script:
        "../scripts/summarise.py"


rule draw_figures:
    input:
        evaluations=experiment_files("evaluation"),
        qualities=experiment_files("quality"),
        examples=experiment_files("examples"),
        metrics=experiment_files("metrics"),
        indices=indices_of_task,
    output:
        miou=report(
            artifacts.figure("miou"),
            caption="../report/miou.rst",
            category="Figures",
        ),
        training=report(
            artifacts.figure("training"),
            caption="../report/training.rst",
            category="Figures",
        ),
        classes=report(
            artifacts.figure("classes"),
            caption="../report/class_steps.rst",
            category="Figures",
        ),
        pseudo_labels=report(
            artifacts.figure("pseudo_labels"),
            caption="../report/pseudo_label_steps.rst",
            category="Figures",
        ),
        examples=report(
            artifacts.figure("examples"),
            caption="../report/examples.rst",
            category="Figures",
        ),
    log:
        f"{artifacts.FIGURES}/figures.log",
    localrule: True
    conda:
        "../../envs/kproba.yaml"
    params:
        rows=rows_of_experiment,
        extensions=measure_extensions,
        groups=all_groups,
    message:
        "Drawing the figures of {wildcards.dataset} {wildcards.task} {wildcards.setting}"
    script:
        "../scripts/draw_figures.py"


rule write_report:
    input:
        summary=artifacts.SUMMARY,
        classes=artifacts.CLASS_RESULTS,
        pseudo_labels=artifacts.LABEL_RESULTS,
        figures=figures_of_experiments,
        files=report_files,
        class_lists=class_lists,
        banks=plan.last_banks(),  # a next step would start from these
    output:
        page=report(
            artifacts.REPORT,
            caption="../report/page.rst",
            category="Results",
        ),
    log:
        artifacts.log_path(artifacts.REPORT, "report"),
    localrule: True
    conda:
        "../../envs/kproba.yaml"
    params:
        rows=all_rows,
        extensions=measure_extensions,
        experiments=experiments_of_report,
    message:
        "Writing the report"
    script:
        "../scripts/write_report.py"
