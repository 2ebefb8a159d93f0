rule evaluate:
    """Evaluate the model of a step on the validation images of all classes so far."""
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
        ENVIRONMENT
    threads: job_threads
    resources:
        **inference_resources,
        job=as_json(test_job),
        folders=as_json(image_folders),
    params:
        job=digest(test_job),
    message:
        "Evaluating {wildcards.method} after step {wildcards.step} of "
        "{wildcards.dataset} {wildcards.task} {wildcards.setting}, "
        "seed {wildcards.seed}"
    shell:
        LAUNCH + " --log {log:q} --gpus {resources.gpu} --cores {threads}"
        " --compute {resources.compute:q}"
        " kproba.jobs.evaluate --job {resources.job:q}"
        " --folders {resources.folders:q} --model {input.model:q}"
        " --bank {input.bank:q} --feature-network {input.feature_network:q}"
        " --indices {input.indices:q} --evaluation {output.evaluation:q}"
        " --confusion {output.confusion:q} --examples {output.examples:q}"
        " --predictor {output.predictor:q}"


rule write_card:
    """Write the model card of an evaluated step."""
    input:
        evaluation=artifacts.EVALUATION,
        predictor=artifacts.PREDICTOR,
    output:
        artifacts.CARD,
    log:
        artifacts.log_path(artifacts.CARD, "card"),
    localrule: True
    conda:
        ENVIRONMENT
    message:
        "Writing the model card of {wildcards.method} after step {wildcards.step} of "
        "{wildcards.dataset} {wildcards.task} {wildcards.setting}, seed {wildcards.seed}"
    shell:
        COMMAND + " info --card {input.predictor:q} > {output:q} 2> {log:q}"
