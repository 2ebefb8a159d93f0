rule measure_features:
    """Measure the features of the classes of a step, for methods that replay them."""
    input:
        unpack(statistics_inputs),
    output:
        statistics=artifacts.STATISTICS,
        description=artifacts.STATISTICS_DESCRIPTION,
    log:
        artifacts.log_path(artifacts.STATISTICS, "statistics"),
    benchmark:
        artifacts.STATISTICS_TIME
    priority: 10
    conda:
        ENVIRONMENT
    threads: job_threads
    resources:
        **inference_resources,
        job=as_json(statistics_job),
        folders=as_json(image_folders),
    params:
        job=digest(statistics_job),
    message:
        "Measuring the features of the classes of {wildcards.method} after step "
        "{wildcards.step}"
    shell:
        LAUNCH + " --log {log:q} --gpus {resources.gpu} --cores {threads}"
        " --compute {resources.compute:q}"
        " kproba.jobs.measure_features --job {resources.job:q}"
        " --folders {resources.folders:q} --model {input.model:q}"
        " --split {input.split:q} --teacher {input.teacher:q}"
        " --previous {input.previous:q} --statistics {output.statistics:q}"
