rule update_memory:
    """Choose the old images that the next step may use."""
    input:
        unpack(memory_inputs),
    output:
        table=artifacts.MEMORY,
        record=artifacts.MEMORY_RECORD,
        labels=directory(artifacts.MEMORY_LABELS),
    log:
        artifacts.log_path(artifacts.MEMORY, "memory"),
    benchmark:
        artifacts.MEMORY_TIME
    priority: 10
    conda:
        ENVIRONMENT
    threads: job_threads
    resources:
        **inference_resources,
        job=as_json(memory_job),
        folders=as_json(image_folders),
    params:
        job=digest(memory_job),
    message:
        "Choosing old images for {wildcards.method} after step {wildcards.step}"
    shell:
        LAUNCH + " --log {log:q} --gpus {resources.gpu} --cores {threads}"
        " --compute {resources.compute:q}"
        " kproba.jobs.update_memory --job {resources.job:q}"
        " --folders {resources.folders:q} --split {input.split:q}"
        " --model {input.model:q} --previous {input.previous:q}"
        " --previous-labels {input.previous_labels:q} --table {output.table:q}"
        " --record {output.record:q} --labels {output.labels:q}"
