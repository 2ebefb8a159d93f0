rule export_pseudo_labels:
    input:
        model=previous_model,
        bank=bank_of_previous_step,
        split="results/splits/{dataset}/{task}-{setting}/step{step}.csv",
    output:
        labels=directory(
            "results/{dataset}/{task}-{setting}/{method}/seed{seed}/step{step}/pseudo_labels"
        ),
        table="results/{dataset}/{task}-{setting}/{method}/seed{seed}/step{step}/pseudo_labels.csv",
    log:
        "results/{dataset}/{task}-{setting}/{method}/seed{seed}/step{step}/pseudo_labels.log",
    benchmark:
        "results/{dataset}/{task}-{setting}/{method}/seed{seed}/step{step}/pseudo_labels.benchmark.tsv"
    wildcard_constraints:
        step=r"[1-9]\d*",
    priority: 10
    conda:
        "../../envs/kproba.yaml"
    threads: inference_threads
    resources:
        **inference_resources,
    params:
        settings=pseudo_label_settings,
        groups=groups_so_far,
        names=names_so_far,
    message:
        "Looking for old classes in the images of step {wildcards.step}, "
        "{wildcards.method}"
    script:
        "../scripts/export_pseudo_labels.py"
