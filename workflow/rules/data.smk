rule write_digits:
    output:
        scenes=directory("results/data/{dataset}/scenes"),
    log:
        "results/data/{dataset}/scenes.log",
    conda:
        "../../envs/kproba.yaml"
    threads: 8
    params:
        settings=digits_settings,
    message:
        "Drawing the scenes of {wildcards.dataset}"
    script:
        "../scripts/write_digits.py"


rule download_archive:
    output:
        archive="results/data/{dataset}/archives/{archive}",
    log:
        "results/data/{dataset}/archives/{archive}.log",
    localrule: True  # nodes of a cluster often have no internet
    conda:
        "../../envs/kproba.yaml"
    resources:
        mirrors=mirrors,  # no param: where a file comes from does not change it
    params:
        checksum=checksum,
    message:
        "Downloading {wildcards.archive}"
    script:
        "../scripts/download_archive.py"


rule unpack_archives:
    input:
        archives=archives_of_dataset,
    output:
        folder=directory("results/data/{dataset}/unpacked"),
    log:
        "results/data/{dataset}/unpacked.log",
    conda:
        "../../envs/kproba.yaml"
    params:
        checksums=checksums,
    message:
        "Unpacking the archives of {wildcards.dataset}"
    script:
        "../scripts/unpack_archives.py"


rule prepare_dataset:
    input:
        folder=made_dataset,
    output:
        index="results/data/{dataset}/index.csv",
        integrity="results/data/{dataset}/integrity.json",
    log:
        "results/data/{dataset}/index.log",
    priority: 20  # a faulty dataset stops the run before anything else is begun
    conda:
        "../../envs/kproba.yaml"
    threads: 8
    params:
        settings=index_settings,
        class_count=class_count,
        files=state_of_dataset,
    message:
        "Checking and indexing the images and masks of {wildcards.dataset}"
    script:
        "../scripts/prepare_dataset.py"


rule make_split:
    input:
        indices=indices_of_step,
    output:
        split="results/splits/{dataset}/{task}-{setting}/step{step}.csv",
    log:
        "results/splits/{dataset}/{task}-{setting}/step{step}.log",
    localrule: True
    conda:
        "../../envs/kproba.yaml"
    params:
        groups=groups_so_far,
    message:
        "Listing the images of step {wildcards.step} of {wildcards.dataset} "
        "{wildcards.task}, {wildcards.setting}"
    script:
        "../scripts/make_split.py"


rule list_classes:
    output:
        classes="results/splits/{dataset}/{task}-{setting}/classes.json",
    log:
        "results/splits/{dataset}/{task}-{setting}/classes.log",
    localrule: True
    conda:
        "../../envs/kproba.yaml"
    params:
        groups=all_groups,
        names=label_names,
    message:
        "Listing the classes of {wildcards.dataset} {wildcards.task}"
    script:
        "../scripts/list_classes.py"
