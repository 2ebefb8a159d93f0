rule evaluate:
    input:
        model=model_of_step,
        index="results/data/{dataset}/index.csv",
    output:
        evaluation="results/{dataset}/{task}-{setting}/{method}/seed{seed}/step{step}/evaluation.json",
        confusion="results/{dataset}/{task}-{setting}/{method}/seed{seed}/step{step}/confusion.csv",
        examples=directory(
            "results/{dataset}/{task}-{setting}/{method}/seed{seed}/step{step}/examples"
        ),
    log:
        "results/{dataset}/{task}-{setting}/{method}/seed{seed}/step{step}/evaluation.log",
    conda:
        "../../envs/kproba.yaml"
    threads: inference_threads
    resources:
        **inference_resources,
    params:
        settings=evaluation_settings,
        about=run_and_step,
        groups=groups_so_far,
        names=names_so_far,
    message:
        "Testing {wildcards.method} after step {wildcards.step} of {wildcards.dataset} "
        "{wildcards.task} {wildcards.setting}, seed {wildcards.seed}"
    script:
        "../scripts/evaluate.py"
