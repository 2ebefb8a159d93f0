rule build_prototypes:
    """Build the prototype bank after a step."""
    input:
        unpack(bank_inputs),
    output:
        bank=artifacts.BANK,
        description=artifacts.BANK_DESCRIPTION,
    log:
        artifacts.log_path(artifacts.BANK, "prototypes"),
    benchmark:
        artifacts.BANK_TIME
    priority: 10
    conda:
        ENVIRONMENT
    threads: job_threads
    resources:
        **inference_resources,
        job=as_json(bank_job),
        folders=as_json(image_folders),
        own_weights=own_weights,
    params:
        job=digest(bank_job),
    message:
        "Building the prototype bank of {wildcards.method} after step {wildcards.step}"
    shell:
        LAUNCH + " --log {log:q} --gpus {resources.gpu} --cores {threads}"
        " --compute {resources.compute:q}"
        " kproba.jobs.build_bank --job {resources.job:q}"
        " --folders {resources.folders:q} --model {input.model:q}"
        " --split {input.split:q} --pseudo-labels {input.pseudo_labels:q}"
        " --previous {input.previous:q} --network {input.network:q}"
        " --untrained {input.untrained:q} --weights {input.weights:q}"
        " --bank {output.bank:q} {resources.own_weights}"
