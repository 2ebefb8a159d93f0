rule export_pseudo_labels:
    input:
        model=previous_model,
        bank=bank_of_previous_step,
        source=source_of_previous_bank,
        split="results/splits/{dataset}/{task}-{setting}/step{step}.csv",
    output:
        labels=directory(
            "results/{dataset}/{task}-{setting}/{method}/seed{seed}/step{step}/pseudo_labels"
        ),
        table="results/{dataset}/{task}-{setting}/{method}/seed{seed}/step{step}/pseudo_labels.csv",
        quality="results/{dataset}/{task}-{setting}/{method}/seed{seed}/step{step}/pseudo_label_quality.csv",
    log:
        "results/{dataset}/{task}-{setting}/{method}/seed{seed}/step{step}/pseudo_labels.log",
    benchmark:
        "results/{dataset}/{task}-{setting}/{method}/seed{seed}/step{step}/pseudo_labels.benchmark.tsv"
    wildcard_constraints:
        step=r"[1-9]\d*",
    priority: 10
    conda:
        "../../envs/kproba.yaml"
    threads: job_threads
    resources:
        **inference_resources,
    params:
        job=pseudo_label_job,
    message:
        "Looking for old classes in the images of step {wildcards.step}, "
        "{wildcards.method}"
    shell:
        "exec kproba-launch --log {log} --gpus {resources.gpu}"
        " --device {resources.device} --processes {resources.processes}"
        " --cores {threads} --threads {resources.cpu_threads}"
        " kproba.jobs.inference pseudo-labels --job {params.job:q} --model {input.model}"
        " --bank {input.bank} --source {input.source} --split {input.split}"
        " --labels {output.labels} --table {output.table}"
        " --quality {output.quality}"
        " --batch-size {resources.batch_size} --workers {resources.workers}"
        " {resources.deterministic}"
