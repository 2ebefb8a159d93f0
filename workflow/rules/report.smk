rule summarise:
    """Collect the results of all steps and runs in tables."""
    input:
        evaluations=files_of_all("evaluation"),
        times=files_of_all("times"),
        qualities=files_of_all("quality"),
    output:
        summary=report(
            of_configuration(artifacts.SUMMARY),
            caption="../report/summary.rst",
            category="Results",
            subcategory=of_configuration("{configuration}"),
            labels={"file": "Summary: all measures after every step", "kind": "table"},
        ),
        classes=report(
            of_configuration(artifacts.CLASS_RESULTS),
            caption="../report/classes.rst",
            category="Results",
            subcategory=of_configuration("{configuration}"),
            labels={"file": "IoU of every class after every step", "kind": "table"},
        ),
        pseudo_labels=report(
            of_configuration(artifacts.LABEL_RESULTS),
            caption="../report/pseudo_labels.rst",
            category="Results",
            subcategory=of_configuration("{configuration}"),
            labels={"file": "Quality of the pseudo labels", "kind": "table"},
        ),
    log:
        artifacts.log_path(of_configuration(artifacts.SUMMARY), "summary"),
    localrule: True
    conda:
        ENVIRONMENT
    resources:
        table=as_json(summary_table),
    params:
        table=digest(summary_table),
    message:
        "Collecting the results of all runs in tables"
    script:
        script_file("summarise.py")


rule choose:
    """Choose among the methods by their results on held-out images."""
    input:
        summary=of_configuration(artifacts.SUMMARY),
    output:
        choice=report(
            of_configuration(artifacts.CHOICE),
            caption="../report/choice.rst",
            category="Results",
            subcategory=of_configuration("{configuration}"),
            labels={"file": "Choice among the methods", "kind": "table"},
        ),
    log:
        artifacts.log_path(of_configuration(artifacts.CHOICE), "choice"),
    localrule: True
    conda:
        ENVIRONMENT
    params:
        without=plan.joint_methods(),
    message:
        "Choosing among the methods"
    script:
        script_file("choose.py")


rule draw_figures:
    """Draw the figures of an experiment: a dataset, a task and a setting."""
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
            subcategory=EXPERIMENT_NAME,
            labels={"figure": "mIoU after every step"},
        ),
        training=report(
            artifacts.figure("training"),
            caption="../report/training.rst",
            category="Figures",
            subcategory=EXPERIMENT_NAME,
            labels={"figure": "Loss of every step"},
        ),
        classes=report(
            artifacts.figure("classes"),
            caption="../report/class_steps.rst",
            category="Figures",
            subcategory=EXPERIMENT_NAME,
            labels={"figure": "IoU of every class after every step"},
        ),
        pseudo_labels=report(
            artifacts.figure("pseudo_labels"),
            caption="../report/pseudo_label_steps.rst",
            category="Figures",
            subcategory=EXPERIMENT_NAME,
            labels={"figure": "IoU of the pseudo labels"},
        ),
        examples=report(
            artifacts.figure("examples"),
            caption="../report/examples.rst",
            category="Figures",
            subcategory=EXPERIMENT_NAME,
            labels={"figure": "Predictions after every step"},
        ),
    log:
        f"{artifacts.FIGURES}/figures.log",
    localrule: True
    conda:
        ENVIRONMENT
    resources:
        table=as_json(figure_table),
        folders=as_json(image_folders),
    params:
        table=digest(figure_table),
    message:
        "Drawing the figures of {wildcards.dataset} {wildcards.task} {wildcards.setting}"
    script:
        script_file("draw_figures.py")


rule write_report:
    """Write the report page with the results of all experiments."""
    input:
        summary=of_configuration(artifacts.SUMMARY),
        classes=of_configuration(artifacts.CLASS_RESULTS),
        pseudo_labels=of_configuration(artifacts.LABEL_RESULTS),
        # Not on the page, which has charts of its own; whoever makes it gets them too.
        files=report_files,
        class_lists=class_lists,
        for_next_step=for_next_step,
    output:
        page=report(
            of_configuration(artifacts.REPORT),
            caption="../report/page.rst",
            category="Results",
            subcategory=of_configuration("{configuration}"),
            labels={"file": "All results on one page", "kind": "page"},
        ),
    log:
        artifacts.log_path(of_configuration(artifacts.REPORT), "report"),
    localrule: True
    conda:
        ENVIRONMENT
    resources:
        table=as_json(report_table),
        folders=as_json(all_image_folders),
    params:
        table=digest(report_table),
    message:
        "Writing the report of all experiments"
    script:
        script_file("write_report.py")


rule publish:
    """Copy the summary and report of this configuration to results/."""
    input:
        summary=of_configuration(artifacts.SUMMARY),
        classes=of_configuration(artifacts.CLASS_RESULTS),
        pseudo_labels=of_configuration(artifacts.LABEL_RESULTS),
        page=of_configuration(artifacts.REPORT),
        # Not copied, but part of the results. (Other workflows use the inputs of `all`,
        # so these must be plain paths.)
        cards=card_files,
        figures=figures_of_experiments,
    output:
        *artifacts.LATEST,
    log:
        f"{artifacts.RESULTS}/publish.log",
    localrule: True
    conda:
        ENVIRONMENT
    message:
        f"Copying the summary and report of {without_wildcards(configuration)} to results/"
    script:
        script_file("publish.py")
