# All that determines a step's training, and nothing else. Its own file, so that a step
# runs again exactly when this changes, and can be run by hand.
rule write_settings:
    """Write settings.json of a step: all that determines its training."""
    output:
        settings=artifacts.SETTINGS,
    log:
        artifacts.log_path(artifacts.SETTINGS, "settings"),
    localrule: True
    conda:
        ENVIRONMENT
    resources:
        settings=as_json(step_settings),
    params:
        settings=digest(step_settings),
    message:
        "Writing the settings of {wildcards.method}, step {wildcards.step}"
    script:
        script_file("write_settings.py")


rule fetch_weights:
    """Download the ImageNet weights of a backbone."""
    output:
        weights=artifacts.WEIGHTS,
    log:
        artifacts.log_path(artifacts.WEIGHTS, "{backbone}"),
    localrule: True  # nodes of a cluster often have no internet
    conda:
        ENVIRONMENT
    params:
        extensions=lambda wildcards: find_origins([("backbone", wildcards.backbone)]),
    message:
        "Fetching the ImageNet weights of {wildcards.backbone}"
    script:
        script_file("fetch_weights.py")


# Priority 10, here and for bank and pseudo labels: the next step waits for these, while
# tests and figures can come later.
rule train_step:
    """Train a step: train_base step 0, train_step each later one."""
    input:
        unpack(training_inputs),
        settings=artifacts.SETTINGS,
    output:
        model=artifacts.MODEL,
        description=artifacts.DESCRIPTION,
        metrics=artifacts.METRICS,
        usage=artifacts.USAGE,
        tensorboard=directory(artifacts.TENSORBOARD),
    log:
        artifacts.log_path(artifacts.MODEL, "train"),
    benchmark:
        artifacts.TRAINING_TIME
    wildcard_constraints:
        step=r"[1-9]\d*",
    priority: 10
    conda:
        ENVIRONMENT
    threads: job_threads
    resources:
        **training_resources,
        folders=as_json(image_folders),
        names=as_json(shown_names),
        own_weights=own_weights,
    message:
        "Training step {wildcards.step} of {wildcards.dataset} {wildcards.task} "
        "{wildcards.setting}, {wildcards.method}, seed {wildcards.seed}"
    shell:
        LAUNCH + " --log {log:q} --gpus {resources.gpu} --cores {threads}"
        " --nodes {resources.nodes} --compute {resources.compute:q}"
        " kproba.jobs.train {input.settings:q} --folders {resources.folders:q}"
        " --names {resources.names:q}"
        " --split {input.split:q}"
        " --previous {input.previous:q} --pseudo-labels {input.pseudo_labels:q}"
        " --bank {input.bank:q} --feature-network {input.feature_network:q}"
        " --weights {input.weights:q} --validation {input.validation:q}"
        " --model {output.model:q} --metrics {output.metrics:q} --usage {output.usage:q}"
        " --tensorboard {output.tensorboard:q} {resources.own_weights}"


# Step 0, once for all methods with the same head.
use rule train_step as train_base with:
    """Train step 0, once for all methods with the same head."""
    wildcard_constraints:
        step="0",
        method="|".join(map(re.escape, base_methods())),
    message:
        "Training step 0 on {wildcards.task} classes of {wildcards.dataset}, "
        "{wildcards.setting}, seed {wildcards.seed}"
