# settings.json holds everything that determines the training of a step, and nothing else.
# So a step runs again exactly when this file changes, and can be started by hand.
rule write_settings:
    """Write settings.json of a step, with everything that determines its training."""
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
        "Writing the settings of {wildcards.method} for step {wildcards.step}"
    script:
        script_file("write_settings.py")


rule fetch_weights:
    """Download the ImageNet weights of a backbone."""
    output:
        weights=artifacts.WEIGHTS,
    log:
        artifacts.log_path(artifacts.WEIGHTS, "{backbone}"),
    localrule: True  # the nodes of a cluster often have no internet
    conda:
        ENVIRONMENT
    params:
        extensions=lambda wildcards: find_origins([("backbone", wildcards.backbone)]),
    message:
        "Downloading the ImageNet weights of {wildcards.backbone}"
    script:
        script_file("fetch_weights.py")


# Training, bank and pseudo labels have priority 10, because the next step needs them.
# Evaluations and figures can run later.
rule train_step:
    """Train a step after step 0; the rule train_base trains step 0."""
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
        names=as_json(trained_names),
        own_weights=own_weights,
    message:
        "Training step {wildcards.step} of {wildcards.dataset} {wildcards.task} "
        "{wildcards.setting}, {wildcards.method}, seed {wildcards.seed}"
    shell:
        LAUNCH + " --log {log:q} --gpus {resources.gpu} --cores {threads}"
        " --nodes {resources.nodes} --compute {resources.compute:q}"
        " kproba.jobs.train {input.settings:q} --folders {resources.folders:q}"
        " --names {resources.names:q}"
        " --split {input.split:q} --chain {input.chain:q}"
        " --previous {input.previous:q} --pseudo-labels {input.pseudo_labels:q}"
        " --bank {input.bank:q} --feature-network {input.feature_network:q}"
        " --statistics {input.statistics:q} --saliency {input.saliency:q}"
        " --memory {input.memory:q} --memory-labels {input.memory_labels:q}"
        " --weights {input.weights:q} --validation {input.validation:q}"
        " --model {output.model:q} --metrics {output.metrics:q} --usage {output.usage:q}"
        " --tensorboard {output.tensorboard:q} {resources.own_weights}"


# A method that is trained on everything at once has one training, the longest of all.
use rule train_step as train_joint with:
    """Train on everything at once; such a method has only the last step."""
    wildcard_constraints:
        step=r"[1-9]\d*",
        method=joint_methods,
    message:
        "Training on everything at once: {wildcards.dataset} {wildcards.task} "
        "{wildcards.setting}, {wildcards.method}, seed {wildcards.seed}"


ruleorder: train_joint > train_step


# All methods with the same head share one training of step 0.
use rule train_step as train_base with:
    """Train step 0, once for all methods with the same head."""
    wildcard_constraints:
        step="0",
        method="|".join(
            re.escape(name) for name in base_methods() if name != PRETRAINED
        ),
    message:
        "Training step 0 with {wildcards.task} classes of {wildcards.dataset}, "
        "{wildcards.setting}, seed {wildcards.seed}"


# The prototypes may use the features of a backbone that was never fine-tuned.
use rule train_step as write_pretrained with:
    """Write the network of step 0 before its training, for the features of banks."""
    wildcard_constraints:
        step="0",
        method=re.escape(PRETRAINED),
    message:
        "Writing the network before step 0 with {wildcards.task} classes of "
        "{wildcards.dataset}, seed {wildcards.seed}"
