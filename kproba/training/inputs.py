"""The images of a training: those of the step, old ones, and how long it takes."""

import logging

import pandas as pd

from kproba.data.labels import check_room_for_unknown
from kproba.data.memory import Memory, check_memory, read_memory
from kproba.data.memory_rules import MEMORY_RULES
from kproba.data.splits import read_index
from kproba.data.stream import count_iterations
from kproba.methods.terms import SALIENCY
from kproba.training.files import Files
from kproba.training.settings import StepSettings

log = logging.getLogger("kproba")


def read_split(settings: StepSettings, files: Files) -> pd.DataFrame:
    """The images of the step, with their saliency maps if the method reads them.

    Raises:
        ValueError: The method reads saliency maps, but there are none, or too many
            classes.
    """
    split = read_index(files.split, files.folders)
    return _with_maps(split, settings, files)


def _with_maps(
    rows: pd.DataFrame, settings: StepSettings, files: Files
) -> pd.DataFrame:
    """Images with their saliency maps, if the method reads them."""
    if SALIENCY not in settings.method.needs:
        return rows
    check_room_for_unknown(settings.label_map.channels)
    if not files.saliency:
        raise ValueError(
            "Expected the tables of the saliency maps for a method with a class for "
            "unknown objects, but got none. Name saliency.csv of every dataset with "
            "--saliency, or use the method ssul_light, which needs none."
        )
    # Late, because it loads libraries that few trainings need.
    from kproba.data.saliency_table import with_saliency

    return with_saliency(rows, files.saliency, files.folders)


def read_old_images(settings: StepSettings, files: Files) -> Memory | None:
    """The old images of a step; None if its method has no memory.

    Raises:
        ValueError: The settings name a memory but there is no file, or the reverse.
        ArtifactError: The memory is of another step or task.
    """
    names = files.memory, files.memory_labels
    if settings.memory is None and names == (None, None):
        return None
    if settings.memory is None or files.memory is None or files.memory_labels is None:
        raise ValueError(
            "Expected the memory of the previous step exactly if the settings have the "
            "key `memory`, but only one of them is there. Name both files with "
            "--memory and --memory-labels, or neither."
        )
    seen = settings.label_map.seen
    check_memory(files.memory, step=settings.step - 1, seen=seen)
    rows = read_memory(files.memory, files.folders)
    rule = MEMORY_RULES[settings.memory.rule]
    log.info("%d old images in memory, by the rule '%s'", len(rows), rule.name)
    if rule.leaks:
        log.warning(
            "the memory of this training leaks: old images have labels of later "
            "classes, which nobody gave them"
        )
    return Memory(_with_maps(rows, settings, files), files.memory_labels)


def iterations_of_chain(settings: StepSettings, files: Files) -> int | None:
    """Iterations of the training, if its epochs do not decide on them.

    Returns:
        The iterations of all steps of a chain together, where each step by epochs needs
        the number of rows of its image list; or those in the settings; or None.

    Raises:
        ValueError: There is not one image list for each step of the chain.
    """
    chain = settings.optimisation.chain
    if len(chain) != len(files.chain):
        raise ValueError(
            f"Expected an image list for each of the {len(chain)} steps of the chain "
            f"in settings.json, but got {len(files.chain)}. Name them with --chain."
        )
    total = 0
    for step, split in zip(chain, files.chain, strict=True):
        if step.epochs is not None:
            images = len(read_index(split))
            total += count_iterations(images, step.epochs, step.batch_size)
        total += step.iterations or 0
    return total or settings.optimisation.iterations
