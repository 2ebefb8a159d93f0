rule build_prototypes:
    input:
        model=model_of_step,
        split="results/splits/{dataset}/{task}-{setting}/step{step}.csv",
        pseudo_labels=pseudo_labels_after_step_0,
        previous=previous_bank,
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
    threads: inference_threads
    resources:
        **inference_resources,
    params:
        settings=bank_settings,
        groups=groups_so_far,
        names=names_so_far,
    message:
        "Building the prototype bank of {wildcards.method} after step {wildcards.step}"
    script:
        "../scripts/build_prototypes.py"
