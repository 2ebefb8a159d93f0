rule build_prototypes:
    input:
        model=model_of_bank,
        split="results/splits/{dataset}/{task}-{setting}/step{step}.csv",
        pseudo_labels=pseudo_labels_after_step_0,
        previous=previous_bank,
        network=network_of_bank,
        weights=weights_of_bank,
    output:
        bank="results/{dataset}/{task}-{setting}/{method}/seed{seed}/step{step}/prototypes.safetensors",
        description="results/{dataset}/{task}-{setting}/{method}/seed{seed}/step{step}/prototypes.json",
    log:
        "results/{dataset}/{task}-{setting}/{method}/seed{seed}/step{step}/prototypes.log",
    benchmark:
        "results/{dataset}/{task}-{setting}/{method}/seed{seed}/step{step}/prototypes.benchmark.tsv"
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
        "exec kproba-launch --log {log} --gpus {resources.gpu}"
        " --device {resources.device} --processes {resources.processes}"
        " --cores {threads} --threads {resources.cpu_threads}"
        " kproba.jobs.inference bank --job {params.job:q} --model {input.model}"
        " --split {input.split} --pseudo-labels {input.pseudo_labels}"
        " --previous {input.previous} --bank {output.bank}"
        " --network {input.network} --weights {input.weights}"
        " --batch-size {resources.batch_size} --workers {resources.workers}"
        " {resources.deterministic}"
