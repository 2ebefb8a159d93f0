# All that determines a step's training, and nothing else. Its own file, so that a step
# runs again exactly when this changes, and can be run by hand.
rule write_settings:
    output:
        settings="results/{dataset}/{task}-{setting}/{method}/seed{seed}/step{step}/settings.json",
    log:
        "results/{dataset}/{task}-{setting}/{method}/seed{seed}/step{step}/settings.log",
    localrule: True
    conda:
        "../../envs/kproba.yaml"
    params:
        settings=step_settings,
    message:
        "Writing the settings of {wildcards.method}, step {wildcards.step}"
    script:
        "../scripts/write_settings.py"


rule fetch_weights:
    output:
        weights="results/weights/{backbone}.safetensors",
    log:
        "results/weights/{backbone}.log",
    localrule: True  # nodes of a cluster often have no internet
    conda:
        "../../envs/kproba.yaml"
    message:
        "Fetching the ImageNet weights of {wildcards.backbone}"
    script:
        "../scripts/fetch_weights.py"


# Priority 10, here and for bank and pseudo labels: the next step waits for these, while
# tests and figures can come later.
rule train_base:
    input:
        settings="results/{dataset}/{task}-{setting}/{method}/seed{seed}/step0/settings.json",
        split="results/splits/{dataset}/{task}-{setting}/step0.csv",
        weights=weights_file,
        validation=indices_of_base,
    output:
        model="results/{dataset}/{task}-{setting}/{method}/seed{seed}/step0/model.safetensors",
        description="results/{dataset}/{task}-{setting}/{method}/seed{seed}/step0/model.json",
        metrics="results/{dataset}/{task}-{setting}/{method}/seed{seed}/step0/metrics.csv",
        usage="results/{dataset}/{task}-{setting}/{method}/seed{seed}/step0/usage.json",
        tensorboard=directory(
            "results/{dataset}/{task}-{setting}/{method}/seed{seed}/step0/tensorboard"
        ),
    log:
        "results/{dataset}/{task}-{setting}/{method}/seed{seed}/step0/train.log",
    benchmark:
        "results/{dataset}/{task}-{setting}/{method}/seed{seed}/step0/train.benchmark.tsv"
    wildcard_constraints:
        method="|".join(BASES),
    priority: 10
    conda:
        "../../envs/kproba.yaml"
    threads: job_threads
    resources:
        **training_resources,
    message:
        "Training step 0 on {wildcards.task} classes of {wildcards.dataset}, "
        "{wildcards.setting}, seed {wildcards.seed}"
    shell:
        "exec kproba-launch --log {log} --gpus {resources.gpu}"
        " --device {resources.device} --processes {resources.processes}"
        " --cores {threads} --threads {resources.cpu_threads} --nodes {resources.nodes}"
        " kproba.jobs.train {input.settings} --split {input.split}"
        " --weights {input.weights}"
        " --model {output.model} --metrics {output.metrics} --usage {output.usage}"
        " --tensorboard {output.tensorboard}"
        " --validation {input.validation}"
        " --looks {resources.looks} --look-images {resources.look_images}"
        " --state $(dirname {output.model})/training-state.pt"
        " --workers {resources.workers} --accumulation {resources.accumulation}"
        " --state-minutes {resources.state_minutes} --cache-gib {resources.cache_gib}"
        " {resources.compile} {resources.deterministic}"


rule train_step:
    input:
        settings="results/{dataset}/{task}-{setting}/{method}/seed{seed}/step{step}/settings.json",
        split="results/splits/{dataset}/{task}-{setting}/step{step}.csv",
        previous=previous_model,
        pseudo_labels=pseudo_labels_of_step,
        bank=bank_of_teacher,
        source=source_of_teacher,
        validation=indices_of_step,
    output:
        model="results/{dataset}/{task}-{setting}/{method}/seed{seed}/step{step}/model.safetensors",
        description="results/{dataset}/{task}-{setting}/{method}/seed{seed}/step{step}/model.json",
        metrics="results/{dataset}/{task}-{setting}/{method}/seed{seed}/step{step}/metrics.csv",
        usage="results/{dataset}/{task}-{setting}/{method}/seed{seed}/step{step}/usage.json",
        tensorboard=directory(
            "results/{dataset}/{task}-{setting}/{method}/seed{seed}/step{step}/tensorboard"
        ),
    log:
        "results/{dataset}/{task}-{setting}/{method}/seed{seed}/step{step}/train.log",
    benchmark:
        "results/{dataset}/{task}-{setting}/{method}/seed{seed}/step{step}/train.benchmark.tsv"
    wildcard_constraints:
        step=r"[1-9]\d*",
    priority: 10
    conda:
        "../../envs/kproba.yaml"
    threads: job_threads
    resources:
        **training_resources,
    message:
        "Training step {wildcards.step} of {wildcards.dataset} {wildcards.task} "
        "{wildcards.setting}, {wildcards.method}, seed {wildcards.seed}"
    shell:
        "exec kproba-launch --log {log} --gpus {resources.gpu}"
        " --device {resources.device} --processes {resources.processes}"
        " --cores {threads} --threads {resources.cpu_threads} --nodes {resources.nodes}"
        " kproba.jobs.train {input.settings} --split {input.split}"
        " --previous {input.previous} --pseudo-labels {input.pseudo_labels}"
        " --bank {input.bank} --source {input.source}"
        " --model {output.model} --metrics {output.metrics} --usage {output.usage}"
        " --tensorboard {output.tensorboard}"
        " --validation {input.validation}"
        " --looks {resources.looks} --look-images {resources.look_images}"
        " --state $(dirname {output.model})/training-state.pt"
        " --workers {resources.workers} --accumulation {resources.accumulation}"
        " --state-minutes {resources.state_minutes} --cache-gib {resources.cache_gib}"
        " {resources.compile} {resources.deterministic}"
