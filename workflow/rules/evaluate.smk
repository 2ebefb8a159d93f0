rule evaluate:
    input:
        unpack(test_inputs),
    output:
        evaluation=artifacts.EVALUATION,
        confusion=artifacts.CONFUSION,
        examples=directory(artifacts.EXAMPLES),
        predictor=artifacts.PREDICTOR,
    log:
        artifacts.log_path(artifacts.EVALUATION, "evaluation"),
    conda:
        "../../envs/kproba.yaml"
    threads: job_threads
    resources:
        **inference_resources,
    params:
        job=test_job,
    message:
        "Testing {wildcards.method} after step {wildcards.step} of {wildcards.dataset} "
        "{wildcards.task} {wildcards.setting}, seed {wildcards.seed}"
    shell:
        "exec kproba-launch --log {log} --gpus {resources.gpu} --cores {threads}"
        " --compute {resources.compute:q}"
        " kproba.jobs.evaluate --job {params.job:q} --model {input.model}"
        " --bank {input.bank} --feature-network {input.feature_network}"
        " --indices {input.indices} --evaluation {output.evaluation}"
        " --confusion {output.confusion} --examples {output.examples}"
        " --predictor {output.predictor}"
