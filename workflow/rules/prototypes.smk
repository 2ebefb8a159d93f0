rule build_prototypes:
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
        "../../envs/kproba.yaml"
    threads: job_threads
    resources:
        **inference_resources,
    params:
        job=bank_job,
    message:
        "Building the prototype bank of {wildcards.method} after step {wildcards.step}"
    shell:
        "exec kproba-launch --log {log} --gpus {resources.gpu} --cores {threads}"
        " --compute {resources.compute:q}"
        " kproba.jobs.build_bank --job {params.job:q} --model {input.model}"
        " --split {input.split} --pseudo-labels {input.pseudo_labels}"
        " --previous {input.previous} --network {input.network}"
        " --untrained {input.untrained} --weights {input.weights}"
        " --bank {output.bank}"
