"""Check every image and mask of a dataset and write its index."""

import json
from typing import TYPE_CHECKING

from kproba.data.index import index_dataset
from kproba.data.task_check import TaskSteps, check_steps
from kproba.extensions import load_recorded
from kproba.runtime.logs import log_to

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with log_to(snakemake.log[0], terminal=True):
    # The index does not depend on the context, such as the names of classes.
    settings = json.loads(snakemake.resources.settings)
    settings |= json.loads(snakemake.resources.context)
    tasks = [TaskSteps.from_dict(task) for task in settings.pop("tasks")]
    load_recorded(settings.pop("extensions", []))
    index_dataset(
        snakemake.output.index,
        snakemake.output.integrity,
        files=snakemake.output.files,
        masks=snakemake.output.masks,
        workers=snakemake.threads,
        **settings
        | {
            "class_count": snakemake.params.class_count,
            "state": snakemake.params.files,
        },
    )
    check_steps(snakemake.output.index, tasks, settings["names"])
