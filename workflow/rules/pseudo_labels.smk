rule export_pseudo_labels:
    """Label the old classes in the images of a step with the previous model."""
    input:
        unpack(label_inputs),
    output:
        labels=directory(artifacts.LABELS),
        table=artifacts.LABEL_TABLE,
        quality=artifacts.LABEL_QUALITY,
    log:
        artifacts.log_path(artifacts.LABELS, "pseudo_labels"),
    benchmark:
        artifacts.LABELS_TIME
    wildcard_constraints:
        step=r"[1-9]\d*",
    priority: 10
    conda:
        ENVIRONMENT
    threads: job_threads
    resources:
        **inference_resources,
        job=as_json(label_job),
        folders=as_json(image_folders),
        names=as_json(shown_names),
    params:
        job=digest(label_job),
    message:
        "Labelling the old classes in the images of step {wildcards.step} for "
        "{wildcards.method}"
    shell:
        LAUNCH + " --log {log:q} --gpus {resources.gpu} --cores {threads}"
        " --compute {resources.compute:q}"
        " kproba.jobs.export_labels --job {resources.job:q}"
        " --folders {resources.folders:q}"
        " --names {resources.names:q} --model {input.model:q}"
        " --bank {input.bank:q} --feature-network {input.feature_network:q}"
        " --split {input.split:q} --labels {output.labels:q} --table {output.table:q}"
        " --quality {output.quality:q}"
