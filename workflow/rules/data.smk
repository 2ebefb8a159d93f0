rule draw_scenes:
    """Draw the pictures and masks of a dataset of the kinds digits and glyphs."""
    output:
        scenes=directory(artifacts.SCENES),
    log:
        artifacts.log_path(artifacts.SCENES, "scenes"),
    conda:
        ENVIRONMENT
    threads: 8
    resources:
        kind=dataset_kind,  # no param: the settings of two kinds always differ
        settings=as_json(drawing_settings),
    params:
        settings=digest(drawing_settings),
    message:
        "Drawing the pictures and masks of {wildcards.dataset}"
    script:
        script_file("draw_scenes.py")


rule download_archive:
    """Download an archive of a published dataset."""
    output:
        archive=artifacts.ARCHIVE,
    log:
        artifacts.log_path(artifacts.ARCHIVE, "{archive}"),
    localrule: True  # the nodes of a cluster often have no internet
    conda:
        ENVIRONMENT
    resources:
        mirrors=mirrors,  # no param: the source of a file does not change its content
    params:
        checksum=checksum,
    message:
        "Downloading {wildcards.archive}"
    script:
        script_file("download_archive.py")


rule unpack_archives:
    """Unpack the archives of a published dataset."""
    input:
        archives=archives_of_dataset,
    output:
        folder=directory(artifacts.UNPACKED),
    log:
        artifacts.log_path(artifacts.UNPACKED, "unpacked"),
    conda:
        ENVIRONMENT
    params:
        checksums=checksums,
    message:
        "Unpacking the archives of {wildcards.dataset}"
    script:
        script_file("unpack_archives.py")


rule prepare_dataset:
    """Read every image and mask of a dataset, check them and list them in index.csv."""
    input:
        folder=made_dataset,
    output:
        index=artifacts.INDEX,
        integrity=artifacts.INTEGRITY,
        files=artifacts.FILES,
        masks=directory(artifacts.MADE_MASKS),
    log:
        artifacts.log_path(artifacts.INDEX, "index"),
    priority: 20  # a faulty dataset stops the run before other jobs start
    conda:
        ENVIRONMENT
    threads: 8
    resources:
        settings=as_json(index_settings),
        context=as_json(index_context),
    params:
        settings=digest(index_settings),
        class_count=class_count,
        files=state_of_dataset,
    message:
        "Checking and indexing the images and masks of {wildcards.dataset}"
    script:
        script_file("prepare_dataset.py")


# A table of its own: new maps must not change the index, on which all trainings depend.
rule list_saliency:
    """Check the saliency maps of all training images and list them in saliency.csv."""
    input:
        folder=made_dataset,
        index=artifacts.INDEX,
    output:
        table=artifacts.SALIENCY,
        files=artifacts.SALIENCY_FILES,
    log:
        artifacts.log_path(artifacts.SALIENCY, "saliency"),
    priority: 20  # missing maps stop the run before other jobs start
    conda:
        ENVIRONMENT
    threads: 8
    resources:
        settings=as_json(saliency_settings),
    params:
        files=state_of_saliency,
    message:
        "Checking the saliency maps of {wildcards.dataset}"
    script:
        script_file("list_saliency.py")


rule receive_model:
    """Copy a network from a packed step."""
    output:
        model=artifacts.RECEIVED_MODEL,
        description=artifacts.RECEIVED_DESCRIPTION,
    log:
        artifacts.log_path(artifacts.RECEIVED_MODEL, "received"),
    wildcard_constraints:
        network="step|step0",
    localrule: True
    conda:
        ENVIRONMENT
    resources:
        step=packed_step,  # no input: the folder of the archive does not matter
    params:
        sha256=packed_digest,
    message:
        "Copying the network ({wildcards.network}) of the packed step of "
        "{wildcards.dataset}"
    script:
        script_file("receive.py")


rule receive_bank:
    """Copy the prototype bank from a packed step."""
    output:
        model=artifacts.RECEIVED_BANK,
        description=artifacts.RECEIVED_BANK_DESCRIPTION,
    log:
        artifacts.log_path(artifacts.RECEIVED_BANK, "received"),
    localrule: True
    conda:
        ENVIRONMENT
    resources:
        step=packed_step,  # no input: the folder of the archive does not matter
    params:
        sha256=packed_digest,
    message:
        "Copying the prototype bank of the packed step of {wildcards.dataset}"
    script:
        script_file("receive.py")


rule make_split:
    """List the training images of a step."""
    input:
        indices=indices_of_step,
    output:
        split=artifacts.SPLIT,
    log:
        artifacts.log_path(artifacts.SPLIT, "step{step}"),
    localrule: True
    conda:
        ENVIRONMENT
    resources:
        groups=as_json(groups_so_far),
        classes=as_json(divided_classes),
    params:
        groups=digest(split_settings),
    message:
        "Listing the training images of step {wildcards.step} of {wildcards.dataset} "
        "{wildcards.task}, {wildcards.setting}"
    script:
        script_file("make_split.py")


rule list_classes:
    """List the classes of a task, with their labels and steps."""
    output:
        classes=artifacts.CLASSES,
    log:
        artifacts.log_path(artifacts.CLASSES, "classes"),
    localrule: True
    conda:
        ENVIRONMENT
    resources:
        classes=as_json(class_list),
    params:
        classes=digest(class_list),
    message:
        "Listing the classes of {wildcards.dataset} {wildcards.task}"
    script:
        script_file("list_classes.py")
