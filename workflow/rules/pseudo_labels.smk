rule export_pseudo_labels:
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
        "../../envs/kproba.yaml"
    threads: job_threads
    resources:
        **inference_resources,
    params:
        job=label_job,
    message:
        "Labelling old classes in the images of step {wildcards.step}, "
        "{wildcards.method}"
    shell:
        "exec kproba-launch --log {log} --gpus {resources.gpu} --cores {threads}"
        " --compute {resources.compute:q}"
        " kproba.jobs.export_labels --job {params.job:q} --model {input.model}"
        " --bank {input.bank} --feature-network {input.feature_network}"
        " --split {input.split} --labels {output.labels} --table {output.table}"
        " --quality {output.quality}"
