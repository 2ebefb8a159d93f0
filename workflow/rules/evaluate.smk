rule evaluate:
    input:
        model=model_of_step,
        bank=bank_of_test,
        source=source_of_test,
        indices=indices_of_step,
    output:
        evaluation="results/{dataset}/{task}-{setting}/{method}/seed{seed}/step{step}/evaluation.json",
        confusion="results/{dataset}/{task}-{setting}/{method}/seed{seed}/step{step}/confusion.csv",
        examples=directory(
            "results/{dataset}/{task}-{setting}/{method}/seed{seed}/step{step}/examples"
        ),
        predictor="results/{dataset}/{task}-{setting}/{method}/seed{seed}/step{step}/predictor.json",
    log:
        "results/{dataset}/{task}-{setting}/{method}/seed{seed}/step{step}/evaluation.log",
    conda:
        "../../envs/kproba.yaml"
    threads: job_threads
    resources:
        **inference_resources,
    params:
        job=evaluation_job,
    message:
        "Testing {wildcards.method} after step {wildcards.step} of {wildcards.dataset} "
        "{wildcards.task} {wildcards.setting}, seed {wildcards.seed}"
    shell:
        "exec kproba-launch --log {log} --gpus {resources.gpu}"
        " --device {resources.device} --processes {resources.processes}"
        " --cores {threads} --threads {resources.cpu_threads}"
        " kproba.jobs.inference evaluation --job {params.job:q} --model {input.model}"
        " --bank {input.bank} --source {input.source}"
        " --indices {input.indices} --evaluation {output.evaluation}"
        " --confusion {output.confusion} --examples {output.examples}"
        " --predictor-file {output.predictor}"
        " --batch-size {resources.batch_size} --workers {resources.workers}"
        " {resources.deterministic}"
